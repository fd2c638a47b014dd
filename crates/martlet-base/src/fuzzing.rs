//! Doors for the fuzz targets to decoders that are nobody else's business. Only there under cargo-fuzz.

pub use crate::oci::fuzzing::{TreeName, image_parts, merged};
use crate::{disk, partitions, vmlinux};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Most bytes of [`kernel`]'s answer.
pub const KERNEL_BYTES_MAX: usize = vmlinux::VMLINUX_LIMIT_BYTES;

fn file(bytes: &[u8]) -> (File, PathBuf) {
    let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a memory file"));
    file.write_all_at(bytes, 0).expect("it holds the input");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    (file, path)
}

/// Number, start and size of every partition of a disk.
pub fn disk_partitions(disk: &[u8]) -> Result<Vec<(u32, u64, u64)>, String> {
    let found = partitions::read(&file(disk).0, disk.len() as u64)?;
    Ok(found
        .iter()
        .map(|partition| (partition.number, partition.start_bytes, partition.size_bytes))
        .collect())
}

/// The device of a disk's ext4 root.
pub fn disk_root(disk: &[u8]) -> Option<String> {
    let (_file, path) = file(disk);
    disk::layout_of(&path, &path).ok()?.root
}

/// Is a qcow2 header one that names no other file?
pub fn qcow2_is_whole(header: &[u8]) -> bool {
    let (_file, path) = file(header);
    disk::check_qcow2_header(&path).is_ok()
}

/// The ELF kernel in a `bzImage`.
pub fn kernel(image: &[u8]) -> Option<Vec<u8>> {
    vmlinux::extract(image)
}
