//! Has another process make a system call.
//!
//! Its main thread is stopped in the system call it waits in, made to make others, and let go: the kernel then takes up
//! again what it waited for, as after any stop (ptrace(2), "Interaction with restarted system calls"). Only the process's
//! thread of the same number is stopped, for less than a millisecond. A signal that comes meanwhile is told to us instead of
//! it, and sent again when it is let go.
//!
//! Whoever does this may be killed at any moment. The process then goes on: it is never made to step by single instructions, as
//! the trap after one would be a signal that ends it when nobody is there to take it. It is stopped where a system call begins and
//! where it ends, which is no signal. At worst what it waited for returns once with a count that means nothing, and QEMU looks
//! and waits again.
//!
//! One of the calls may be a fork ([`Caller::fork`]). The copy never runs: it stands still as long as it is held, and has no
//! stack that it could go on with.

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::cell::{Cell, RefCell};
use std::io;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// A thread that waits stops within this time, or something is wrong with it.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Looks at a thread that was not waiting in a system call before giving up.
const TRIES: usize = 50;
/// Other stops than the one that is waited for, such as for signals, before giving up.
const OTHER_STOPS_MAX: usize = 50;
const OPTIONS: Options = Options::PTRACE_O_TRACESYSGOOD;
const UNFILTERED: Options = Options::from_bits_retain(libc::PTRACE_O_SUSPEND_SECCOMP);
/// A stack that is none: a copy that is let go before it is known to end with us ends by its first instruction that needs one.
const NO_STACK: u64 = 16;
/// Copies that may have ended unnoticed, one for each daemon that was killed while it held one.
const COPIES_MAX: usize = 64;
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
        self.stopped.call(self.syscall_at, number, arguments)
    }

    /// Forks it. The copy has its memory, but for what is marked not to be inherited, and none of its open files.
    ///
    /// QEMU's filter of system calls, which would end it for this one, is suspended meanwhile; only who may administer the system
    /// can do that (`CAP_SYS_ADMIN`).
    pub(crate) fn fork(&self) -> io::Result<Copy> {
        let parent = &self.stopped;
        // Without a signal for its end, which its parent would not expect.
        let arguments = [libc::CLONE_PTRACE as u64, NO_STACK, 0, 0, 0, 0];
        let forked = self.unfiltered(|| self.call(libc::SYS_clone, arguments));
        let thread = Pid::from_raw(forked? as i32);
        let copy = Copy {
            stopped: Stopped {
                thread,
                registers: libc::user_regs_struct {
                    rsp: NO_STACK,
                    ..parent.registers
                },
                signals: RefCell::default(),
                called: Cell::new(false),
                fate: Fate::Ends,
            },
            parent: parent.thread,
            _thread: PhantomData,
        };
        to_rest(thread, &mut Vec::new())?;
        ptrace::setoptions(thread, OPTIONS | Options::PTRACE_O_EXITKILL)?;
        // The other end of a connection, and who waits for a file to be closed, are not to wait for the copy.
        copy.stopped.call(
            self.syscall_at,
            libc::SYS_close_range,
            [0, u64::from(u32::MAX), 0, 0, 0, 0],
        )?;
        Ok(copy)
    }

    /// May it be forked?
    pub(crate) fn can_fork(&self) -> io::Result<()> {
        self.unfiltered(|| Ok(()))
    }

    fn unfiltered<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let thread = self.stopped.thread;
        ptrace::setoptions(thread, OPTIONS | UNFILTERED)?;
        let acted = act();
        let _ = ptrace::setoptions(thread, OPTIONS); // it has ended, then
        acted
    }

    /// An address in what the kernel itself may write to when it lets the thread run: its thread-local storage (rseq(2)).
    pub(crate) fn thread_local(&self) -> u64 {
        self.stopped.registers.fs_base
    }

    /// Has it forget copies of it that have ended.
    pub(crate) fn reap(&self) {
        let arguments = [u64::MAX, 0, (libc::WNOHANG | libc::__WALL) as u64, 0, 0, 0];
        let mut left = COPIES_MAX;
        while left > 0 && matches!(self.call(libc::SYS_wait4, arguments), Ok(1..)) {
            left -= 1;
        }
    }
}

/// A copy of a process, which stands still and ends when this is dropped, or when the thread that has made it does.
pub(crate) struct Copy {
    stopped: Stopped,
    parent: Pid,
    /// Only the thread that traces it can wait for its end.
    _thread: PhantomData<*const ()>,
}

impl Copy {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.stopped.thread.as_raw() as u32
    }

    /// Ends it.
    pub(crate) fn end(self) {
        let parent = self.parent.as_raw() as u32;
        drop(self);
        // One that cannot be stopped now does so before its next copy.
        if let Ok(parent) = stop(parent) {
            parent.reap();
        }
    }
}

/// A thread that stands still as long as this is held.
struct Stopped {
    thread: Pid,
    registers: libc::user_regs_struct,
    /// Signals that it has not been given.
    signals: RefCell<Vec<Signal>>,
    /// Has it made a system call of ours?
    called: Cell<bool>,
    fate: Fate,
}

/// What becomes of a thread that is not held any more.
#[derive(PartialEq, Eq)]
enum Fate {
    GoesOn,
    Ends,
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if self.fate == Fate::Ends {
            let _ = kill(self.thread, Signal::SIGKILL);
            let _ = waitpid(self.thread, Some(WaitPidFlag::__WALL)); // nothing can keep it from ending
            return;
        }
        // One that has ended meanwhile needs none of this.
        if self.called.get() {
            let _ = self.rest();
        }
        let _ = ptrace::setregs(self.thread, self.registers);
        let _ = ptrace::detach(self.thread, None);
        for signal in self.signals.take() {
            let _ = kill(self.thread, signal);
        }
    }
}

impl Stopped {
    fn seize(thread: Pid) -> io::Result<Self> {
        ptrace::seize(thread, OPTIONS)?;
        ptrace::interrupt(thread)?;
        let mut signals = Vec::new();
        to_rest(thread, &mut signals)?;
        Ok(Self {
            thread,
            registers: ptrace::getregs(thread)?,
            signals: signals.into(),
            called: Cell::new(false),
            fate: Fate::GoesOn,
        })
    }

    fn call(&self, syscall_at: u64, number: libc::c_long, arguments: [u64; 6]) -> io::Result<u64> {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let call = libc::user_regs_struct {
            rip: syscall_at,
            rax: number as u64,
            // Not in a system call any more, so that the kernel does not start the old one again before ours.
            orig_rax: u64::MAX,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..self.registers
        };
        ptrace::setregs(self.thread, call)?;
        self.to_syscall()?; // where it begins
        self.to_syscall()?; // where it ends
        let result = ptrace::getregs(self.thread)?.rax;
        match result as i64 {
            error @ -4095..=-1 => Err(io::Error::from_raw_os_error(-error as i32)),
            _ => Ok(result),
        }
    }

    /// Has it go on to where a system call begins, or ends.
    fn to_syscall(&self) -> io::Result<()> {
        self.called.set(true);
        for _ in 0..OTHER_STOPS_MAX {
            ptrace::syscall(self.thread, None)?;
            match wait_for_stop(self.thread)? {
                Stop::Syscall => return Ok(()),
                Stop::Signal(signal) => self.signals.borrow_mut().push(signal),
                // Of the whole process, by a signal; it stays so when it is let go.
                Stop::Process => {}
            }
        }
        Err(io::Error::other("it does not come to rest"))
    }

    /// Has it stop as if it had been interrupted, before it does anything of its own: only from there the kernel takes up
    /// what it waited for.
    fn rest(&self) -> io::Result<()> {
        ptrace::interrupt(self.thread)?;
        ptrace::cont(self.thread, None)?;
        to_rest(self.thread, &mut self.signals.borrow_mut())
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

/// Waits until a thread that was interrupted stands still for that.
fn to_rest(thread: Pid, signals: &mut Vec<Signal>) -> io::Result<()> {
    for _ in 0..OTHER_STOPS_MAX {
        match wait_for_stop(thread)? {
            Stop::Process => return Ok(()),
            Stop::Signal(signal) => signals.push(signal),
            Stop::Syscall => {}
        }
        ptrace::cont(thread, None)?;
    }
    Err(io::Error::other("it does not come to rest"))
}

/// Why a thread stands still.
enum Stop {
    /// It was interrupted, or all of its process is stopped.
    Process,
    /// It was to be given a signal.
    Signal(Signal),
    /// A system call begins or ends.
    Syscall,
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
            Ok(WaitStatus::PtraceSyscall(_)) => return Ok(Stop::Syscall),
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

    /// The other process of the test below: traces what it is told to, until it is killed.
    #[test]
    #[ignore = "it is run by another test"]
    fn traces_without_end() {
        let pid = std::env::var("MARTLET_TEST_TRACES").unwrap().parse().unwrap();
        loop {
            let caller = stop(pid).unwrap();
            for _ in 0..3 {
                assert_eq!(caller.call(libc::SYS_getpid, [0; 6]).unwrap(), u64::from(pid));
            }
        }
    }

    /// Waits for a descriptor as QEMU does, which looks at each whatever it is told.
    #[test]
    #[ignore = "it is run by another test"]
    fn waits_as_qemu_does() {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let (end, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        loop {
            let mut wanted = [PollFd::new(std::os::fd::AsFd::as_fd(&end), PollFlags::POLLIN)];
            let _ = poll(&mut wanted, PollTimeout::NONE); // see above
            assert_eq!(wanted[0].any(), Some(false), "nobody writes");
        }
    }

    #[test]
    fn a_process_outlives_who_traces_it() {
        let test = |name: &str| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            let name = format!("process::inject::tests::{name}");
            command
                .args(["--exact", &name, "--ignored", "--test-threads=1"])
                .stdout(std::process::Stdio::null());
            command
        };
        let mut process = Waiting(test("waits_as_qemu_does").spawn().unwrap());
        process.wait_for("S");
        for round in 0..40 {
            let mut tracer = test("traces_without_end")
                .env("MARTLET_TEST_TRACES", process.0.id().to_string())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_micros(20_000 + 777 * round));
            tracer.kill().unwrap();
            tracer.wait().unwrap();
            assert_eq!(process.0.try_wait().unwrap(), None, "round {round}");
        }
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
