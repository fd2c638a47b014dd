//! `martlet`: the command line. It talks to the daemon through its API and to nothing else.
//!
//! ```text
//!   cli (what may be said) ─► commands (what is asked) ─► client (HTTP) ─► martletd
//!                                  └─► show, progress (what people see)     ▲
//!                                        daemon (found, started, waited for)┤
//!                                        logins (another host, by a token) ─┘
//! ```

mod cli;
mod client;
mod commands;
mod console;
mod daemon;
mod doctor;
mod exec;
mod failure;
mod files;
mod logins;
mod place;
mod process;
mod progress;
mod show;
mod terminal;
mod values;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let json = cli.global.json;
    match commands::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprint!("{}", failure.text(json));
            ExitCode::from(failure.exit_code)
        }
    }
}
