//! The keeper is kept too.
//!
//! ```text
//!   keeper killed ──► another is started ──► it gets the FUSE connection, and every QEMU that lives ──► all is as before
//! ```
//!
//! The daemon holds the connection itself and knows every QEMU, so the keeper's death alone costs nothing but the exit
//! status of those QEMUs, whose parent it was. With both gone the connection is at its end, and the machines with it.

use crate::engine::{Engine, FUSE_FD, lock};
use martlet_vm::SpawnError;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// Between two attempts to start another keeper.
const RETRY: Duration = Duration::from_secs(1);

impl Engine {
    /// Starts another keeper whenever there is none.
    pub(crate) fn keep_the_keeper(self: &Arc<Self>) {
        let (engine, keeper) = (Arc::downgrade(self), self.keeper.clone());
        let watcher = move || {
            while keeper.wait_until_lost().is_ok() {
                let Some(engine) = engine.upgrade() else { return };
                if engine.is_closed() {
                    return;
                }
                match engine.replace_keeper() {
                    Ok(()) => tracing::warn!("the keeper had died; another has taken over"),
                    Err(error) => {
                        tracing::error!(%error, "the keeper has died, and another did not start");
                        std::thread::sleep(RETRY);
                    }
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("keeper".into()).spawn(watcher) {
            tracing::warn!(%error, "the keeper is not watched");
        }
    }

    fn replace_keeper(&self) -> Result<(), SpawnError> {
        self.keeper.replace(&self.keeper_program)?;
        if let Some(connection) = &*lock(&self.connection) {
            self.keeper.put_fd(FUSE_FD, connection.as_fd())?;
        }
        Ok(())
    }
}
