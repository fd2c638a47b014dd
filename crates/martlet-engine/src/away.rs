//! Snapshots of which not all is here yet: what is read comes when it is read, and the rest behind.
//!
//! ```text
//!   fetched ──► away ──── a read ────► the place ──► read, and stored soon after
//!                │ └───── the rest, in small pieces, while no read waits ──► stored
//!                └──────► all of it is here: forgotten
//! ```
//!
//! A read waits while its place cannot be reached, and fails when that takes too long or the place does not have what it
//! promised: a machine stalls before it breaks.

use crate::engine::lock;
use martlet_image::{FrameId, SnapshotId, SnapshotRecord};
use martlet_source::SourceError;
use martlet_store::{Elsewhere, Key, Kind, Store, StoreError, Stored};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

/// A read waits no longer than this for a place that cannot be reached.
const PATIENCE: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// What has been read waits this long for more, to be stored with it.
const STORE_AFTER: Duration = Duration::from_millis(200);
/// No more than this waits to be stored; what comes beyond is had again.
const ARRIVALS_BYTES: usize = 64 << 20;
/// The rest comes in pieces that take about this long, so that a read does not wait long behind one.
const PIECE: Duration = Duration::from_millis(100);
const PIECE_FRAMES_MAX: usize = 64;
/// The rest is committed after so many bytes.
const COMMIT_BYTES: usize = 16 << 20;

/// A place that has frames.
///
/// Separate from a remote, so that a peer or a carried disk can be one as well.
pub trait Place: Debug + Send + Sync {
    /// What it is called in messages.
    fn name(&self) -> String;
    /// Frames, in any order. Their content is not believed.
    fn frames(
        &self,
        frames: &[FrameId],
        each: &mut dyn FnMut(Stored) -> Result<(), SourceError>,
    ) -> Result<(), SourceError>;
}

/// How to reach a place, which may not be possible now.
pub type Open = Box<dyn Fn() -> Result<Arc<dyn Place>, SourceError> + Send + Sync>;

/// All snapshots of which not all is here.
#[derive(Debug)]
pub struct Away {
    store: Arc<Store>,
    snapshots: Mutex<BTreeMap<SnapshotId, Arc<Distant>>>,
    arrivals: Mutex<Arrivals>,
    arrived: Condvar,
    reads: AtomicUsize,
    stopping: AtomicBool,
}

/// What has been read and is not stored yet.
#[derive(Debug, Default)]
struct Arrivals {
    frames: HashMap<FrameId, Stored>,
    size_bytes: usize,
}

/// A snapshot of which not all is here.
struct Distant {
    id: SnapshotId,
    frames: HashSet<FrameId>,
    place: Mutex<Option<Arc<dyn Place>>>,
    open: Open,
    is_forgotten: AtomicBool,
    read_frames: AtomicU64,
    read_bytes: AtomicU64,
    waited_us: AtomicU64,
    waited_max_us: AtomicU64,
    rest_bytes: AtomicU64,
}

impl Debug for Distant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Distant")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// How far a snapshot is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Frames that it consists of.
    pub frames: u64,
    /// Of these, how many are not here.
    pub missing_frames: u64,
    /// Frames that came because they were read.
    pub read_frames: u64,
    /// Bytes of those, as they came.
    pub read_bytes: u64,
    /// How long reads waited for them, together.
    pub waited_us: u64,
    /// The longest of those waits.
    pub waited_max_us: u64,
    /// Bytes that came behind.
    pub rest_bytes: u64,
}

impl Away {
    /// None yet. The store asks it from now on.
    pub fn new(store: Arc<Store>) -> io::Result<Arc<Self>> {
        let away = Arc::new(Self {
            store: store.clone(),
            snapshots: Mutex::default(),
            arrivals: Mutex::default(),
            arrived: Condvar::new(),
            reads: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
        });
        let weak: Weak<Self> = Arc::downgrade(&away);
        store.set_elsewhere(weak.clone());
        std::thread::Builder::new()
            .name("arrivals".into())
            .spawn(move || {
                while let Some(away) = weak.upgrade().filter(|away| !away.stopping.load(SeqCst)) {
                    away.store_arrivals();
                }
            })?;
        Ok(away)
    }

    /// Promises the frames of a snapshot, whose manifests are here.
    pub fn promise(&self, id: SnapshotId, record: &SnapshotRecord, open: Open) -> Result<(), StoreError> {
        let mut frames = HashSet::new();
        for manifest in record.manifests() {
            frames.extend(self.store.manifest(&manifest)?.frames());
        }
        let distant = Distant {
            id,
            frames,
            place: Mutex::default(),
            open,
            is_forgotten: AtomicBool::new(false),
            read_frames: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            waited_us: AtomicU64::new(0),
            waited_max_us: AtomicU64::new(0),
            rest_bytes: AtomicU64::new(0),
        };
        lock(&self.snapshots).insert(id, Arc::new(distant));
        Ok(())
    }

    /// Takes a promise back, when all is here or nobody wants it any more.
    pub fn forget(&self, id: &SnapshotId) {
        if let Some(distant) = lock(&self.snapshots).remove(id) {
            distant.is_forgotten.store(true, SeqCst);
        }
    }

    /// Snapshots of which not all is here.
    pub fn all(&self) -> Vec<SnapshotId> {
        lock(&self.snapshots).keys().copied().collect()
    }

    /// How far a snapshot is; `None` if all of it is here.
    pub fn progress(&self, id: &SnapshotId) -> Result<Option<Progress>, StoreError> {
        let Some(distant) = lock(&self.snapshots).get(id).cloned() else {
            return Ok(None);
        };
        Ok(Some(Progress {
            frames: distant.frames.len() as u64,
            missing_frames: self.missing(&distant)?.len() as u64,
            read_frames: distant.read_frames.load(Relaxed),
            read_bytes: distant.read_bytes.load(Relaxed),
            waited_us: distant.waited_us.load(Relaxed),
            waited_max_us: distant.waited_max_us.load(Relaxed),
            rest_bytes: distant.rest_bytes.load(Relaxed),
        }))
    }

    /// Ends all waits; what waits fails, to be asked for again by whoever comes next.
    pub fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.arrived.notify_all();
    }

    fn missing(&self, distant: &Distant) -> Result<Vec<FrameId>, StoreError> {
        let keys: Vec<Key> = distant.frames.iter().map(frame_key).collect();
        Ok(self
            .store
            .lacks(&keys)?
            .into_iter()
            .map(|key| FrameId(key.id))
            .collect())
    }

    fn store_arrivals(&self) {
        let arrivals = lock(&self.arrivals);
        let wait = self
            .arrived
            .wait_timeout_while(arrivals, Duration::from_secs(1), |arrivals| {
                arrivals.frames.is_empty() && !self.stopping.load(SeqCst)
            });
        drop(wait);
        std::thread::sleep(STORE_AFTER);
        let frames: Vec<Stored> = lock(&self.arrivals).frames.values().cloned().collect();
        if frames.is_empty() {
            return;
        }
        if let Err(error) = self.put(&frames) {
            tracing::warn!(%error, "what came from elsewhere cannot be stored");
            std::thread::sleep(RETRY_MAX);
        }
        let mut arrivals = lock(&self.arrivals);
        for stored in frames {
            if let Some(stored) = arrivals.frames.remove(&FrameId(stored.key.id)) {
                arrivals.size_bytes -= stored.bytes.len();
            }
        }
    }

    fn put(&self, frames: &[Stored]) -> Result<(), StoreError> {
        let mut batch = self.store.begin()?;
        frames.iter().try_for_each(|stored| batch.put_stored(stored))?;
        batch.commit(&[]).map(drop)
    }

    fn holder(&self, frame: &FrameId) -> Option<Arc<Distant>> {
        let snapshots = lock(&self.snapshots);
        snapshots
            .values()
            .find(|distant| distant.frames.contains(frame))
            .cloned()
    }

    /// Gets a frame, however often that has to be tried.
    fn fetch_from(&self, distant: &Distant, frame: &FrameId) -> Result<Stored, StoreError> {
        let until = Instant::now() + PATIENCE;
        let mut retry = RETRY;
        loop {
            let error = match distant.frame(frame) {
                Ok(stored) => return Ok(stored),
                Err(error) => error,
            };
            let is_over = Instant::now() > until || distant.is_forgotten.load(SeqCst);
            if is_over || !worth_waiting(&error) {
                return Err(failed(frame, error.to_string()));
            }
            tracing::warn!(%frame, %error, "a read waits");
            lock(&distant.place).take();
            self.pause(retry)
                .map_err(|()| failed(frame, "the daemon is ending".to_owned()))?;
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    /// Waits, unless it is to stop.
    pub fn pause(&self, time: Duration) -> Result<(), ()> {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if self.stopping.load(SeqCst) {
                return Err(());
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        Ok(())
    }

    /// Gets what is missing of a snapshot, until nothing is. Tells whether that was reached; not if it was stopped or the
    /// snapshot forgotten.
    pub fn complete(&self, id: &SnapshotId, progress: &mut dyn FnMut(u64, u64)) -> Result<bool, StoreError> {
        let Some(distant) = lock(&self.snapshots).get(id).cloned() else {
            return Ok(true);
        };
        let mut missing = self.in_order(&distant)?;
        let all = missing.len() as u64;
        let (mut retry, mut piece_frames) = (RETRY, 4);
        let mut batch = self.store.begin()?;
        let mut batch_bytes = 0;
        while !missing.is_empty() {
            progress(all - missing.len() as u64, all);
            if distant.is_forgotten.load(SeqCst) {
                return Ok(false);
            }
            while self.reads.load(SeqCst) > 0 {
                if self.pause(Duration::from_millis(5)).is_err() {
                    return Ok(false);
                }
            }
            let piece: Vec<FrameId> = missing.split_off(missing.len().saturating_sub(piece_frames));
            let keys: Vec<Key> = piece.iter().map(frame_key).collect();
            let lacking: Vec<FrameId> = self
                .store
                .lacks(&keys)?
                .iter()
                .map(|key| FrameId(key.id))
                .collect();
            if lacking.is_empty() {
                continue;
            }
            let started = Instant::now();
            let mut piece_bytes = 0;
            let got = distant.opened().and_then(|place| {
                place.frames(&lacking, &mut |stored| {
                    piece_bytes += stored.bytes.len();
                    Ok(batch.put_stored(&stored)?)
                })
            });
            distant.rest_bytes.fetch_add(piece_bytes as u64, Relaxed);
            batch_bytes += piece_bytes;
            match got {
                Ok(()) => retry = RETRY,
                Err(error) if worth_waiting(&error) => {
                    tracing::warn!(%error, snapshot = %id, "the rest of a snapshot waits");
                    lock(&distant.place).take();
                    missing.extend(lacking);
                    if self.pause(retry).is_err() {
                        return Ok(false);
                    }
                    retry = (retry * 2).min(RETRY_MAX);
                    continue;
                }
                Err(SourceError::Store(error)) => return Err(error),
                Err(error) => return Err(StoreError::Invalid(error.to_string())),
            }
            piece_frames = match started.elapsed() < PIECE {
                true => (piece_frames * 2).min(PIECE_FRAMES_MAX),
                false => (piece_frames / 2).max(1),
            };
            if batch_bytes >= COMMIT_BYTES {
                std::mem::replace(&mut batch, self.store.begin()?).commit(&[])?;
                batch_bytes = 0;
            }
        }
        batch.commit(&[])?;
        progress(all, all);
        Ok(self.missing(&distant)?.is_empty())
    }

    /// What is missing, the last first: as it lies in the images.
    fn in_order(&self, distant: &Distant) -> Result<Vec<FrameId>, StoreError> {
        let missing: HashSet<FrameId> = self.missing(distant)?.into_iter().collect();
        let mut seen = HashSet::new();
        let mut order = Vec::new();
        for manifest in self.store.snapshot(&distant.id)?.manifests() {
            let manifest = self.store.manifest(&manifest)?;
            let frames = manifest.stored_pages().map(|(_, frame, _)| frame);
            order.extend(frames.filter(|frame| missing.contains(frame) && seen.insert(*frame)));
        }
        order.reverse();
        Ok(order)
    }
}

impl Place for martlet_source::Remote {
    fn name(&self) -> String {
        self.place()
    }

    fn frames(
        &self,
        frames: &[FrameId],
        each: &mut dyn FnMut(Stored) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        self.frames(frames.iter().map(frame_key), each)
    }
}

impl Elsewhere for Away {
    fn promises(&self, frame: &FrameId) -> bool {
        self.holder(frame).is_some()
    }

    fn fetch(&self, frame: &FrameId) -> Result<Stored, StoreError> {
        if let Some(stored) = lock(&self.arrivals).frames.get(frame) {
            return Ok(stored.clone());
        }
        let distant = self
            .holder(frame)
            .ok_or_else(|| StoreError::NotFound(frame_key(frame).to_string()))?;
        self.reads.fetch_add(1, SeqCst);
        let started = Instant::now();
        let fetched = self.fetch_from(&distant, frame);
        self.reads.fetch_sub(1, SeqCst);
        let stored = fetched?;
        distant.count(started.elapsed(), stored.bytes.len());
        let mut arrivals = lock(&self.arrivals);
        if arrivals.size_bytes < ARRIVALS_BYTES && arrivals.frames.insert(*frame, stored.clone()).is_none() {
            arrivals.size_bytes += stored.bytes.len();
            self.arrived.notify_all();
        }
        Ok(stored)
    }
}

impl Distant {
    fn opened(&self) -> Result<Arc<dyn Place>, SourceError> {
        let mut place = lock(&self.place);
        if let Some(place) = &*place {
            return Ok(place.clone());
        }
        let opened = (self.open)()?;
        *place = Some(opened.clone());
        Ok(opened)
    }

    fn frame(&self, frame: &FrameId) -> Result<Stored, SourceError> {
        let place = self.opened()?;
        let mut found = None;
        place.frames(&[*frame], &mut |stored| {
            found = Some(stored);
            Ok(())
        })?;
        let stored = found.ok_or_else(|| SourceError::Incomplete {
            place: place.name(),
            object: frame_key(frame).to_string(),
        })?;
        stored.content()?; // before it is counted on
        Ok(stored)
    }

    fn count(&self, waited: Duration, size_bytes: usize) {
        let waited_us = waited.as_micros() as u64;
        self.read_frames.fetch_add(1, Relaxed);
        self.read_bytes.fetch_add(size_bytes as u64, Relaxed);
        self.waited_us.fetch_add(waited_us, Relaxed);
        self.waited_max_us.fetch_max(waited_us, Relaxed);
    }
}

fn frame_key(frame: &FrameId) -> Key {
    Key::new(Kind::Frame, frame.0)
}

/// May it be otherwise soon, perhaps because somebody mends it?
fn worth_waiting(error: &SourceError) -> bool {
    error.is_retryable() || matches!(error, SourceError::Refused { .. })
}

fn failed(frame: &FrameId, reason: String) -> StoreError {
    StoreError::Io {
        doing: format!("getting {frame}"),
        source: io::Error::other(reason),
    }
}
