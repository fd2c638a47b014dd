//! Terminals for commands.

use crate::syscalls;
use martlet_agent_api::TtySize;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// A pseudo terminal.
pub struct Pty {
    /// The agent's side.
    pub master: File,
    /// The command's side.
    pub slave: OwnedFd,
}

impl Pty {
    /// Opens one, mounting devpts first in a guest that has none.
    pub fn open(size: TtySize) -> io::Result<Self> {
        let (master, slave) = syscalls::open_pty().or_else(|_| {
            let dir = Path::new("/dev/pts");
            fs::create_dir_all(dir)?;
            syscalls::mount(
                Path::new("devpts"),
                dir,
                "devpts",
                libc::MS_NOSUID | libc::MS_NOEXEC,
                "mode=620,ptmxmode=666",
            )?;
            syscalls::open_pty()
        })?;
        resize(&master, size)?;
        Ok(Self {
            master: master.into(),
            slave,
        })
    }
}

/// Sets the size that programs see; they get SIGWINCH.
pub fn resize(terminal: impl AsFd, size: TtySize) -> io::Result<()> {
    syscalls::set_window_size(terminal.as_fd(), size.rows, size.cols)
}
