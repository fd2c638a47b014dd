//! Mounting and unmounting.
#![allow(unsafe_code)] // mount(2), umount2(2), statx(2), descriptor passing

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How to mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MountOptions {
    /// Users other than the mounting one may use it, as far as the files' modes let them. QEMU's users need it.
    pub allow_other: bool,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Mounts an empty file system on `dir` and yields its connection, for [`Server::start`](crate::Server::start). What
/// an earlier daemon left mounted there (dead or alive) is detached first.
pub fn mount(dir: &Path, options: MountOptions) -> io::Result<OwnedFd> {
    unmount(dir)?;
    // SAFETY: no arguments.
    if unsafe { libc::geteuid() } == 0 {
        mount_directly(dir, options)
    } else {
        mount_by_helper(dir, options)
    }
}

fn option_text(options: MountOptions) -> &'static str {
    if options.allow_other {
        "default_permissions,allow_other"
    } else {
        "default_permissions"
    }
}

fn mount_directly(target: &Path, options: MountOptions) -> io::Result<OwnedFd> {
    let device: OwnedFd = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")?
        .into();
    let (fd, options) = (device.as_raw_fd(), option_text(options));
    let data = format!(
        "fd={fd},rootmode=40755,user_id=0,group_id=0,max_read={},{options}",
        1 << 20
    );
    let (dir, data) = (
        c_path(target)?,
        CString::new(data).expect("made of digits and words"),
    );
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOATIME;
    // SAFETY: valid C strings that outlive the call.
    let mounted = unsafe {
        libc::mount(
            c"martlet".as_ptr(),
            dir.as_ptr(),
            c"fuse.martlet".as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    };
    if mounted != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(device)
}

/// `fusermount3` is set-uid root, mounts, and sends the descriptor over the socket named in its environment.
fn mount_by_helper(dir: &Path, options: MountOptions) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    // SAFETY: a descriptor that is open; the child needs it across exec.
    unsafe { libc::fcntl(theirs.as_raw_fd(), libc::F_SETFD, 0) };
    let options = format!(
        "fsname=martlet,subtype=martlet,nosuid,nodev,{}",
        option_text(options)
    );
    let status = Command::new("fusermount3")
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .args(["-o", &options, "--"])
        .arg(dir)
        .status()?;
    drop(theirs);
    if !status.success() {
        return Err(io::Error::other(format!("fusermount3 failed: {status}")));
    }
    receive_descriptor(&ours)
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0u8];
    let mut control = [0u64; 8]; // aligned for a control message with one descriptor
    let mut part = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    // SAFETY: all zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: `message` points at live buffers of the lengths it names.
    if unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) } < 1 {
        return Err(io::Error::other("fusermount3 sent no descriptor"));
    }
    // SAFETY: the kernel filled `control`; the macros stay within `msg_controllen`.
    unsafe {
        let head = libc::CMSG_FIRSTHDR(&message);
        if head.is_null() || (*head).cmsg_level != libc::SOL_SOCKET || (*head).cmsg_type != libc::SCM_RIGHTS {
            return Err(io::Error::other("fusermount3 sent no descriptor"));
        }
        Ok(OwnedFd::from_raw_fd(
            libc::CMSG_DATA(head).cast::<RawFd>().read_unaligned(),
        ))
    }
}

/// Detaches what FUSE file systems are mounted on `dir`, also dead ones. Open files go on until they are closed.
pub fn unmount(dir: &Path) -> io::Result<()> {
    for _ in 0..mounts_at(dir)? {
        let path = c_path(dir)?;
        // SAFETY: a valid C string.
        if unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) } == 0 {
            continue;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EPERM) => {
                let status = Command::new("fusermount3")
                    .args(["-u", "-z", "--"])
                    .arg(dir)
                    .status()?;
                if !status.success() {
                    return Err(io::Error::other(format!("fusermount3 failed: {status}")));
                }
            }
            Some(libc::EINVAL) => return Ok(()), // somebody else was faster
            _ => return Err(error),
        }
    }
    Ok(())
}

/// How many FUSE file systems are mounted on `dir`, one over the other. Asks no server, so dead ones count.
pub fn mounts_at(dir: &Path) -> io::Result<usize> {
    // A dead mount answers no stat, so only the parent is resolved.
    let name = dir.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = dir
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let dir = match fs::canonicalize(parent) {
        Ok(parent) => parent.join(name),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(table
        .split(|&byte| byte == b'\n')
        .filter(|line| fuse_mount_point(line).is_some_and(|point| point == dir))
        .count())
}

/// The mount point that a line of mountinfo names, if it is FUSE's.
fn fuse_mount_point(line: &[u8]) -> Option<PathBuf> {
    let mut words = line.split(|&byte| byte == b' ');
    let point = unescape(words.nth(4)?);
    let kind = words.skip_while(|word| *word != b"-").nth(1)?;
    (kind == b"fuse" || kind.starts_with(b"fuse."))
        .then(|| PathBuf::from(std::ffi::OsString::from_vec(point)))
}

/// Blanks and the like are written as `\ooo`.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail
            .get(..3)
            .filter(|digits| byte == b'\\' && digits.iter().all(|digit| (b'0'..b'8').contains(digit)));
        match digits {
            Some(digits) => {
                bytes.push(
                    digits
                        .iter()
                        .fold(0u8, |value, digit| value.wrapping_shl(3) | (digit - b'0')),
                );
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    bytes
}

/// Major and minor number of what is mounted on `dir`, whether it is served or not.
pub(crate) fn device_number(dir: &Path) -> io::Result<(u32, u32)> {
    // SAFETY: all zero is a valid statx.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let path = c_path(dir)?;
    let flags = libc::AT_STATX_DONT_SYNC;
    // SAFETY: a valid C string and a statx to fill.
    if unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, libc::STATX_TYPE, &mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((stat.stx_dev_major, stat.stx_dev_minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_of_ordinary_users_mounts_too() {
        if Command::new("fusermount3").arg("-V").output().is_err() {
            return; // not installed: nothing mounts that way on this machine
        }
        struct Unmount(PathBuf);
        impl Drop for Unmount {
            fn drop(&mut self) {
                let _ = unmount(&self.0);
            }
        }
        let temporary = tempfile::tempdir().unwrap();
        let guard = Unmount(temporary.path().join("a b"));
        fs::create_dir(&guard.0).unwrap();
        let fd = mount_by_helper(&guard.0, MountOptions { allow_other: false }).unwrap();
        assert_eq!(mounts_at(&guard.0).unwrap(), 1);
        let server = crate::Server::start(fd, crate::Registry::new(), None, 1).unwrap();
        assert_eq!(fs::read_dir(&guard.0).unwrap().count(), 2);
        drop((guard, server));
    }

    #[test]
    fn mount_points_are_found_in_the_kernels_table() {
        let line = br"40 23 0:35 / /run/a\040b\134c rw,nosuid shared:7 - fuse.martlet martlet rw,user_id=0";
        assert_eq!(fuse_mount_point(line), Some(PathBuf::from(r"/run/a b\c")));
        let others = [
            &b"23 1 254:0 / / rw - ext4 /dev/vda rw"[..],
            b"",
            b"1 2 3",
            br"40 23 0:35 / /a\9 rw",
        ];
        assert!(others.iter().all(|line| fuse_mount_point(line).is_none()));
    }
}
