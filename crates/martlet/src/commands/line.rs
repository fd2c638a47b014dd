//! `martlet publish`, `resume --from`, `lease …`.

use super::{Context, machine};
use crate::cli::{FollowCommand, FromLine, LeaseCommand, LineArgs, Policy};
use crate::failure::Outcome;
use crate::show;
use martlet_api::{
    FollowInfo, FollowRequest, LeaseInfo, LineInfo, LineRequest, LineState, MachineInfo, PointRequest, Probe,
    PublishReport, PublishRequest, ResumeFromRequest, TransferPolicy,
};

const LOOKING: &str = "looking what is there";

impl From<Policy> for TransferPolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Baseline => Self::Baseline,
            Policy::Demand => Self::Demand,
            Policy::Adaptive => Self::Adaptive,
        }
    }
}

/// Gives a machine the line that was asked for, if it is not on it already.
pub fn begin(context: &Context, name: &str, args: LineArgs) -> Outcome {
    let Some(remote) = args.to else { return Ok(()) };
    let reference = args.reference;
    let machine: MachineInfo = super::understood(context.client()?.get(&format!("/v1/machines/{name}"))?)?;
    let is_on_it = machine.line.is_some_and(|line| {
        line.remote == remote && reference.as_ref().is_none_or(|asked| *asked == line.reference)
    });
    if is_on_it {
        return Ok(());
    }
    let request = LineRequest { remote, reference };
    context
        .operation(&format!("/v1/machines/{name}/line"), &request, LOOKING)
        .map(drop)
}

pub fn publish(context: &Context, name: &str, line: LineArgs, every_s: Option<u32>) -> Outcome {
    begin(context, name, line)?;
    context.long(
        &format!("/v1/machines/{name}/publish"),
        &PublishRequest { every_s },
        &format!("publishing {name}"),
        |report| published(&report),
    )
}

/// A machine of this host, or one that is published at a remote.
pub fn resume(context: &Context, from: FromLine, name: &str, probe: Option<Probe>) -> Outcome {
    let Some(remote) = from.from else {
        return machine::resume(context, name, probe);
    };
    let request = ResumeFromRequest {
        reference: name.to_owned(),
        name: from.called,
        policy: from.policy.into(),
        ask_s: from.ask,
        check_out_days: from.check_out,
        probe,
    };
    context.long(
        &format!("/v1/remotes/{remote}/resume"),
        &request,
        LOOKING,
        machine::started,
    )
}

pub fn lease(context: &Context, command: LeaseCommand) -> Outcome {
    match command {
        LeaseCommand::Show(at) => context.get(
            &format!("/v1/remotes/{}/leases/{}", at.remote, at.reference),
            holder,
        ),
        LeaseCommand::Ask(at) => context.long(
            &format!("/v1/remotes/{}/leases/{}/ask", at.remote, at.reference),
            &(),
            LOOKING,
            holder,
        ),
        LeaseCommand::Break(at) => {
            let path = format!("/v1/remotes/{}/leases/{}", at.remote, at.reference);
            context.client()?.delete(&path)?;
            if !context.quiet && !context.json {
                show::print(&format!("{}\n", at.reference));
            }
            Ok(())
        }
    }
}

pub fn point(
    context: &Context,
    remote: &str,
    name: &str,
    version: Option<u32>,
    branch: Option<String>,
) -> Outcome {
    context.long(
        &format!("/v1/remotes/{remote}/snapshots/{name}/point"),
        &PointRequest { version, branch },
        LOOKING,
        |at: LeaseInfo| {
            let snapshot = show::short_id(&at.snapshot);
            format!(
                "{} is snapshot {snapshot} (version {})\n",
                at.reference, at.version
            )
        },
    )
}

pub fn published(report: &PublishReport) -> String {
    let then = match (report.side, report.released) {
        (true, _) => "beside the machine's line, which has gone on elsewhere",
        (false, true) => "whoever has that remote may go on with it",
        (false, false) => "it goes on here",
    };
    format!(
        "{} published at {} (version {}): {} sent; {then}\n",
        report.reference,
        report.remote,
        report.version,
        show::size(report.moved_bytes)
    )
}

/// A machine's line in one line.
pub fn words(line: &LineInfo) -> String {
    let state = match (line.state, line.published) {
        (LineState::Free, true) => "free: whoever has that remote may go on with it",
        (LineState::Free, false) => "not published yet",
        (LineState::Held, true) => "held here, published",
        (LineState::Held, false) => "held here",
        (LineState::Lost, _) => "lost: it has gone on elsewhere",
    };
    let every = line
        .every_s
        .map(|every_s| format!(", published every {every_s} s"));
    format!(
        "{} at {} (version {}), {state}{}",
        line.reference,
        line.remote,
        line.version,
        every.unwrap_or_default()
    )
}

fn holder(at: LeaseInfo) -> String {
    let snapshot = format!("{} (version {})", show::short_id(&at.snapshot), at.version);
    let Some(held) = at.held else {
        return show::pairs([
            ("line", at.reference),
            ("snapshot", snapshot),
            ("held by", "nobody".into()),
        ]);
    };
    let here = if held.here { " (this host)" } else { "" };
    show::pairs([
        ("line", at.reference),
        ("snapshot", snapshot),
        ("held by", format!("{}{here}", held.host)),
        ("since", show::age(held.since_unix_ms)),
        (
            "last sign",
            held.heard_unix_ms.map_or_else(|| "none yet".into(), show::age),
        ),
        (
            "checked out",
            held.until_unix_ms.map_or_else(|| "no".into(), show::until),
        ),
        ("asked for by", show::or_none(&held.asked_by.unwrap_or_default())),
    ])
}

pub fn follow(context: &Context, command: FollowCommand) -> Outcome {
    let said = |reference: &str| {
        if !context.quiet && !context.json {
            show::print(&format!("{reference}\n"));
        }
    };
    match command {
        FollowCommand::Add { when_likely, line } => {
            let request = FollowRequest {
                reference: line.reference.clone(),
                when_likely,
            };
            context
                .client()?
                .post(&format!("/v1/remotes/{}/follows", line.remote), &request)?;
            said(&line.reference);
            Ok(())
        }
        FollowCommand::Rm(line) => {
            let path = format!("/v1/remotes/{}/follows/{}", line.remote, line.reference);
            context.client()?.delete(&path)?;
            said(&line.reference);
            Ok(())
        }
        FollowCommand::Ls => context.get("/v1/follows", follows),
    }
}

fn follows(follows: Vec<FollowInfo>) -> String {
    show::table(
        ["LINE", "AT", "VERSION", "HERE", "CAME", "NEXT", "FORESEEN"],
        follows.into_iter().map(|line| {
            let next = line.next.first();
            let next = next.map(|next| format!("{} ({:.0} %)", next.host, next.likely * 100.0));
            [
                line.reference,
                line.remote,
                line.version.to_string(),
                match (&line.problem, line.here) {
                    (Some(problem), _) => format!("not known: {problem}"),
                    (None, true) => "yes".into(),
                    (None, false) => "no".into(),
                },
                show::size(line.moved_bytes),
                show::or_none(&next.unwrap_or_default()),
                format!("{} of {}", line.right, line.foreseen),
            ]
        }),
    )
}
