//! Machines: run, list, stop, remove.

use super::base::init;
use super::{Context, line, snapshot, timeline, understood};
use crate::cli::RunArgs;
use crate::failure::{Failure, Outcome};
use crate::progress::Reporter;
use crate::show;
use martlet_api::*;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// How often `top` looks.
const TOP_INTERVAL: Duration = Duration::from_secs(2);

pub fn run(context: &Context, args: RunArgs) -> Outcome {
    let shell = args.cmd.map(|line| vec!["/bin/sh".into(), "-c".into(), line]);
    let request = RunRequest {
        name: args.name,
        from: args.from,
        cpus: args.cpus,
        memory_bytes: args.memory,
        disk_bytes: args.disk,
        env: args.env.into_iter().collect(),
        cmd: shell.unwrap_or(args.command),
        ports: args.ports,
        accel: args.accel.map(Into::into),
        outbound: args.outbound,
        outbound_to: args.outbound_to,
        outbound_bytes_per_s: args.outbound_rate,
        tap: args.tap,
        family: args.family,
        detach: args.detach,
        restart: args.restart,
        probe: args.probe.probe,
        allow_agentless: args.allow_agentless,
        fork: (!args.fork_by.is_empty()).then_some(martlet_api::ForkPolicy {
            by: args.fork_by,
            most: args.fork_most,
            on: args.fork_on,
        }),
    };
    run_request(context, &request, "")
}

/// `root,1000, 64 processes at a, b`; nothing when nobody may.
fn fork_policy(fork: Option<&ForkPolicy>) -> String {
    let Some(fork) = fork else {
        return String::new();
    };
    let on = if fork.on.is_empty() {
        "this host".into()
    } else {
        fork.on.join(", ")
    };
    format!("{}: {} processes at {on}", fork.by.join(", "), fork.most)
}

/// Runs a machine from a snapshot, as that was; after `before`, which is said with it.
pub fn run_snapshot(context: &Context, name: Option<String>, from: String, before: &str) -> Outcome {
    let request = RunRequest {
        name,
        from,
        ..RunRequest::default()
    };
    run_request(context, &request, before)
}

fn run_request(context: &Context, request: &RunRequest, before: &str) -> Outcome {
    context.long("/v1/machines", request, "starting", |machine: MachineInfo| {
        let mut text = format!(
            "{before}machine {} {}\n",
            machine.name,
            show::state(machine.state)
        );
        for port in &machine.ports {
            text += &format!("127.0.0.1:{} reaches port {}\n", port.host_port, port.guest_port);
        }
        text + &after_start(&machine)
    })
}

/// The timeline's line, when there is something in it.
fn after_start(machine: &MachineInfo) -> String {
    match timeline::line(&machine.timeline) {
        line if line.is_empty() => line,
        line => format!("{line}\n"),
    }
}

pub fn list(context: &Context) -> Outcome {
    context.get("/v1/machines", |machines: Vec<MachineInfo>| {
        show::table(
            [
                "NAME", "STATE", "FROM", "CPUS", "MEMORY", "ADDRESS", "PORTS", "CREATED",
            ],
            machines.into_iter().map(|machine| {
                let (state, ports) = (show::state(machine.state).to_string(), ports(&machine.ports));
                let (cpus, memory) = (machine.cpus.to_string(), show::size(machine.memory_bytes));
                let created = show::age(machine.created_unix_ms);
                [
                    machine.name,
                    state,
                    machine.from,
                    cpus,
                    memory,
                    machine.address,
                    ports,
                    created,
                ]
            }),
        )
    })
}

fn ports(ports: &[PortForward]) -> String {
    let each: Vec<_> = ports
        .iter()
        .map(|port| format!("{}:{}", port.host_port, port.guest_port))
        .collect();
    show::or_none(&each.join(" "))
}

/// A machine, else a snapshot, else a base.
pub fn inspect(context: &Context, name: &str) -> Outcome {
    let client = context.client()?;
    let not_found = |failure: &Failure| failure.problem.code == ProblemCode::NotFound;
    if names::check_name(name).is_ok() {
        match client.get(&format!("/v1/machines/{name}")) {
            Err(failure) if not_found(&failure) => (),
            answer => return context.show(answer?, describe),
        }
        match client.get(&format!("/v1/bases/{name}")) {
            Err(failure) if not_found(&failure) => (),
            answer => {
                return context.show(answer?, |base: BaseInfo| {
                    format!(
                        "{} is a base ({}); see `martlet base inspect {}`\n",
                        base.name,
                        init(base.init),
                        base.name
                    )
                });
            }
        }
    }
    match client.get(&format!("/v1/snapshots/{name}")) {
        Err(failure) if not_found(&failure) => Err(Problem::new(
            ProblemCode::NotFound,
            format!("there is no machine, snapshot or base called {name}"),
        )
        .remediation("see `martlet ps`, `martlet images` and `martlet base ls`")
        .into()),
        answer => context.show(answer?, snapshot::describe),
    }
}

fn describe(machine: MachineInfo) -> String {
    let fork = fork_policy(machine.fork.as_ref());
    let of = |member: &FamilyInfo| format!("{} of {}, {}", member.name, member.family, member.address);
    let family = machine.family.as_ref().map(of).unwrap_or_default();
    let accel = match machine.accel {
        Accel::Kvm => "kvm",
        Accel::Tcg => "tcg",
    };
    show::pairs([
        ("name", machine.name),
        ("id", machine.id),
        ("state", show::state(machine.state).into()),
        (
            "line",
            show::or_none(&machine.line.as_ref().map(line::words).unwrap_or_default()),
        ),
        (
            "last error",
            show::or_none(machine.last_error.as_deref().unwrap_or_default()),
        ),
        ("from", machine.from),
        ("created", show::age(machine.created_unix_ms)),
        ("cpus", machine.cpus.to_string()),
        ("memory", show::size(machine.memory_bytes)),
        ("disk", show::size(machine.disk_bytes)),
        ("host name", machine.hostname),
        ("address", format!("{} ({})", machine.address, machine.mac)),
        ("ports", ports(&machine.ports)),
        ("fork by", show::or_none(&fork)),
        ("tap", show::or_none(machine.tap.as_deref().unwrap_or_default())),
        ("family", show::or_none(&family)),
        (
            "process",
            machine
                .pid
                .map_or_else(|| show::NONE.into(), |pid| pid.to_string()),
        ),
        (
            "hardware",
            format!(
                "{} {} {accel}, QEMU {}",
                machine.machine_type, machine.cpu_model, machine.qemu_version
            ),
        ),
        (
            "agent",
            if machine.agent {
                "answers"
            } else {
                "has not answered"
            }
            .into(),
        ),
        ("generation", machine.generation.to_string()),
        (
            "snapshot",
            machine
                .snapshot
                .as_deref()
                .map_or_else(|| show::NONE.into(), show::short_id),
        ),
        ("last start", show::or_none(&timeline::line(&machine.timeline))),
        (
            "restart",
            if machine.restart {
                "from its last checkpoint"
            } else {
                "no"
            }
            .into(),
        ),
    ])
}

pub fn logs(context: &Context, name: &str, follow: bool) -> Outcome {
    let mut out = std::io::stdout().lock();
    context
        .client()?
        .download(&format!("/v1/machines/{name}/logs?follow={follow}"), |chunk| {
            // A reader that has seen enough ends this in peace.
            Ok(out.write_all(&chunk).and_then(|()| out.flush()).is_ok())
        })
}

pub fn stop(context: &Context, names: &[String], timeout_s: u64) -> Outcome {
    let request = StopRequest {
        timeout_ms: timeout_s * 1000,
    };
    context.each(names, |client, name| {
        let reporter = Reporter::new(&format!("stopping {name}"), context.quiet, context.json);
        let answer = client.post(&format!("/v1/machines/{name}/stop"), &request);
        drop(reporter);
        context.show(answer?, name_and_state)
    })
}

fn name_and_state(machine: MachineInfo) -> String {
    format!("{} {}\n", machine.name, show::state(machine.state))
}

pub fn kill(context: &Context, names: &[String]) -> Outcome {
    context.each(names, |client, name| {
        let answer = client.post(&format!("/v1/machines/{name}/kill"), &serde_json::json!({}))?;
        context.show(answer, name_and_state)
    })
}

pub fn start(context: &Context, names: &[String]) -> Outcome {
    context.each(names, |_, name| {
        let path = format!("/v1/machines/{name}/start");
        context.long(
            &path,
            &serde_json::json!({}),
            &format!("starting {name}"),
            started,
        )
    })
}

pub fn started(machine: MachineInfo) -> String {
    let line = after_start(&machine);
    name_and_state(machine) + &line
}

pub fn remove(context: &Context, names: &[String], force: bool) -> Outcome {
    context.each_at_once(names, |client, name| {
        client.delete(&format!("/v1/machines/{name}?force={force}"))?;
        if !context.quiet && !context.json {
            show::print(&format!("{name}\n"));
        }
        Ok(())
    })
}

pub fn rename(context: &Context, name: &str, new: &str) -> Outcome {
    let answer = context.client()?.post(
        &format!("/v1/machines/{name}/rename"),
        &RenameRequest { name: new.into() },
    )?;
    context.show(answer, |machine: MachineInfo| format!("{}\n", machine.name))
}

pub fn resume(context: &Context, name: &str, probe: Option<Probe>) -> Outcome {
    names::check_name(name)?;
    let path = format!("/v1/machines/{name}/resume");
    context.long(
        &path,
        &ResumeRequest { probe },
        &format!("resuming {name}"),
        started,
    )
}

pub fn rollback(context: &Context, name: &str, to: String) -> Outcome {
    let path = format!("/v1/machines/{name}/rollback");
    let what = format!("taking {name} back to {to}");
    context.long(&path, &RollbackRequest { to }, &what, started)
}

pub fn top(context: &Context, once: bool) -> Outcome {
    let client = context.client()?;
    let again = !once && !context.json && std::io::stdout().is_terminal();
    // The first look only sets the mark that CPU use is measured from.
    client.get("/v1/usage")?;
    std::thread::sleep(if again {
        Duration::from_millis(300)
    } else {
        Duration::from_millis(500)
    });
    if again {
        show::print("\x1b[2J");
    }
    loop {
        let answer = client.get("/v1/usage")?;
        if !again {
            let ahead: PoolUsage = understood(client.get("/v1/pool")?)?;
            return context.show(answer, |machines| {
                usage(machines) + &format!("started ahead: {}\n", show::pool(&ahead))
            });
        }
        let ahead: PoolUsage = understood(client.get("/v1/pool")?)?;
        let text = usage(understood(answer)?) + &format!("started ahead: {}\n", show::pool(&ahead));
        show::redraw(&text);
        std::thread::sleep(TOP_INTERVAL);
    }
}

fn usage(machines: Vec<MachineUsage>) -> String {
    show::table(
        [
            "NAME",
            "STATE",
            "CPU",
            "MEMORY",
            "PRIVATE",
            "FAULTED",
            "WRITTEN",
            "LOAD",
            "GUEST FREE",
            "PROCESSES",
        ],
        machines.into_iter().map(|machine| {
            let guest = |show: fn(&GuestUsage) -> String| {
                machine.guest.as_ref().map_or_else(|| show::NONE.into(), show)
            };
            let cells = [
                guest(|g| format!("{:.2}", g.load)),
                guest(|g| show::size(g.memory_available_bytes)),
            ];
            let [load, free] = cells;
            let processes = guest(|g| g.processes.to_string());
            let cpu = format!("{:.0} %", machine.cpu_percent);
            let sizes = [
                machine.memory_bytes,
                machine.private_bytes,
                machine.faulted_bytes,
                machine.disk_written_bytes,
            ];
            let [memory, private, faulted, written] = sizes.map(show::size);
            let state = show::state(machine.state).to_string();
            [
                machine.name,
                state,
                cpu,
                memory,
                private,
                faulted,
                written,
                load,
                free,
                processes,
            ]
        }),
    )
}
