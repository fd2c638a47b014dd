//! `martletd`: serves the API until it is told to stop. Machines go on without it.

mod wiring;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use martlet_api::{Paths, VersionInfo};
use martletd::instance::Instance;
use martletd::server::{self, Service};
use martletd::systemd;
use std::io::IsTerminal;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How long requests that have begun may take to end once the daemon is told to stop.
const GRACE: Duration = Duration::from_secs(60);

/// Host daemon of Martlet: checkpoints, suspends, resumes and forks running virtual machines.
///
/// It logs to standard error, as JSON unless that is a terminal; MARTLET_LOG chooses what (default: info).
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Directory that keeps everything [default: /var/lib/martlet, or ~/.local/state/martlet for a user]
    #[arg(long, env = "MARTLET_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Socket of the API [default: /run/martlet/martletd.sock, or one in $XDG_RUNTIME_DIR for a user]
    #[arg(long, env = "MARTLET_SOCKET")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Hold the FUSE descriptor and the QEMU processes (martletd starts this itself)
    #[command(hide = true)]
    Keeper {
        /// Socket to serve martletd on
        #[arg(long)]
        socket: PathBuf,
    },
    /// Print the OpenAPI document
    #[command(hide = true)]
    Openapi,
}

fn main() -> ExitCode {
    let args = Args::parse();
    start_log();
    let done = match args.command {
        Some(Command::Keeper { ref socket }) => wiring::keeper(socket),
        Some(Command::Openapi) => {
            println!("{:#}", server::document());
            Ok(())
        }
        None => serve(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log() {
    let filter = EnvFilter::try_from_env("MARTLET_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match std::io::stderr().is_terminal() {
        true => log.init(),
        false => log.json().flatten_event(true).with_current_span(false).init(),
    }
}

fn serve(args: Args) -> Result<()> {
    let inherited = systemd::inherited_listener();
    let default = Paths::of_this_user();
    let state_dir = std::path::absolute(args.state_dir.unwrap_or(default.state_dir))?;
    let socket = std::path::absolute(args.socket.unwrap_or(default.socket))?;
    let instance = Instance::acquire(&state_dir, &socket)?;
    let control = wiring::control(&state_dir)?;
    let version = VersionInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        api: "v1".into(),
        pid: std::process::id(),
        state_dir: state_dir.display().to_string(),
    };
    // Only an engine that is open is worth connecting to.
    let listener = match inherited {
        Some(listener) => listener,
        None => instance.listen(&socket)?,
    };
    tracing::info!(socket = %socket.display(), state_dir = %state_dir.display(), "serving");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(until_told(Service::new(control, version), listener));
    // Calls whose client has gone are still at work on the blocking threads.
    runtime.shutdown_timeout(GRACE);
    let _ = std::fs::remove_file(&socket);
    tracing::info!("stopped; machines go on");
    served
}

async fn until_told(service: Service, listener: UnixListener) -> Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener).context("cannot listen")?;
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (told, telling) = tokio::sync::oneshot::channel();
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
        systemd::notify("STOPPING=1");
        tracing::info!("stopping");
        let _ = told.send(());
    };
    systemd::notify("READY=1");
    let overdue = async {
        let _ = telling.await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = service.serve(listener, shutdown) => Ok(served?),
        () = overdue => Ok(tracing::warn!("requests were still open when the time for stopping was over")),
    }
}
