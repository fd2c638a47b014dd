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

use crate::checkpoint::{Captured, Own};
use crate::engine::{Engine, lock};
use crate::live::Live;
use crate::problem::Told;
use martlet_api::Problem;
use martlet_image::{
    BlobId, Manifest, PAGE_SIZE, PageLocation, PageSet, STARTER_CHUNK_PAGES, STARTER_CHUNKS_MAX, SnapshotId,
    StarterIndex, StarterRecord, Trace, compress, compress_well,
};
use martlet_pager::{MemoryImage, Starter};
use martlet_store::{Batch, Key, Kind, Store, Stored};
use martlet_vm::capture::{Mapping, PausedMemory, mapped_pages, private_pages};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Most pages of a starter: 24 MiB, as a rule 8 when compressed.
const PAGES_MAX: usize = 6144;
/// So many pages that were written are little: 16 MiB.
const SINCE_PAGES_MAX: u64 = 4096;
/// So many of the pages that were touched after that moment are of first commands.
const THEN_PAGES_MAX: usize = 384;
/// Chunks that are asked for at the same time. While some come, others are on their way; those of two would end together.
const CHUNKS_AT_ONCE: usize = 3;
/// Of a chunk that is kept, no less than one page of so many is still wanted.
const WANTED_PAGES_OF: usize = 2;

/// What a machine had of its memory image at each step of its start, and when it had been alive for a moment.
///
/// ```text
///   noted ──(a step is over)──► noted ──(alive for a moment, or suspended before)──► ended
/// ```
#[derive(Debug, Clone, Default)]
pub(crate) struct StartPages {
    /// Pages that its process had by then, which are those that it touched, and others around them.
    by_step: Vec<PageSet>,
    /// Those of the last step that it wrote.
    written: PageSet,
    has_ended: bool,
}

impl StartPages {
    /// A step is over. That its pages cannot be told is no reason not to start.
    pub(crate) fn note(&mut self, pid: u32, memory: &Path) {
        let found = Mapping::find(pid, memory).and_then(|mapping| mapped_pages(pid, &mapping));
        match found {
            Ok(mapped) => self.by_step.push(mapped),
            Err(error) => tracing::debug!(%error, pid, "which pages a step of a start needed"),
        }
    }

    /// The last step is over, unless it is already. When its pages cannot be told there will be no starter.
    pub(crate) fn end(&mut self, pid: u32, memory: &Path) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let found = Mapping::find(pid, memory)
            .and_then(|mapping| Ok((mapped_pages(pid, &mapping)?, private_pages(pid, &mapping)?)));
        match found {
            Ok((mapped, written)) => {
                self.by_step.push(mapped);
                self.written = written;
            }
            Err(error) => {
                self.by_step.clear();
                tracing::debug!(%error, pid, "which pages a start needed");
            }
        }
    }

    /// When its pages were first wanted.
    fn order(&self, touched: &Trace) -> Order {
        let mut order = Order::default();
        for (step, pages) in self.by_step.iter().enumerate() {
            for page in pages.iter().filter_map(|page| u32::try_from(page).ok()) {
                order.note(page, (step, usize::MAX));
            }
        }
        for (at, page) in touched.pages().iter().enumerate() {
            order.note(*page, (self.by_step.len(), at));
        }
        order
    }

    /// Those that another start will want: what a start writes; what was written `since`, if it is little, as a guest takes what it
    /// let go of last; what was read, and a little of what was read then; and what was there before anybody read it, of which nobody
    /// can tell whether it was.
    fn wanted(&self, touched: &Trace, since: &PageSet) -> [Vec<u32>; 4] {
        let all =
            |pages: &PageSet| -> Vec<u32> { pages.iter().filter_map(|page| page.try_into().ok()).collect() };
        let Some(mapped) = self.by_step.last().filter(|mapped| !mapped.is_empty()) else {
            return Default::default();
        };
        let mut since = match since.len() <= SINCE_PAGES_MAX {
            true => since.clone(),
            false => PageSet::new(),
        };
        since.and_not(&self.written);
        let mut rest = mapped.clone();
        rest.and_not(&self.written);
        rest.and_not(&since);
        let is_own = |page: u32| self.written.contains(page.into()) || since.contains(page.into());
        let others = touched.pages().iter().copied().filter(|page| !is_own(*page));
        let (mut read, then): (Vec<u32>, Vec<u32>) =
            others.partition(|page| mapped.contains(u64::from(*page)));
        read.extend(then.into_iter().take(THEN_PAGES_MAX));
        rest.and_not(&read.iter().map(|page| u64::from(*page)).collect());
        [all(&self.written), all(&since), read, all(&rest)]
    }
}

/// When pages were first wanted: in which step, and then, of those that were read, after how many others. That is told of neighbours
/// together, as one that is touched brings the others with it.
#[derive(Default)]
struct Order(HashMap<u32, (usize, usize)>);

impl Order {
    /// The kernel maps so many at once.
    const NEAR_PAGES: u32 = 16;

    fn note(&mut self, page: u32, (step, at): (usize, usize)) {
        let when = self.0.entry(page / Self::NEAR_PAGES).or_insert((step, at));
        *when = (when.0.min(step), when.1.min(at));
    }

    /// What was wanted sooner has a lower number; neighbours are next to each other.
    fn when(&self, page: u32) -> (usize, usize, u32) {
        let near = page / Self::NEAR_PAGES;
        let of = |near: u32| self.0.get(&near).copied().unwrap_or((usize::MAX, usize::MAX));
        let (step, mut at) = of(near);
        if at == usize::MAX {
            // Nobody had to read it, as it was in a frame with what somebody read.
            at = of(near.saturating_sub(1)).1.min(of(near + 1).1);
        }
        (step, at, page)
    }
}

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
        let all = planned(own, [read, rest].concat(), kept, &order);
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

/// Chunks in the order in which they are to come, those that are kept with their ids. What a machine wrote, which differs from one
/// snapshot to the next, has chunks of its own, and comes first: it goes on where it wrote last.
fn planned(
    own: Vec<u32>,
    others: Vec<u32>,
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
    let mut rest: Vec<_> = kept.chain(new(others)).collect();
    rest.truncate(STARTER_CHUNKS_MAX.saturating_sub(all.len()));
    rest.sort_by_key(|(_, pages)| pages.iter().map(|page| order.when(*page)).min());
    all.extend(rest);
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

/// Has the chunks of a starter come, each verified against its id. One that cannot be had is done without.
pub(crate) fn bring(store: &Store, starter: &Starter, chunks: &[BlobId]) {
    let begun = Instant::now();
    let _ended = Ended(starter);
    std::thread::scope(|scope| {
        for _ in 0..CHUNKS_AT_ONCE {
            scope.spawn(|| {
                while let Some(at) = starter.take_wanted() {
                    let content = store.blob(&chunks[at]);
                    let content = content.inspect_err(
                        |error| tracing::warn!(%error, chunk = at, "a part of a starter is done without"),
                    );
                    starter.settle(at, content.ok());
                }
            });
        }
    });
    let took_ms = begun.elapsed().as_millis() as u64;
    tracing::info!(chunks = chunks.len(), took_ms, "a starter has come");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_wants_what_was_written_then_what_was_read_then_what_else_there_was() {
        let start = StartPages {
            by_step: vec![
                [1].into_iter().collect(),
                [1, 2, 3, 4, 10, 11].into_iter().collect(),
            ],
            written: [4, 10].into_iter().collect(),
            has_ended: true,
        };
        let touched = Trace::new(vec![3, 10, 20, 1]);
        let wanted = start.wanted(&touched, &[4, 11, 30].into_iter().collect());
        assert_eq!(wanted, [vec![4, 10], vec![11, 30], vec![3, 1, 20], vec![2]]);
        let wanted = start.wanted(&touched, &(0..=SINCE_PAGES_MAX).collect());
        assert_eq!(wanted, [vec![4, 10], vec![], vec![3, 1, 20], vec![2, 11]]);
        let nothing = StartPages::default().wanted(&touched, &[1].into_iter().collect());
        assert!(nothing.iter().all(Vec::is_empty));
    }

    #[test]
    fn a_start_whose_end_nobody_could_see_wants_nothing() {
        let mut start = StartPages {
            by_step: vec![[1].into_iter().collect()],
            ..StartPages::default()
        };
        start.end(std::process::id(), Path::new("/no/memory"));
        let wanted = start.wanted(&Trace::new(vec![1]), &PageSet::new());
        assert!(wanted.iter().all(Vec::is_empty));
    }

    #[test]
    fn neighbours_come_together_in_the_order_of_the_steps_that_wanted_them() {
        let start = StartPages {
            by_step: vec![
                [500].into_iter().collect(),
                [500, 20, 40, 300].into_iter().collect(),
            ],
            ..StartPages::default()
        };
        let order = start.order(&Trace::new(vec![900, 303, 17, 800]));
        let mut pages = vec![17, 31, 40, 99, 300, 500, 510, 800, 900];
        pages.sort_by_key(|page| order.when(*page));
        assert_eq!(pages, [500, 510, 300, 17, 31, 40, 900, 800, 99]);
    }

    #[test]
    fn what_was_written_comes_first_and_what_is_kept_in_its_turn() {
        let pages = |range: std::ops::Range<u32>| range.collect::<Vec<u32>>();
        let start = StartPages {
            by_step: vec![(0..128).collect(), (0..1024).collect()],
            ..StartPages::default()
        };
        let order = start.order(&Trace::default());
        let id = |byte| BlobId([byte; 32]);
        let kept = vec![(id(1), pages(2000..2100)), (id(2), pages(120..140))];
        let all = planned(pages(900..1100), pages(0..100), kept.clone(), &order);
        let expected = [
            (None, pages(900..1028)),
            (None, pages(1028..1100)),
            (None, pages(0..100)),
            (Some(id(2)), pages(120..140)),
            (Some(id(1)), pages(2000..2100)),
        ];
        assert_eq!(all, expected);
        let many = planned(pages(0..8192), pages(9000..9001), kept, &order);
        assert_eq!(many.len(), STARTER_CHUNKS_MAX);
        assert!(
            many.iter()
                .all(|(id, pages)| id.is_none() && pages.len() == STARTER_CHUNK_PAGES)
        );
    }
}
