//! Port forwards of a running machine. QEMU has no QMP command for them, only the human monitor's.

use super::{RunningVm, VmError};
use crate::spec::Forward;
use serde_json::json;
use std::net::{Ipv4Addr, TcpListener};

const DURING: &str = "forwarding a port";
const TRIES: usize = 8;

impl RunningVm {
    /// Forwards `127.0.0.1:host_port` to the guest; port 0 picks a free one. Returns what is now in force.
    pub fn add_forward(&self, forward: Forward) -> Result<Forward, VmError> {
        let address = self.guest_address()?;
        for _ in 0..TRIES {
            let host_port = match forward.host_port {
                0 => free_port()?,
                port => port,
            };
            let rule = format!("net tcp:127.0.0.1:{host_port}-{address}:{}", forward.guest_port);
            let answer = self.human(&format!("hostfwd_add {rule}"))?;
            if answer.trim().is_empty() {
                return Ok(Forward {
                    host_port,
                    guest_port: forward.guest_port,
                });
            }
            // Somebody may have taken a free port between our look and QEMU's.
            if forward.host_port != 0 {
                let reason = format!(
                    "port {host_port} of the host cannot be forwarded: {}",
                    answer.trim()
                );
                return Err(VmError::BadSpec(reason));
            }
        }
        Err(VmError::BadSpec("no free port found on the host".into()))
    }

    fn guest_address(&self) -> Result<Ipv4Addr, VmError> {
        self.handle
            .address
            .ok_or_else(|| VmError::BadSpec("the machine has no network".into()))
    }

    fn human(&self, line: &str) -> Result<String, VmError> {
        let answer = self.command(DURING, "human-monitor-command", json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().to_string())
    }
}

fn free_port() -> Result<u16, VmError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(VmError::io(DURING))?;
    Ok(listener.local_addr().map_err(VmError::io(DURING))?.port())
}
