//! Has another process put a file over a part of its memory.
//!
//! QEMU maps its guest's memory when it starts, and no command of its gives it another one later. So that a QEMU can be
//! started before it is known what it will run, its main thread is stopped in the system call it waits in, made to call
//! `mmap(MAP_FIXED)` once, and let go: the kernel then takes up again what it waited for, as after any stop (ptrace(2),
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

/// Puts the file that process `pid` has open as `fd`, from its begin on, over `addresses` of that process: privately,
/// to be read and written. Only the process's own thread of the same number is stopped, for less than a millisecond.
pub(crate) fn map_over(pid: u32, addresses: Range<u64>, fd: i32) -> io::Result<()> {
    let thread = Pid::from_raw(pid as i32);
    for _ in 0..TRIES {
        let stopped = Stopped::seize(thread)?;
        if let Some(at) = stopped.waits_at()? {
            return stopped.map(at, &addresses, fd);
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

    fn map(&self, syscall_at: u64, addresses: &Range<u64>, fd: i32) -> io::Result<()> {
        let call = libc::user_regs_struct {
            rip: syscall_at,
            rax: libc::SYS_mmap as u64,
            // Not in a system call any more, so that the kernel does not start the old one again before ours.
            orig_rax: u64::MAX,
            rdi: addresses.start,
            rsi: addresses.end - addresses.start,
            rdx: (libc::PROT_READ | libc::PROT_WRITE) as u64,
            r10: (libc::MAP_PRIVATE | libc::MAP_FIXED) as u64,
            r8: fd as u64,
            r9: 0,
            ..self.registers
        };
        ptrace::setregs(self.thread, call)?;
        ptrace::step(self.thread, None)?;
        wait_for_stop(self.thread)?;
        let result = ptrace::getregs(self.thread)?.rax;
        match result as i64 {
            error @ -4095..=-1 => Err(io::Error::from_raw_os_error(-error as i32)),
            _ if result == addresses.start => Ok(()),
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
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::process::{Command, Stdio};

    const SIZE: u64 = 64 << 10;
    const FREE_ADDRESS: u64 = 0x10_0000_0000;

    #[test]
    fn a_waiting_process_gets_the_file_and_goes_on_waiting() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; SIZE as usize]).unwrap();
        let begun = Instant::now();
        let mut child = Command::new("sleep")
            .arg("0.7")
            .stdin(Stdio::from(file.try_clone().unwrap()))
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(200));

        map_over(child.id(), FREE_ADDRESS..FREE_ADDRESS + SIZE, 0).unwrap();

        let memory = std::fs::File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{}/mem", child.id()))
            .unwrap();
        let mut byte = [0];
        memory.read_exact_at(&mut byte, FREE_ADDRESS + SIZE - 1).unwrap();
        assert_eq!(byte, [7]);
        memory.write_all_at(&[9], FREE_ADDRESS).unwrap();
        file.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [7], "what the process writes is its own");
        assert!(child.wait().unwrap().success(), "it has noticed nothing");
        assert!(
            begun.elapsed() >= Duration::from_millis(700),
            "it has slept to its end"
        );
    }

    #[test]
    fn what_the_process_cannot_do_is_told_and_harms_it_not() {
        let mut child = Command::new("sleep")
            .arg("0.5")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(100));

        let error = map_over(child.id(), FREE_ADDRESS..FREE_ADDRESS + SIZE, 77).unwrap_err();

        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        assert!(child.wait().unwrap().success());
    }
}
