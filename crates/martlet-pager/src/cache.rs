//! A bounded cache of decoded frames, and the one fetch that any number of waiters share.
//!
//! Sharded by frame id. Each shard evicts with a clock: a hit marks the entry, the hand passes over a marked
//! entry once. A frame being fetched holds a place in the map, and whoever asks meanwhile waits on it.

use crate::SourceError;
use bytes::Bytes;
use martlet_image::FrameId;
use std::collections::hash_map::Entry as MapEntry;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

type Outcome = Result<Bytes, SourceError>;

/// Locks even after another thread panicked: what these locks guard is whole between statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a frame was had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Had {
    Cached,
    Waited,
    Fetched,
}

/// One fetch under way.
#[derive(Default)]
struct Flight {
    outcome: Mutex<Option<Outcome>>,
    landed: Condvar,
}

enum Entry {
    Ready { data: Bytes, marked: bool },
    Pending(Arc<Flight>),
}

#[derive(Default)]
struct Shard {
    entries: HashMap<FrameId, Entry>,
    clock: VecDeque<FrameId>, // the ready ones, each once
    size_bytes: usize,
}

pub(crate) struct FrameCache {
    shards: Vec<Mutex<Shard>>,
    shard_bytes: usize,
}

/// Lands the flight however the fetch ends, also by a panic: waiters must not wait for ever.
struct Landing<'a> {
    cache: &'a FrameCache,
    id: FrameId,
    flight: Arc<Flight>,
    outcome: Option<Outcome>,
}

impl FrameCache {
    pub(crate) fn new(size_bytes: usize) -> Self {
        let shards = (size_bytes >> 20).clamp(1, 16);
        let shard = |_| Mutex::new(Shard::default());
        Self {
            shards: (0..shards).map(shard).collect(),
            shard_bytes: size_bytes / shards,
        }
    }

    fn shard(&self, id: &FrameId) -> MutexGuard<'_, Shard> {
        lock(&self.shards[id.0[0] as usize % self.shards.len()])
    }

    /// The frame, when it is in the cache.
    pub(crate) fn peek(&self, id: &FrameId) -> Option<Bytes> {
        match self.shard(id).entries.get(id) {
            Some(Entry::Ready { data, .. }) => Some(data.clone()),
            _ => None,
        }
    }

    /// Keeps a frame that nobody fetched, unless it is here or on its way. Waits for nobody.
    pub(crate) fn put(&self, id: &FrameId, data: Bytes) {
        let mut shard = self.shard(id);
        if data.len() <= self.shard_bytes && !shard.entries.contains_key(id) {
            shard.keep(*id, data, self.shard_bytes);
        }
    }

    /// The frame: cached, or from whoever fetches it now, or by `fetch`.
    pub(crate) fn get(&self, id: &FrameId, fetch: impl FnOnce() -> Outcome) -> (Outcome, Had) {
        let flight = {
            let mut shard = self.shard(id);
            match shard.entries.entry(*id) {
                MapEntry::Occupied(mut entry) => match entry.get_mut() {
                    Entry::Ready { data, marked } => {
                        *marked = true;
                        return (Ok(data.clone()), Had::Cached);
                    }
                    Entry::Pending(flight) => {
                        let flight = flight.clone();
                        drop(shard);
                        return (flight.wait(), Had::Waited);
                    }
                },
                MapEntry::Vacant(entry) => {
                    let flight = Arc::new(Flight::default());
                    entry.insert(Entry::Pending(flight.clone()));
                    flight
                }
            }
        };
        let mut landing = Landing {
            cache: self,
            id: *id,
            flight,
            outcome: None,
        };
        let outcome = fetch();
        landing.outcome = Some(outcome.clone());
        (outcome, Had::Fetched)
    }
}

impl Flight {
    fn wait(&self) -> Outcome {
        let outcome = lock(&self.outcome);
        let outcome = self.landed.wait_while(outcome, |outcome| outcome.is_none());
        outcome
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .expect("waited until there is one")
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or_else(|| {
            let reason = "the fetch broke off".to_owned();
            Err(SourceError::Io {
                frame: self.id,
                kind: io::ErrorKind::Other,
                reason,
            })
        });
        let mut shard = self.cache.shard(&self.id);
        match &outcome {
            Ok(data) if data.len() <= self.cache.shard_bytes => {
                shard.keep(self.id, data.clone(), self.cache.shard_bytes);
            }
            _ => drop(shard.entries.remove(&self.id)),
        }
        drop(shard);
        *lock(&self.flight.outcome) = Some(outcome);
        self.flight.landed.notify_all();
    }
}

impl Shard {
    /// A frame, which is no larger than so much, is here.
    fn keep(&mut self, id: FrameId, data: Bytes, size_bytes: usize) {
        self.make_room(size_bytes - data.len());
        self.size_bytes += data.len();
        self.clock.push_back(id);
        self.entries.insert(id, Entry::Ready { data, marked: false });
    }

    /// Evicts until at most `size_bytes` are left.
    fn make_room(&mut self, size_bytes: usize) {
        while self.size_bytes > size_bytes {
            let Some(id) = self.clock.pop_front() else { return };
            match self.entries.get_mut(&id) {
                Some(Entry::Ready { marked, .. }) if *marked => {
                    *marked = false;
                    self.clock.push_back(id);
                }
                Some(Entry::Ready { data, .. }) => {
                    self.size_bytes -= data.len();
                    self.entries.remove(&id);
                }
                Some(Entry::Pending(_)) | None => {} // cannot be: the clock holds ready frames only
            }
        }
    }
}
