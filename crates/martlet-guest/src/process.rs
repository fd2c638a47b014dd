//! Processes of a clone.
#![allow(unsafe_code)] // fork(2) and _exit(2) have no safe wrappers in std

use std::io;

/// Which side of a fork this is.
pub enum Side {
    /// The process that forked.
    Parent,
    /// The new one.
    Child,
}

/// Forks this process. The new one has this thread only.
pub fn fork() -> io::Result<Side> {
    // SAFETY: the child goes on as a copy of its parent, which is what the caller of the library asked for. It has no
    // other threads; that memory they were changing stays as it was then is said to the caller (`Guest::fork`).
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        _ => Ok(Side::Parent),
    }
}

/// Ends this process without what it would do at its end: that is for its parent to do, of which it is a copy.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: has no preconditions.
    unsafe { libc::_exit(status) }
}
