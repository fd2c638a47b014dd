//! `martlet-agent`: as process 1 it boots the guest; started by an existing init it only serves; called `martlet-guest` it is
//! the command of that name.

use martlet_agent::{Agent, AgentOptions, init, log, port, tools};
use std::ffi::OsStr;
use std::path::Path;

fn main() -> std::process::ExitCode {
    let mut args = std::env::args_os();
    let called = args.next().unwrap_or_default();
    if Path::new(&called).file_name() == Some(OsStr::new(tools::COMMAND)) {
        return martlet_guest::cli::main(args);
    }
    if std::process::id() == 1 {
        let error = init::run();
        // Process 1 must not return: the kernel panics and QEMU's last words say why.
        log::log(&format!("cannot start the guest: {error}"));
        std::process::exit(1);
    }
    let agent = Agent::new(AgentOptions::service());
    let error = port::serve(&agent);
    log::log(&format!("stopped: {error}"));
    std::process::exit(1);
}
