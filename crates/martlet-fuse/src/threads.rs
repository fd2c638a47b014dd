//! The threads that serve a connection: as many as were asked for, and while all of those wait (for frames that come from
//! far away, say) one more, so that requests for what is here are answered all the same.
//!
//! ```text
//!   started ──► idle ──a request──► busy ──answered──► idle
//!                ▲                   │ nobody else is idle: one more is started
//!                └───────────────────┴──► ended, when as many as were asked for are idle
//! ```
#![allow(unsafe_code)] // a signal that only interrupts system calls

use crate::device::{Arrival, Device};
use crate::proto::{REQUEST_BYTES_MAX, TRANSFER_BYTES_MAX};
use crate::registry::Registry;
use crate::request::Worker;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

const THREADS_MAX: usize = 64;

/// See the module's documentation.
pub(crate) struct Threads {
    device: Arc<Device>,
    registry: Arc<Registry>,
    wanted: usize,
    idle: AtomicUsize,
    stopping: Arc<AtomicBool>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    /// Starts `wanted` threads.
    pub(crate) fn start(
        device: Arc<Device>,
        registry: Arc<Registry>,
        wanted: usize,
    ) -> io::Result<Arc<Self>> {
        catch_wake_signal();
        let threads = Arc::new(Self {
            device,
            registry,
            wanted: wanted.clamp(1, THREADS_MAX),
            idle: AtomicUsize::new(0),
            stopping: Arc::default(),
            handles: Mutex::default(),
        });
        for _ in 0..threads.wanted {
            if let Err(error) = threads.spawn() {
                threads.end();
                return Err(error);
            }
        }
        Ok(threads)
    }

    fn handles(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(self: &Arc<Self>) -> io::Result<()> {
        let worker = Worker {
            device: self.device.clone(),
            registry: self.registry.clone(),
            stopping: self.stopping.clone(),
            data: vec![0; TRANSFER_BYTES_MAX as usize],
        };
        let mut handles = self.handles();
        handles.retain(|thread| !thread.is_finished());
        if handles.len() == THREADS_MAX || self.is_stopping() {
            return Ok(());
        }
        let threads = self.clone();
        // Counted before it runs, so that nobody else starts it again.
        self.idle.fetch_add(1, Ordering::SeqCst);
        let started = std::thread::Builder::new()
            .name(format!("fuse-{}", handles.len()))
            .spawn(move || threads.serve(worker));
        match started {
            Ok(thread) => handles.push(thread),
            Err(error) => {
                self.idle.fetch_sub(1, Ordering::SeqCst);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Reads and answers requests until it is stopped, there is no mount, or there are enough others.
    fn serve(self: &Arc<Self>, mut worker: Worker) {
        let mut message = vec![0; REQUEST_BYTES_MAX];
        while !self.is_stopping() {
            match self.device.read(&mut message) {
                Ok(Arrival::Request(length)) => {
                    if self.idle.fetch_sub(1, Ordering::SeqCst) == 1
                        && let Err(error) = self.spawn()
                    {
                        tracing::warn!(%error, "no more threads can be started");
                    }
                    worker.handle(&message[..length]);
                    if self.idle.fetch_add(1, Ordering::SeqCst) >= self.wanted {
                        break;
                    }
                }
                Ok(Arrival::Nothing) => {}
                Ok(Arrival::Unmounted) => break,
                Err(error) => {
                    tracing::error!(%error, "the FUSE connection failed");
                    break;
                }
            }
        }
        self.idle.fetch_sub(1, Ordering::SeqCst);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Does any still run? Not after an unmount.
    pub(crate) fn is_serving(&self) -> bool {
        self.handles().iter().any(|thread| !thread.is_finished())
    }

    /// Waits until all have ended by themselves.
    pub(crate) fn join(&self) {
        while let Some(thread) = { self.handles().pop() } {
            let _ = thread.join();
        }
    }

    /// Ends all of them. Requests under way are answered first, unless they fail now: a successor may know better.
    pub(crate) fn end(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        // A signal that arrives just before a thread goes to read is lost, hence again and again.
        while let Some(thread) = { self.handles().pop() } {
            while !thread.is_finished() {
                // SAFETY: the thread is not joined yet, so its handle is valid; the signal has a handler.
                unsafe { libc::pthread_kill(thread.as_pthread_t(), wake_signal()) };
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = thread.join();
        }
    }
}

/// Ends a blocking read. A real-time signal, so that it is nobody else's by convention.
fn wake_signal() -> i32 {
    libc::SIGRTMIN() + 5
}

extern "C" fn on_wake(_: i32) {}

/// Installs a handler that does nothing, without `SA_RESTART`, so that the signal interrupts system calls.
fn catch_wake_signal() {
    // SAFETY: all zero is a valid sigaction; the handler only returns, which is safe in any thread at any time.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_wake as extern "C" fn(i32) as usize;
        libc::sigaction(wake_signal(), &action, std::ptr::null_mut());
    }
}
