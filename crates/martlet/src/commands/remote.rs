//! `martlet remote …`, `push`, `pull`.

use super::{Context, line, understood};
use crate::cli::{FromRemote, Policy, RemoteCommand};
use crate::failure::{Failure, Outcome};
use crate::show;
use martlet_api::{
    AwaySnapshot, CarryReport, CarryRequest, FetchRequest, PullRequest, PushRequest, RemoteAddRequest,
    RemoteGcReport, RemoteGcRequest, RemoteInfo, RemoteSnapshot, RemoteVersion, TransferReport,
};
use std::io::Read;
use std::path::Path;
use std::time::Instant;

const LOOKING: &str = "looking what is there";
/// Secrets of S3 have 40 characters.
const SECRET_BYTES_MAX: u64 = 4 << 10;

pub fn run(context: &Context, command: RemoteCommand) -> Outcome {
    match command {
        RemoteCommand::Add {
            name,
            address,
            endpoint,
            region,
            user,
            secret_file,
            realm,
        } => {
            let request = RemoteAddRequest {
                name,
                address: absolute(address)?,
                endpoint,
                region,
                user,
                secret: secret_file.map(|file| read_secret(&file)).transpose()?,
                realm,
            };
            context.long("/v1/remotes", &request, "trying it out", tried)
        }
        RemoteCommand::Ls { name: None } => context.get("/v1/remotes", list),
        RemoteCommand::Ls { name: Some(name) } => {
            context.get(&format!("/v1/remotes/{name}/snapshots"), snapshots)
        }
        RemoteCommand::Rm { names } => context.each(&names, |client, name| {
            client.delete(&format!("/v1/remotes/{name}"))?;
            if !context.quiet && !context.json {
                show::print(&format!("{name}\n"));
            }
            Ok(())
        }),
        RemoteCommand::Log { name, snapshot } => {
            context.get(&format!("/v1/remotes/{name}/snapshots/{snapshot}"), versions)
        }
        RemoteCommand::Rollback {
            name,
            snapshot,
            version,
        } => line::point(context, &name, &snapshot, Some(version), None),
        RemoteCommand::Branch {
            version,
            name,
            snapshot,
            new,
        } => line::point(context, &name, &snapshot, version, Some(new)),
        RemoteCommand::Forget { name, snapshot } => {
            context
                .client()?
                .delete(&format!("/v1/remotes/{name}/snapshots/{snapshot}"))?;
            if !context.quiet && !context.json {
                show::print(&format!("{snapshot}\n"));
            }
            Ok(())
        }
        RemoteCommand::Gc {
            dry_run,
            keep_versions,
            name,
        } => {
            let request = RemoteGcRequest {
                keep_versions,
                dry_run,
            };
            context.long(&format!("/v1/remotes/{name}/gc"), &request, LOOKING, collected)
        }
        RemoteCommand::Check { name } => {
            context.long(&format!("/v1/remotes/{name}/check"), &(), "trying it out", tried)
        }
    }
}

/// A directory is the daemon's to find, which is elsewhere; a URL is as it is.
pub fn absolute(address: String) -> Outcome<String> {
    if address.contains("://") {
        return Ok(address);
    }
    std::path::absolute(&address)
        .map(|path| path.to_string_lossy().into_owned())
        .map_err(|error| Failure::io(format!("{address} cannot be a directory"), error))
}

/// A line that is not to be seen by others on the command line.
pub fn read_secret(file: &Path) -> Outcome<String> {
    let mut secret = String::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin()
            .take(SECRET_BYTES_MAX)
            .read_to_string(&mut secret),
        _ => {
            std::fs::File::open(file).and_then(|file| file.take(SECRET_BYTES_MAX).read_to_string(&mut secret))
        }
    };
    read.map_err(|error| Failure::io(format!("cannot read {}", file.display()), error))?;
    Ok(secret.trim().to_owned())
}

pub fn push(context: &Context, remote: &str, request: &PushRequest) -> Outcome {
    context.long(
        &format!("/v1/remotes/{remote}/push"),
        request,
        LOOKING,
        |report: TransferReport| {
            let did = if report.dry_run { "would send" } else { "sent" };
            format!("{} {did}: {}\n", report.reference, moved(&report))
        },
    )
}

pub fn pull(context: &Context, from: FromRemote, dry_run: bool, bandwidth_bytes: Option<u64>) -> Outcome {
    let (path, request) = pull_request(from, dry_run, bandwidth_bytes);
    context.long(&path, &request, LOOKING, |report: TransferReport| {
        let did = if report.dry_run { "would get" } else { "got" };
        format!("{} {did}: {}\n", report.reference, moved(&report))
    })
}

fn pull_request(from: FromRemote, dry_run: bool, bandwidth_bytes: Option<u64>) -> (String, PullRequest) {
    let request = PullRequest {
        snapshot: from.snapshot,
        reference: from.reference,
        dry_run,
        bandwidth_bytes,
    };
    (format!("/v1/remotes/{}/pull", from.remote), request)
}

pub fn fetch(context: &Context, from: FromRemote, rest: bool) -> Outcome {
    let (path, request) = fetch_request(from, rest);
    context.long(&path, &request, LOOKING, |report: TransferReport| {
        let then = if rest {
            "the rest follows"
        } else {
            "the rest comes when it is read"
        };
        format!("{} got: {}; {then}\n", report.reference, moved(&report))
    })
}

fn fetch_request(from: FromRemote, rest: bool) -> (String, FetchRequest) {
    let request = FetchRequest {
        snapshot: from.snapshot,
        reference: from.reference,
        rest,
    };
    (format!("/v1/remotes/{}/fetch", from.remote), request)
}

/// A machine from a remote's snapshot: got as the policy says, then run.
pub fn clone(context: &Context, name: Option<String>, policy: Policy, from: FromRemote) -> Outcome {
    let started = Instant::now();
    let got = match policy {
        Policy::Baseline => {
            let (path, request) = pull_request(from, false, None);
            context.operation(&path, &request, LOOKING)?
        }
        Policy::Demand | Policy::Adaptive => {
            let (path, request) = fetch_request(from, policy == Policy::Adaptive);
            context.operation(&path, &request, LOOKING)?
        }
    };
    let got: TransferReport = understood(got)?;
    let mut words = String::new();
    if !context.json {
        words = format!(
            "{} got: {} in {:.1} s\n",
            got.reference,
            moved(&got),
            started.elapsed().as_secs_f64()
        );
    }
    super::machine::run_snapshot(context, name, got.reference, &words)
}

pub fn carry(context: &Context, request: &CarryRequest) -> Outcome {
    context.long("/v1/carry", request, LOOKING, |reports: Vec<CarryReport>| {
        show::table(
            ["CARRIED", "SNAPSHOT", "BY", "PUT THERE", "NO ROOM FOR"],
            reports.into_iter().map(|report| {
                [
                    report.source,
                    show::short_id(&report.snapshot),
                    report.remote,
                    show::size(report.moved_bytes),
                    show::size(report.left_bytes),
                ]
            }),
        )
    })
}

pub fn away(context: &Context) -> Outcome {
    context.get("/v1/away", |snapshots: Vec<AwaySnapshot>| {
        show::table(
            ["SNAPSHOT", "FROM", "HERE", "READ", "WAITED", "LONGEST", "REST"],
            snapshots.into_iter().map(|snapshot| {
                let name = snapshot.references.first().cloned();
                let here = snapshot.objects - snapshot.missing_objects.min(snapshot.objects);
                [
                    name.unwrap_or_else(|| show::short_id(&snapshot.snapshot)),
                    snapshot.remote,
                    format!("{} %", here * 100 / snapshot.objects.max(1)),
                    show::size(snapshot.read_bytes),
                    format!("{:.1} s", snapshot.waited_ms / 1000.0),
                    format!("{:.0} ms", snapshot.waited_max_ms),
                    if snapshot.rest {
                        show::size(snapshot.rest_bytes)
                    } else {
                        "when read".into()
                    },
                ]
            }),
        )
    })
}

fn moved(report: &TransferReport) -> String {
    match report.objects {
        0 => "all of it was there".into(),
        objects => format!("{} in {objects} objects", show::size(report.moved_bytes)),
    }
}

fn tried(remote: RemoteInfo) -> String {
    let to = if remote.writable {
        "to read and to write"
    } else {
        "to read"
    };
    format!("remote {} at {}: {to}\n", remote.name, remote.address)
}

fn list(remotes: Vec<RemoteInfo>) -> String {
    show::table(
        ["NAME", "ADDRESS", "TO WRITE", "REALM"],
        remotes.into_iter().map(|remote| {
            let writable = if remote.writable { "yes" } else { "no" };
            [remote.name, remote.address, writable.into(), remote.realm]
        }),
    )
}

fn snapshots(snapshots: Vec<RemoteSnapshot>) -> String {
    show::table(
        ["REFERENCE", "SNAPSHOT", "VERSION", "HERE"],
        snapshots.into_iter().map(|snapshot| {
            let here = if snapshot.here { "yes" } else { "no" };
            [
                snapshot.reference,
                snapshot.snapshot.chars().take(12).collect(),
                snapshot.version.to_string(),
                here.into(),
            ]
        }),
    )
}

fn versions(versions: Vec<RemoteVersion>) -> String {
    show::table(
        ["VERSION", "SNAPSHOT", "PUSHED", "BY", "THEN"],
        versions.into_iter().map(|version| {
            let snapshot = version.snapshot.as_deref().map(show::short_id);
            [
                version.version.to_string(),
                snapshot.unwrap_or_else(|| "taken away".into()),
                show::age(version.pushed_unix_ms),
                version.host,
                if version.held { "held" } else { "free" }.into(),
            ]
        }),
    )
}

fn collected(report: RemoteGcReport) -> String {
    let did = if report.dry_run { "would remove" } else { "removed" };
    let mut text = format!(
        "{did} {} in {} packs; {} in {} packs stay\n",
        show::size(report.freed_bytes),
        report.packs,
        show::size(report.kept_bytes),
        report.kept_packs
    );
    if report.condemned_packs > 0 {
        text += &format!(
            "{} of those go next time, when these pushes have ended:\n",
            report.condemned_packs
        );
    }
    for push in report.waiting_for {
        text += &format!("  of {}, begun {}\n", push.host, show::age(push.began_unix_ms));
    }
    text
}
