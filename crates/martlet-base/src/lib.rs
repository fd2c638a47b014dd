//! Base images: Debian packages, disks and OCI images made bootable.
//!
//! Everything here blocks and leaves plain files (a raw disk, a kernel, an initramfs) in a work directory; the engine
//! takes them into the store. Nothing is mounted and no network namespace or loop device is made, so that a build
//! that dies leaves files only, and those are removed by a guard.
//!
//! ```text
//! Debian packages ── mmdebstrap ──► tree ─┐
//! OCI layers ─ verified, merged ──► tree ─┼─ mke2fs -d ──► raw ext4 disk ─┐
//! busybox ────────────────────────► tree ─┘                               ├─► Artifacts
//! raw / qcow2 disk ── qemu-img convert ───────────────────────────────────┤
//! Debian's cloud kernel ── modules ┐                                      │
//! agent ───────────────────────────┴─ newc writer ──► initramfs ──────────┘
//! ```
//!
//! A guest boots our kernel with the agent as `/init` of the initramfs; the agent loads `/modules/*.ko` in the order of
//! their names, mounts the root and starts what the command line says:
//!
//! | `martlet.init=` | process 1 is |
//! | --- | --- |
//! | `systemd` | the image's own `/sbin/init` |
//! | `command` | the agent, which runs the machine's command |
//!
//! Disks with a boot loader of their own boot by firmware and have neither our kernel nor an agent.

mod boot;
mod command;
mod cpio;
mod debian;
mod disk;
mod error;
mod ext4;
#[cfg(fuzzing)]
pub mod fuzzing;
mod guest_modules;
mod import;
mod initramfs;
mod job;
mod kernel;
mod mirror;
mod modules;
mod oci;
mod package;
mod partitions;
mod scratch;
#[cfg(test)]
mod testing;
mod tiny;
mod vmlinux;

pub use debian::{DebianRecipe, build_debian};
pub use disk::import_disk;
pub use error::BaseError;
pub use import::{ImportOptions, import};
pub use initramfs::initramfs;
pub use job::{Artifacts, Job, Tools};
pub use kernel::{Kernel, guest_kernel};
pub use mirror::MIRROR_ENV;
pub use oci::import_oci;
pub use scratch::clear_abandoned;
pub use tiny::build_tiny;
