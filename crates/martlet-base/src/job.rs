//! What every way of making a base is given, and what it gives back.

use crate::BaseError;
use martlet_api::{InitKind, Progress, ProgressSink, ProgressUnit};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Programs and directories of the host that builds need.
#[derive(Debug, Clone)]
pub struct Tools {
    /// The statically linked guest agent; becomes `/init` of every initramfs.
    pub agent: PathBuf,
    /// Downloads that outlive a build: guest kernels, package lists.
    pub cache_dir: PathBuf,
}

/// One build: where it may write, whom it tells, who may stop it.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// Programs and directories.
    pub tools: &'a Tools,
    /// Artifacts and scratch go here; it must exist. After a failure it holds nothing of this build.
    pub work_dir: &'a Path,
    /// Told of every stage.
    pub progress: ProgressSink<'a>,
    /// Set it from another thread and the build ends with [`BaseError::Cancelled`], its children killed.
    pub cancel: &'a AtomicBool,
}

impl Job<'_> {
    pub(crate) fn stage(&self, stage: impl Into<String>) {
        let stage = stage.into();
        tracing::debug!(%stage, "base");
        (self.progress)(Progress {
            stage,
            done: 0,
            total: None,
            unit: ProgressUnit::None,
        });
    }

    pub(crate) fn bytes(&self, stage: &str, done: u64, total: Option<u64>) {
        (self.progress)(Progress {
            stage: stage.into(),
            done,
            total,
            unit: ProgressUnit::Bytes,
        });
    }

    pub(crate) fn check(&self) -> Result<(), BaseError> {
        match self.cancel.load(Ordering::Relaxed) {
            true => Err(BaseError::Cancelled),
            false => Ok(()),
        }
    }
}

/// A base as plain files, for the engine to take into the store. The files are the caller's to remove.
#[derive(Debug, Clone)]
pub struct Artifacts {
    /// Root disk: raw, sparse, a multiple of 4 KiB long.
    pub root_disk: PathBuf,
    /// Guest kernel; none when the disk boots by its own boot loader.
    pub kernel: Option<PathBuf>,
    /// Initramfs whose `/init` is the agent.
    pub initrd: Option<PathBuf>,
    /// Kernel command line; empty when there is no kernel.
    pub cmdline: String,
    /// What runs as init.
    pub init: InitKind,
    /// Where it came from, for people: `debian bookworm + redis-server`, `oci busybox:latest`, `raw`, `qcow2`.
    pub origin: String,
    /// Release of the guest kernel, as `uname -r` says it.
    pub kernel_version: Option<String>,
    /// Default command: program and arguments.
    pub cmd: Vec<String>,
    /// Default environment, `NAME=value`.
    pub env: Vec<String>,
    /// Working directory of the command.
    pub workdir: Option<String>,
    /// User of the command, `name|uid[:group|gid]` as the image says it.
    pub user: Option<String>,
}

/// Fails unless this process may make files of any owner.
pub(crate) fn need_root(what: &'static str) -> Result<(), BaseError> {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => Err(BaseError::NeedsRoot { what }),
    }
}
