//! Into a guest: commands, files, console and its log.

use crate::check;
use crate::console;
use crate::control::{Control, LogSource};
use crate::exec;
use crate::extract::{Body, Named, Params};
use crate::failure::Failure;
use crate::openapi::Method::{Get, Post, Put};
use crate::openapi::{Routes, Spec};
use crate::operation::Reply;
use crate::server::Server;
use crate::stream::{BodyReader, BodyWriter, ChannelBody};
use axum::body::Body as HttpBody;
use axum::extract::{FromRequest, Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use martlet_api::{ExecRequest, MachineState, Problem, ProblemCode, Role};
use serde::Deserialize;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// How often a followed log is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

pub fn routes(routes: Routes) -> Routes {
    let path = |spec: Spec, what| spec.query("path", "string", true, what).needs(Role::Run);
    let exec_spec = Spec::new("Execute a command; frames both ways").takes::<ExecRequest>();
    let get_spec = Spec::new("A file or directory as a tar stream").gives_bytes("application/x-tar");
    let put_spec = Spec::new("Unpack a tar stream into a directory").takes_bytes("application/x-tar");
    let log_spec = Spec::new("The console's log").gives_bytes("application/octet-stream");
    let follow = "Go on while the machine runs";
    routes
        .route(
            Post,
            "/v1/machines/{name}/exec",
            exec_spec.upgrades_to("martlet-exec").needs(Role::Run),
            execute,
        )
        .route(
            Get,
            "/v1/machines/{name}/files",
            path(get_spec, "Absolute path in the guest"),
            get_files,
        )
        .route(
            Put,
            "/v1/machines/{name}/files",
            path(put_spec, "Directory in the guest"),
            put_files,
        )
        .route(
            Get,
            "/v1/machines/{name}/logs",
            log_spec.query("follow", "boolean", false, follow),
            logs,
        )
        .route(
            Post,
            "/v1/machines/{name}/console",
            Spec::new("The serial console, as raw bytes")
                .upgrades_to("martlet-console")
                .needs(Role::Run),
            attach,
        )
}

/// The answer to a client that asked for this protocol, after which the connection is ours.
fn switch_to(protocol: &'static str) -> Response {
    (
        StatusCode::SWITCHING_PROTOCOLS,
        [(CONNECTION, "upgrade"), (UPGRADE, protocol)],
    )
        .into_response()
}

fn wants(protocol: &str, headers: &HeaderMap) -> Result<(), Failure> {
    let asked = headers.get(UPGRADE).and_then(|value| value.to_str().ok());
    if asked.is_some_and(|asked| asked.eq_ignore_ascii_case(protocol)) {
        return Ok(());
    }
    Err(Problem::new(
        ProblemCode::InvalidArgument,
        "this call needs an upgraded connection",
    )
    .remediation(format!("send `Connection: upgrade` and `Upgrade: {protocol}`"))
    .into())
}

async fn execute(State(server): State<Server>, Named(name): Named, mut request: Request) -> Reply {
    wants("martlet-exec", request.headers())?;
    let upgrade: OnUpgrade = hyper::upgrade::on(&mut request);
    let Body(command) = Body::<ExecRequest>::from_request(request, &server).await?;
    check::exec(&command)?;
    let session = server.call(move |control| control.exec(&name, command)).await?;
    tokio::spawn(exec::serve(upgrade, session));
    Ok(switch_to("martlet-exec"))
}

async fn attach(State(server): State<Server>, Named(name): Named, mut request: Request) -> Reply {
    wants("martlet-console", request.headers())?;
    let upgrade = hyper::upgrade::on(&mut request);
    let socket = server.call(move |control| control.console(&name)).await?;
    tokio::spawn(async move {
        if let Err(error) = console::serve(upgrade, socket).await {
            tracing::debug!(%error, "a console connection ended");
        }
    });
    Ok(switch_to("martlet-console"))
}

#[derive(Deserialize)]
struct GuestPath {
    path: String,
}

async fn get_files(
    State(server): State<Server>,
    Named(name): Named,
    Params(GuestPath { path }): Params<GuestPath>,
) -> Reply {
    check::absolute_path(&path)?;
    let (sender, mut body) = ChannelBody::new();
    // On its own, so that it goes on while the body is read.
    let work = tokio::spawn(async move {
        let read = move |control: &dyn Control| {
            let mut writer = BodyWriter::new(sender);
            let read = control.get_path(&name, &path, &mut writer);
            match &read {
                // When this fails the client has gone.
                Ok(()) => drop(writer.flush()),
                Err(problem) => writer.fail(io::Error::other(problem.message.clone())),
            }
            read
        };
        server.call(read).await
    });
    match body.first().await {
        Some(Ok(first)) => {
            Ok(([(CONTENT_TYPE, "application/x-tar")], body.into_body(Some(first))).into_response())
        }
        _ => match work.await {
            Ok(Err(failure)) => Err(failure),
            Ok(Ok(())) => Ok(([(CONTENT_TYPE, "application/x-tar")], HttpBody::empty()).into_response()),
            Err(error) => Err(Problem::new(ProblemCode::Internal, "reading files failed")
                .cause(error)
                .into()),
        },
    }
}

async fn put_files(
    State(server): State<Server>,
    Named(name): Named,
    Params(GuestPath { path }): Params<GuestPath>,
    body: HttpBody,
) -> Reply {
    check::absolute_path(&path)?;
    let mut reader = BodyReader::new(body);
    server
        .effect(move |control| control.put_path(&name, &path, &mut reader))
        .await
}

#[derive(Deserialize)]
struct Follow {
    #[serde(default)]
    follow: bool,
}

async fn logs(
    State(server): State<Server>,
    Named(name): Named,
    Params(Follow { follow }): Params<Follow>,
) -> Reply {
    let asked = name.clone();
    let source = server.call(move |control| control.logs(&asked)).await?;
    let file = open_log(&source.path).map_err(|error| {
        Problem::new(
            ProblemCode::NotFound,
            format!("machine {name} has no console log yet"),
        )
        .cause(error)
    })?;
    let (sender, body) = ChannelBody::new();
    // A thread and not a task of the blocking pool: a log may be followed for days.
    std::thread::spawn(move || {
        let mut writer = BodyWriter::new(sender.clone());
        let wanted = || follow && !sender.is_closed() && !server.is_closing();
        let lives = || wanted() && still_runs(&*server.control, &name);
        let present = || server.control.logs(&name).ok();
        if let Err(error) = copy_log(file, source, &mut writer, lives, present) {
            writer.fail(error);
        }
    });
    Ok(([(CONTENT_TYPE, "application/octet-stream")], body.into_body(None)).into_response())
}

/// It lies in a directory of QEMU's user: no link is followed out of it, and no pipe waited for.
fn open_log(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options.open(path)
}

/// Copies until the end, and goes on from there while the machine lives: in the log that follows, when the machine went on
/// in another process.
fn copy_log(
    mut file: File,
    mut source: LogSource,
    writer: &mut BodyWriter,
    lives: impl Fn() -> bool,
    present: impl Fn() -> Option<LogSource>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        // Both asked before the last look at the file, so that a machine's last words are not missed.
        let more = lives();
        let next = present().filter(|present| more && *present != source);
        loop {
            let length = file.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            writer.write_all(&buffer[..length])?;
        }
        writer.flush()?;
        let end = file.metadata()?.len();
        if let Some(next) = next {
            file = open_log(&next.path)?;
            file.seek(SeekFrom::Start(end.min(next.carried_max_bytes)))?;
            source = next;
            continue;
        }
        // A log that was trimmed has its writer at a new end.
        if file.stream_position()? > end {
            file.seek(SeekFrom::Start(end))?;
        }
        if !more {
            return Ok(());
        }
        std::thread::sleep(FOLLOW_INTERVAL);
    }
}

fn still_runs(control: &dyn Control, name: &str) -> bool {
    use MachineState::*;
    control
        .machine(name)
        .is_ok_and(|machine| matches!(machine.state, Starting | Running | Pausing))
}
