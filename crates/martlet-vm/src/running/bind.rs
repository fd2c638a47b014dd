//! A machine that was started ahead gets, late, what it is to run: its place and address, its memory, its disks, its cable.
//!
//! ```text
//!   started with a file of zeros ──► bind_place ──► bind_memory ──► bind_disk (each), bind_tap ──► load_descriptor
//!   as memory and with no disks
//! ```

use super::{RunningVm, VmError, VmHandle};
use crate::capture::Mapping;
use crate::process::remap::move_over;
use crate::spec;
use serde_json::json;
use std::net::Ipv4Addr;
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
        // QEMU opens it itself, as it does at its start: for us to open a file that we serve would be to wait for ourselves.
        let backend = json!({
            "qom-type": "memory-backend-file", "id": "image", "mem-path": file.display().to_string(),
            "size": addresses.end - addresses.start, "share": false, "merge": false, "dump": false,
        });
        self.command(DURING, "object-add", backend)?;
        let image = Mapping::find(self.pid(), file)?
            .addresses()
            .ok_or_else(|| bad(format!("{} is mapped in pieces", file.display())))?;
        move_over(self.pid(), image, addresses.start)
            .map_err(|error| bad(format!("{} cannot be put over it: {error}", file.display())))
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

    /// Its sockets and logs are in `run_dir` now, its directory having been renamed, and its guest has this address.
    pub fn bind_place(&mut self, run_dir: &Path, address: Option<Ipv4Addr>) {
        self.handle = VmHandle::in_dir(self.pid(), run_dir, address);
    }
}
