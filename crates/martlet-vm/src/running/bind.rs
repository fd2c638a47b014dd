//! A machine that was started ahead gets, late, what it is to run: its place and address, its memory, its disks, its cable.
//!
//! ```text
//!   started with a file of zeros ──► bind_files ──► memory_open ──► finish, bind_tap ──► load_descriptor
//!   as memory and with no disks       QEMU opens memory and disks, while others do something else
//! ```

use super::{Asked, RunningVm, VmError, VmHandle};
use crate::capture::Mapping;
use crate::process::remap::move_over;
use crate::spec::{self, Disk, Memory};
use serde_json::json;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::Path;

const DURING: &str = "binding a machine that was started ahead";

/// Files that are being opened.
pub struct Binding<'a> {
    vm: &'a RunningVm,
    placeholder: Range<u64>,
    memory: &'a Path,
    opening: Asked<'a>,
    disks: Vec<Asked<'a>>,
}

/// The memory's file is open, the disks may not be yet.
pub struct MemoryOpen<'a> {
    vm: &'a RunningVm,
    placeholder: Range<u64>,
    image: Range<u64>,
    disks: Vec<Asked<'a>>,
}

impl RunningVm {
    /// Has QEMU open what the machine's memory, in the place of `placeholder`, and disks will be.
    pub fn bind_files<'a>(
        &'a self,
        placeholder: &Path,
        memory: &'a Memory,
        disks: &[Disk],
    ) -> Result<Binding<'a>, VmError> {
        let opening = self.open_memory(&memory.path, memory.size_bytes)?;
        let mut asked = Vec::new();
        for (index, disk) in disks.iter().enumerate() {
            if let Some(path) = &disk.path {
                asked.extend(self.open_disk(index, path, disk.read_only)?);
            }
        }
        Ok(Binding {
            vm: self,
            placeholder: self.mapping(placeholder)?,
            memory: &memory.path,
            opening,
            disks: asked,
        })
    }

    /// The machine's memory is `file` from now on, no longer `placeholder`, which is as large and which nothing was
    /// written to. The guest must not have run. QEMU keeps `placeholder` open, and pages that the guest reports as free
    /// are punched out of *that*.
    pub fn bind_memory(&self, placeholder: &Path, file: &Path) -> Result<(), VmError> {
        let there = self.mapping(placeholder)?;
        self.open_memory(file, there.end - there.start)?.answer()?;
        self.put_over(&there, self.mapping(file)?)
    }

    /// Disk `index`, of which the machine knew nothing yet, is this file. The empty node in whose place it comes is left: it
    /// costs nothing.
    pub fn bind_disk(&self, index: usize, file: &Path, read_only: bool) -> Result<(), VmError> {
        for asked in self.open_disk(index, file, read_only)? {
            asked.answer()?;
        }
        Ok(())
    }

    /// Its sockets and logs are in `run_dir` now, its directory having been renamed, and its guest has this address.
    pub fn bind_place(&mut self, run_dir: &Path, address: Option<Ipv4Addr>) {
        self.handle = VmHandle::in_dir(self.pid(), run_dir, address);
    }

    /// QEMU opens it itself, as it does at its start: for us to open a file that we serve would be to wait for ourselves.
    fn open_memory(&self, file: &Path, size_bytes: u64) -> Result<Asked<'_>, VmError> {
        let backend = json!({
            "qom-type": "memory-backend-file", "id": "image", "mem-path": file.display().to_string(),
            "size": size_bytes, "share": false,
        });
        self.ask(DURING, "object-add", backend, &[])
    }

    fn open_disk(&self, index: usize, file: &Path, read_only: bool) -> Result<[Asked<'_>; 2], VmError> {
        let node = spec::disk_node(index, file, read_only);
        let name = node["node-name"].clone();
        let device = format!("/machine/peripheral/vd{index}");
        let drive = json!({ "path": device, "property": "drive", "value": name });
        Ok([
            self.ask(DURING, "blockdev-add", node, &[])?,
            self.ask(DURING, "qom-set", drive, &[])?,
        ])
    }

    fn mapping(&self, file: &Path) -> Result<Range<u64>, VmError> {
        let mapping = Mapping::find(self.pid(), file)?;
        mapping
            .addresses()
            .ok_or_else(|| self.bad(format!("{} is mapped in pieces", file.display())))
    }

    fn put_over(&self, placeholder: &Range<u64>, image: Range<u64>) -> Result<(), VmError> {
        move_over(self.pid(), image, placeholder.start)
            .map_err(|error| self.bad(format!("the image cannot be put over it: {error}")))
    }

    fn bad(&self, reason: String) -> VmError {
        VmError::Memory {
            pid: self.pid(),
            reason,
        }
    }
}

impl<'a> Binding<'a> {
    /// Waits until QEMU has opened the memory's file; it goes on with the disks.
    pub fn memory_open(self) -> Result<MemoryOpen<'a>, VmError> {
        self.opening.answer()?;
        Ok(MemoryOpen {
            vm: self.vm,
            placeholder: self.placeholder,
            image: self.vm.mapping(self.memory)?,
            disks: self.disks,
        })
    }
}

impl MemoryOpen<'_> {
    /// The machine has these files from now on: see [`RunningVm::bind_memory`] and [`RunningVm::bind_disk`].
    pub fn finish(self) -> Result<(), VmError> {
        for asked in self.disks {
            asked.answer()?;
        }
        // Last: it needs QEMU to be at rest.
        self.vm.put_over(&self.placeholder, self.image)
    }
}
