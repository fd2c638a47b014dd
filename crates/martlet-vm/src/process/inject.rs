//! Has another process make a system call.
//!
//! Its main thread is stopped in the system call it waits in, made to make others, and let go: the kernel then takes up
//! again what it waited for, as after any stop (ptrace(2), "Interaction with restarted system calls"). Only the process's
//! thread of the same number is stopped, for less than a millisecond. A signal that comes meanwhile is told to us instead of
//! it, and sent again when it is let go.

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::io;
use std::time::{Duration, Instant};

/// A thread that waits stops within this time, or something is wrong with it.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Looks at a thread that was not waiting in a system call before giving up.
const TRIES: usize = 50;
/// Other stops than the one that is waited for, such as for signals, before giving up.
const OTHER_STOPS_MAX: usize = 50;
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
        self.stopped.step()?;
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
    /// Signals that it has not been given.
    signals: RefCell<Vec<Signal>>,
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // One that has ended meanwhile needs neither.
        let _ = ptrace::setregs(self.thread, self.registers);
        let _ = ptrace::detach(self.thread, None);
        for signal in self.signals.take() {
            let _ = kill(self.thread, signal);
        }
    }
}

impl Stopped {
    fn seize(thread: Pid) -> io::Result<Self> {
        ptrace::seize(thread, Options::empty())?;
        ptrace::interrupt(thread)?;
        let mut signals = Vec::new();
        for _ in 0..OTHER_STOPS_MAX {
            match wait_for_stop(thread)? {
                Stop::Process => {
                    return Ok(Self {
                        thread,
                        registers: ptrace::getregs(thread)?,
                        signals: signals.into(),
                    });
                }
                Stop::Signal(signal) => signals.push(signal),
                Stop::Step => {}
            }
            ptrace::cont(thread, None)?;
        }
        Err(io::Error::other("it does not come to rest"))
    }

    /// Has it execute one instruction.
    fn step(&self) -> io::Result<()> {
        for _ in 0..OTHER_STOPS_MAX {
            ptrace::step(self.thread, None)?;
            match wait_for_stop(self.thread)? {
                Stop::Step => return Ok(()),
                Stop::Signal(signal) => self.signals.borrow_mut().push(signal),
                // Of the whole process, by a signal; it stays so when it is let go.
                Stop::Process => {}
            }
        }
        Err(io::Error::other("it does not come to rest"))
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

/// Why a thread stands still.
enum Stop {
    /// It was interrupted, or all of its process is stopped.
    Process,
    /// It was to be given a signal.
    Signal(Signal),
    /// It has executed an instruction.
    Step,
}

fn wait_for_stop(thread: Pid) -> io::Result<Stop> {
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
            Ok(WaitStatus::Stopped(_, Signal::SIGTRAP)) => return Ok(Stop::Step),
            Ok(WaitStatus::Stopped(_, signal)) => return Ok(Stop::Signal(signal)),
            Ok(_) => return Ok(Stop::Process),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// A process that waits, and its end.
    struct Waiting(Child);

    impl Waiting {
        fn start() -> Self {
            let child = Self(Command::new("sleep").arg("1000").spawn().unwrap());
            while child.state() != "S" {
                std::thread::sleep(Duration::from_millis(1));
            }
            child
        }

        fn signal(&self, signal: Signal) {
            kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
        }

        fn state(&self) -> String {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
            stat.rsplit_once(") ").unwrap().1[..1].to_owned()
        }

        fn wait_for(&self, state: &str) {
            let deadline = Instant::now() + Duration::from_secs(10);
            while self.state() != state {
                assert!(Instant::now() < deadline, "{} and not {state}", self.state());
                std::thread::sleep(Duration::from_millis(1));
            }
        }

        /// It makes a system call, whose answer is its own.
        fn assert_called(&self, caller: &Caller) {
            let answer = caller.call(libc::SYS_getpid, [0; 6]).unwrap();
            assert_eq!(answer, u64::from(self.0.id()));
        }
    }

    impl Drop for Waiting {
        fn drop(&mut self) {
            let _ = self.0.kill(); // it has ended
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_process_that_is_stopped_makes_calls_and_stays_stopped() {
        let process = Waiting::start();
        process.signal(Signal::SIGSTOP);
        process.wait_for("T");
        process.assert_called(&stop(process.0.id()).unwrap());
        process.wait_for("T");
        process.signal(Signal::SIGCONT);
        process.wait_for("S");
    }

    #[test]
    fn a_signal_that_comes_meanwhile_is_not_lost() {
        let mut process = Waiting::start();
        for signal in [Signal::SIGSTOP, Signal::SIGTERM] {
            let caller = stop(process.0.id()).unwrap();
            process.signal(signal);
            process.assert_called(&caller);
            process.assert_called(&caller);
            drop(caller);
            if signal == Signal::SIGSTOP {
                process.wait_for("T");
                process.signal(Signal::SIGCONT);
                process.wait_for("S");
            }
        }
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(process.0.wait().unwrap().signal(), Some(libc::SIGTERM));
    }
}
