//! The life of a daemon.
//!
//! ```text
//!   lock the state directory ─► open the engine ─► listen ─► serve ──SIGTERM──► answer what has begun ─► end
//!                                                                 └──idle──────►
//! ```
//!
//! The socket appears only once the engine is open: whoever can connect is served. At the end machines go on.
//! A daemon that was started on demand ends by itself once it has had nothing to do for a while.

use crate::control::Control;
use crate::instance::Instance;
use crate::people::People;
use crate::server::Service;
use crate::systemd;
use anyhow::{Context, Result};
use martlet_api::VersionInfo;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long requests that have begun may take to end once the daemon is told to stop.
const GRACE: Duration = Duration::from_secs(60);

/// Serves the engine of a state directory until SIGTERM or SIGINT, or until there was nothing to do for `idle_exit`. `afar` is to
/// serve the API to people who are not on this host, and does not block.
pub fn run<C: Control>(
    state_dir: &Path,
    socket: &Path,
    idle_exit: Option<Duration>,
    open: impl FnOnce(&Path) -> Result<Arc<C>>,
    afar: impl FnOnce(&C, People) -> Result<()>,
) -> Result<()> {
    let inherited = systemd::inherited_listener();
    let instance = Instance::acquire(state_dir, socket)?;
    let control = open(state_dir)?;
    let version = VersionInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        api: "v1".into(),
        pid: std::process::id(),
        state_dir: state_dir.display().to_string(),
    };
    let made_here = inherited.is_none();
    let listener = match inherited {
        Some(listener) => listener,
        None => instance.listen(socket)?,
    };
    tracing::info!(socket = %socket.display(), state_dir = %state_dir.display(), "serving");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let service = Service::new(control.clone(), version);
    afar(&control, service.people(runtime.handle().clone()))?;
    drop(control);
    let served = runtime.block_on(until_told(service, listener, idle_exit));
    if made_here {
        // The next daemon would remove it too; gone, it says at once that nobody is there.
        let _ = std::fs::remove_file(socket);
    }
    // Calls whose client has gone are still at work on the blocking threads.
    runtime.shutdown_timeout(GRACE);
    tracing::info!("stopped; machines go on");
    served
}

async fn until_told(service: Service, listener: UnixListener, idle_exit: Option<Duration>) -> Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener).context("cannot listen")?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (told, telling) = tokio::sync::oneshot::channel();
    let idle = service.idle();
    let idle = async move {
        match idle_exit {
            Some(after) => idle.wait(after).await,
            None => std::future::pending().await,
        }
    };
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
            () = idle => tracing::info!("there is nothing to do"),
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
        () = overdue => {
            tracing::warn!("requests were still open when the time for stopping was over");
            Ok(())
        }
    }
}
