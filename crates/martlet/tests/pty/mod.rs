//! A terminal to run the program in.

#![allow(unsafe_code)] // pseudo-terminals have no safe form in std

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

pub struct Pty {
    master: File,
    slave: File,
    seen: String,
}

impl Pty {
    pub fn open(rows: u16, cols: u16) -> Self {
        let (mut master, mut slave) = (-1, -1);
        let (name, mode, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
        // SAFETY: openpty writes two descriptors to places that are ours; the other pointers may be null.
        let opened = unsafe { libc::openpty(&mut master, &mut slave, name, mode, size) };
        assert_eq!(opened, 0);
        // SAFETY: both have just been opened and belong to nobody else.
        let [master, slave] = [master, slave].map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
        let this = Self {
            master,
            slave,
            seen: String::new(),
        };
        this.resize(rows, cols);
        this
    }

    /// Starts a program as the leader of a session on this terminal, so that it gets SIGWINCH.
    pub fn spawn(&self, command: &mut Command) -> Child {
        let end = || self.slave.try_clone().unwrap();
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: setsid and ioctl are safe to call between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        command.spawn().unwrap()
    }

    pub fn resize(&self, rows: u16, cols: u16) {
        let size = libc::winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: TIOCSWINSZ reads one winsize.
        let set = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(set, 0);
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.master.write_all(bytes).unwrap();
    }

    /// Reads until this has been written, and forgets everything up to there.
    pub fn expect(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            let length = self.master.read(&mut buffer).unwrap_or(0);
            assert!(
                length > 0,
                "the terminal was closed before {text:?}; seen: {:?}",
                self.seen
            );
            self.seen += &String::from_utf8_lossy(&buffer[..length]);
        }
    }

    /// Does the terminal show what is typed? Not in raw mode.
    pub fn echoes(&self) -> bool {
        // SAFETY: termios is plain integers, for which zeroes are a value.
        let mut mode: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: tcgetattr writes one termios, to a place that is one.
        let got = unsafe { libc::tcgetattr(self.slave.as_raw_fd(), &mut mode) };
        assert_eq!(got, 0);
        mode.c_lflag & libc::ECHO != 0
    }
}
