//! Pages handed to whoever keeps them near the guest, before anybody asks.

use crate::MemoryImage;
use crate::cache::lock;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Takes pages that nobody asked for yet (a kernel's page cache, through a notify-store). A push may be lost.
/// It may also wait for locks of faults in flight: never call it on a thread that answers faults.
pub trait PagePush: Send + Sync {
    /// The image's bytes from `offset_bytes`: whole pages within the image. Were they taken? The data is shared and not
    /// copied; what takes it lets go of it before it returns, as a rule, and the buffer is filled again.
    fn push(&self, offset_bytes: u64, data: &Arc<Vec<u8>>) -> bool;
}

/// Where pages are put together for pushes, one after another.
#[derive(Debug, Default)]
pub(crate) struct PushBuffer(Arc<Vec<u8>>);

impl PushBuffer {
    /// Filled anew with `len` bytes by `fill`.
    pub(crate) fn fill<E>(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<&Arc<Vec<u8>>, E> {
        if Arc::get_mut(&mut self.0).is_none() {
            self.0 = Arc::default(); // somebody still has the other
        }
        let bytes = Arc::get_mut(&mut self.0).expect("nobody else has it");
        bytes.resize(len, 0);
        fill(bytes)?;
        Ok(&self.0)
    }
}

/// A run of an image's pages on its way.
pub(crate) struct Piece {
    pub(crate) image: Arc<MemoryImage>,
    pub(crate) target: Arc<dyn PagePush>,
    pub(crate) pages: Range<u64>,
}

#[derive(Default)]
struct Waiting {
    pieces: VecDeque<Piece>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// While one waits until its pages were taken, another decompresses the next.
const PUSHERS: usize = 2;

/// A bounded queue of pushes and the threads that make them. What does not fit is dropped: a push is a favour.
pub struct PushQueue {
    shared: Arc<Shared>,
    depth: usize,
}

impl PushQueue {
    /// A queue of at most `depth` runs, each no longer than the pages around a fault.
    pub fn start(depth: usize) -> Arc<Self> {
        let shared = Arc::new(Shared::default());
        let start = |_| {
            let shared = shared.clone();
            let run = move || shared.run();
            std::thread::Builder::new().name("push".into()).spawn(run)
        };
        if (0..PUSHERS).map(start).filter(Result::is_ok).count() == 0 {
            tracing::warn!("no thread for pushes: pages come by faults alone");
            lock(&shared.waiting).closed = true;
        }
        Arc::new(Self { shared, depth })
    }

    /// Queues a piece; was there room?
    pub(crate) fn offer(&self, piece: Piece) -> bool {
        let mut waiting = lock(&self.shared.waiting);
        let room = !waiting.closed && waiting.pieces.len() < self.depth;
        if room {
            waiting.pieces.push_back(piece);
            self.shared.changed.notify_one();
        }
        room
    }

    /// Drops what waits and takes no more; a push under way ends by itself.
    pub fn close(&self) {
        let mut waiting = lock(&self.shared.waiting);
        waiting.closed = true;
        waiting.pieces.clear();
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        let mut buffer = PushBuffer::default();
        loop {
            let idle = |waiting: &mut Waiting| waiting.pieces.is_empty() && !waiting.closed;
            let waiting = self.changed.wait_while(lock(&self.waiting), idle);
            let Some(piece) = waiting.unwrap_or_else(PoisonError::into_inner).pieces.pop_front() else {
                return;
            };
            piece.image.hand_over(&*piece.target, piece.pages, &mut buffer);
        }
    }
}

impl Drop for PushQueue {
    /// Waits for nobody: a push under way may wait for a page that only the next server of the file can bring.
    fn drop(&mut self) {
        self.close();
    }
}
