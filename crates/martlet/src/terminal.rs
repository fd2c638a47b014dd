//! The terminal: its size, and raw mode that is always undone.

#![allow(unsafe_code)] // termios and window size have no safe form in std

use martlet_api::TtySize;
use std::io;
use std::os::fd::AsRawFd;

/// Size of the terminal on standard output, or on standard input when output goes elsewhere.
pub fn size() -> Option<TtySize> {
    [io::stdout().as_raw_fd(), io::stdin().as_raw_fd()]
        .into_iter()
        .find_map(|fd| {
            let mut size = libc::winsize {
                ws_row: 0,
                ws_col: 0,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            // SAFETY: TIOCGWINSZ writes one winsize, to a place that is one.
            let asked = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &mut size) };
            (asked == 0 && size.ws_col > 0).then_some(TtySize {
                rows: size.ws_row,
                cols: size.ws_col,
            })
        })
}

/// Raw mode of standard input, for as long as it lives: bytes go through as they are typed.
pub struct RawMode {
    before: libc::termios,
}

impl RawMode {
    /// Enters raw mode.
    pub fn enter() -> io::Result<Self> {
        let fd = io::stdin().as_raw_fd();
        // SAFETY: termios is plain integers, for which zeroes are a value.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: tcgetattr writes one termios, to a place that is one.
        if unsafe { libc::tcgetattr(fd, &mut before) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut raw = before;
        // SAFETY: cfmakeraw changes the termios it is given.
        unsafe { libc::cfmakeraw(&mut raw) };
        set(fd, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that has gone needs no mode.
        let _ = set(io::stdin().as_raw_fd(), &self.before);
    }
}

fn set(fd: i32, mode: &libc::termios) -> io::Result<()> {
    // SAFETY: tcsetattr reads the termios it is given.
    match unsafe { libc::tcsetattr(fd, libc::TCSADRAIN, mode) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
