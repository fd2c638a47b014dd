//! A machine that was started ahead gets, late, what it is to run: its memory, its disk, its address.
//!
//! ```text
//!   started with a file of zeros ──► bind_memory ──► bind_disk (each) ──► bind_place ──► load_descriptor
//!   as memory and with no disks
//! ```

use super::{RunningVm, VmError};
use crate::capture::Mapping;
use crate::process::remap::map_over;
use crate::spec::{self, MachineSpec};
use serde_json::json;
use std::os::fd::AsFd;
use std::path::Path;

const DURING: &str = "binding a machine that was started ahead";

impl RunningVm {
    /// The machine's memory is `file` from now on, no longer `placeholder`, which is as large and which nothing was
    /// written to. The guest must not have run. QEMU keeps `placeholder` open, and pages that the guest reports as free
    /// are punched out of *that*.
    pub fn bind_memory(&self, placeholder: &Path, file: &Path) -> Result<(), VmError> {
        let bad = |reason: String| VmError::Memory {
            pid: self.pid(),
            reason,
        };
        let addresses = Mapping::find(self.pid(), placeholder)?
            .addresses()
            .ok_or_else(|| bad(format!("{} is mapped in pieces", placeholder.display())))?;
        let opened = std::fs::File::options()
            .read(true)
            .write(true)
            .open(file)
            .map_err(VmError::io(format!("open {}", file.display())))?;
        let added =
            self.command_with_fds(DURING, "add-fd", json!({ "opaque": "memory" }), &[opened.as_fd()])?;
        // It stays open, as a file that was mapped from the start does; to close it would be one more command.
        let fd = added["fd"].as_i64().unwrap_or(-1);
        let mapped = map_over(self.pid(), addresses, fd as i32);
        mapped.map_err(|error| bad(format!("{} cannot be put over it: {error}", file.display())))
    }

    /// Disk `index`, of which the machine knew nothing yet, is this file. The empty node in whose place it comes is left: it
    /// costs nothing.
    pub fn bind_disk(&self, index: usize, file: &Path, read_only: bool) -> Result<(), VmError> {
        let node = spec::disk_node(index, file, read_only);
        let name = node["node-name"].clone();
        self.command(DURING, "blockdev-add", node)?;
        let device = format!("/machine/peripheral/vd{index}");
        self.command(
            DURING,
            "qom-set",
            json!({ "path": device, "property": "drive", "value": name }),
        )?;
        Ok(())
    }

    /// Its sockets and logs are those of `spec` now, its directory having been renamed, and its guest has the address
    /// of `net`, to which its ports are forwarded.
    pub fn bind_place(&mut self, spec: &MachineSpec) -> Result<(), VmError> {
        self.handle.qmp_socket = spec.qmp_socket();
        self.handle.stderr_log = spec.stderr_log();
        self.handle.address = spec.net.as_ref().map(|net| net.address);
        for forward in spec.net.iter().flat_map(|net| &net.forwards) {
            self.add_forward(*forward)?;
        }
        Ok(())
    }
}
