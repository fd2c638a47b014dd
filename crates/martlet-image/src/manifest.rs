//! Where every page of an image is.
//!
//! A page is a 4-byte word, `frame index << 4 | slot`, in leaves of 512 pages that clones share until one of them
//! writes; leaves of zeros do not exist. Frame ids are kept once, in a table beside the leaves. So a lookup is two
//! array reads, and a clone of a 1 GiB image copies 512 pointers.

use crate::{FRAME_PAGES_MAX, FrameId};
use hashbrown::HashTable;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// Where one page's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageLocation {
    /// All zero: never stored, never fetched.
    Zero,
    /// Slot `slot` (0-based page within the frame) of a frame.
    Frame {
        /// The frame.
        frame: FrameId,
        /// Page within the frame, below [`FRAME_PAGES_MAX`].
        slot: u8,
    },
}

/// Most pages in an image whose manifest can be decoded: 1 TiB.
pub const MANIFEST_PAGES_MAX: u64 = 1 << 28;

const LEAF_PAGES: usize = 512;
const SLOT_BITS: u32 = 4;
const ZERO: u32 = 0;

type Leaf = [u32; LEAF_PAGES];

/// Frame ids by index. Index 0 is never given out, so that the word 0 can mean zero.
#[derive(Debug, Clone, Default)]
struct FrameTable {
    ids: Vec<FrameId>,
    /// Where an id is in `ids`; it is not kept here once more.
    indices: HashTable<u32>,
    hasher: RandomState,
}

/// A complete view of an image: a location for each of its pages.
#[derive(Clone)]
pub struct Manifest {
    page_count: u64,
    stored_count: u64,
    leaves: Vec<Option<Arc<Leaf>>>,
    frames: Arc<FrameTable>,
}

impl Manifest {
    /// An image of zeros.
    pub fn zero(page_count: u64) -> Self {
        Self {
            page_count,
            stored_count: 0,
            leaves: Vec::new(),
            frames: Arc::default(),
        }
    }

    /// Pages in the image.
    pub fn page_count(&self) -> u64 {
        self.page_count
    }

    /// How many pages are not zero.
    pub fn stored_count(&self) -> u64 {
        self.stored_count
    }

    /// Where page `page` is; pages beyond the end are zero.
    pub fn locate(&self, page: u64) -> PageLocation {
        self.location(self.word(page))
    }

    /// How much memory it takes, what it shares with others included.
    pub fn size_bytes(&self) -> usize {
        let leaves = self.leaves.iter().flatten().count();
        let per_index = size_of::<u32>() + 1;
        size_of::<Self>()
            + self.leaves.capacity() * size_of::<Option<Arc<Leaf>>>()
            + leaves * size_of::<Leaf>()
            + self.frames.ids.capacity() * size_of::<FrameId>()
            + self.frames.indices.capacity() * per_index
    }

    /// Puts page `page` at `location`. Pages beyond the end are ignored.
    ///
    /// # Panics
    /// If the slot is not below [`FRAME_PAGES_MAX`].
    pub fn set(&mut self, page: u64, location: PageLocation) {
        if page >= self.page_count {
            return;
        }
        let old = self.word(page);
        let new = match location {
            PageLocation::Zero => ZERO,
            PageLocation::Frame { frame, slot } => {
                assert!((slot as usize) < FRAME_PAGES_MAX, "slot {slot} is not in a frame");
                self.intern(frame) << SLOT_BITS | u32::from(slot)
            }
        };
        if old == new {
            return;
        }
        let (leaf, at) = (page as usize / LEAF_PAGES, page as usize % LEAF_PAGES);
        if leaf >= self.leaves.len() {
            self.leaves.resize(leaf + 1, None);
        }
        let leaf = self.leaves[leaf].get_or_insert_with(|| Arc::new([ZERO; LEAF_PAGES]));
        Arc::make_mut(leaf)[at] = new;
        self.stored_count += u64::from(new != ZERO);
        self.stored_count -= u64::from(old != ZERO);
    }

    /// Makes all these pages zero; whole leaves at once, so that an absurdly long range costs nothing.
    pub fn set_zero(&mut self, pages: std::ops::Range<u64>) {
        let mut page = pages.start;
        let end = pages.end.min((self.leaves.len() * LEAF_PAGES) as u64);
        while page < end {
            let next = (page / LEAF_PAGES as u64 + 1) * LEAF_PAGES as u64;
            let leaf = page as usize / LEAF_PAGES;
            if self.leaves[leaf].is_some() {
                (page..next.min(end)).for_each(|page| self.set(page, PageLocation::Zero));
            }
            page = next;
        }
    }

    /// The pages that are not zero, in order.
    pub fn stored_pages(&self) -> impl Iterator<Item = (u64, FrameId, u8)> + '_ {
        self.words()
            .map(|(page, word)| (page, self.frame_of(word), slot_of(word)))
    }

    /// The frames in use, each once, in the order in which the image's pages first use them.
    pub fn frames(&self) -> Vec<FrameId> {
        let mut seen = vec![false; self.frames.ids.len()];
        let mut frames = Vec::new();
        for (_, word) in self.words() {
            let index = index_of(word);
            if !std::mem::replace(&mut seen[index], true) {
                frames.push(self.frames.ids[index]);
            }
        }
        frames
    }

    /// What changed from `before` to `self`, page by page.
    pub fn diff(&self, before: &Manifest) -> ManifestDiff {
        let mut diff = ManifestDiff::default();
        for (_, old, new) in self.changes_from(before) {
            match (old, new) {
                (PageLocation::Zero, _) => diff.added_pages += 1,
                (_, PageLocation::Zero) => diff.removed_pages += 1,
                _ => diff.changed_pages += 1,
            }
        }
        // Pages cut off because the image shrank were there and are not.
        let cut = before
            .words()
            .filter(|&(page, _)| page >= self.page_count)
            .count() as u64;
        diff.removed_pages += cut;
        diff.same_pages = before.stored_count - diff.removed_pages - diff.changed_pages;
        diff
    }

    /// Every page of `self` that is elsewhere than in `before`, as (page, location before, location now), in order.
    pub fn changes_from<'a>(
        &'a self,
        before: &'a Manifest,
    ) -> impl Iterator<Item = (u64, PageLocation, PageLocation)> + 'a {
        let same_table = Arc::ptr_eq(&self.frames, &before.frames);
        let leaves = self.leaves.len().max(before.leaves.len());
        (0..leaves).flat_map(move |leaf| {
            let new = self.leaves.get(leaf).and_then(Option::as_ref);
            let old = before.leaves.get(leaf).and_then(Option::as_ref);
            let shared = match (new, old) {
                (None, None) => true,
                // A table is only ever appended to, so equal words of a shared leaf mean the same frame.
                (Some(new), Some(old)) => Arc::ptr_eq(new, old),
                _ => false,
            };
            let first = (leaf * LEAF_PAGES) as u64;
            let pages = if shared {
                0
            } else {
                (LEAF_PAGES as u64).min(self.page_count.saturating_sub(first))
            };
            (first..first + pages).filter_map(move |page| {
                let (old, new) = (before.word(page), self.word(page));
                if same_table && old == new {
                    return None;
                }
                let (old, new) = (before.location(old), self.location(new));
                (old != new).then_some((page, old, new))
            })
        })
    }

    /// The same image with another length: cut, or lengthened with zeros.
    pub fn resized(&self, page_count: u64) -> Manifest {
        let mut resized = self.clone();
        resized.set_zero(page_count..self.page_count);
        resized.page_count = page_count;
        resized
    }

    fn word(&self, page: u64) -> u32 {
        let leaf = usize::try_from(page / LEAF_PAGES as u64)
            .ok()
            .and_then(|leaf| self.leaves.get(leaf));
        match leaf {
            Some(Some(leaf)) => leaf[page as usize % LEAF_PAGES],
            _ => ZERO,
        }
    }

    fn location(&self, word: u32) -> PageLocation {
        match word {
            ZERO => PageLocation::Zero,
            _ => PageLocation::Frame {
                frame: self.frame_of(word),
                slot: slot_of(word),
            },
        }
    }

    fn frame_of(&self, word: u32) -> FrameId {
        self.frames.ids[index_of(word)]
    }

    /// Pages that are not zero, with their words.
    fn words(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.leaves.iter().enumerate().flat_map(|(leaf, words)| {
            words.iter().flat_map(move |words| {
                let page = move |at: usize| (leaf * LEAF_PAGES + at) as u64;
                words
                    .iter()
                    .enumerate()
                    .filter(|&(_, &word)| word != ZERO)
                    .map(move |(at, &word)| (page(at), word))
            })
        })
    }

    /// Index + 1 of a frame, adding it to the table.
    fn intern(&mut self, frame: FrameId) -> u32 {
        // Pages of one frame usually come one after the other.
        if self.frames.ids.last() == Some(&frame) {
            return self.frames.ids.len() as u32;
        }
        let hash = self.frames.hasher.hash_one(frame);
        let is_it = |index: &u32| self.frames.ids[*index as usize - 1] == frame;
        if let Some(&index) = self.frames.indices.find(hash, is_it) {
            return index;
        }
        let FrameTable { ids, indices, hasher } = Arc::make_mut(&mut self.frames);
        ids.push(frame);
        let index = ids.len() as u32;
        assert!(
            index < 1 << (32 - SLOT_BITS),
            "a manifest holds at most 2^28 frames"
        );
        indices.insert_unique(hash, index, |index| hasher.hash_one(ids[*index as usize - 1]));
        index
    }
}

fn index_of(word: u32) -> usize {
    (word >> SLOT_BITS) as usize - 1
}

fn slot_of(word: u32) -> u8 {
    (word & (FRAME_PAGES_MAX as u32 - 1)) as u8
}

impl PartialEq for Manifest {
    fn eq(&self, other: &Self) -> bool {
        self.page_count == other.page_count
            && self.stored_count == other.stored_count
            && self.changes_from(other).next().is_none()
    }
}

impl Eq for Manifest {}

impl std::fmt::Debug for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manifest")
            .field("page_count", &self.page_count)
            .field("stored_count", &self.stored_count)
            .finish_non_exhaustive()
    }
}

/// How two images differ, in pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ManifestDiff {
    /// At the same place with the same content, not zero.
    pub same_pages: u64,
    /// Not zero before and after, with another content.
    pub changed_pages: u64,
    /// Were zero and are not.
    pub added_pages: u64,
    /// Became zero, or were cut off.
    pub removed_pages: u64,
}
