//! How much the kernel reads ahead, by who opens.
//!
//! There is one window for a mount, and an open file keeps the one that there was when it was opened. Guests touch memory here and
//! there: theirs is small. Who opens an image only to read it, as `cp` does, goes through it in order: theirs is large, and then
//! nothing need be pushed.
//!
//! ```text
//!           an image is opened to be read
//!   small ─────────────────────────────────► large
//!     ▲    it is read; a machine opens one     │
//!     └────────────────────────────────────────┘
//! ```
//!
//! The kernel looks at the window just after an open was answered. So it stays small for a while after a machine's.

use crate::mount::device_number;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much the kernel reads around a fault. Little, because the rest of a decoded frame is pushed behind the answer, and
/// reading around beyond that frame makes the fault wait for other frames. With one page in 64 touched, as after a
/// resume, going through 64 MiB took half as long as with 64 or 128 KiB (the kernel's own choice), and with every page
/// touched about as long (`benches/fault.rs`).
pub const READAHEAD_KIB: u32 = 16;
/// The window of who opens an image only to read it: as much as one request may bring.
const STREAM_KIB: u32 = 1024;
/// After so long the kernel has certainly looked.
const LOOKED: Duration = Duration::from_secs(1);

/// The window of a mount.
#[derive(Debug)]
pub struct Readahead {
    knob: PathBuf,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    is_large: bool,
    /// When a machine opened an image last.
    machine: Option<Instant>,
}

impl Readahead {
    /// That of the mount on `dir`; it is small now. Needs root.
    pub fn of(dir: &Path) -> io::Result<Self> {
        Self::at(knob(dir)?)
    }

    fn at(knob: PathBuf) -> io::Result<Self> {
        set(&knob, READAHEAD_KIB)?;
        let window = Window {
            is_large: false,
            machine: None,
        };
        Ok(Self {
            knob,
            window: Mutex::new(window),
        })
    }

    /// An image is about to be opened; will its window be large? Machines open for writing, though they never write.
    pub(crate) fn opens(&self, only_to_read: bool) -> bool {
        let mut window = self.window();
        if !only_to_read {
            window.machine = Some(Instant::now());
            self.set(&mut window, false);
            return false;
        }
        let is_safe = window.machine.is_none_or(|machine| machine.elapsed() > LOOKED);
        if is_safe {
            self.set(&mut window, true);
        }
        window.is_large
    }

    /// A file with a large window is read.
    pub(crate) fn is_read(&self) {
        self.set(&mut self.window(), false);
    }

    fn set(&self, window: &mut Window, is_large: bool) {
        if window.is_large == is_large {
            return;
        }
        let window_kib = if is_large { STREAM_KIB } else { READAHEAD_KIB };
        match set(&self.knob, window_kib) {
            Ok(()) => window.is_large = is_large,
            Err(error) => tracing::debug!(%error, window_kib, "readahead stays as it was"),
        }
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sets how much the kernel reads around a fault and ahead of a stream, for everybody who opens from now on. Needs root.
pub fn set_readahead(dir: &Path, readahead_kib: u32) -> io::Result<()> {
    set(&knob(dir)?, readahead_kib)
}

fn set(knob: &Path, readahead_kib: u32) -> io::Result<()> {
    fs::write(knob, readahead_kib.to_string())
}

fn knob(dir: &Path) -> io::Result<PathBuf> {
    let (major, minor) = device_number(dir)?;
    Ok(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_large_for_who_only_reads_and_never_for_a_machine() {
        let dir = tempfile::tempdir().unwrap();
        let knob = dir.path().join("read_ahead_kb");
        let readahead = Readahead::at(knob.clone()).unwrap();
        let now = || fs::read_to_string(&knob).unwrap();
        assert_eq!(now(), "16");
        assert!(readahead.opens(true));
        assert_eq!(now(), "1024");
        readahead.is_read();
        assert_eq!(now(), "16");
        assert!(readahead.opens(true));
        assert!(!readahead.opens(false));
        assert_eq!(now(), "16", "a machine's, though a reader opens too");
        assert!(!readahead.opens(true), "the machine's may not be looked at yet");
        readahead.window().machine = Instant::now().checked_sub(LOOKED * 2);
        assert!(readahead.opens(true));
    }
}
