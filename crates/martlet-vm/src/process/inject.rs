//! Has another process make a system call.
//!
//! Its main thread is stopped in the system call it waits in, made to make others, and let go: the kernel then takes up
//! again what it waited for, as after any stop (ptrace(2), "Interaction with restarted system calls"). Only the process's
//! thread of the same number is stopped, for less than a millisecond.

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io;
use std::time::{Duration, Instant};

/// A thread that waits stops within this time, or something is wrong with it.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Looks at a thread that was not waiting in a system call before giving up.
const TRIES: usize = 50;
/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Stops process `pid` where it can be made to make system calls.
pub(crate) fn stop(pid: u32) -> io::Result<Caller> {
    let thread = Pid::from_raw(pid as i32);
    for _ in 0..TRIES {
        let stopped = Stopped::seize(thread)?;
        if let Some(syscall_at) = stopped.waits_at()? {
            return Ok(Caller { stopped, syscall_at });
        }
        drop(stopped);
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::other("it does not come to rest"))
}

/// A process that makes the system calls it is told to. Dropping it lets it go.
pub(crate) struct Caller {
    stopped: Stopped,
    syscall_at: u64,
}

impl Caller {
    /// Makes a system call with these arguments.
    pub(crate) fn call(&self, number: libc::c_long, arguments: [u64; 6]) -> io::Result<u64> {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let call = libc::user_regs_struct {
            rip: self.syscall_at,
            rax: number as u64,
            // Not in a system call any more, so that the kernel does not start the old one again before ours.
            orig_rax: u64::MAX,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..self.stopped.registers
        };
        ptrace::setregs(self.stopped.thread, call)?;
        ptrace::step(self.stopped.thread, None)?;
        wait_for_stop(self.stopped.thread)?;
        let result = ptrace::getregs(self.stopped.thread)?.rax;
        match result as i64 {
            error @ -4095..=-1 => Err(io::Error::from_raw_os_error(-error as i32)),
            _ => Ok(result),
        }
    }
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
