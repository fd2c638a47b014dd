//! This program, the daemon and the host.

use super::{Context, understood};
use crate::cli::{Cli, DaemonCommand};
use crate::client::Client;
use crate::failure::{Failure, Outcome};
use crate::{doctor, show};
use clap::CommandFactory;
use clap_complete::Shell;
use martlet_api::{Check, CheckStatus, VersionInfo};
use serde_json::json;
use std::path::Path;

/// Exit status when something that is needed is missing.
const UNFIT: u8 = 5;

/// This host as seen from here, and what a daemon that runs adds to it.
pub fn doctor(context: &Context) -> Outcome<u8> {
    let mut checks = doctor::local(&context.daemon);
    if context.daemon.answers() {
        let known: Vec<_> = checks.iter().map(|check| check.name.clone()).collect();
        let more: Vec<Check> = understood(Client::new(&context.daemon.socket)?.get("/v1/doctor")?)?;
        checks.extend(more.into_iter().filter(|check| !known.contains(&check.name)));
    }
    let worst = checks
        .iter()
        .map(|check| check.status)
        .max()
        .unwrap_or(CheckStatus::Ok);
    match context.json {
        true => show::print(&format!("{:#}\n", json!(checks))),
        false => show::print(&findings(&checks)),
    }
    Ok(if worst == CheckStatus::Fail { UNFIT } else { 0 })
}

fn findings(checks: &[Check]) -> String {
    let rows = checks.iter().map(|check| {
        let status = match check.status {
            CheckStatus::Ok => "ok",
            CheckStatus::Warn => "warn",
            CheckStatus::Fail => "FAIL",
        };
        [status.to_string(), check.name.clone(), check.found.clone()]
    });
    let mut text = show::table(["", "CHECK", "FOUND"], rows);
    for check in checks {
        if let Some(remedy) = &check.remedy {
            text += &format!("\n{}: {}", check.name, crate::failure::printable(remedy));
        }
    }
    if checks.iter().any(|check| check.remedy.is_some()) {
        text += "\n";
    }
    text
}

pub fn daemon(context: &Context, command: DaemonCommand) -> Outcome<u8> {
    let daemon = &context.daemon;
    let socket = daemon.socket.display();
    match command {
        DaemonCommand::Start => {
            let was_there = daemon.answers();
            if !was_there {
                // Asked for by name, it stays until it is told to go.
                daemon.start("0")?;
            }
            say(
                context,
                &format!(
                    "the daemon {} on {socket}",
                    if was_there { "already serves" } else { "serves" }
                ),
            );
            Ok(0)
        }
        DaemonCommand::Stop => {
            let stopped = daemon.stop()?;
            say(
                context,
                if stopped {
                    "the daemon has ended; machines go on"
                } else {
                    "no daemon was running"
                },
            );
            Ok(0)
        }
        DaemonCommand::Status => {
            let version = daemon.version()?;
            if context.json {
                show::print(&format!(
                    "{:#}\n",
                    json!({ "running": version.is_some(), "daemon": version })
                ));
            } else if let Some(version) = &version {
                show::print(&show::pairs([
                    (
                        "daemon",
                        format!("version {}, process {}", version.version, version.pid),
                    ),
                    ("socket", socket.to_string()),
                    ("state", version.state_dir.clone()),
                ]));
            } else {
                show::print(&format!("no daemon answers on {socket}\n"));
            }
            Ok(if version.is_some() { 0 } else { 3 })
        }
    }
}

fn say(context: &Context, text: &str) {
    if !context.quiet && !context.json {
        show::print(&format!("{text}\n"));
    }
}

pub fn version(context: &Context) -> Outcome {
    let ours = env!("CARGO_PKG_VERSION");
    let theirs: Option<VersionInfo> = match context.host {
        Some(_) => Some(understood(context.client()?.get("/version")?)?),
        None => context.daemon.version()?,
    };
    if context.json {
        show::print(&format!("{:#}\n", json!({ "martlet": ours, "daemon": theirs })));
        return Ok(());
    }
    let theirs = theirs.map_or_else(
        || "not running".into(),
        |v| format!("{} (API {})", v.version, v.api),
    );
    show::print(&show::pairs([("martlet", ours.into()), ("martletd", theirs)]));
    Ok(())
}

pub fn completions(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "martlet", &mut script);
    show::print(&String::from_utf8_lossy(&script));
    Ok(())
}

/// One page for each command; the first has the exit codes.
pub fn man(dir: &Path) -> Outcome {
    let failed = |error| Failure::io(format!("cannot write man pages to {}", dir.display()), error);
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed)
}
