//! Signals, free space, daemons: system calls without a form in std.

#![allow(unsafe_code)] // kill, statvfs, and what happens between fork and exec

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Asks a process to end.
pub fn terminate(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .filter(|pid| *pid > 1)
        .ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: kill touches no memory of ours; the id is a single process and neither 0 nor negative.
    if unsafe { libc::kill(pid, libc::SIGTERM) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
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
