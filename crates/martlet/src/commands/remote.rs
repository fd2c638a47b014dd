//! `martlet remote …`, `push`, `pull`.

use super::Context;
use crate::cli::RemoteCommand;
use crate::failure::{Failure, Outcome};
use crate::show;
use martlet_api::{PullRequest, PushRequest, RemoteAddRequest, RemoteInfo, RemoteSnapshot, TransferReport};
use std::io::Read;
use std::path::Path;

/// Secrets of S3 have 40 characters.
const SECRET_BYTES_MAX: u64 = 4 << 10;

pub fn run(context: &Context, command: RemoteCommand) -> Outcome {
    match command {
        RemoteCommand::Add {
            name,
            address,
            endpoint,
            region,
            access_key_id,
            secret_file,
            realm,
        } => {
            let request = RemoteAddRequest {
                name,
                address: absolute(address)?,
                endpoint,
                region,
                access_key_id,
                secret_access_key: secret_file.map(|file| read_secret(&file)).transpose()?,
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
        RemoteCommand::Check { name } => {
            context.long(&format!("/v1/remotes/{name}/check"), &(), "trying it out", tried)
        }
    }
}

/// A directory is the daemon's to find, which is elsewhere; a URL is as it is.
fn absolute(address: String) -> Outcome<String> {
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
        "looking what is there",
        |report: TransferReport| {
            let did = if report.dry_run { "would send" } else { "sent" };
            format!("{} {did}: {}\n", report.reference, moved(&report))
        },
    )
}

pub fn pull(context: &Context, remote: &str, request: &PullRequest) -> Outcome {
    context.long(
        &format!("/v1/remotes/{remote}/pull"),
        request,
        "looking what is there",
        |report: TransferReport| format!("{} got: {}\n", report.reference, moved(&report)),
    )
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
