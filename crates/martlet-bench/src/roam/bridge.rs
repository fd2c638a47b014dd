//! A guest's own place in the lab's network: a tap interface beside the host's interface.

use super::{Site, lab_failed};
use crate::BenchError;
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

/// The tap interface of each site.
pub const TAP: &str = "mt0";

impl Site {
    /// Where the other sites reach it.
    pub fn address(&self) -> Ipv4Addr {
        self.host.address()
    }

    /// A program on this site, not run yet.
    pub fn program(&self, program: &str) -> Command {
        self.host.command(program)
    }

    /// Makes its tap interface, bridged with the one that the site itself has.
    pub fn bridge(&self) -> Result<(), BenchError> {
        let lines = format!(
            "link add br0 type bridge forward_delay 0 stp_state 0
tuntap add {TAP} mode tap
link set {TAP} master br0 up
address flush dev eth0
link set eth0 master br0
link set br0 up
address add {}/24 dev br0
",
            self.address()
        );
        let mut ip = self.program("ip");
        ip.args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        let mut ip = ip.spawn().map_err(BenchError::io("run ip"))?;
        let written = ip.stdin.take().map(|mut stdin| stdin.write_all(lines.as_bytes()));
        let output = ip.wait_with_output().map_err(BenchError::io("run ip"))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(BenchError::Other(format!("ip: {}", words.trim())));
        }
        written.transpose().map_err(BenchError::io("tell ip")).map(drop)
    }

    /// Calls something on this site.
    pub(super) fn on<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T, BenchError> {
        self.host.run(body).map_err(lab_failed)
    }
}
