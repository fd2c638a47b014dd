//! Snapshots of which not all is here yet: what is read comes when it is read, and the rest behind.
//!
//! ```text
//!   fetched ──► away ──┬── a read ──────────────────────────────────► coming ──► arrived ──► stored ──► here
//!                      ├── what earlier runs read first ──────────────►   ▲
//!                      └── the rest, while no read waits ─────────────►───┘
//!                all of it is here: forgotten
//! ```
//!
//! An object comes once: who reads it while it is coming waits for it.
//!
//! A read waits while its place cannot be reached, and fails when that takes too long or the place does not have what it
//! promised: a machine stalls before it breaks.

use crate::answer;
use crate::engine::lock;
use crate::place::{Open, Place};
use martlet_image::{FrameId, SnapshotId, SnapshotRecord};
use martlet_source::SourceError;
use martlet_store::{Elsewhere, Key, Kind, Store, StoreError, Verified};
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
/// After a failure (a full disk, say) this long.
const STORE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// No more than this waits to be stored, both as it came and decompressed; what comes beyond is had again.
const ARRIVALS_BYTES: usize = 160 << 20;
/// What is not read yet comes in pieces that take about this long, so that a read does not wait long behind one.
const PIECE: Duration = Duration::from_millis(150);
const PIECE_OBJECTS_MAX: usize = 64;
/// While a machine starts, what is not read waits until so long after the last read: it reads one thing after the other.
const QUIET: Duration = Duration::from_millis(100);
/// Pieces that are under way at the same time: while one is asked for, another comes.
const PIECES: usize = 2;
/// Of the threads that get them, and of who stores what has come.
const REST_NICENESS: i32 = 10;

/// All snapshots of which not all is here.
#[derive(Debug)]
pub struct Away {
    store: Arc<Store>,
    snapshots: Mutex<BTreeMap<SnapshotId, Arc<Distant>>>,
    arrivals: Mutex<Arrivals>,
    arrived: Condvar,
    reads: AtomicUsize,
    last_read: Mutex<Option<Instant>>,
    stopping: AtomicBool,
    pausing: Mutex<()>,
    stopped: Condvar,
    is_any: AtomicBool,
}

/// What has been asked for and is not stored yet.
#[derive(Debug, Default)]
struct Arrivals {
    coming: HashSet<Key>,
    objects: HashMap<Key, Verified>,
    size_bytes: usize,
}

/// What somebody has asked for; whatever becomes of them, nobody waits for them in vain.
struct Coming<'a> {
    away: &'a Away,
    objects: Vec<Key>,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        let mut arrivals = lock(&self.away.arrivals);
        let mut is_any_left = false;
        for object in &self.objects {
            is_any_left |= arrivals.coming.remove(object);
        }
        drop(arrivals);
        // Of what has arrived, who waits was told.
        if is_any_left {
            self.away.arrived.notify_all();
        }
    }
}

/// A snapshot of which not all is here.
struct Distant {
    id: SnapshotId,
    /// Where the rest is, as people call it.
    from: Arc<str>,
    objects: HashSet<Key>,
    eager: bool,
    /// Machines that start from it by its starter.
    starts: AtomicUsize,
    place: Mutex<Option<Arc<dyn Place>>>,
    open: Open,
    is_forgotten: AtomicBool,
    read_objects: AtomicU64,
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

/// See [`Away::starting`].
#[derive(Debug)]
pub struct Starting(Arc<Distant>);

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.starts.fetch_sub(1, SeqCst);
    }
}

/// How far a snapshot is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Frames and blobs that it consists of.
    pub objects: u64,
    /// Of these, how many are not here.
    pub missing_objects: u64,
    /// Those that came because they were read.
    pub read_objects: u64,
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
            last_read: Mutex::default(),
            stopping: AtomicBool::new(false),
            pausing: Mutex::default(),
            stopped: Condvar::new(),
            is_any: AtomicBool::new(false),
        });
        let weak: Weak<Self> = Arc::downgrade(&away);
        store.set_elsewhere(weak.clone());
        std::thread::Builder::new()
            .name("arrivals".into())
            .spawn(move || {
                give_way_to_guests();
                // Weak: it ends with what it works for.
                while let Some(away) = weak.upgrade().filter(|away| !away.stopping.load(SeqCst)) {
                    away.store_arrivals();
                }
            })?;
        Ok(away)
    }

    /// Promises frames and blobs of a snapshot, whose manifests are here. With `eager`, they are worth getting before they are read.
    pub fn promise(
        &self,
        id: SnapshotId,
        record: &SnapshotRecord,
        from: &str,
        eager: bool,
        open: Open,
    ) -> Result<(), StoreError> {
        let objects = self.store.leaves(record)?;
        let distant = Distant {
            id,
            from: from.into(),
            objects,
            eager,
            starts: AtomicUsize::new(0),
            place: Mutex::default(),
            open,
            is_forgotten: AtomicBool::new(false),
            read_objects: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            waited_us: AtomicU64::new(0),
            waited_max_us: AtomicU64::new(0),
            rest_bytes: AtomicU64::new(0),
        };
        lock(&self.snapshots).insert(id, Arc::new(distant));
        self.is_any.store(true, Relaxed);
        Ok(())
    }

    /// Takes a promise back, when all is here or nobody wants it any more.
    pub fn forget(&self, id: &SnapshotId) {
        let mut snapshots = lock(&self.snapshots);
        if let Some(distant) = snapshots.remove(id) {
            distant.is_forgotten.store(true, SeqCst);
        }
        self.is_any.store(!snapshots.is_empty(), Relaxed);
    }

    /// Is not all of a snapshot here?
    pub fn has(&self, id: &SnapshotId) -> bool {
        lock(&self.snapshots).contains_key(id)
    }

    /// Are the objects of a snapshot to come only when they are read?
    pub fn is_on_demand(&self, id: &SnapshotId) -> bool {
        lock(&self.snapshots)
            .get(id)
            .is_some_and(|distant| !distant.eager)
    }

    /// Is there any?
    pub fn is_any(&self) -> bool {
        self.is_any.load(Relaxed)
    }

    /// Gets objects of a snapshot in this order, for who waits for them, and tells of each as it comes. What does not come is to be
    /// asked for by itself.
    pub(crate) fn in_turn(&self, id: &SnapshotId, keys: &[Key], each: &mut dyn FnMut(&Verified)) {
        let Some(distant) = lock(&self.snapshots).get(id).cloned() else {
            return;
        };
        let _reading = Reading::new(self);
        let got = self.coming(keys).map_err(SourceError::from).and_then(|coming| {
            if coming.objects.is_empty() {
                return Ok(());
            }
            distant.opened()?.in_turn(&coming.objects, &mut |object| {
                // How long each was waited for is known to who reads it.
                distant.count(Duration::ZERO, object.stored().bytes.len());
                each(&object);
                self.arrive(object);
                Ok(())
            })
        });
        if let Err(error) = got {
            tracing::debug!(%error, "objects that are waited for");
        }
    }

    /// Gets what is missing of these frames at the same time, as a read that is about to ask for each. What does not come is
    /// asked for again then.
    pub fn prepare(&self, frames: &[FrameId]) {
        let keys: Vec<Key> = frames
            .iter()
            .map(|frame| Key::new(Kind::Frame, frame.0))
            .collect();
        let Some(distant) = keys.iter().find_map(|key| self.holder(key)) else {
            return;
        };
        let _reading = Reading::new(self);
        let keys: Vec<Key> = keys
            .into_iter()
            .filter(|key| distant.objects.contains(key))
            .collect();
        let started = Instant::now();
        let got = self.coming(&keys).map_err(SourceError::from).and_then(|coming| {
            if coming.objects.is_empty() {
                return Ok(());
            }
            distant.opened()?.objects(&coming.objects, &mut |object| {
                let stored = object.stored();
                distant.count(Duration::ZERO, stored.bytes.len());
                answer::came(&distant.giver(&stored.key), stored.bytes.len());
                self.arrive(object);
                Ok(())
            })
        });
        distant.waited(started.elapsed());
        if let Err(error) = got {
            tracing::debug!(%error, "frames that are about to be read");
        }
    }

    /// A read has waited for a frame that came for another read, if it had to come.
    pub fn waited_for(&self, frame: &FrameId) {
        let key = Key::new(Kind::Frame, frame.0);
        if self.is_any()
            && let Some(distant) = self.holder(&key)
        {
            answer::came(&distant.giver(&key), 0);
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
            objects: distant.objects.len() as u64,
            missing_objects: self.missing(&distant)?.len() as u64,
            read_objects: distant.read_objects.load(Relaxed),
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
        drop(lock(&self.pausing)); // who has looked waits by now
        self.stopped.notify_all();
    }

    /// Is everything to end?
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }

    /// What is still to come of a snapshot.
    pub fn missing_of(&self, id: &SnapshotId) -> Result<HashSet<Key>, StoreError> {
        let distant = lock(&self.snapshots).get(id).cloned();
        let missing = distant.map(|distant| self.missing(&distant)).transpose()?;
        Ok(missing.unwrap_or_default().into_iter().collect())
    }

    fn missing(&self, distant: &Distant) -> Result<Vec<Key>, StoreError> {
        let keys: Vec<Key> = distant.objects.iter().copied().collect();
        self.store.lacks(&keys)
    }

    fn store_arrivals(&self) {
        let arrivals = lock(&self.arrivals);
        let wait = self
            .arrived
            .wait_timeout_while(arrivals, Duration::from_secs(1), |arrivals| {
                arrivals.objects.is_empty() && !self.stopping.load(SeqCst)
            });
        drop(wait);
        std::thread::sleep(STORE_AFTER);
        let objects: Vec<Verified> = lock(&self.arrivals).objects.values().cloned().collect();
        if objects.is_empty() {
            return;
        }
        if let Err(error) = self.put(&objects) {
            // It is had again when it is read, or with the rest.
            tracing::warn!(%error, "what came from elsewhere cannot be stored");
            let _ = self.pause(STORE_AGAIN_AFTER); // what has come is there meanwhile
        }
        let mut arrivals = lock(&self.arrivals);
        for object in objects {
            if let Some(object) = arrivals.objects.remove(&object.stored().key) {
                arrivals.size_bytes -= object.size_bytes();
            }
        }
        drop(arrivals);
        self.arrived.notify_all();
    }

    fn put(&self, objects: &[Verified]) -> Result<(), StoreError> {
        let mut batch = self.store.begin()?;
        objects.iter().try_for_each(|object| batch.put_verified(object))?;
        batch.commit(&[]).map(drop)
    }

    fn holder(&self, object: &Key) -> Option<Arc<Distant>> {
        let snapshots = lock(&self.snapshots);
        snapshots
            .values()
            .find(|distant| distant.objects.contains(object))
            .cloned()
    }

    /// Gets an object, however often that has to be tried.
    fn fetch_from(&self, distant: &Distant, object: &Key) -> Result<Verified, StoreError> {
        let until = Instant::now() + PATIENCE;
        let mut retry = RETRY;
        loop {
            let error = match distant.object(object) {
                Ok(object) => return Ok(object),
                Err(error) => error,
            };
            // It may have come and been stored since the store was asked.
            if let Some(here) = self.stored_here(object) {
                return Ok(here);
            }
            if let SourceError::Store(error) = error {
                return Err(error);
            }
            let is_over = Instant::now() > until || distant.is_forgotten.load(SeqCst);
            if is_over || !worth_waiting(&error) {
                return Err(failed(object, error.to_string()));
            }
            tracing::warn!(%object, %error, "a read waits");
            lock(&distant.place).take();
            self.pause(retry)
                .map_err(|()| failed(object, "the daemon is ending".to_owned()))?;
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    /// Waits, unless it is to stop.
    pub fn pause(&self, time: Duration) -> Result<(), ()> {
        let pausing = lock(&self.pausing);
        let goes_on = |(): &mut ()| !self.stopping.load(SeqCst);
        drop(self.stopped.wait_timeout_while(pausing, time, goes_on));
        match self.stopping.load(SeqCst) {
            true => Err(()),
            false => Ok(()),
        }
    }

    /// Gets what is missing of a snapshot, until nothing is: these objects first, without regard to reads that wait, unless they
    /// are a start's. The calling thread gives way to guests from then on. Tells whether that was reached; not if it was stopped
    /// or the snapshot forgotten.
    pub fn complete(&self, id: &SnapshotId, first: Vec<Key>) -> Result<bool, StoreError> {
        let Some(distant) = lock(&self.snapshots).get(id).cloned() else {
            return Ok(true);
        };
        // What is started to reach the place is for guests' reads too. If it cannot be reached, that is told by who gets objects.
        let _ = distant.opened();
        give_way_to_guests();
        let rest = self.in_order(&distant)?;
        let missing: HashSet<Key> = rest.iter().copied().collect();
        let first = first.into_iter().rev().filter(|object| missing.contains(object));
        let queue = Mutex::new(Queue {
            first: first.collect(),
            rest,
        });
        let ends: Vec<Result<bool, StoreError>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..PIECES)
                .map(|_| scope.spawn(|| self.work_off(&distant, &queue)))
                .collect();
            let ends = workers.into_iter().map(|worker| worker.join());
            ends.map(|end| {
                end.unwrap_or_else(|_| Err(StoreError::Invalid("a thread that gets objects broke".into())))
            })
            .collect()
        });
        for end in ends {
            if !end? {
                return Ok(false);
            }
        }
        loop {
            // Asked before the store is, as what is stored meanwhile is pending no more.
            let pending: HashSet<Key> = {
                let arrivals = lock(&self.arrivals);
                arrivals.objects.keys().chain(&arrivals.coming).copied().collect()
            };
            let missing = self.missing(&distant)?;
            if missing.is_empty() {
                return Ok(true);
            }
            if missing.iter().all(|key| !pending.contains(key)) {
                let words = format!("{} objects came and could not be stored", missing.len());
                return Err(StoreError::Io {
                    doing: format!("completing snapshot {id}"),
                    source: io::Error::other(words),
                });
            }
            if distant.is_forgotten.load(SeqCst) || self.pause(STORE_AFTER).is_err() {
                return Ok(false);
            }
        }
    }

    /// Gets pieces until there are none. Not to the end if it is to stop.
    fn work_off(&self, distant: &Distant, queue: &Mutex<Queue>) -> Result<bool, StoreError> {
        let (mut retry, mut piece_objects) = (RETRY, 4);
        loop {
            let (piece, is_first) = lock(queue).take(piece_objects);
            if piece.is_empty() {
                return Ok(true);
            }
            while self.has_to_wait(distant, is_first) {
                if self.pause(Duration::from_millis(5)).is_err() {
                    return Ok(false);
                }
            }
            if distant.is_forgotten.load(SeqCst) || self.stopping.load(SeqCst) {
                return Ok(false);
            }
            let coming = self.coming(&piece)?;
            if coming.objects.is_empty() {
                continue;
            }
            let started = Instant::now();
            let got = distant.opened().and_then(|place| {
                place.behind(&coming.objects, &mut |object| {
                    distant
                        .rest_bytes
                        .fetch_add(object.stored().bytes.len() as u64, Relaxed);
                    self.wait_for_room();
                    self.arrive(object);
                    Ok(())
                })
            });
            match got {
                Ok(()) => retry = RETRY,
                Err(error) if worth_waiting(&error) => {
                    tracing::warn!(%error, snapshot = %distant.id, "the rest of a snapshot waits");
                    lock(&distant.place).take();
                    lock(queue).rest.extend(&coming.objects);
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
            piece_objects = match started.elapsed() < PIECE {
                true => (piece_objects * 2).min(PIECE_OBJECTS_MAX),
                false => (piece_objects / 2).max(1),
            };
        }
    }

    /// Has what nobody reads to wait for what somebody does?
    fn has_to_wait(&self, distant: &Distant, is_first: bool) -> bool {
        let waits = self.reads.load(SeqCst) > 0;
        match distant.starts.load(SeqCst) > 0 {
            true => waits || lock(&self.last_read).is_some_and(|last| last.elapsed() < QUIET),
            false => waits && !is_first,
        }
    }

    /// While what is returned lives, a machine starts from a snapshot, by its starter: the link is for what it reads besides.
    pub fn starting(&self, id: &SnapshotId) -> Option<Starting> {
        let distant = lock(&self.snapshots).get(id).cloned()?;
        distant.starts.fetch_add(1, SeqCst);
        Some(Starting(distant))
    }

    /// Those of these objects that are neither here nor coming; they are from now on.
    fn coming(&self, objects: &[Key]) -> Result<Coming<'_>, StoreError> {
        let lacking: HashSet<Key> = self.store.lacks(objects)?.into_iter().collect();
        let mut arrivals = lock(&self.arrivals);
        let objects = objects.iter().copied().filter(|object| lacking.contains(object));
        let objects = objects.filter(|object| !arrivals.objects.contains_key(object));
        let objects: Vec<Key> = objects.collect();
        let objects = objects
            .into_iter()
            .filter(|object| arrivals.coming.insert(*object))
            .collect();
        Ok(Coming { away: self, objects })
    }

    /// An object is here.
    fn arrive(&self, object: Verified) {
        let mut arrivals = lock(&self.arrivals);
        let key = object.stored().key;
        arrivals.coming.remove(&key);
        let size_bytes = object.size_bytes();
        if arrivals.objects.insert(key, object).is_none() {
            arrivals.size_bytes += size_bytes;
        }
        drop(arrivals);
        self.arrived.notify_all();
    }

    /// An object that has come, stored or not.
    pub(crate) fn came(&self, object: &Key) -> Option<Verified> {
        let just_came = lock(&self.arrivals).objects.get(object).cloned();
        just_came.or_else(|| self.stored_here(object))
    }

    /// An object that is stored here, or was a moment ago.
    fn stored_here(&self, object: &Key) -> Option<Verified> {
        let is_here = self.store.lacks(&[*object]).ok()?.is_empty();
        is_here.then(|| self.store.stored(object).ok()?.verify().ok())?
    }

    /// What nobody here has asked for has come. It is taken if it is promised, not here, and there is room.
    pub(crate) fn overhear(&self, object: &Verified) -> Result<bool, StoreError> {
        let stored = object.stored();
        let Some(distant) = self.holder(&stored.key) else {
            return Ok(false);
        };
        let is_here = self.store.lacks(&[stored.key])?.is_empty();
        let (has_room, is_awaited) = {
            let arrivals = lock(&self.arrivals);
            let has_room =
                arrivals.size_bytes < ARRIVALS_BYTES && !arrivals.objects.contains_key(&stored.key);
            (has_room, arrivals.coming.contains(&stored.key))
        };
        let is_taken = has_room && !is_here;
        if is_taken {
            if !is_awaited {
                distant.rest_bytes.fetch_add(stored.bytes.len() as u64, Relaxed);
            } // or who has asked counts it
            self.arrive(object.clone());
        }
        Ok(is_taken)
    }

    /// What is not read yet does not come faster than it can be stored.
    fn wait_for_room(&self) {
        let arrivals = lock(&self.arrivals);
        drop(self.arrived.wait_while(arrivals, |arrivals| {
            arrivals.size_bytes >= ARRIVALS_BYTES && !self.stopping.load(SeqCst)
        }));
    }

    /// What is missing, the last first: frames as they lie in the images, then what is booted by.
    fn in_order(&self, distant: &Distant) -> Result<Vec<Key>, StoreError> {
        let mut missing: HashSet<Key> = self.missing(distant)?.into_iter().collect();
        let mut order = Vec::new();
        for manifest in self.store.snapshot(&distant.id)?.manifests() {
            let manifest = self.store.manifest(&manifest)?;
            let frames = manifest
                .stored_pages()
                .map(|(_, frame, _)| Key::new(Kind::Frame, frame.0));
            order.extend(frames.filter(|key| missing.remove(key)));
        }
        order.extend(missing);
        order.reverse();
        Ok(order)
    }
}

impl Elsewhere for Away {
    fn promises(&self, object: &Key) -> bool {
        self.holder(object).is_some()
    }

    fn fetch(&self, object: &Key) -> Option<Result<Verified, StoreError>> {
        Some(self.fetch_of(&*self.holder(object)?, object))
    }
}

impl Away {
    /// An object of a snapshot that somebody waits for.
    fn fetch_of(&self, distant: &Distant, object: &Key) -> Result<Verified, StoreError> {
        let key = *object;
        let started = Instant::now();
        let giver = distant.giver(&key);
        answer::came(&giver, 0);
        let _reading = Reading::new(self);
        let coming = {
            let mut arrivals = lock(&self.arrivals);
            loop {
                if let Some(came) = arrivals.objects.get(object) {
                    distant.waited(started.elapsed()); // it came for another read, or with the rest
                    return Ok(came.clone());
                }
                if arrivals.coming.insert(*object) {
                    break Coming {
                        away: self,
                        objects: vec![*object],
                    };
                }
                let waited = self.arrived.wait_timeout(arrivals, Duration::from_secs(1));
                arrivals = waited.unwrap_or_else(PoisonError::into_inner).0;
                if self.stopping.load(SeqCst) {
                    return Err(failed(object, "the daemon is ending".to_owned()));
                }
            }
        };
        let object = self.fetch_from(distant, object)?;
        let size_bytes = object.stored().bytes.len();
        answer::came(&giver, size_bytes);
        self.arrive(object.clone());
        distant.count(started.elapsed(), size_bytes);
        drop(coming);
        Ok(object)
    }
}

/// A read that waits.
struct Reading<'a>(&'a Away);

impl<'a> Reading<'a> {
    fn new(away: &'a Away) -> Self {
        away.reads.fetch_add(1, SeqCst);
        Self(away)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        *lock(&self.0.last_read) = Some(Instant::now());
        self.0.reads.fetch_sub(1, SeqCst);
    }
}

/// Frames to get without being read; of each the last is the next.
struct Queue {
    first: Vec<Key>,
    rest: Vec<Key>,
}

impl Queue {
    /// The next piece, and whether it is of the first.
    fn take(&mut self, objects: usize) -> (Vec<Key>, bool) {
        let is_first = !self.first.is_empty();
        let from = if is_first { &mut self.first } else { &mut self.rest };
        (from.split_off(from.len().saturating_sub(objects)), is_first)
    }
}

/// Of this thread, and those that it starts from now on: who waits for a page comes first, when processors are short.
fn give_way_to_guests() {
    if let Err(error) = rustix::process::setpriority_process(None, REST_NICENESS) {
        tracing::debug!(%error, "the rest comes beside guests, not behind them");
    }
}

impl Distant {
    /// Who an object comes from.
    fn giver(&self, object: &Key) -> Arc<str> {
        let place = lock(&self.place);
        let giver = place.as_ref().and_then(|place| place.giver(object));
        giver.unwrap_or_else(|| self.from.clone())
    }

    fn opened(&self) -> Result<Arc<dyn Place>, SourceError> {
        let mut place = lock(&self.place);
        if let Some(place) = &*place {
            return Ok(place.clone());
        }
        let opened = (self.open)()?;
        *place = Some(opened.clone());
        Ok(opened)
    }

    fn object(&self, key: &Key) -> Result<Verified, SourceError> {
        let place = self.opened()?;
        let mut found = None;
        place.objects(&[*key], &mut |object| {
            found = Some(object);
            Ok(())
        })?;
        found.ok_or_else(|| SourceError::Incomplete {
            place: place.name(),
            object: key.to_string(),
        })
    }

    fn count(&self, waited: Duration, size_bytes: usize) {
        self.read_objects.fetch_add(1, Relaxed);
        self.read_bytes.fetch_add(size_bytes as u64, Relaxed);
        self.waited(waited);
    }

    fn waited(&self, waited: Duration) {
        let waited_us = waited.as_micros() as u64;
        self.waited_us.fetch_add(waited_us, Relaxed);
        self.waited_max_us.fetch_max(waited_us, Relaxed);
    }
}

/// May it be otherwise soon, perhaps because somebody mends it?
fn worth_waiting(error: &SourceError) -> bool {
    error.is_retryable() || matches!(error, SourceError::Refused { .. })
}

fn failed(object: &Key, reason: String) -> StoreError {
    StoreError::Io {
        doing: format!("getting {object}"),
        source: io::Error::other(reason),
    }
}

#[cfg(test)]
#[path = "away_tests.rs"]
mod tests;
