//! Snapshots of which not all is here yet: what is read comes when it is read, and the rest behind.
//!
//! ```text
//!   fetched ──► away ──┬── a read ──────────────────────────────────► coming ──► arrived ──► stored ──► here
//!                      ├── what earlier runs read first ──────────────►   ▲
//!                      └── the rest, while no read waits ─────────────►───┘
//!                all of it is here: forgotten
//! ```
//!
//! A frame comes once: who reads it while it is coming waits for it.
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
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// A read waits no longer than this for a place that cannot be reached.
const PATIENCE: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// What has been read waits this long for more, to be stored with it.
const STORE_AFTER: Duration = Duration::from_millis(200);
/// No more than this waits to be stored; what comes beyond is had again.
const ARRIVALS_BYTES: usize = 64 << 20;
/// What is not read yet comes in pieces that take about this long, so that a read does not wait long behind one.
const PIECE: Duration = Duration::from_millis(150);
const PIECE_FRAMES_MAX: usize = 64;
/// Pieces that are under way at the same time: while one is asked for, another comes.
const PIECES: usize = 2;

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

/// What has been asked for and is not stored yet.
#[derive(Debug, Default)]
struct Arrivals {
    coming: HashSet<FrameId>,
    /// Verified.
    frames: HashMap<FrameId, Stored>,
    size_bytes: usize,
}

/// Frames that somebody has asked for; whatever becomes of them, nobody waits for them in vain.
struct Coming<'a> {
    away: &'a Away,
    frames: Vec<FrameId>,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        let mut arrivals = lock(&self.away.arrivals);
        for frame in &self.frames {
            arrivals.coming.remove(frame);
        }
        drop(arrivals);
        self.away.arrived.notify_all();
    }
}

/// A snapshot of which not all is here.
struct Distant {
    id: SnapshotId,
    frames: HashSet<FrameId>,
    eager: bool,
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
    /// With `eager`, they are worth getting before they are read.
    pub fn promise(
        &self,
        id: SnapshotId,
        record: &SnapshotRecord,
        eager: bool,
        open: Open,
    ) -> Result<(), StoreError> {
        let mut frames = HashSet::new();
        for manifest in record.manifests() {
            frames.extend(self.store.manifest(&manifest)?.frames());
        }
        let distant = Distant {
            id,
            frames,
            eager,
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

    /// Are the frames of a snapshot to come only when they are read?
    pub fn is_on_demand(&self, id: &SnapshotId) -> bool {
        lock(&self.snapshots)
            .get(id)
            .is_some_and(|distant| !distant.eager)
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
        drop(arrivals);
        self.arrived.notify_all();
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

    /// Gets what is missing of a snapshot, until nothing is: these frames first. Tells whether that was reached; not if it
    /// was stopped or the snapshot forgotten.
    pub fn complete(&self, id: &SnapshotId, first: Vec<FrameId>) -> Result<bool, StoreError> {
        let Some(distant) = lock(&self.snapshots).get(id).cloned() else {
            return Ok(true);
        };
        let mut order = self.in_order(&distant)?;
        let missing: HashSet<FrameId> = order.iter().copied().collect();
        let first = first.into_iter().rev().filter(|frame| missing.contains(frame));
        let queue = Mutex::new(Queue {
            first: first.collect(),
            rest: std::mem::take(&mut order),
        });
        let ends: Vec<Result<bool, StoreError>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..PIECES)
                .map(|_| scope.spawn(|| self.work_off(&distant, &queue)))
                .collect();
            let ends = workers.into_iter().map(|worker| worker.join());
            ends.map(|end| {
                end.unwrap_or_else(|_| Err(StoreError::Invalid("a thread that gets frames broke".into())))
            })
            .collect()
        });
        for end in ends {
            if !end? {
                return Ok(false);
            }
        }
        while !self.missing(&distant)?.is_empty() {
            // Arrived, and about to be stored.
            if distant.is_forgotten.load(SeqCst) || self.pause(STORE_AFTER).is_err() {
                return Ok(false);
            }
            if lock(&self.arrivals).frames.is_empty() {
                break;
            }
        }
        Ok(self.missing(&distant)?.is_empty())
    }

    /// Gets pieces until there are none. Not to the end if it is to stop.
    fn work_off(&self, distant: &Distant, queue: &Mutex<Queue>) -> Result<bool, StoreError> {
        let (mut retry, mut piece_frames) = (RETRY, 4);
        loop {
            let (piece, is_first) = lock(queue).take(piece_frames);
            if piece.is_empty() {
                return Ok(true);
            }
            while !is_first && self.reads.load(SeqCst) > 0 {
                if self.pause(Duration::from_millis(5)).is_err() {
                    return Ok(false);
                }
            }
            if distant.is_forgotten.load(SeqCst) || self.stopping.load(SeqCst) {
                return Ok(false);
            }
            let coming = self.coming(&piece)?;
            if coming.frames.is_empty() {
                continue;
            }
            let started = Instant::now();
            let got = distant.opened().and_then(|place| {
                place.frames(&coming.frames, &mut |stored| {
                    distant.rest_bytes.fetch_add(stored.bytes.len() as u64, Relaxed);
                    self.wait_for_room();
                    Ok(self.arrive(stored)?)
                })
            });
            match got {
                Ok(()) => retry = RETRY,
                Err(error) if worth_waiting(&error) => {
                    tracing::warn!(%error, snapshot = %distant.id, "the rest of a snapshot waits");
                    lock(&distant.place).take();
                    lock(queue).rest.extend(&coming.frames);
                    drop(coming);
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
        }
    }

    /// Those of these frames that are neither here nor coming; they are from now on.
    fn coming(&self, frames: &[FrameId]) -> Result<Coming<'_>, StoreError> {
        let keys: Vec<Key> = frames.iter().map(frame_key).collect();
        let lacking: HashSet<[u8; 32]> = self.store.lacks(&keys)?.iter().map(|key| key.id).collect();
        let mut arrivals = lock(&self.arrivals);
        let frames = frames.iter().copied().filter(|frame| lacking.contains(&frame.0));
        let frames = frames.filter(|frame| !arrivals.frames.contains_key(frame));
        let frames: Vec<FrameId> = frames.collect();
        let frames = frames
            .into_iter()
            .filter(|frame| arrivals.coming.insert(*frame))
            .collect();
        Ok(Coming { away: self, frames })
    }

    /// A frame is here, as soon as its content is found to be what its id says.
    fn arrive(&self, stored: Stored) -> Result<(), StoreError> {
        stored.content()?;
        let mut arrivals = lock(&self.arrivals);
        let frame = FrameId(stored.key.id);
        arrivals.coming.remove(&frame);
        let size_bytes = stored.bytes.len();
        if arrivals.frames.insert(frame, stored).is_none() {
            arrivals.size_bytes += size_bytes;
        }
        drop(arrivals);
        self.arrived.notify_all();
        Ok(())
    }

    /// What is not read yet does not come faster than it can be stored.
    fn wait_for_room(&self) {
        let arrivals = lock(&self.arrivals);
        drop(self.arrived.wait_while(arrivals, |arrivals| {
            arrivals.size_bytes >= ARRIVALS_BYTES && !self.stopping.load(SeqCst)
        }));
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
        let key = frame_key(frame);
        let missing = || StoreError::NotFound(key.to_string());
        let distant = self.holder(frame).ok_or_else(missing)?;
        let started = Instant::now();
        let _reading = Reading::new(&self.reads);
        let coming = {
            let mut arrivals = lock(&self.arrivals);
            loop {
                if let Some(stored) = arrivals.frames.get(frame) {
                    distant.count(started.elapsed(), stored.bytes.len());
                    return Ok(stored.clone());
                }
                if arrivals.coming.insert(*frame) {
                    break Coming {
                        away: self,
                        frames: vec![*frame],
                    };
                }
                let waited = self.arrived.wait_timeout(arrivals, Duration::from_secs(1));
                arrivals = waited.unwrap_or_else(PoisonError::into_inner).0;
                if self.stopping.load(SeqCst) {
                    return Err(failed(frame, "the daemon is ending".to_owned()));
                }
            }
        };
        // It may have come and been stored since the store was asked.
        if self.store.lacks(&[key])?.is_empty() {
            return self.store.stored(&key);
        }
        let stored = self.fetch_from(&distant, frame)?;
        distant.count(started.elapsed(), stored.bytes.len());
        self.arrive(stored.clone())?;
        drop(coming);
        Ok(stored)
    }
}

/// A read that waits.
struct Reading<'a>(&'a AtomicUsize);

impl<'a> Reading<'a> {
    fn new(reads: &'a AtomicUsize) -> Self {
        reads.fetch_add(1, SeqCst);
        Self(reads)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Frames to get without being read; of each the last is the next.
struct Queue {
    first: Vec<FrameId>,
    rest: Vec<FrameId>,
}

impl Queue {
    /// The next piece, and whether it is of the first.
    fn take(&mut self, frames: usize) -> (Vec<FrameId>, bool) {
        let is_first = !self.first.is_empty();
        let from = if is_first { &mut self.first } else { &mut self.rest };
        (from.split_off(from.len().saturating_sub(frames)), is_first)
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
