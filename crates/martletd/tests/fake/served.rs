//! The server in front of an engine in memory.

use super::Fake;
use martlet_api::VersionInfo;
use martletd::server::Service;
use std::path::PathBuf;
use std::sync::Arc;

/// A server in front of a fake, on a socket of its own, until it is dropped.
pub struct Served {
    pub fake: Arc<Fake>,
    pub dir: tempfile::TempDir,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Served {
    pub fn new(fake: Arc<Fake>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("d.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let control = fake.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                let version = VersionInfo {
                    version: env!("CARGO_PKG_VERSION").into(),
                    api: "v1".into(),
                    pid: std::process::id(),
                    state_dir: "/nowhere".into(),
                };
                let shutdown = async {
                    let _ = stopped.await;
                };
                Service::new(control, version)
                    .serve(listener, shutdown)
                    .await
                    .unwrap();
            });
            runtime.shutdown_background();
        });
        Self {
            fake,
            dir,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("d.sock")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        if !std::thread::panicking() {
            self.thread.take().unwrap().join().unwrap();
        }
    }
}
