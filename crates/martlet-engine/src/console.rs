//! Connections to machines' serial consoles.

use crate::engine::{Engine, lock};
use crate::phase::Verb;
use crate::problem;
use martlet_api::Problem;
use martlet_vm::spec::{CONSOLE_LOG, CONSOLE_SOCKET};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// A connection to a serial console.
pub struct Console {
    /// The connection.
    pub socket: Arc<UnixStream>,
    /// It has ended because the machine was about to go on in another process, where its console can be had again.
    pub moved: Arc<AtomicBool>,
}

/// The connections to the console of a running machine. Only who uses one keeps it open: QEMU talks to one at a time.
#[derive(Default)]
pub struct Consoles(Mutex<Vec<(Weak<UnixStream>, Arc<AtomicBool>)>>);

impl Consoles {
    fn add(&self, socket: UnixStream) -> Console {
        let console = Console {
            socket: Arc::new(socket),
            moved: Arc::default(),
        };
        let mut consoles = lock(&self.0);
        consoles.retain(|(socket, _)| socket.strong_count() > 0);
        consoles.push((Arc::downgrade(&console.socket), console.moved.clone()));
        console
    }

    /// The machine is about to go on in another process: ends all of them.
    pub fn hang_up(&self) {
        for (socket, moved) in lock(&self.0).drain(..) {
            moved.store(true, Ordering::SeqCst);
            if let Some(socket) = socket.upgrade() {
                let _ = socket.shutdown(Shutdown::Both); // it has ended already
            }
        }
    }
}

impl Engine {
    /// Where the console log of a machine is kept.
    pub fn console_log(&self, name: &str) -> Result<PathBuf, Problem> {
        Ok(self.run_dir(&self.find(name)?.record()).join(CONSOLE_LOG))
    }

    /// Connects to the serial console.
    pub fn console(&self, name: &str) -> Result<Console, Problem> {
        let machine = self.find(name)?;
        let live = machine.live_for(Verb::Exec)?;
        let socket = self.run_dir(&machine.record()).join(CONSOLE_SOCKET);
        let connected = UnixStream::connect(&socket);
        let connected = connected.map_err(|error| problem::io("connect to", &socket, &error))?;
        Ok(live.consoles.add(connected))
    }
}
