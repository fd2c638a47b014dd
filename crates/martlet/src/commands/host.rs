//! `martlet host …`.

use super::remote::read_secret;
use super::{Context, understood};
use crate::cli::HostCommand;
use crate::failure::Outcome;
use crate::show;
use martlet_api::{HostInfo, HostInitRequest, HostInvitationInfo, HostJoinRequest, HostTop, MachineState};
use serde_json::json;
use std::io::IsTerminal;
use std::time::Duration;

/// Between the look that sets the mark which CPU use is measured from, and the first that is shown.
const MARK: Duration = Duration::from_millis(500);

pub fn run(context: &Context, command: HostCommand) -> Outcome {
    match command {
        HostCommand::Init { name, address } => {
            context.post("/v1/hosts/init", &HostInitRequest { name, address }, table)
        }
        HostCommand::Invite => context.post(
            "/v1/hosts/invite",
            &json!({}),
            |invitation: HostInvitationInfo| {
                if !context.quiet {
                    eprintln!("who has this line can be a host of the fleet: once, and for an hour");
                }
                format!("{}\n", invitation.invitation)
            },
        ),
        HostCommand::Join {
            invitation,
            name,
            address,
        } => {
            let request = HostJoinRequest {
                invitation: read_secret(&invitation)?,
                name,
                address,
            };
            context.post("/v1/hosts/join", &request, table)
        }
        HostCommand::Ls => context.get("/v1/hosts", table),
        HostCommand::Top { watch } => top(context, watch.map(Duration::from_secs)),
        HostCommand::Rm { names } => context.each(&names, |client, name| {
            client.delete(&format!("/v1/hosts/{name}"))?;
            if !context.quiet && !context.json {
                show::print(&format!("{name}\n"));
            }
            Ok(())
        }),
    }
}

fn table(hosts: Vec<HostInfo>) -> String {
    show::table(
        ["NAME", "ADDRESS", "ANSWERS"],
        hosts.into_iter().map(|host| {
            let answers = match (host.is_this, host.problem) {
                (true, _) => "this host".into(),
                (false, Some(problem)) => problem,
                (false, None) => "yes".into(),
            };
            [host.name, host.address, answers]
        }),
    )
}

fn top(context: &Context, watch: Option<Duration>) -> Outcome {
    let client = context.client()?;
    client.get("/v1/hosts/top")?;
    std::thread::sleep(MARK);
    let redraws = watch.is_some() && !context.json && std::io::stdout().is_terminal();
    if redraws {
        show::print("\x1b[2J");
    }
    loop {
        let answer = client.get("/v1/hosts/top")?;
        match redraws {
            true => show::redraw(&tops(understood(answer)?)),
            false => context.show(answer, tops)?,
        }
        match watch {
            Some(every) => std::thread::sleep(every),
            None => return Ok(()),
        }
    }
}

fn tops(hosts: Vec<HostTop>) -> String {
    if hosts.is_empty() {
        return "this host is in no fleet\n".into();
    }
    let rows = hosts.iter().map(|host| match &host.usage {
        Some(usage) => {
            let is_running = |state| matches!(state, MachineState::Running | MachineState::Pausing);
            let running = usage
                .machines
                .iter()
                .filter(|machine| is_running(machine.state))
                .count();
            [
                host.name.clone(),
                show::size(usage.memory_total_bytes),
                show::size(usage.memory_available_bytes),
                format!("{:.2} of {}", usage.load, usage.cpus),
                format!("{running} of {}", usage.machines.len()),
                show::size(usage.store_bytes),
            ]
        }
        None => {
            let [memory, free, load, machines, store] = [(); 5].map(|()| show::NONE.to_owned());
            [host.name.clone(), memory, free, load, machines, store]
        }
    });
    let mut text = show::table(["HOST", "MEMORY", "AVAILABLE", "LOAD", "RUNNING", "STORE"], rows);
    let machines: Vec<_> = hosts
        .iter()
        .filter_map(|host| Some((&host.name, host.usage.as_ref()?)))
        .flat_map(|(name, usage)| usage.machines.iter().map(move |machine| (name, machine)))
        .collect();
    if !machines.is_empty() {
        let rows = machines.into_iter().map(|(host, machine)| {
            [
                machine.name.clone(),
                host.clone(),
                show::state(machine.state).to_owned(),
                format!("{:.0} %", machine.cpu_percent),
                show::size(machine.memory_bytes),
                show::size(machine.private_bytes),
            ]
        });
        text += &format!(
            "\n{}",
            show::table(["MACHINE", "HOST", "STATE", "CPU", "MEMORY", "PRIVATE"], rows)
        );
    }
    let silent = hosts.iter().filter_map(|host| host.problem.as_ref());
    for (at, problem) in silent.enumerate() {
        let gap = if at == 0 { "\n" } else { "" };
        text += &format!("{gap}{}\n", crate::failure::printable(problem));
    }
    text
}
