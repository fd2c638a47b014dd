//! Which pages of another process are written from now on: a userfaultfd in asynchronous write-protect mode (Linux 6.7),
//! asked by `PAGEMAP_SCAN` (Documentation/admin-guide/mm/pagemap.rst).
//!
//! A protected page costs its next writer one fault, which the kernel resolves itself. The descriptor is made by a system
//! call of the process, because it is of the memory of whoever makes it; it is kept here, and the kernel forgets
//! all of it when it is closed.
#![allow(unsafe_code)] // ioctls and pidfd_getfd have no safe interface

use super::{Mapping, scan};
use crate::VmError;
use crate::process::inject;
use martlet_image::{PAGE_SIZE, PageSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `UFFD_USER_MODE_ONLY`: an ordinary user may have one. Nothing is handled by us, so that is no restriction.
const USER_MODE_ONLY: i32 = 1;
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// Pages that are written are noted while it lives.
#[derive(Debug)]
pub struct WriteWatch {
    pagemap: File,
    mapping: Mapping,
    _userfaultfd: OwnedFd,
}

impl WriteWatch {
    /// Begins. Nothing is noted before the first look.
    pub fn start(pid: u32, mapping: &Mapping) -> io::Result<Self> {
        let userfaultfd = userfaultfd_of(pid)?;
        let mut api = UffdioApi {
            api: UFFD_API,
            features: UFFD_FEATURE_WP_ASYNC,
            ioctls: 0,
        };
        // SAFETY: the argument has the kernel's layout and is alive.
        check(unsafe { libc::ioctl(userfaultfd.as_raw_fd(), UFFDIO_API, &raw mut api) }.into())?;
        for segment in &mapping.segments {
            let mut register = UffdioRegister {
                start: segment.start,
                len: segment.page_count * PAGE_SIZE as u64,
                mode: UFFDIO_REGISTER_MODE_WP,
                ioctls: 0,
            };
            // SAFETY: as above.
            let registered =
                unsafe { libc::ioctl(userfaultfd.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) };
            check(registered.into())?;
        }
        Ok(Self {
            pagemap: File::open(format!("/proc/{pid}/pagemap"))?,
            mapping: mapping.clone(),
            _userfaultfd: userfaultfd,
        })
    }

    /// The private pages, and those of them that were written since the last look that forgets. With `forget`, writes are
    /// noted anew from this very look on.
    pub fn look(&self, forget: bool) -> Result<Seen, VmError> {
        let mut seen = Seen::default();
        for segment in &self.mapping.segments {
            scan::written_pages(&self.pagemap, segment, forget, &mut seen)
                .map_err(VmError::io("ask which pages a machine has written"))?;
        }
        Ok(seen)
    }
}

/// What a look has found.
#[derive(Debug, Default)]
pub struct Seen {
    /// Pages that are the process's own.
    pub private: PageSet,
    /// Those of them that were written.
    pub written: PageSet,
}

fn userfaultfd_of(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: opens a descriptor and touches no memory.
    let pidfd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the descriptor just opened, and nobody else's.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as i32) };
    let caller = inject::stop(pid)?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    let theirs = caller.call(libc::SYS_userfaultfd, [flags as u64, 0, 0, 0, 0, 0])?;
    // SAFETY: copies a descriptor and touches no memory.
    let ours = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), theirs as i32, 0) });
    // Left open, it would only cost the process a descriptor.
    let _ = caller.call(libc::SYS_close, [theirs, 0, 0, 0, 0, 0]);
    // SAFETY: the descriptor just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(ours? as i32) })
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
