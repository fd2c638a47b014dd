//! Signals, free space, daemons: system calls without a form in std.

#![allow(unsafe_code)] // statvfs, and what happens between fork and exec

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Asks a process to end; whether it has, with all that it held, within a time.
pub fn terminate(pid: u32, within: Duration) -> io::Result<bool> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid
        .filter(|pid| !pid.is_init())
        .ok_or(io::ErrorKind::InvalidInput)?;
    // Readable when its last thread is gone. What /proc shows goes with the first one, when others still hold files and locks.
    let process = pidfd_open(pid, PidfdFlags::empty()).and_then(|process| {
        pidfd_send_signal(&process, Signal::TERM)?;
        Ok(process)
    });
    let process = match process {
        Err(Errno::SRCH) => return Ok(true),
        process => process?,
    };
    let within = Timespec::try_from(within).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&within))? > 0)
}

/// The command's process will be in no terminal's session, and have none of our descriptors but its first three: whoever
/// waits for the end of a pipe that we were given must not wait for a daemon.
pub fn detach(command: &mut Command) -> &mut Command {
    let apart = || {
        // SAFETY: a plain system call. It fails for the leader of a process group, which a child just forked is not.
        unsafe { libc::setsid() };
        // SAFETY: a plain system call that sets a flag on our own descriptors.
        match unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: nothing but async-signal-safe system calls.
    unsafe { command.pre_exec(apart) }
}

/// Bytes that this user can still write to the file system of a path.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: statvfs is plain integers, for which zeroes are a value.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero byte, and statvfs writes one statvfs to a place that is one.
    match unsafe { libc::statvfs(path.as_ptr(), &mut found) } {
        0 => Ok(found.f_bavail * found.f_frsize),
        _ => Err(io::Error::last_os_error()),
    }
}
