//! What a service manager expects of a service: to be told when it is ready, and to be given its socket.

#![allow(unsafe_code)] // an inherited descriptor comes as a bare number

use std::os::fd::FromRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

/// First descriptor that a service manager passes.
const LISTEN_FDS_START: i32 = 3;

/// Tells the service manager, if there is one: `READY=1`, `STOPPING=1`.
pub fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, state, "the service manager was not told");
    }
}

/// The socket the service manager made for us, if it did. Call it once, before anything else opens descriptors.
pub fn inherited_listener() -> Option<UnixListener> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID")? != std::process::id() || number("LISTEN_FDS")? < 1 {
        return None;
    }
    // SAFETY: the manager has passed this descriptor to this very process (LISTEN_PID), and nobody else owns it.
    let listener = unsafe { UnixListener::from_raw_fd(LISTEN_FDS_START) };
    // A descriptor that is no unix socket has no such address.
    listener.local_addr().ok()?;
    listener.set_nonblocking(true).ok()?;
    Some(listener)
}
