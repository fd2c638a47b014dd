//! Connections to machines' serial consoles.

use crate::engine::Engine;
use crate::phase::Verb;
use crate::problem;
use martlet_api::Problem;
use martlet_vm::spec::{CONSOLE_LOG, CONSOLE_SOCKET};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

impl Engine {
    /// Where the console log of a machine is kept.
    pub fn console_log(&self, name: &str) -> Result<PathBuf, Problem> {
        Ok(self.run_dir(&self.find(name)?.record()).join(CONSOLE_LOG))
    }

    /// Connects to the serial console.
    pub fn console(&self, name: &str) -> Result<UnixStream, Problem> {
        let machine = self.find(name)?;
        machine.live_for(Verb::Exec)?;
        let socket = self.run_dir(&machine.record()).join(CONSOLE_SOCKET);
        UnixStream::connect(&socket).map_err(|error| problem::io("connect to", &socket, &error))
    }
}
