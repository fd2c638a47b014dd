//! What has to be done before a program that has clones is ended, by Ctrl-C or a signal of another program.
#![allow(unsafe_code)] // signal masks have no safe interface in std

use crate::process::exit_now;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

const ENDING: [libc::c_int; 3] = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM];

/// Signals that end this process later than by themselves.
pub struct Taken {
    signals: libc::sigset_t,
    is_ending: Arc<AtomicBool>,
}

impl Taken {
    /// Has `act` done when this process is told to end, and ends it then. To be called while it has one thread.
    pub fn new(act: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (signals, is_ending) = (not_ignored(), Arc::new(AtomicBool::new(false)));
        let ending = is_ending.clone();
        mask(libc::SIG_BLOCK, &signals)?;
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let mut signal = 0;
                // SAFETY: reads the one and writes the other, which live here.
                if unsafe { libc::sigwait(&signals, &mut signal) } == 0 {
                    ending.store(true, SeqCst);
                    act();
                    exit_now(128 + signal);
                }
            })?;
        Ok(Self { signals, is_ending })
    }

    /// What `act` did is not told as a failure: if it was begun, this process ends here.
    pub fn stay(&self) {
        while self.is_ending.load(SeqCst) {
            std::thread::park();
        }
    }

    /// They end this process by themselves again, and programs that it starts.
    pub fn give_back(&self) -> io::Result<()> {
        mask(libc::SIG_UNBLOCK, &self.signals)
    }
}

/// Those that somebody has it ignore (nohup(1), a shell's background) stay ignored.
fn not_ignored() -> libc::sigset_t {
    let mut signals = MaybeUninit::uninit();
    // SAFETY: fills all of it.
    let mut signals = unsafe {
        libc::sigemptyset(signals.as_mut_ptr());
        signals.assume_init()
    };
    for signal in ENDING {
        let mut action = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: asks only; fills all of it, if there is such a signal.
        let is_ignored = unsafe {
            libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) != 0
                || action.assume_init().sa_sigaction == libc::SIG_IGN
        };
        if !is_ignored {
            // SAFETY: changes what is here.
            unsafe { libc::sigaddset(&mut signals, signal) };
        }
    }
    signals
}

fn mask(how: libc::c_int, signals: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: reads what is here; nobody asks for what was before.
    match unsafe { libc::pthread_sigmask(how, signals, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
