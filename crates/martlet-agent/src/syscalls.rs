//! System calls that the standard library does not have, each behind a safe function.
#![allow(unsafe_code)] // the only way to mount, reboot, set clocks and names, and talk to devices

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Error, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

// ioctl numbers from <linux/fs.h>, <linux/random.h>, fs/ext4
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;
const FITRIM: libc::c_ulong = 0xc018_5879;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;

fn checked(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn c_string(text: impl AsRef<OsStr>) -> Result<CString> {
    CString::new(text.as_ref().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Mounts. `flags` are `libc::MS_*`.
pub fn mount(source: &Path, target: &Path, fs_type: &str, flags: libc::c_ulong, options: &str) -> Result<()> {
    let (source, target) = (c_string(source)?, c_string(target)?);
    let (fs_type, options) = (c_string(fs_type)?, c_string(options)?);
    // SAFETY: four strings that live through the call.
    checked(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            fs_type.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    })?;
    Ok(())
}

/// Changes the root directory of this process.
pub fn chroot(path: &Path) -> Result<()> {
    let path = c_string(path)?;
    // SAFETY: a string that lives through the call.
    checked(unsafe { libc::chroot(path.as_ptr()) })?;
    Ok(())
}

/// Loads a kernel module.
pub fn load_module(module: &File) -> Result<()> {
    // SAFETY: an open descriptor and an empty string.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), 0) };
    checked(result as libc::c_int)?;
    Ok(())
}

/// Sets the host name.
pub fn set_hostname(name: &str) -> Result<()> {
    // SAFETY: pointer and length of one string.
    checked(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })?;
    Ok(())
}

/// Steps CLOCK_REALTIME.
pub fn set_realtime(unix_ns: u64) -> Result<()> {
    let time = libc::timespec {
        tv_sec: (unix_ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (unix_ns % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: a valid timespec.
    checked(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) })?;
    Ok(())
}

/// Mixes bytes into the kernel's generator, counted as entropy, and has it reseed itself from them at once.
pub fn reseed_random(bytes: &[u8]) -> Result<()> {
    let length = i32::try_from(bytes.len()).map_err(|_| Error::from(io::ErrorKind::InvalidInput))?;
    let bits = length.checked_mul(8).ok_or(io::ErrorKind::InvalidInput)?;
    // struct rand_pool_info { int entropy_count; int buf_size; __u32 buf[]; }
    let mut pool: Vec<u8> = Vec::with_capacity(8 + bytes.len());
    pool.extend_from_slice(&bits.to_ne_bytes());
    pool.extend_from_slice(&length.to_ne_bytes());
    pool.extend_from_slice(bytes);
    let random = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: `pool` is a rand_pool_info whose buf_size is the number of bytes that follow.
    checked(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, pool.as_ptr()) })?;
    // SAFETY: takes no argument.
    checked(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) })?;
    Ok(())
}

/// Ends the guest at once; file systems should be synced before.
pub fn reboot(power_off: bool) -> Error {
    let how = if power_off {
        libc::RB_POWER_OFF
    } else {
        libc::RB_AUTOBOOT
    };
    // SAFETY: no memory is passed.
    unsafe { libc::reboot(how) };
    Error::last_os_error()
}

/// Writes all dirty pages.
pub fn sync() {
    // SAFETY: no arguments.
    unsafe { libc::sync() }
}

/// Sends a signal to a process; -1 is every one but this and process 1, other negative numbers are process groups.
pub fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: two numbers.
    checked(unsafe { libc::kill(pid, signal) })?;
    Ok(())
}

/// Forks a process that has no other threads. `None` in the child.
pub fn fork() -> Result<Option<i32>> {
    // SAFETY: the caller is process 1 before it has started any thread, so no lock can be left held in the child.
    match checked(unsafe { libc::fork() })? {
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// Waits for any child to end, and says which.
pub fn wait_any() -> Result<i32> {
    // SAFETY: no status is asked for.
    checked(unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) })
}

/// Starts a session; the caller leads it.
pub fn new_session() -> Result<()> {
    // SAFETY: no arguments.
    checked(unsafe { libc::setsid() })?;
    Ok(())
}

/// Makes the terminal the session's own.
pub fn take_terminal(terminal: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: an open descriptor; the argument is a number.
    checked(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })?;
    Ok(())
}

/// Becomes another user, for ever.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    // SAFETY: pointer and length of one slice.
    checked(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
    // SAFETY: a number.
    checked(unsafe { libc::setgid(gid) })?;
    // SAFETY: a number.
    checked(unsafe { libc::setuid(uid) })?;
    Ok(())
}

/// Opens a new pseudo terminal: its master and its slave.
pub fn open_pty() -> Result<(OwnedFd, OwnedFd)> {
    // SAFETY: flags only.
    let master = checked(unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) })?;
    // SAFETY: a descriptor that was just opened and belongs to nobody else.
    let master = unsafe { OwnedFd::from_raw_fd(master) };
    let unlock: libc::c_int = 0;
    // SAFETY: a pointer to an int, as TIOCSPTLCK wants.
    checked(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlock) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags and returns a new descriptor, without needing a path to the slave.
    let slave = checked(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: as above.
    Ok((master, unsafe { OwnedFd::from_raw_fd(slave) }))
}

/// Sets a terminal's size.
pub fn set_window_size(terminal: BorrowedFd<'_>, rows: u16, cols: u16) -> Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: a valid winsize.
    checked(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) })?;
    Ok(())
}

/// Waits until one of these can be read, or is at its end; which of them.
pub fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<Vec<bool>> {
    let poll_fd = |fd: &BorrowedFd<'_>| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut fds: Vec<_> = fds.iter().map(poll_fd).collect();
    let timeout_ms = timeout.map_or(-1, |timeout| timeout.as_millis().min(i32::MAX as u128) as i32);
    loop {
        // SAFETY: pointer and length of one array.
        match checked(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) }) {
            Ok(_) => return Ok(fds.iter().map(|fd| fd.revents != 0).collect()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The user of the process at the other end of a connection.
pub fn peer_user(connection: impl AsFd) -> Result<u32> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: an open socket, and a buffer of the size that is said.
    checked(unsafe {
        libc::getsockopt(
            connection.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &mut size,
        )
    })?;
    Ok(peer.uid)
}

/// A descriptor that can be read once the process has ended (Linux 5.3).
pub fn open_process(pid: u32) -> Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    match i32::try_from(fd) {
        // SAFETY: a new descriptor that belongs to nobody else.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Discards the unused blocks of the file system; the number of bytes discarded.
pub fn trim(root: impl AsFd) -> Result<u64> {
    let mut range: [u64; 3] = [0, u64::MAX, 0]; // struct fstrim_range { start, len, minlen }
    // SAFETY: `range` has the layout of an fstrim_range.
    checked(unsafe { libc::ioctl(root.as_fd().as_raw_fd(), FITRIM, range.as_mut_ptr()) })?;
    Ok(range[1])
}

/// Freezes or thaws the file system.
pub fn freeze(root: impl AsFd, frozen: bool) -> Result<()> {
    let request = if frozen { FIFREEZE } else { FITHAW };
    // SAFETY: the argument is not used.
    checked(unsafe { libc::ioctl(root.as_fd().as_raw_fd(), request, 0) })?;
    Ok(())
}

/// Grows an ext4 file system that is mounted.
pub fn resize_ext4(root: impl AsFd, blocks: u64) -> Result<()> {
    // SAFETY: a pointer to a u64, as the request wants.
    checked(unsafe { libc::ioctl(root.as_fd().as_raw_fd(), EXT4_IOC_RESIZE_FS, &blocks) })?;
    Ok(())
}

/// Size of a block device.
pub fn device_size(device: impl AsFd) -> Result<u64> {
    let mut size_bytes: u64 = 0;
    // SAFETY: a pointer to a u64, as the request wants.
    checked(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKGETSIZE64, &mut size_bytes) })?;
    Ok(size_bytes)
}

/// Size of a file system.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// One block.
    pub block_bytes: u64,
    /// All blocks.
    pub total_bytes: u64,
    /// Free for users.
    pub free_bytes: u64,
}

/// How big and how full a file system is.
pub fn space(path: &Path) -> Result<Space> {
    let path = c_string(path)?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: a string that lives through the call, and room for a statvfs.
    checked(unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) })?;
    // SAFETY: the call succeeded and has filled it in.
    let stat = unsafe { stat.assume_init() };
    let block_bytes = stat.f_frsize;
    Ok(Space {
        block_bytes,
        total_bytes: stat.f_blocks.saturating_mul(block_bytes),
        free_bytes: stat.f_bavail.saturating_mul(block_bytes),
    })
}

/// Is this directory the root of a cgroup v2 hierarchy?
pub fn is_cgroup2(path: &Path) -> bool {
    let Ok(path) = c_string(path) else { return false };
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: a string that lives through the call, and room for a statfs.
    let result = unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) };
    // SAFETY: only read when the call succeeded and has filled it in.
    result == 0 && unsafe { stat.assume_init() }.f_type == libc::CGROUP2_SUPER_MAGIC
}
