//! System calls that the standard library does not have, each behind a safe function.
#![allow(unsafe_code)] // TUNSETIFF and what a child does before it executes a program have no safe form

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

/// Makes the tap interface `name` in this thread's network namespace. Frames are read and written whole, and none is waited
/// for; the interface goes with the descriptor.
pub(crate) fn tap(name: &str) -> io::Result<File> {
    let tap = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: all zeros is a valid request: integers and unions of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the kernel reads and writes one `ifreq`, which outlives the call.
    match unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(tap),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has what `command` starts run in a network namespace.
pub(crate) fn start_within(command: &mut Command, namespace: Arc<OwnedFd>) {
    let enter = move || setns(&*namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
    // SAFETY: between fork and exec there is one system call, and errors that are numbers: nothing that allocates or locks.
    unsafe { command.pre_exec(enter) };
}

/// Has the kernel prefer this thread to all that are not real-time. Fails without the right to.
pub(crate) fn prefer_this_thread() -> io::Result<()> {
    // SAFETY: numbers in, a number out.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
