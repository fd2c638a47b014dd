//! Snapshots: take, fork, list, compare, tag, remove.

use super::base::init;
use super::{Context, line, timeline, understood};
use crate::cli::CheckpointArgs;
use crate::failure::{Failure, Outcome};
use crate::show;
use martlet_api::*;

/// Exit status of a fork of which some clones did not start.
const PARTIAL: u8 = 8;

pub fn checkpoint(context: &Context, args: CheckpointArgs, method: CheckpointMethod, verb: &str) -> Outcome {
    let CheckpointArgs {
        tag,
        note,
        trim,
        drop_caches,
        name,
    } = args;
    let path = format!("/v1/machines/{name}/{verb}");
    let what = format!("{verb} of {name}");
    let request = CheckpointRequest {
        tag,
        note,
        trim,
        drop_caches,
        method,
    };
    context.long(&path, &request, &what, report)
}

fn report(report: CheckpointReport) -> String {
    let mut text = format!(
        "snapshot {} ({})\n",
        report.reference,
        show::short_id(&report.snapshot)
    );
    let gave_up = (report.give_up_ms > 0.0).then(|| ("gave up for", show::duration(report.give_up_ms)));
    text += &show::pairs(gave_up.into_iter().chain([
        (
            "paused",
            format!(
                "{} (virtual CPUs {}){}",
                show::duration(report.pause_ms),
                show::duration(report.stop_ms),
                match report.method {
                    CheckpointMethod::Handover => ", handed over to a twin",
                    CheckpointMethod::Auto | CheckpointMethod::Copy => "",
                }
            ),
        ),
        ("durable after", show::duration(report.total_ms)),
        (
            "memory",
            format!(
                "{}, {} of it private",
                show::size(report.memory_bytes),
                show::size(report.private_bytes)
            ),
        ),
        (
            "stored",
            format!(
                "{} for {} that was new",
                show::size(report.stored_bytes),
                show::size(report.new_bytes)
            ),
        ),
    ]));
    if let Some(published) = &report.published {
        text += "\n";
        text += &line::published(published);
    }
    if let Some(problem) = &report.unpublished {
        text += &format!("\nnot published yet: {problem}; that is tried again and again\n");
    }
    if report.avoided.is_empty() {
        return text;
    }
    let total: u64 = report.avoided.iter().map(|avoided| avoided.bytes).sum();
    text += "\n";
    text += &show::table(
        ["AVOIDED", "BECAUSE"],
        report
            .avoided
            .iter()
            .map(|avoided| [show::size(avoided.bytes), because(avoided.means).to_string()])
            .chain([[show::size(total), "in all".to_string()]]),
    );
    text
}

fn because(means: AvoidedMeans) -> &'static str {
    match means {
        AvoidedMeans::Clean => "not touched since the image it started from",
        AvoidedMeans::Zero => "all zero",
        AvoidedMeans::FreePageReporting => "the guest reported it free",
        AvoidedMeans::Discard => "the guest discarded it from its disk",
        AvoidedMeans::Duplicate => "stored already",
    }
}

/// Clones that did not start, or whose command failed, are in the table, each with its reason, and in the exit status.
pub fn fork(context: &Context, source: &str, request: &ForkRequest) -> Outcome<u8> {
    let path = format!("/v1/machines/{source}/fork");
    let answer = context.operation(&path, request, &format!("forking {source}"))?;
    let report: ForkReport = understood(answer.clone())?;
    let is_bad = |clone: &&CloneResult| {
        let ended_well = |output: &CloneOutput| output.status == ExitStatus::Code(0);
        clone.problem.is_some() || !clone.output.as_ref().is_none_or(ended_well)
    };
    let failed = report.clones.iter().filter(is_bad).count();
    match request.command {
        Some(_) => context.show(answer, worked)?,
        None => context.show(answer, forked)?,
    }
    if failed == 0 {
        return Ok(0);
    }
    if !context.json {
        let what = match request.command {
            Some(_) => "did not do what they were to do",
            None => "did not start",
        };
        let whole = format!("{failed} of {} clones {what}", report.clones.len());
        eprint!("{}", Failure::new(ProblemCode::GuestFailed, whole).text(false));
    }
    Ok(PARTIAL)
}

/// What each clone's command wrote, in their order, and how it ended if not well.
fn worked(report: ForkReport) -> String {
    let mut text = String::new();
    for clone in &report.clones {
        let at = clone
            .host
            .as_ref()
            .map(|host| format!(" at {host}"))
            .unwrap_or_default();
        text += &format!("== {}{at}", clone.name);
        match &clone.output {
            Some(output) => {
                text += &match output.status {
                    ExitStatus::Code(0) => "\n".to_owned(),
                    ExitStatus::Code(code) => format!(": exited with {code}\n"),
                    ExitStatus::Signal(signal) => format!(": ended by signal {signal}\n"),
                };
                for part in [&output.stdout, &output.stderr] {
                    text += part;
                    if !part.is_empty() && !part.ends_with('\n') {
                        text.push('\n');
                    }
                }
                if output.is_cut {
                    text += "(there was more)\n";
                }
            }
            None => text.push('\n'),
        }
        if let Some(problem) = &clone.problem {
            text += &Failure::from(problem.clone()).text(false);
        }
    }
    text + &format!("all done after {}\n", show::duration(report.total_ms))
}

fn forked(report: ForkReport) -> String {
    let [load, instruction, exec, response] = timeline::COLUMNS;
    let table = show::table(
        [
            "CLONE",
            "HOST",
            load,
            instruction,
            exec,
            response,
            "ADDRESS",
            "PORTS",
        ],
        report.clones.iter().map(|clone| {
            let [load, instruction, exec, response] = timeline::cells(&clone.timeline);
            let (address, ports) = match &clone.machine {
                Some(machine) => (machine.address.clone(), ports(machine)),
                None => ("did not start".into(), show::NONE.into()),
            };
            [
                clone.name.clone(),
                clone.host.clone().unwrap_or_else(|| show::NONE.into()),
                load,
                instruction,
                exec,
                response,
                address,
                ports,
            ]
        }),
    );
    let mut text = table;
    for clone in &report.clones {
        if let Some(problem) = &clone.problem {
            text += &format!("\n{}: {}", clone.name, Failure::from(problem.clone()).text(false));
        }
    }
    let (pause, total) = (show::duration(report.pause_ms), show::duration(report.total_ms));
    let sent = match report.sent_bytes {
        0 => String::new(),
        bytes => format!(", {} sent ahead", show::size(bytes)),
    };
    text + &format!(
        "\nsnapshot {}, parent paused {pause}, all done after {total}{sent}\n",
        show::short_id(&report.snapshot)
    )
}

fn ports(machine: &MachineInfo) -> String {
    let each: Vec<_> = machine
        .ports
        .iter()
        .map(|port| format!("{}:{}", port.host_port, port.guest_port))
        .collect();
    show::or_none(&each.join(" "))
}

pub fn list(context: &Context) -> Outcome {
    context.get("/v1/snapshots", table)
}

pub fn log(context: &Context, source: &str) -> Outcome {
    context.get(&format!("/v1/snapshots/{source}/log"), table)
}

fn table(snapshots: Vec<SnapshotInfo>) -> String {
    show::table(
        [
            "REFERENCE",
            "ID",
            "MEMORY",
            "USED",
            "UNIQUE",
            "PARENT",
            "CREATED",
            "NOTE",
        ],
        snapshots.into_iter().map(|snapshot| {
            let sizes = [snapshot.memory_bytes, snapshot.used_bytes, snapshot.unique_bytes].map(show::size);
            let [memory, used, unique] = sizes;
            let parent = snapshot
                .parent
                .as_deref()
                .map_or_else(|| show::NONE.into(), show::short_id);
            let note = snapshot.note.unwrap_or_default();
            let references = show::or_none(&snapshot.references.join(" "));
            let (id, created) = (show::short_id(&snapshot.id), show::age(snapshot.created_unix_ms));
            [references, id, memory, used, unique, parent, created, note]
        }),
    )
}

pub fn describe(snapshot: SnapshotInfo) -> String {
    let hardware = match snapshot.machine_type.as_str() {
        "" => show::NONE.into(),
        machine_type => format!(
            "{machine_type} {}, saved by QEMU {}",
            snapshot.cpu_model, snapshot.qemu_version
        ),
    };
    show::pairs([
        ("id", snapshot.id),
        ("references", show::or_none(&snapshot.references.join(" "))),
        ("of", snapshot.machine),
        ("created", show::age(snapshot.created_unix_ms)),
        (
            "note",
            show::or_none(snapshot.note.as_deref().unwrap_or_default()),
        ),
        ("parent", snapshot.parent.unwrap_or_else(|| show::NONE.into())),
        ("memory", show::size(snapshot.memory_bytes)),
        ("disk", show::size(snapshot.disk_bytes)),
        ("used", show::size(snapshot.used_bytes)),
        (
            "unique",
            format!(
                "{} that no other snapshot needs",
                show::size(snapshot.unique_bytes)
            ),
        ),
        ("descriptor", show::size(snapshot.descriptor_bytes)),
        ("trace", format!("{} pages", snapshot.trace_pages)),
        ("hardware", hardware),
        ("init", init(snapshot.init).into()),
        ("used by", show::or_none(&snapshot.used_by.join(" "))),
    ])
}

pub fn diff(context: &Context, from: &str, to: &str) -> Outcome {
    context.get(&format!("/v1/diff?from={from}&to={to}"), |diff: SnapshotDiff| {
        let row = |name: &str, image: ImageDiff| {
            let ImageDiff {
                same_bytes,
                changed_bytes,
                added_bytes,
                removed_bytes,
            } = image;
            let [same, changed, added, removed] =
                [same_bytes, changed_bytes, added_bytes, removed_bytes].map(show::size);
            [name.to_string(), same, changed, added, removed]
        };
        let rows = [row("memory", diff.memory), row("disk", diff.disk)];
        show::table(["", "SAME", "CHANGED", "ADDED", "REMOVED"], rows)
    })
}

pub fn tag(context: &Context, reference: &str, new: String) -> Outcome {
    let path = format!("/v1/snapshots/{reference}/tag");
    context.post(&path, &TagRequest { reference: new }, |snapshot: SnapshotInfo| {
        format!(
            "{} ({})\n",
            snapshot.references.join(" "),
            show::short_id(&snapshot.id)
        )
    })
}

pub fn remove(context: &Context, references: &[String]) -> Outcome {
    context.each(references, |client, reference| {
        client.delete(&format!("/v1/snapshots/{reference}"))?;
        if !context.quiet && !context.json {
            show::print(&format!("{reference}\n"));
        }
        Ok(())
    })
}
