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
//! The kernel looks at the window just after an open was answered. So it stays small until a machine reads what it has opened, or for a
//! while if it never does.

use crate::mount::device_number;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
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

/// Who opened an image, of whom the kernel knows from then on by this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handle(pub(crate) u64);

impl Handle {
    /// Besides the opener's pid: its window is large.
    const STREAM: u64 = 1 << 32;

    fn new(pid: u32, is_stream: bool) -> Self {
        Self(u64::from(pid) | if is_stream { Self::STREAM } else { 0 })
    }

    /// Who opened.
    pub(crate) fn pid(self) -> u32 {
        self.0 as u32
    }

    /// Is this a part of what somebody reads in order, who has asked for what comes next as well?
    pub(crate) fn is_in_order(self, size_bytes: u32) -> bool {
        self.0 & Self::STREAM != 0 && size_bytes > READAHEAD_KIB << 10
    }
}

/// The window of a mount.
#[derive(Debug, Default)]
pub struct Readahead {
    knob: PathBuf,
    window: Mutex<Window>,
    /// It is large, or a machine's open was just answered. What most reads need not lock anything to know.
    unsettled: AtomicBool,
}

#[derive(Debug, Default)]
struct Window {
    is_large: bool,
    /// Machines' opens that the kernel may not be done with, and when they were answered.
    machines: Vec<(Handle, Instant)>,
}

impl Readahead {
    /// That of the mount on `dir`; it is small now. Needs root.
    pub fn of(dir: &Path) -> io::Result<Self> {
        Self::at(knob(dir)?)
    }

    fn at(knob: PathBuf) -> io::Result<Self> {
        set(&knob, READAHEAD_KIB)?;
        Ok(Self {
            knob,
            ..Self::default()
        })
    }

    /// An image is about to be opened by `pid`. Machines open for writing, though they never write. Zeros alone, as of a machine that is
    /// yet to get its memory, are soon read in whatever window: nobody has to wait until it has opened those.
    pub(crate) fn opens(&self, pid: u32, only_to_read: bool, is_zero: bool) -> Handle {
        self.with(|window| {
            self.set(window, only_to_read && window.machines.is_empty());
            let handle = Handle::new(pid, window.is_large);
            if !only_to_read && !is_zero {
                window.machines.push((handle, Instant::now()));
            }
            handle
        })
    }

    /// An image is read by whom this handle was given to.
    pub(crate) fn is_read(&self, handle: Handle) {
        if self.unsettled.load(Relaxed) {
            self.with(|window| {
                if handle.0 & Handle::STREAM != 0 {
                    self.set(window, false);
                }
                window.machines.retain(|(machine, _)| *machine != handle);
            });
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Window) -> T) -> T {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window
            .machines
            .retain(|(_, answered)| answered.elapsed() < LOOKED);
        let done = change(&mut window);
        let unsettled = window.is_large || !window.machines.is_empty();
        self.unsettled.store(unsettled, Relaxed);
        done
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
        let (much, little) = (1 << 20, READAHEAD_KIB << 10);
        assert_eq!(now(), "16");
        let reader = readahead.opens(7, true, false);
        assert!(reader.is_in_order(much) && !reader.is_in_order(little));
        assert_eq!((reader.pid(), now()), (7, "1024".into()));
        readahead.is_read(reader);
        assert_eq!(now(), "16");
        readahead.opens(7, true, false);
        let machine = readahead.opens(8, false, false);
        assert!(!machine.is_in_order(much));
        assert_eq!(now(), "16", "a machine's, though a reader opens too");
        let other = readahead.opens(9, true, false);
        readahead.is_read(reader);
        readahead.is_read(other);
        assert!(!other.is_in_order(much) && now() == "16", "a machine opens");
        readahead.is_read(machine);
        assert!(readahead.opens(9, true, false).is_in_order(much), "it has opened");
        readahead.opens(8, false, false);
        readahead.with(|window| window.machines[0].1 -= LOOKED);
        assert!(readahead.opens(9, true, false).is_in_order(much), "long ago");
        readahead.opens(10, false, true);
        assert_eq!(now(), "16", "zeros of a machine");
        assert!(
            readahead.opens(9, true, false).is_in_order(much),
            "nobody waits for those"
        );
    }
}
