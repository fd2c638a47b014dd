//! The file systems on the guest's disks: discard, drop from memory, freeze, grow.
//!
//! ```text
//! thawed ── freeze ──► frozen ── thaw, or its time is over ──► thawed
//! ```

use crate::fault::{Result, failed, fault, io_failed};
use crate::log::log;
use crate::syscalls;
use martlet_agent_api::RemoteErrorKind;
use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// A frozen file system never stays so for longer.
const FROZEN_MAX: Duration = Duration::from_secs(60);

/// One mounted disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Block device.
    pub device: PathBuf,
    /// Where.
    pub path: PathBuf,
    /// Type.
    pub fs_type: String,
}

/// Disks mounted for writing, each once, outermost first.
pub fn mounted_disks() -> Vec<Mount> {
    parse_mounts(&fs::read_to_string("/proc/self/mounts").unwrap_or_default())
}

fn parse_mounts(table: &str) -> Vec<Mount> {
    let mut seen = HashSet::new();
    let lines = table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (device, path, fs_type, options) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let writable = options.split(',').any(|option| option == "rw");
        (device.starts_with("/dev/") && writable && seen.insert(device.to_owned())).then(|| Mount {
            device: device.into(),
            path: unescape(path).into(),
            fs_type: fs_type.into(),
        })
    });
    lines.collect()
}

/// Blanks in mount points are written as `\040`.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// Discards unused blocks; the number of bytes.
pub fn trim() -> Result<u64> {
    let mut total_bytes = 0u64;
    let mut refused = None;
    let mut trimmed = false;
    for mount in mounted_disks() {
        match File::open(&mount.path).and_then(syscalls::trim) {
            Ok(bytes) => {
                total_bytes = total_bytes.saturating_add(bytes);
                trimmed = true;
            }
            Err(error) => refused = Some(failed(format_args!("cannot trim {:?}", mount.path), error)),
        }
    }
    match refused {
        Some(error) if !trimmed => Err(error),
        _ => Ok(total_bytes),
    }
}

/// Drops what memory has of files, but for what is mapped or not written back yet.
pub fn drop_caches() -> Result<()> {
    // 1: pages. Directories and inodes (2) are little, and looking them all up again is slow.
    fs::write("/proc/sys/vm/drop_caches", "1")
        .map_err(|error| io_failed("cannot drop the page cache", &error))
}

/// Which file systems are frozen.
#[derive(Default)]
pub struct Freezer {
    state: Mutex<Frozen>,
}

#[derive(Default)]
struct Frozen {
    roots: Vec<File>,
    /// Counts freezes, so that a late watchdog does not thaw a later freeze.
    turn: u64,
}

impl Freezer {
    fn lock(&self) -> MutexGuard<'_, Frozen> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Freezes all disks, or none; they thaw by themselves after `timeout`.
    pub fn freeze(self: &Arc<Self>, timeout: Duration) -> Result<u32> {
        let mut state = self.lock();
        if !state.roots.is_empty() {
            return Err(fault(
                RemoteErrorKind::State,
                "the file systems are frozen already",
            ));
        }
        state.turn += 1;
        let turn = state.turn;
        let watched = Arc::clone(self);
        // Before the first freeze: starting a thread may need memory, and memory may need a disk.
        let watchdog = thread::Builder::new().name("thaw".into()).spawn(move || {
            thread::sleep(timeout.min(FROZEN_MAX));
            let mut state = watched.lock();
            if state.turn == turn && !state.roots.is_empty() {
                log("nobody thawed the file systems in time; thawing them");
                thaw_all(&mut state);
            }
        });
        watchdog.map_err(|error| io_failed("cannot watch over a freeze", &error))?;
        // Innermost first: an outer one may hold what an inner one is written through.
        for mount in mounted_disks().into_iter().rev() {
            let frozen =
                File::open(&mount.path).and_then(|root| syscalls::freeze(&root, true).map(|()| root));
            match frozen {
                Ok(root) => state.roots.push(root),
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(error) => {
                    thaw_all(&mut state);
                    return Err(failed(format_args!("cannot freeze {:?}", mount.path), error));
                }
            }
        }
        Ok(state.roots.len() as u32)
    }

    /// Thaws them; how many were frozen.
    pub fn thaw(&self) -> u32 {
        thaw_all(&mut self.lock())
    }
}

fn thaw_all(state: &mut Frozen) -> u32 {
    let count = state.roots.len() as u32;
    while let Some(root) = state.roots.pop() {
        if let Err(error) = syscalls::freeze(&root, false) {
            log(&format!("cannot thaw a file system: {error}"));
        }
    }
    count
}

/// Grows the root file system to its disk; its size now.
pub fn grow_root() -> Result<u64> {
    let root = Path::new("/");
    let Some(mount) = mounted_disks().into_iter().find(|mount| mount.path == root) else {
        return Err(fault(
            RemoteErrorKind::Unsupported,
            "the root file system is not on a disk",
        ));
    };
    if mount.fs_type != "ext4" {
        return Err(fault(
            RemoteErrorKind::Unsupported,
            format!("cannot grow a root file system of type {}", mount.fs_type),
        ));
    }
    let device_bytes = File::open(&mount.device).and_then(syscalls::device_size);
    let device_bytes =
        device_bytes.map_err(|error| io_failed("cannot learn the size of the root disk", &error))?;
    let space = syscalls::space(root).map_err(|error| io_failed("cannot learn the size of /", &error))?;
    let blocks = device_bytes / space.block_bytes.max(1);
    let grown = File::open(root).and_then(|root| syscalls::resize_ext4(root, blocks));
    grown.map_err(|error| failed("cannot grow the root file system", error))?;
    syscalls::space(root)
        .map(|space| space.total_bytes)
        .map_err(|error| io_failed("cannot learn the size of /", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writable_disks_and_each_once() {
        let table = "proc /proc proc rw 0 0\n/dev/vda / ext4 rw,relatime 0 0\n/dev/vda /var ext4 rw 0 0\n\
                     /dev/vdb /mnt/a\\040b xfs rw 0 0\n/dev/vdc /ro iso9660 ro,relatime 0 0\nshort line\n";
        let mounts = parse_mounts(table);
        let paths: Vec<_> = mounts.iter().map(|mount| mount.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/", "/mnt/a b"]);
    }
}
