//! The descriptor of `/dev/fuse`: requests out, answers and notifications in.
#![allow(unsafe_code)] // readv-like system calls on a raw descriptor

use crate::notifier::Notifier;
use crate::proto::{TRANSFER_BYTES_MAX, notify};
use martlet_pager::PagePush;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

pub(crate) struct Device {
    fd: OwnedFd,
}

/// What a read of the device brought.
pub(crate) enum Arrival {
    /// A request of this many bytes.
    Request(usize),
    /// A signal, or a request that was taken back: look around and read again.
    Nothing,
    /// The file system is not mounted any more.
    Unmounted,
}

impl Device {
    pub(crate) fn new(fd: OwnedFd) -> Arc<Self> {
        Arc::new(Self { fd })
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(crate) fn read(&self, buf: &mut [u8]) -> io::Result<Arrival> {
        // SAFETY: the kernel writes at most `buf.len()` bytes into `buf`, which is exclusively borrowed.
        let count = unsafe { libc::read(self.fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) };
        if count >= 0 {
            return Ok(Arrival::Request(count as usize));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR | libc::ENOENT) => Ok(Arrival::Nothing),
            Some(libc::EAGAIN) => self.wait().map(|()| Arrival::Nothing),
            Some(libc::ENODEV) => Ok(Arrival::Unmounted),
            _ => Err(error),
        }
    }

    /// Waits for a request on a descriptor that somebody made non-blocking.
    fn wait(&self) -> io::Result<()> {
        let mut poll = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd, exclusively borrowed.
        match unsafe { libc::poll(&mut poll, 1, 1000) } {
            -1 if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted => {
                Err(io::Error::last_os_error())
            }
            _ => Ok(()),
        }
    }

    /// Answers request `unique`: an error number or the parts of a body.
    pub(crate) fn answer(&self, unique: u64, outcome: Result<[&[u8]; 2], i32>) {
        let (error, parts) = match outcome {
            Ok(parts) => (0, parts),
            Err(errno) => (-errno, [&[][..]; 2]),
        };
        if let Err(error) = send(self.fd.as_raw_fd(), error, unique, parts) {
            // The asker was killed, or the file system unmounted: nobody waits any more.
            let gone = matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ENODEV | libc::EPERM)
            );
            if !gone {
                tracing::warn!(%error, unique, "an answer was refused");
            }
        }
    }

    /// Asks for every request again that was read and not answered (Linux 6.9).
    pub(crate) fn resend(&self) -> io::Result<()> {
        send(self.fd.as_raw_fd(), notify::RESEND, 0, [&[], &[]])
    }
}

/// Writes a message: an answer, or with `unique` 0 a notice.
pub(crate) fn send(fd: RawFd, code: i32, unique: u64, parts: [&[u8]; 2]) -> io::Result<()> {
    let length = 16 + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut header = [0; 16];
    header[..4].copy_from_slice(&(length as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&code.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    let slice = |part: &[u8]| libc::iovec {
        iov_base: part.as_ptr().cast_mut().cast(),
        iov_len: part.len(),
    };
    let parts = [slice(&header), slice(parts[0]), slice(parts[1])];
    // SAFETY: three valid slices that outlive the call; the kernel only reads them.
    match unsafe { libc::writev(fd, parts.as_ptr(), 3) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Stores into the page cache of one file.
pub(crate) struct StorePush {
    pub(crate) notifier: Arc<Notifier>,
    pub(crate) ino: u64,
    pub(crate) size_bytes: u64,
}

impl PagePush for StorePush {
    fn push(&self, offset_bytes: u64, data: &Arc<Vec<u8>>) -> bool {
        // A store beyond the end would lengthen the file.
        let room = usize::try_from(self.size_bytes.saturating_sub(offset_bytes)).unwrap_or(usize::MAX);
        let end = data.len().min(room);
        (0..end).step_by(TRANSFER_BYTES_MAX as usize).all(|begin| {
            let part = begin..end.min(begin + TRANSFER_BYTES_MAX as usize);
            let offset = offset_bytes + begin as u64;
            self.notifier.store(self.ino, offset, data.clone(), part).is_ok()
        })
    }
}
