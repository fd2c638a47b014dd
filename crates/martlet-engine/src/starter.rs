//! Starters: what a start touches first, apart from its frames.
//!
//! ```text
//!   a machine starts ──► has been alive for a moment: which pages does it have? ──► suspended: these pages, in chunks
//!   a snapshot is away ──► its chunks come, before all frames that nobody reads ──► pushed, and faults are answered from them
//! ```
//!
//! A suspend makes one, as the machine is then likely to leave the host, if there is anywhere to go: it takes some tenths of a
//! second and some MiB. A checkpoint of a machine that goes on does not, since each would be larger by it. Chunks of which nothing
//! has changed since the machine's start are those of the snapshot that it started from: they are stored once, and sent once.

use crate::away::Away;
use crate::checkpoint::{Captured, Own};
use crate::engine::{Engine, lock};
use crate::live::Live;
use crate::problem::Told;
use crate::start_pages::Order;
use martlet_api::Problem;
use martlet_image::{
    BlobId, Manifest, PAGE_SIZE, PageLocation, PageSet, STARTER_CHUNK_PAGES, STARTER_CHUNKS_MAX, SnapshotId,
    StarterIndex, StarterRecord, compress, compress_well,
};
use martlet_pager::{MemoryImage, Starter};
use martlet_store::{Batch, Key, Kind, Store, Stored};
use martlet_vm::capture::PausedMemory;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Most pages of a starter: 24 MiB, as a rule 8 when compressed.
const PAGES_MAX: usize = 6144;
/// Of a chunk that is kept, no less than one page of so many is still wanted.
const WANTED_PAGES_OF: usize = 2;

/// Starters that come, or have come and are not used yet.
#[derive(Debug, Default)]
pub(crate) struct Starters(Mutex<HashMap<SnapshotId, Arc<Starter>>>);

impl Starters {
    /// That of a snapshot.
    pub(crate) fn of(&self, id: &SnapshotId) -> Option<Arc<Starter>> {
        lock(&self.0).get(id).cloned()
    }

    /// Nobody will want it.
    pub(crate) fn forget(&self, id: &SnapshotId) {
        if let Some(starter) = lock(&self.0).remove(id) {
            starter.give_up();
        }
    }
}

impl Engine {
    /// Puts the starter of a machine that stands still, whose memory is now what `now` describes. None, if nothing is known of
    /// its start, or no place but this host.
    pub(crate) fn put_starter(
        &self,
        batch: &mut Batch,
        live: &Live,
        captured: &Captured,
        now: &Manifest,
    ) -> Result<Option<StarterRecord>, Problem> {
        let (Own::InPlace(own), Some(below)) = (&captured.own, live.memory.snapshot) else {
            return Ok(None);
        };
        if !self.has_elsewhere()? {
            return Ok(None);
        }
        let before = live.memory.image.manifest();
        let memory = Memory {
            own,
            // Another one than the machine's, whose trace this is not.
            image: MemoryImage::new(self.pager.clone(), before.clone()),
        };
        let since = now.changes_from(&before).map(|(page, ..)| page).collect();
        let touched = self.touched(live);
        let start = live.start_pages();
        let start = start.map(|start| (start.wanted(&touched, &since), start.order(&touched)));
        let Some((wanted, order)) = start else {
            return Ok(None);
        };
        let mut wanted = wanted.map(|pages| {
            let is_stored = |page: &u32| now.locate(u64::from(*page)) != PageLocation::Zero;
            pages.into_iter().filter(is_stored).collect::<Vec<u32>>()
        });
        wanted[1].retain(|page| memory.is_state(*page));
        let is_wanted: HashSet<u32> = wanted.iter().flatten().copied().collect();
        let mut kept = self.starter_chunks(&below).unwrap_or_default();
        kept.retain(|(id, pages)| {
            let is_same = |page: &u32| now.locate(u64::from(*page)) == before.locate(u64::from(*page));
            let wanted = pages.iter().filter(|page| is_wanted.contains(page)).count();
            pages.iter().all(is_same) && wanted * WANTED_PAGES_OF >= pages.len() && self.is_here(id)
        });
        let known: HashSet<u32> = kept.iter().flat_map(|(_, pages)| pages).copied().collect();
        let here = self.readable(now, own.pages(), wanted.iter().flatten().copied())?;
        let mut left = PAGES_MAX.saturating_sub(known.len());
        let [written, since, read, rest] = wanted.map(|mut pages| {
            pages.retain(|page| !known.contains(page) && here.contains(page));
            pages.truncate(left);
            left -= pages.len();
            pages
        });
        let own = [written, since].concat();
        let all = planned(own, read, rest, kept, &order);
        let index = StarterIndex::new(all.iter().map(|(_, pages)| pages.clone()));
        if index.chunks().is_empty() || index.chunks().len() != all.len() {
            return Ok(None);
        }
        let full = "the starter could not be written";
        let mut chunks = Vec::new();
        for (pages, (id, _)) in index.chunks().iter().zip(&all) {
            if let Some(id) = id {
                batch.rely_on([Key::new(Kind::Blob, id.0)]);
                chunks.push(*id);
                continue;
            }
            let mut content = vec![0; pages.len() * PAGE_SIZE];
            for (page, bytes) in pages.iter().zip(content.chunks_exact_mut(PAGE_SIZE)) {
                if let Err(problem) = memory.read(*page, bytes) {
                    // What is damaged is no reason not to save the machine.
                    tracing::warn!(%problem, page, "a snapshot has no starter");
                    return Ok(None);
                }
            }
            let (codec, bytes) = compress_well(&content);
            let id = BlobId::of(&content);
            let stored = Stored {
                key: Key::new(Kind::Blob, id.0),
                codec,
                content_len: content.len() as u32,
                bytes,
            };
            batch.put_stored(&stored).told_as(full)?;
            chunks.push(id);
        }
        Ok(Some(StarterRecord {
            index: batch.put_blob(&index.encode()).told_as(full)?,
            chunks,
        }))
    }

    /// Is there anywhere to go?
    pub(crate) fn has_elsewhere(&self) -> Result<bool, Problem> {
        Ok(self.has_remotes()? || self.has_fellows()?)
    }

    /// Those of these pages that can be had without asking another host for them.
    fn readable(
        &self,
        now: &Manifest,
        own: &PageSet,
        pages: impl Iterator<Item = u32>,
    ) -> Result<HashSet<u32>, Problem> {
        let placed = pages.map(|page| match now.locate(u64::from(page)) {
            PageLocation::Frame { frame, .. } if !own.contains(page.into()) => {
                (page, Some(Key::new(Kind::Frame, frame.0)))
            }
            _ => (page, None),
        });
        let placed: Vec<_> = placed.collect();
        let keys: Vec<Key> = placed.iter().filter_map(|(_, frame)| *frame).collect();
        let lacking: HashSet<Key> = self.store.lacks(&keys).told()?.into_iter().collect();
        let here = placed.into_iter();
        let here = here.filter(|(_, frame)| frame.is_none_or(|frame| !lacking.contains(&frame)));
        Ok(here.map(|(page, _)| page).collect())
    }

    /// The chunks of a snapshot's starter, and their pages; none if it has none, or a damaged one.
    pub(crate) fn starter_chunks(&self, id: &SnapshotId) -> Option<Vec<(BlobId, Vec<u32>)>> {
        let (starter, index) = self.starter_of(id)?;
        Some(starter.chunks.into_iter().zip(index.chunks().to_vec()).collect())
    }

    fn starter_of(&self, id: &SnapshotId) -> Option<(StarterRecord, StarterIndex)> {
        let starter = self.store.snapshot(id).ok()?.starter()?.clone();
        let bytes = self.store.blob(&starter.index);
        let index = bytes.and_then(|bytes| Ok(StarterIndex::decode(&bytes)?));
        let index = index
            .inspect_err(|error| tracing::warn!(%error, snapshot = %id, "its starter is of no use"))
            .ok()?;
        (index.chunks().len() == starter.chunks.len()).then_some((starter, index))
    }

    fn is_here(&self, blob: &BlobId) -> bool {
        let lacking = self.store.lacks(&[Key::new(Kind::Blob, blob.0)]);
        lacking.is_ok_and(|lacking| lacking.is_empty())
    }

    /// The starter of a snapshot that is away, of which nothing has come yet, and its chunks.
    pub(crate) fn expect_starter(&self, id: &SnapshotId) -> Option<(Arc<Starter>, Vec<BlobId>)> {
        let (record, index) = self.starter_of(id)?;
        let memory = self.store.snapshot(id).ok()?.memory?;
        let manifest = self.store.manifest(&memory.manifest).ok()?;
        let starter = Starter::new(index, &manifest);
        lock(&self.starters.0).insert(*id, starter.clone());
        Some((starter, record.chunks))
    }
}

/// Chunks in the order in which a start wants something of them, those that are kept with their ids; then the rest. What a machine
/// wrote, which differs from one snapshot to the next, has chunks of its own.
fn planned(
    own: Vec<u32>,
    read: Vec<u32>,
    rest: Vec<u32>,
    kept: Vec<(BlobId, Vec<u32>)>,
    order: &Order,
) -> Vec<(Option<BlobId>, Vec<u32>)> {
    let new = |mut pages: Vec<u32>| {
        pages.sort_unstable_by_key(|page| order.when(*page));
        let chunks = pages.chunks(STARTER_CHUNK_PAGES).map(<[u32]>::to_vec);
        chunks.map(|pages| (None, pages)).collect::<Vec<_>>()
    };
    let kept = kept.into_iter().map(|(id, pages)| (Some(id), pages));
    let mut all = new(own);
    all.extend(kept.chain(new(read)));
    all.truncate(STARTER_CHUNKS_MAX);
    all.sort_by_key(|(_, pages)| pages.iter().map(|page| order.when(*page)).min());
    all.extend(new(rest));
    all.truncate(STARTER_CHUNKS_MAX);
    all
}

/// The memory of a machine that stands still.
struct Memory<'a> {
    own: &'a PausedMemory,
    image: Arc<MemoryImage>,
}

impl Memory<'_> {
    fn read(&self, page: u32, bytes: &mut [u8]) -> Result<(), Problem> {
        let page = u64::from(page);
        let unread = "the guest's memory could not be read";
        match self.own.pages().contains(page) {
            true => self.own.read(page..page + 1, bytes).told_as(unread),
            false => self
                .image
                .read(page * PAGE_SIZE as u64, bytes)
                .map(drop)
                .told_as(unread),
        }
    }

    /// Is it likely that a page holds a machine's state, rather than its user's data? That compresses worse.
    fn is_state(&self, page: u32) -> bool {
        let mut bytes = [0; PAGE_SIZE];
        self.read(page, &mut bytes).is_ok() && compress(&bytes).1.len() * 2 < PAGE_SIZE
    }
}

/// Whatever becomes of who brings a starter, nobody waits for it in vain.
struct Ended<'a>(&'a Starter);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// Has the chunks of a starter come, in their order, each verified against its id. One that cannot be had is done without.
pub(crate) fn bring(store: &Store, away: &Away, id: &SnapshotId, starter: &Starter, chunks: &[BlobId]) {
    let begun = Instant::now();
    let _ended = Ended(starter);
    let keys: Vec<Key> = chunks.iter().map(|chunk| Key::new(Kind::Blob, chunk.0)).collect();
    let places: HashMap<Key, usize> = keys.iter().enumerate().map(|(at, key)| (*key, at)).collect();
    away.in_turn(id, &keys, &mut |object| {
        if let Some(at) = places.get(&object.stored().key) {
            starter.settle(*at, Some(object.clone().into_content()));
        }
    });
    // What is here already, or comes for somebody else, or did not come.
    while let Some(at) = starter.first_coming() {
        let content = store.blob(&chunks[at]);
        let content = content
            .inspect_err(|error| tracing::warn!(%error, chunk = at, "a part of a starter is done without"));
        starter.settle(at, content.ok());
    }
    let took_ms = begun.elapsed().as_millis() as u64;
    tracing::info!(chunks = chunks.len(), took_ms, "a starter has come");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::start_pages::StartPages;
    use martlet_image::Trace;

    #[test]
    fn each_chunk_comes_when_a_start_wants_it_and_then_the_rest() {
        let pages = |range: std::ops::Range<u32>| range.collect::<Vec<u32>>();
        let start = StartPages::of_looks([(0..128).collect(), (0..1024).collect()]);
        let order = start.order(&Trace::default());
        let id = |byte| BlobId([byte; 32]);
        let kept = vec![(id(1), pages(2000..2100)), (id(2), pages(120..140))];
        let all = planned(
            pages(900..1100),
            pages(0..100),
            pages(100..101),
            kept.clone(),
            &order,
        );
        let expected = [
            (None, pages(0..100)),
            (Some(id(2)), pages(120..140)),
            (None, pages(900..1028)),
            (None, pages(1028..1100)),
            (Some(id(1)), pages(2000..2100)),
            (None, pages(100..101)),
        ];
        assert_eq!(all, expected);
        let many = planned(pages(0..8192), pages(9000..9001), Vec::new(), kept, &order);
        assert_eq!(many.len(), STARTER_CHUNKS_MAX);
        assert!(
            many.iter()
                .all(|(id, pages)| id.is_none() && pages.len() == STARTER_CHUNK_PAGES)
        );
    }
}
