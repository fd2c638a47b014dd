//! The thread that writes what may wait: stores and invalidations.
//!
//! The kernel takes page locks for them, without heeding signals, and such a lock is held while the page is being read. So
//! when the server is killed in the middle of a read, a thread that waits for that page stays until the *next*
//! server answers the read, and keeps everything alive that it holds, also after a SIGKILL. If it held the daemon's
//! descriptors, it would hold the locks of its store and disks, which the next server needs to answer.
//! Hence this thread has a descriptor table of its own with nothing in it but `/dev/fuse`, and does nothing but
//! write what others hand it.
#![allow(unsafe_code)] // a descriptor table of its own

use crate::device::{Device, send};
use crate::proto::{Body, notify};
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

struct Notice {
    code: i32,
    head: Vec<u8>,
    data: Arc<Vec<u8>>,
    part: Range<usize>,
    outcome: SyncSender<io::Result<()>>,
}

/// Writes notices on a thread of its own. Never wait for one on a thread that handles requests.
pub(crate) struct Notifier {
    notices: Option<SyncSender<Notice>>,
}

impl Notifier {
    /// Starts the thread. Where it cannot be set apart there are no notices.
    pub(crate) fn start(device: &Device) -> Self {
        let (notices, waiting) = sync_channel(0);
        let (ready, apart) = sync_channel(1);
        let fd = device.raw();
        let run = move || {
            let own = own_table(fd);
            let usable = own.is_ok();
            let _ = ready.send(own);
            if usable {
                write_all(fd, &waiting);
            }
        };
        // Waited for: until the thread has its own table, the descriptor must stay open in this one.
        let spawned = std::thread::Builder::new().name("notify".into()).spawn(run);
        let outcome = spawned.and_then(|_| {
            apart
                .recv()
                .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
        });
        if let Err(error) = &outcome {
            tracing::warn!(%error, "pages come by faults alone");
        }
        Self {
            notices: outcome.is_ok().then_some(notices),
        }
    }

    fn notify(&self, code: i32, head: Body, data: Arc<Vec<u8>>, part: Range<usize>) -> io::Result<()> {
        let (outcome, done) = sync_channel(1);
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let notice = Notice {
            code,
            head: head.0,
            data,
            part,
            outcome,
        };
        self.notices
            .as_ref()
            .ok_or_else(gone)?
            .send(notice)
            .map_err(|_| gone())?;
        done.recv().map_err(|_| gone())?
    }

    /// Puts `part` of `data` into the page cache of a file.
    pub(crate) fn store(
        &self,
        ino: u64,
        offset: u64,
        data: Arc<Vec<u8>>,
        part: Range<usize>,
    ) -> io::Result<()> {
        let head = Body::default().u64(ino).u64(offset).u32(part.len() as u32).u32(0);
        self.notify(notify::STORE, head, data, part)
    }

    /// Drops the page cache of a file.
    pub(crate) fn invalidate(&self, ino: u64) -> io::Result<()> {
        unknown_is_fine(self.notify(
            notify::INVAL_INODE,
            Body::default().u64(ino).u64(0).u64(0),
            Arc::default(),
            0..0,
        ))
    }

    /// Makes the kernel forget a name, and the file with it unless somebody has it open.
    pub(crate) fn forget_name(&self, dir: u64, name: &str) -> io::Result<()> {
        let head = Body::default().u64(dir).u32(name.len() as u32).u32(0);
        let mut data = name.as_bytes().to_vec();
        data.push(0);
        let part = 0..data.len();
        unknown_is_fine(self.notify(notify::INVAL_ENTRY, head, Arc::new(data), part))
    }
}

/// What the kernel does not know it has not cached.
fn unknown_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        outcome => outcome,
    }
}

/// Gives the calling thread a descriptor table with only `fd` in it.
fn own_table(fd: RawFd) -> io::Result<()> {
    let close = |first: u32, last: u32| {
        // SAFETY: only called below, on a table that no other thread shares; this thread owns no descriptors.
        match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: no memory is involved. From here on closing concerns this thread alone.
    if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = fd as u32; // open, so not negative
    if fd > 0 {
        close(0, fd - 1)?;
    }
    close(fd + 1, u32::MAX)
}

fn write_all(fd: RawFd, notices: &Receiver<Notice>) {
    while let Ok(notice) = notices.recv() {
        let outcome = send(fd, notice.code, 0, [&notice.head, &notice.data[notice.part]]);
        drop(notice.data); // who is told may use it again
        let _ = notice.outcome.send(outcome);
    }
}
