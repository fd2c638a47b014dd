//! A prefetch on a thread of its own; one of a trace is behind everybody else.
#![allow(unsafe_code)] // setpriority(2) on the thread itself

use martlet_image::Trace;
use martlet_pager::{Cancel, MemoryImage, PrefetchReport, Starter};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Behind guests and fault servers, when processors are short.
const NICENESS: i32 = 10;

/// A running prefetch; dropping it ends it.
pub struct Prefetcher {
    cancel: Arc<Cancel>,
    thread: Option<JoinHandle<PrefetchReport>>,
}

impl Prefetcher {
    /// Pushes the pages of `trace` into the page cache. Somebody must have the image's file open: the kernel takes no
    /// pages for a file it does not know.
    pub fn start(image: Arc<MemoryImage>, trace: Trace, budget_bytes: u64) -> io::Result<Self> {
        Self::run(move |cancel| {
            // SAFETY: no memory is involved. On Linux the calling thread alone changes; if it fails, it fails.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
            image.prefetch(&trace, budget_bytes, cancel)
        })
    }

    /// The same, and not behind others: somebody is about to touch them.
    pub fn urgent(image: Arc<MemoryImage>, trace: Trace, budget_bytes: u64) -> io::Result<Self> {
        Self::run(move |cancel| image.prefetch(&trace, budget_bytes, cancel))
    }

    /// Has pages of the image be read from a starter that comes, and pushes them as they come. As above, and not behind others:
    /// the guest waits for them.
    pub fn of_starter(image: Arc<MemoryImage>, starter: Arc<Starter>) -> io::Result<Self> {
        image.set_starter(Some(starter.clone()));
        Self::run(move |cancel| image.hand_out(&starter, cancel))
    }
    fn run(work: impl FnOnce(&Cancel) -> PrefetchReport + Send + 'static) -> io::Result<Self> {
        let cancel = Arc::new(Cancel::default());
        let run = {
            let cancel = cancel.clone();
            move || work(&cancel)
        };
        let thread = std::thread::Builder::new().name("prefetch".into()).spawn(run)?;
        Ok(Self {
            cancel,
            thread: Some(thread),
        })
    }
    /// Is it done?
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(|thread| thread.is_finished())
    }
    /// Waits until it is done.
    pub fn join(mut self) -> PrefetchReport {
        self.take().unwrap_or_default()
    }
    /// Ends it.
    pub fn stop(mut self) -> PrefetchReport {
        self.cancel.cancel();
        self.take().unwrap_or_default()
    }
    fn take(&mut self) -> Option<PrefetchReport> {
        self.thread.take()?.join().ok()
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.take();
    }
}
