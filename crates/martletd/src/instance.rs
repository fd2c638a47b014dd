//! One daemon for one state directory, and its socket.
//!
//! The lock is a `flock` on `martletd.lock`: the kernel drops it with the process, so there are no stale locks. The file
//! names its holder for the benefit of the one who comes second. Only the holder of the lock removes a socket that
//! an earlier daemon left behind.

#![allow(unsafe_code)] // flock and umask have no safe form in std at this minimum version

use anyhow::{Context, Result, bail};
use martlet_api::SYSTEM_SOCKET;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Another daemon has the state directory.
#[derive(Debug)]
pub struct Taken {
    state_dir: String,
    holder: String,
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "another martletd serves {} ({})", self.state_dir, self.holder)
    }
}

impl std::error::Error for Taken {}

/// Longest path a unix socket can have.
const SOCKET_PATH_MAX: usize = 107;

/// The lock on a state directory, for as long as it lives.
#[derive(Debug)]
pub struct Instance {
    _lock: File,
}

impl Instance {
    /// Takes the state directory for this process, creating it when need be.
    pub fn acquire(state_dir: &Path, socket: &Path) -> Result<Self> {
        // Others may pass through, to what is theirs below; only the owner may look around.
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(state_dir)
            .with_context(|| {
                format!(
                    "cannot create the state directory {} (choose another with --state-dir)",
                    state_dir.display()
                )
            })?;
        let path = state_dir.join("martletd.lock");
        let mut lock = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        // SAFETY: the descriptor is open for as long as `lock` lives, and flock touches no memory.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let error = std::io::Error::last_os_error();
            if error.kind() != ErrorKind::WouldBlock {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
            let mut holder = String::new();
            let _ = lock.read_to_string(&mut holder);
            return Err(Taken {
                state_dir: state_dir.display().to_string(),
                holder: holder.trim().to_owned(),
            }
            .into());
        }
        lock.set_len(0)?;
        writeln!(
            lock,
            "process {}, socket {}",
            std::process::id(),
            socket.display()
        )?;
        Ok(Self { _lock: lock })
    }

    /// Makes the socket, reachable by its owner, and system-wide also by the group `martlet`.
    pub fn listen(&self, socket: &Path) -> Result<UnixListener> {
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            bail!(
                "the socket's path is longer than {SOCKET_PATH_MAX} bytes: {} (choose a shorter one with --socket)",
                socket.display()
            );
        }
        let system_wide = socket == Path::new(SYSTEM_SOCKET);
        let dir = socket.parent().context("the socket needs a path")?;
        DirBuilder::new()
            .recursive(true)
            .mode(if system_wide { 0o755 } else { 0o700 })
            .create(dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        if UnixStream::connect(socket).is_ok() {
            bail!(
                "another program answers on {} (choose another with --socket)",
                socket.display()
            );
        }
        match fs::remove_file(socket) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove the old {}", socket.display()));
            }
            _ => (),
        }
        let listener = bind_private(socket).with_context(|| format!("cannot make {}", socket.display()))?;
        if let Some(group) = group_id("martlet").filter(|_| system_wide) {
            chown(socket, None, Some(group))?;
            fs::set_permissions(socket, Permissions::from_mode(0o660))?;
        }
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}

/// Binds so that nobody else can connect even for an instant.
fn bind_private(socket: &Path) -> std::io::Result<UnixListener> {
    // SAFETY: umask only exchanges a number. No other thread creates files yet.
    let before = unsafe { libc::umask(0o177) };
    let listener = UnixListener::bind(socket);
    // SAFETY: as above.
    unsafe { libc::umask(before) };
    listener
}

/// Looked up in the file itself: a static program has no name services.
fn group_id(name: &str) -> Option<u32> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_daemon_learns_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let (state, socket) = (dir.path().join("state"), dir.path().join("run/d.sock"));
        let first = Instance::acquire(&state, &socket).unwrap();
        let refused = Instance::acquire(&state, &socket).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("process {}", std::process::id())),
            "{refused}"
        );
        assert!(refused.contains("d.sock"), "{refused}");
        drop(first);
        Instance::acquire(&state, &socket).unwrap();
    }

    #[test]
    fn sockets_are_private_and_replace_only_dead_ones() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("run/d.sock");
        let instance = Instance::acquire(dir.path(), &socket).unwrap();
        let listener = instance.listen(&socket).unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(
            instance
                .listen(&socket)
                .unwrap_err()
                .to_string()
                .contains("answers")
        );
        drop(listener); // leaves the file, as a crash would
        instance.listen(&socket).unwrap();
        let long = dir.path().join("x".repeat(200));
        assert!(
            instance
                .listen(&long)
                .unwrap_err()
                .to_string()
                .contains("longer than")
        );
    }
}
