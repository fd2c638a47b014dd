//! Starting processes and learning how they ended.
//!
//! [`Spawner`] is what a machine needs of the world: start this, signal it, say how it ended. [`DirectSpawner`] makes
//! our own children; [`crate::KeeperClient`] makes them the keeper's, which outlives us. Both start a process through
//! [`launch`], so both give it the same limits.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use thiserror::Error;

mod huge_pages;
pub(crate) mod inject;
mod launch;
mod log;
pub(crate) mod remap;

pub use launch::{Child, launch, start_detached};
pub use log::{append_tail, tail, tail_since, trim};

/// Bytes of standard error kept as last words.
pub const LAST_WORDS_MAX: usize = 4096;

/// A process to start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnRequest {
    /// What it is for; found again with the list of children.
    pub tag: String,
    /// Program and arguments. The program is a path.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// User and group to become, with no supplementary groups but these.
    pub user: Option<User>,
    /// Limits, soft and hard alike.
    pub limits: Limits,
    /// Working directory; `/` when absent.
    pub cwd: Option<PathBuf>,
    /// Standard output and error are appended here; nowhere when absent.
    pub log: Option<PathBuf>,
    /// Preference of the kernel's out-of-memory killer, -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// Let any process of the same user read its memory, where the kernel restricts that to parents.
    pub traceable: bool,
    /// Answer a wish for huge pages with EINVAL: they make the kernel read far ahead in files that are memory.
    #[serde(default)]
    pub refuse_huge_pages: bool,
    /// Numbers under which the descriptors sent along are found in the child.
    pub fd_numbers: Vec<i32>,
}

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups (`kvm`, for example).
    pub groups: Vec<u32>,
}

/// Limits of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Open files.
    pub open_files: Option<u64>,
    /// Address space.
    pub address_space_bytes: Option<u64>,
    /// Core dump.
    pub core_bytes: Option<u64>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Not known: its parent is gone.
    Unknown,
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitStatus::Code(code) => write!(f, "exited with code {code}"),
            ExitStatus::Signal(9) => {
                f.write_str("was killed by signal 9 (SIGKILL; was the host out of memory?)")
            }
            ExitStatus::Signal(signal) => write!(f, "was killed by signal {signal}"),
            ExitStatus::Unknown => f.write_str("ended"),
        }
    }
}

/// What has become of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChildState {
    /// It runs.
    Running,
    /// It has ended.
    Ended {
        /// How.
        status: ExitStatus,
        /// The tail of its log.
        last_words: String,
    },
}

/// A process could not be started or asked after.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// The request makes no sense.
    #[error("cannot start {program:?}: {reason}")]
    BadRequest {
        /// The program.
        program: String,
        /// What is wrong.
        reason: String,
    },
    /// The system refused.
    #[error("cannot start {program:?}: {reason}")]
    Refused {
        /// The program.
        program: String,
        /// In the system's words.
        reason: String,
    },
    /// No such child (any more).
    #[error("process {0} is not a child of ours")]
    NoSuchChild(u32),
    /// The keeper does not answer.
    #[error("the keeper does not answer: {0}")]
    Keeper(String),
}

impl SpawnError {
    /// Could the same call succeed if it is made again?
    pub fn is_retryable(&self) -> bool {
        matches!(self, SpawnError::Keeper(_))
    }
}

/// Starts processes, signals them, and remembers how they ended.
pub trait Spawner: Send + Sync {
    /// Starts a process. `fds[i]` becomes descriptor `request.fd_numbers[i]` of it.
    fn spawn(&self, request: &SpawnRequest, fds: Vec<OwnedFd>) -> Result<u32, SpawnError>;

    /// Sends a signal to a child that has not been forgotten; no error when it has ended already.
    fn signal(&self, pid: u32, signal: i32) -> Result<(), SpawnError>;

    /// What has become of a child.
    fn state(&self, pid: u32) -> Result<ChildState, SpawnError>;

    /// Forgets a child that has ended.
    fn forget(&self, pid: u32) -> Result<(), SpawnError>;

    /// Waits until it ends, or until the time is over.
    fn wait(&self, pid: u32, timeout: Duration) -> Result<ChildState, SpawnError> {
        let deadline = Instant::now() + timeout;
        let pidfd = launch::pidfd_open(pid).ok();
        loop {
            let state = self.state(pid)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if state != ChildState::Running || left.is_zero() {
                return Ok(state);
            }
            match &pidfd {
                Some(fd) if !launch::has_ended(fd, Duration::ZERO) => {
                    launch::has_ended(fd, left);
                }
                // It has ended, and its parent is about to notice.
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// Makes processes our own children.
#[derive(Debug, Default)]
pub struct DirectSpawner {
    children: Mutex<HashMap<u32, Child>>,
}

impl DirectSpawner {
    /// No children yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn with<T>(&self, pid: u32, f: impl FnOnce(&mut Child) -> T) -> Result<T, SpawnError> {
        let mut children = self.children.lock().unwrap_or_else(|e| e.into_inner());
        children.get_mut(&pid).map(f).ok_or(SpawnError::NoSuchChild(pid))
    }
}

impl Spawner for DirectSpawner {
    fn spawn(&self, request: &SpawnRequest, fds: Vec<OwnedFd>) -> Result<u32, SpawnError> {
        let child = launch(request, fds)?;
        let pid = child.pid();
        self.children
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .insert(pid, child);
        Ok(pid)
    }

    fn signal(&self, pid: u32, signal: i32) -> Result<(), SpawnError> {
        self.with(pid, |child| child.signal(signal))
    }

    fn state(&self, pid: u32) -> Result<ChildState, SpawnError> {
        self.with(pid, Child::state)
    }

    fn forget(&self, pid: u32) -> Result<(), SpawnError> {
        if self.state(pid)? != ChildState::Running {
            self.children
                .lock()
                .unwrap_or_else(|e| e.into_inner())
                .remove(&pid);
        }
        Ok(())
    }
}

/// The directory a program may be given as its own: made, private, and handed over to the user it will run as.
pub fn own_directory(dir: &Path, user: Option<&User>) -> std::io::Result<()> {
    use std::os::unix::fs::{PermissionsExt, chown};
    std::fs::create_dir_all(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    match user {
        Some(user) => chown(dir, Some(user.uid), Some(user.gid)),
        None => Ok(()),
    }
}
