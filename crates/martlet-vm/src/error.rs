//! What goes wrong with a virtual machine, in kinds a caller can act on.

use crate::compat::Incompatible;
use crate::process::SpawnError;
use crate::qmp::QmpError;
use std::path::PathBuf;
use thiserror::Error;

/// An operation on a virtual machine failed.
#[derive(Debug, Error)]
pub enum VmError {
    /// There is no QEMU on this host.
    #[error("no QEMU found (looked for {}); install it: apt-get install qemu-system-x86", looked.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    QemuMissing {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// The QEMU found cannot do what is needed.
    #[error("{} is QEMU {found}, too old: at least {needed} is needed (Debian 12 or later has it)", path.display())]
    QemuTooOld {
        /// The executable.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The least version that works.
        needed: &'static str,
    },
    /// The executable found did not answer as a QEMU does.
    #[error("{} does not answer as QEMU does: {detail}", path.display())]
    NotQemu {
        /// The executable.
        path: PathBuf,
        /// What it said instead.
        detail: String,
    },
    /// A saved machine cannot run on this host.
    #[error(transparent)]
    Incompatible(#[from] Incompatible),
    /// A machine description that no QEMU could run.
    #[error("bad machine description: {0}")]
    BadSpec(String),
    /// QEMU could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// QEMU ended by itself.
    #[error("QEMU {status} while {during}{}", quoted(last_words))]
    Ended {
        /// What was being done.
        during: &'static str,
        /// How it ended, in words.
        status: String,
        /// The tail of what it wrote to standard error.
        last_words: String,
    },
    /// QEMU does not listen, or refuses a command.
    #[error("{during}: {source}")]
    Qmp {
        /// What was being done.
        during: &'static str,
        /// What QMP says.
        source: QmpError,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {after_ms} ms")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after_ms: u64,
    },
    /// The device state cannot be loaded.
    #[error("the device state cannot be loaded: {reason}")]
    BadDescriptor {
        /// Why, in QEMU's words.
        reason: String,
    },
    /// The guest's memory cannot be captured.
    #[error("guest memory of process {pid}: {reason}")]
    Memory {
        /// The QEMU process.
        pid: u32,
        /// What is wrong.
        reason: String,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
}

impl VmError {
    /// Could the same call succeed if it is made again, with nothing changed?
    pub fn is_retryable(&self) -> bool {
        match self {
            VmError::Timeout { .. } => true,
            VmError::Spawn(e) => e.is_retryable(),
            VmError::Qmp { source, .. } => source.is_retryable(),
            _ => false,
        }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> VmError {
        let what = what.into();
        move |source| VmError::Io { what, source }
    }
}

fn quoted(last_words: &str) -> String {
    match last_words.trim() {
        "" => String::new(),
        words => format!("; its last words: {words}"),
    }
}
