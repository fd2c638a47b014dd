//! Has another process move a mapping of a file over another part of its memory.
//!
//! QEMU maps its guest's memory when it starts, and no command of its gives it another one later. So that a QEMU can be
//! started before it is known what it will run, its main thread is stopped in the system call it waits in, made to call
//! `mremap(MREMAP_FIXED)` once, and let go: the kernel then takes up again what it waited for, as after any stop (ptrace(2),
//! "Interaction with restarted system calls"). Nothing of QEMU is changed but what is at these addresses.

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

/// A thread that waits stops within this time, or something is wrong with it.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Looks at a thread that was not waiting in a system call before giving up.
const TRIES: usize = 50;
/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Moves what process `pid` has at `addresses` to `to`, over what is there. Only the process's own thread of the same number
/// is stopped, for less than a millisecond.
pub(crate) fn move_over(pid: u32, addresses: Range<u64>, to: u64) -> io::Result<()> {
    let thread = Pid::from_raw(pid as i32);
    for _ in 0..TRIES {
        let stopped = Stopped::seize(thread)?;
        if let Some(at) = stopped.waits_at()? {
            return stopped.move_over(at, &addresses, to);
        }
        drop(stopped);
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::other("it does not come to rest"))
}

/// A thread that stands still as long as this is held.
struct Stopped {
    thread: Pid,
    registers: libc::user_regs_struct,
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // One that has ended meanwhile needs neither.
        let _ = ptrace::setregs(self.thread, self.registers);
        let _ = ptrace::detach(self.thread, None);
    }
}

impl Stopped {
    fn seize(thread: Pid) -> io::Result<Self> {
        ptrace::seize(thread, Options::empty())?;
        ptrace::interrupt(thread)?;
        wait_for_stop(thread)?;
        let registers = ptrace::getregs(thread)?;
        Ok(Self { thread, registers })
    }

    /// Address of the system call it waits in; none if it does not wait in one.
    fn waits_at(&self) -> io::Result<Option<u64>> {
        if self.registers.orig_rax == u64::MAX {
            return Ok(None);
        }
        let at = self.registers.rip - SYSCALL.len() as u64;
        let word = ptrace::read(self.thread, at as ptrace::AddressType)?.to_ne_bytes();
        Ok((word[..2] == SYSCALL).then_some(at))
    }

    fn move_over(&self, syscall_at: u64, addresses: &Range<u64>, to: u64) -> io::Result<()> {
        let size = addresses.end - addresses.start;
        let call = libc::user_regs_struct {
            rip: syscall_at,
            rax: libc::SYS_mremap as u64,
            // Not in a system call any more, so that the kernel does not start the old one again before ours.
            orig_rax: u64::MAX,
            rdi: addresses.start,
            rsi: size,
            rdx: size,
            r10: (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64,
            r8: to,
            r9: 0,
            ..self.registers
        };
        ptrace::setregs(self.thread, call)?;
        ptrace::step(self.thread, None)?;
        wait_for_stop(self.thread)?;
        let result = ptrace::getregs(self.thread)?.rax;
        match result as i64 {
            error @ -4095..=-1 => Err(io::Error::from_raw_os_error(-error as i32)),
            _ if result == to => Ok(()),
            _ => Err(io::Error::other("it was at another call")),
        }
    }
}

fn wait_for_stop(thread: Pid) -> io::Result<()> {
    let deadline = Instant::now() + STOP_TIMEOUT;
    loop {
        match waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_micros(20));
            }
            Ok(WaitStatus::StillAlive) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => {
                return Err(io::Error::other("it has ended"));
            }
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    fn mapping(pid: u32, part: &str) -> Range<u64> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let line = maps.lines().find(|line| line.ends_with(part)).unwrap();
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        u64::from_str_radix(start, 16).unwrap()..u64::from_str_radix(end, 16).unwrap()
    }

    const FREE_ADDRESS: u64 = 0x10_0000_0000;

    fn byte(pid: u32, at: u64) -> io::Result<u8> {
        let mut byte = [0];
        File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut byte, at)?;
        Ok(byte[0])
    }

    #[test]
    fn a_waiting_process_has_it_elsewhere_and_goes_on_waiting() {
        let begun = Instant::now();
        let mut child = Command::new("sleep").arg("0.7").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let heap = mapping(child.id(), "[heap]");
        let first = byte(child.id(), heap.start + 8).unwrap();

        move_over(child.id(), heap.clone(), FREE_ADDRESS).unwrap();
        assert_eq!(byte(child.id(), FREE_ADDRESS + 8).unwrap(), first);
        assert!(byte(child.id(), heap.start).is_err(), "it is not where it was");

        move_over(
            child.id(),
            FREE_ADDRESS..FREE_ADDRESS + (heap.end - heap.start),
            heap.start,
        )
        .unwrap();
        assert!(child.wait().unwrap().success(), "it has noticed nothing");
        assert!(
            begun.elapsed() >= Duration::from_millis(700),
            "it has slept to its end"
        );
    }

    #[test]
    fn what_the_process_cannot_do_is_told_and_harms_it_not() {
        let mut child = Command::new("sleep").arg("0.5").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(100));

        let error = move_over(child.id(), FREE_ADDRESS..FREE_ADDRESS + 4096, 2 * FREE_ADDRESS).unwrap_err();

        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
        assert!(child.wait().unwrap().success());
    }
}
