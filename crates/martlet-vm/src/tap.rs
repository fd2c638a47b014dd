//! Tap interfaces of the host: what a guest sends comes out of one, and what is sent to it reaches the guest.
//!
//! Whoever administers the host makes them, and says who may use them (`ip tuntap add vm0 mode tap user martlet`); here
//! they are only attached to. One that outlives its users is asked for, because a machine lets go of its when it is suspended.
#![allow(unsafe_code)] // TUNSETIFF and TUNGETIFF have no safe form in std

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Longest name of an interface (`IFNAMSIZ` without its end).
pub const NAME_MAX: usize = 15;

/// Of `linux/if_tun.h`: the interface is there without anybody attached to it.
const IFF_PERSIST: libc::c_short = 0x800;

/// Can an interface have this name?
pub fn is_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"/:,%".contains(&byte))
}

/// Attaches to the tap interface `name`: packets as they are on the wire, without the header of virtio-net, which a machine
/// with user-mode networking does not have either. So a descriptor fits both.
pub(crate) fn attach(name: &str) -> io::Result<OwnedFd> {
    if !is_name(name) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "no interface has such a name",
        ));
    }
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeros is a valid request: integers and unions of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    interface_request(&tun, libc::TUNSETIFF, &mut request)?;
    interface_request(&tun, libc::TUNGETIFF, &mut request)?;
    // SAFETY: the flags are what TUNGETIFF fills in.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    if flags & IFF_PERSIST == 0 {
        // Attaching has just made it, and it goes with us.
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "there is no tap interface of this name",
        ));
    }
    Ok(tun.into())
}

/// Is there a tap interface of this name, which nobody is attached to?
pub fn check(name: &str) -> io::Result<()> {
    attach(name).map(drop)
}

fn interface_request(tun: &File, name: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the kernel reads and writes one `ifreq`, which outlives the call.
    match unsafe { libc::ioctl(tun.as_raw_fd(), name, &raw mut *request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_they_are_paths() {
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "sixteen-letters-",
            "a:b",
            "tap,x",
            "ü",
        ] {
            assert!(!is_name(bad), "{bad:?}");
            assert_eq!(
                attach(bad).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{bad:?}"
            );
        }
        assert!(is_name("martlet0") && is_name("fifteen-letters"));
    }
}
