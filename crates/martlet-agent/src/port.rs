//! The virtio-serial port: found by its name without udev, and patient with hosts that come and go.

use crate::serve::Agent;
use martlet_agent_api::PORT_NAME;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Drivers may still be finding their devices.
const APPEARS_WITHIN: Duration = Duration::from_secs(30);
/// Without a host a read returns at once; look again after this.
const NO_HOST_PAUSE: Duration = Duration::from_millis(20);

/// Serves the host for ever; returns only why it cannot.
pub fn serve(agent: &Arc<Agent>) -> io::Error {
    let port = match open() {
        Ok(port) => port,
        Err(error) => return error,
    };
    agent.calls().serve_guest();
    match port.try_clone() {
        Ok(writer) => agent.serve(PortReader(port), Box::new(writer)),
        Err(error) => error,
    }
}

fn open() -> io::Result<File> {
    let deadline = Instant::now() + APPEARS_WITHIN;
    loop {
        if let Some(path) = find() {
            match OpenOptions::new().read(true).write(true).open(&path) {
                Ok(port) => return Ok(port),
                // The agent of a former start may not be quite gone.
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => {}
            }
        } else if Instant::now() >= deadline {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no virtio-serial port is called {PORT_NAME}"),
            ));
        }
        sleep(Duration::from_millis(5));
    }
}

fn find() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let named = ports.flatten().find(|port| {
        fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim_end() == PORT_NAME)
    })?;
    Some(PathBuf::from("/dev").join(named.file_name()))
}

struct PortReader(File);

impl Read for PortReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Ok(0) => sleep(NO_HOST_PAUSE),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(NO_HOST_PAUSE),
                other => return other,
            }
        }
    }
}
