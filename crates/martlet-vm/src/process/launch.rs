//! From a [`SpawnRequest`] to a running process: one fork, and the little that must happen between fork and exec.
#![allow(unsafe_code)] // fork's other side, pidfds and rlimits have no safe interface

use super::huge_pages;
use super::{ChildState, ExitStatus, LAST_WORDS_MAX, SpawnError, SpawnRequest, tail};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Descriptors sent along are first moved up here, so that putting one in place cannot overwrite another.
const PARKED_FD_MIN: RawFd = 200;

/// A process of ours. Dropping it neither ends it nor forgets it in the kernel: see [`Child::state`].
#[derive(Debug)]
pub struct Child {
    pid: u32,
    /// None for one that is somebody else's child.
    child: Option<std::process::Child>,
    tag: String,
    log: Option<PathBuf>,
    pidfd: Option<OwnedFd>,
    ended: Option<ChildState>,
}

impl Child {
    /// A process that is not our child: its end is seen, but not how it ended.
    pub fn adopt(pid: u32, tag: String, log: PathBuf) -> io::Result<Self> {
        Ok(Self {
            pid,
            child: None,
            tag,
            log: Some(log),
            pidfd: Some(pidfd_open(pid)?),
            ended: None,
        })
    }

    /// Its process id, valid until [`Child::state`] says that it has ended.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it is for.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Becomes readable when the process ends.
    pub fn pidfd(&self) -> Option<&OwnedFd> {
        self.pidfd.as_ref()
    }

    /// Sends a signal, unless the process has ended and been noticed.
    pub fn signal(&mut self, signal: i32) {
        if self.ended.is_some() {
            return;
        }
        match &self.pidfd {
            Some(pidfd) => {
                // SAFETY: plain system call on a descriptor that we hold; no information goes with the signal.
                unsafe {
                    libc::syscall(
                        libc::SYS_pidfd_send_signal,
                        pidfd.as_raw_fd(),
                        signal,
                        std::ptr::null::<libc::siginfo_t>(),
                        0,
                    )
                };
            }
            None => {
                // SAFETY: plain system call; a child that is not reaped yet has its id still.
                unsafe { libc::kill(self.pid as libc::pid_t, signal) };
            }
        }
    }

    /// What has become of it; takes note of its end.
    pub fn state(&mut self) -> ChildState {
        if let Some(ended) = &self.ended {
            return ended.clone();
        }
        let waited = match (&mut self.child, &self.pidfd) {
            (Some(child), _) => child.try_wait(),
            (None, Some(pidfd)) if !has_ended(pidfd, Duration::ZERO) => Ok(None),
            (None, _) => Err(io::ErrorKind::NotFound.into()),
        };
        let status = match waited {
            Ok(None) => return ChildState::Running,
            Ok(Some(status)) => match (status.code(), status.signal()) {
                (Some(code), _) => ExitStatus::Code(code),
                (None, Some(signal)) => ExitStatus::Signal(signal),
                (None, None) => ExitStatus::Unknown,
            },
            Err(_) => ExitStatus::Unknown,
        };
        let last_words = self
            .log
            .as_deref()
            .map(|log| tail(log, LAST_WORDS_MAX))
            .unwrap_or_default();
        let ended = ChildState::Ended { status, last_words };
        self.ended = Some(ended.clone());
        self.pidfd = None;
        ended
    }

    /// Has [`Child::state`] taken note of its end?
    pub fn has_been_noticed(&self) -> bool {
        self.ended.is_some()
    }

    /// What [`Child::state`] said last.
    pub fn last_state(&self) -> ChildState {
        self.ended.clone().unwrap_or(ChildState::Running)
    }
}

/// Starts a process that is nobody's child and in no terminal's session: it outlives us and needs no reaping.
pub fn start_detached(program: &Path, args: &[String], log: &Path) -> Result<(), SpawnError> {
    let refused = |e: io::Error| SpawnError::Refused {
        program: program.display().to_string(),
        reason: e.to_string(),
    };
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .map_err(refused)?;
    let mut command = Command::new(program);
    command.args(args).current_dir("/").stdin(Stdio::null());
    command.stdout(log.try_clone().map_err(refused)?).stderr(log);
    // SAFETY: only async-signal-safe calls. The second fork leaves its parent, whom we reap, at once; the grandchild
    // goes on to exec, and still reports a failure to do so through the pipe it has inherited.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            inherit_nothing()?;
            match libc::fork() {
                -1 => Err(io::Error::last_os_error()),
                0 => Ok(()),
                _ => libc::_exit(0),
            }
        });
    }
    command
        .spawn()
        .and_then(|mut child| child.wait())
        .map(drop)
        .map_err(refused)
}

/// Starts a process. It gets its own session, so that no terminal's signals reach it, no parent-death signal (machines
/// outlive the daemon), no new privileges, and no descriptors but those named.
pub fn launch(request: &SpawnRequest, fds: Vec<OwnedFd>) -> Result<Child, SpawnError> {
    let program = request.argv.first().cloned().unwrap_or_default();
    let bad = |reason: &str| SpawnError::BadRequest {
        program: program.clone(),
        reason: reason.into(),
    };
    let refused = |what: &str, e: io::Error| SpawnError::Refused {
        program: program.clone(),
        reason: format!("{what}{e}"),
    };
    if !program.starts_with('/') {
        return Err(bad("the program must be an absolute path"));
    }
    if fds.len() != request.fd_numbers.len() {
        return Err(bad("as many descriptors as numbers for them are needed"));
    }
    if request.fd_numbers.iter().any(|n| !(3..PARKED_FD_MIN).contains(n)) {
        return Err(bad("descriptor numbers must be 3 to 199"));
    }
    let mut parked = Vec::with_capacity(fds.len());
    for fd in &fds {
        parked.push(park(fd).map_err(|e| refused("descriptors: ", e))?);
    }

    let mut command = Command::new(&program);
    command
        .args(&request.argv[1..])
        .env_clear()
        .envs(request.env.iter().cloned());
    command
        .current_dir(request.cwd.as_deref().unwrap_or("/".as_ref()))
        .stdin(Stdio::null());
    match &request.log {
        Some(path) => {
            let log =
                open_log(request, path).map_err(|e| refused(&format!("log {}: ", path.display()), e))?;
            command
                .stdout(log.try_clone().map_err(|e| refused("log: ", e))?)
                .stderr(log);
        }
        None => {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
    }

    let plan = ChildPlan {
        moves: parked
            .iter()
            .map(|fd| fd.as_raw_fd())
            .zip(request.fd_numbers.iter().copied())
            .collect(),
        limits: limits_of(request),
        user: request.user.as_ref().map(|u| (u.uid, u.gid, u.groups.clone())),
        oom: request
            .oom_score_adj
            .map(|score| score.clamp(-1000, 1000).to_string().into_bytes()),
        traceable: request.traceable,
        refuse_huge_pages: request.refuse_huge_pages,
    };
    // SAFETY: `ChildPlan::apply` makes only system calls on memory allocated before the fork.
    unsafe { command.pre_exec(move || plan.apply()) };
    let child = command.spawn().map_err(|e| refused("", e))?;
    let pidfd = pidfd_open(child.id()).ok();
    Ok(Child {
        pid: child.id(),
        child: Some(child),
        tag: request.tag.clone(),
        log: request.log.clone(),
        pidfd,
        ended: None,
    })
}

fn open_log(request: &SpawnRequest, path: &Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    // The directory may belong to the unprivileged user: do not follow a link it has put there.
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    if let Some(user) = &request.user {
        std::os::unix::fs::fchown(&log, Some(user.uid), Some(user.gid))?;
    }
    Ok(log)
}

fn park(fd: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: plain system call on a descriptor that we hold.
    let number = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, PARKED_FD_MIN) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn limits_of(request: &SpawnRequest) -> Vec<(libc::__rlimit_resource_t, u64)> {
    let limits = &request.limits;
    [
        (libc::RLIMIT_NOFILE, limits.open_files),
        (libc::RLIMIT_AS, limits.address_space_bytes),
        (libc::RLIMIT_CORE, limits.core_bytes),
    ]
    .into_iter()
    .filter_map(|(resource, value)| Some((resource, value?)))
    .collect()
}

/// What the child does to itself before it becomes the program. Everything is allocated beforehand.
struct ChildPlan {
    moves: Vec<(RawFd, RawFd)>,
    limits: Vec<(libc::__rlimit_resource_t, u64)>,
    user: Option<(u32, u32, Vec<u32>)>,
    oom: Option<Vec<u8>>,
    traceable: bool,
    refuse_huge_pages: bool,
}

impl ChildPlan {
    fn apply(&self) -> io::Result<()> {
        // SAFETY: only async-signal-safe system calls, with pointers into `self` and into constants.
        unsafe {
            libc::setsid();
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            check(libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()))?;
            inherit_nothing()?;
            for (from, to) in &self.moves {
                check(libc::dup2(*from, *to))?;
            }
            if let Some(score) = &self.oom {
                // Lowering it needs privilege, and running without it is no reason not to start.
                let fd = libc::open(
                    c"/proc/self/oom_score_adj".as_ptr(),
                    libc::O_WRONLY | libc::O_CLOEXEC,
                );
                if fd >= 0 {
                    libc::write(fd, score.as_ptr().cast(), score.len());
                    libc::close(fd);
                }
            }
            for (resource, value) in &self.limits {
                let limit = libc::rlimit {
                    rlim_cur: *value,
                    rlim_max: *value,
                };
                check(libc::setrlimit(*resource, &limit))?;
            }
            if let Some((uid, gid, groups)) = &self.user {
                check(libc::setgroups(groups.len(), groups.as_ptr()))?;
                check(libc::setresgid(*gid, *gid, *gid))?;
                check(libc::setresuid(*uid, *uid, *uid))?;
            }
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            if self.refuse_huge_pages {
                huge_pages::refuse()?;
            }
            if self.traceable {
                // Fails where there is no Yama, which then restricts nothing.
                libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0);
            }
        }
        Ok(())
    }
}

/// Closes, at exec, whatever descriptors somebody before us forgot to close. Async-signal-safe.
fn inherit_nothing() -> io::Result<()> {
    // SAFETY: plain system call that only sets a flag on our own descriptors.
    check(unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A descriptor that becomes readable when the process ends.
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain system call; the result is checked before it is owned.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Waits for a process's end, no longer than `timeout`.
pub(crate) fn has_ended(pidfd: &OwnedFd, timeout: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: pidfd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let timeout_ms = timeout.as_millis().min(i32::MAX as u128) as i32;
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&mut poll, 1, timeout_ms) > 0 }
}
