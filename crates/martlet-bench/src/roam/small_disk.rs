//! A file system of its own, which can be full.

use crate::BenchError;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Mounted until it is dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// One of so many MiB on this directory.
    pub fn mount(at: &Path, size_mib: u64) -> Result<Self, BenchError> {
        let status = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size_mib}M,mode=711"),
                "small",
            ])
            .arg(at)
            .status()
            .map_err(BenchError::io("run mount"))?;
        match status.success() {
            true => Ok(Self(at.to_owned())),
            false => Err(BenchError::Other(format!(
                "nothing can be mounted on {}",
                at.display()
            ))),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Fills it up, but for so much.
    pub fn fill_up(&self, left_bytes: u64) -> Result<Ballast, BenchError> {
        let ballast = Ballast(self.0.join("ballast"));
        let fill = || -> std::io::Result<()> {
            let space = statvfs(&self.0)?;
            let filled_bytes = (space.f_bavail * space.f_frsize).saturating_sub(left_bytes);
            let file = File::create(&ballast.0)?;
            match filled_bytes {
                0 => Ok(()),
                some => Ok(fallocate(&file, FallocateFlags::empty(), 0, some)?),
            }
        };
        fill().map_err(BenchError::io("fill a disk up"))?;
        Ok(ballast)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // By force: what a daemon that died has mounted below it answers nobody.
        let _ = Command::new("umount")
            .args(["-f", "-l", "-c"])
            .arg(&self.0)
            .status();
    }
}

/// What a disk is full of, until it is dropped.
#[derive(Debug)]
pub struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // or it goes with the disk
    }
}
