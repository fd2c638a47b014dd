//! `martletd`: serves the API until it is told to stop. Machines go on without it.

mod arrivals;
mod engine_control;
mod multicast;
mod multicast_options;
mod peers;
mod wiring;

use anyhow::Result;
use clap::{Parser, Subcommand};
use martlet_api::Paths;
use martletd::instance::Taken;
use martletd::{allocator, daemon, server};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

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
    /// End after this many seconds in which nothing was asked and no machine ran; 0 is never [default: 0]
    #[arg(long, value_name = "SECONDS")]
    idle_exit: Option<u64>,
    /// Listen for the other hosts of the fleet here [default: where they reach this host]
    #[arg(long, env = "MARTLET_LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
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
    allocator::limit();
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
            match error.is::<Taken>() {
                true => ExitCode::from(martlet_api::EXIT_TAKEN),
                false => ExitCode::FAILURE,
            }
        }
    }
}

fn start_log() {
    let filter = EnvFilter::try_from_env("MARTLET_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A line that cannot be written, as on a full disk, is lost. To complain of it on standard error, where it was to
        // go, would end the thread that had something to say.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    match std::io::stderr().is_terminal() {
        true => log.init(),
        false => log.json().flatten_event(true).with_current_span(false).init(),
    }
}

/// A soft limit is there for programs that use select(2), and often 1024. Each machine takes several descriptors, and each
/// connection that a guest has out of its family one.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, ?limit, "no more files can be open than before");
    }
}

fn serve(args: Args) -> Result<()> {
    allow_descriptors();
    let default = Paths::of_this_user();
    let state_dir = std::path::absolute(args.state_dir.unwrap_or(default.state_dir))?;
    let socket = std::path::absolute(args.socket.unwrap_or(default.socket))?;
    let idle_exit = args
        .idle_exit
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs);
    daemon::run(
        &state_dir,
        &socket,
        idle_exit,
        wiring::control,
        |control, people| peers::start(control.0.clone(), args.listen, people),
    )
}
