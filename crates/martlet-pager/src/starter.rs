//! A starter that comes: pages that a start touches first, by the chunk.
//!
//! ```text
//!   coming ──► here       in their order: a fault waits for what comes next, and does with frames for what comes later
//!      └─────► gone       a fault that waits, and all later ones, do with frames
//! ```

use crate::cache::lock;
use crate::prefetch::Cancel;
use bytes::Bytes;
use martlet_image::{Manifest, PAGE_SIZE, PageLocation, StarterIndex};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Who waits for chunks looks so often whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A fault waits for one of so many that come next.
const NEXT_CHUNKS: usize = 2;

#[derive(Debug, Clone)]
enum Chunk {
    Coming,
    Here(Bytes),
    Gone,
}

impl Chunk {
    fn is_coming(&self) -> bool {
        matches!(self, Self::Coming)
    }
}

/// Is a chunk that comes after these not there soon? Its frame is there sooner: that is asked for beside the chunks, and a fraction of
/// one.
fn is_far(before: &[Chunk]) -> bool {
    before.iter().filter(|chunk| chunk.is_coming()).count() >= NEXT_CHUNKS
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Starter {
    index: StarterIndex,
    /// Chunk, and which page of it.
    places: HashMap<u64, (usize, usize)>,
    chunks: Mutex<Vec<Chunk>>,
    changed: Condvar,
}

impl Starter {
    /// One of which nothing has come yet, for the image that `manifest` describes. Pages that are zero there, or beyond its end,
    /// are none of it.
    pub fn new(index: StarterIndex, manifest: &Manifest) -> Arc<Self> {
        let mut places = HashMap::new();
        for (chunk, pages) in index.chunks().iter().enumerate() {
            for (at, page) in pages.iter().map(|page| u64::from(*page)).enumerate() {
                if page < manifest.page_count() && manifest.locate(page) != PageLocation::Zero {
                    places.insert(page, (chunk, at));
                }
            }
        }
        let chunks = vec![Chunk::Coming; index.chunks().len()];
        Arc::new(Self {
            index,
            places,
            chunks: Mutex::new(chunks),
            changed: Condvar::new(),
        })
    }

    /// The first that has neither come nor is known not to.
    pub fn first_coming(&self) -> Option<usize> {
        lock(&self.chunks).iter().position(Chunk::is_coming)
    }

    /// A chunk has come, verified; or does not come.
    pub fn settle(&self, chunk: usize, content: Option<Bytes>) {
        let content = content.filter(|content| self.index.fits(chunk, content));
        lock(&self.chunks)[chunk] = content.map_or(Chunk::Gone, Chunk::Here);
        self.changed.notify_all();
    }

    /// What has not come does not come.
    pub fn give_up(&self) {
        for chunk in &mut *lock(&self.chunks) {
            if !matches!(chunk, Chunk::Here(_)) {
                *chunk = Chunk::Gone;
            }
        }
        self.changed.notify_all();
    }

    /// Is a page in it?
    pub fn has(&self, page: u64) -> bool {
        self.places.contains_key(&page)
    }

    /// Pages of a chunk, ascending.
    pub(crate) fn pages(&self, chunk: usize) -> impl Iterator<Item = u64> + '_ {
        let pages = self.index.chunks()[chunk].iter().map(|page| u64::from(*page));
        pages.filter(|page| self.has(*page))
    }

    /// Fills `buf` with a page's bytes from `within` on, if it has them; with `wait`, once it has them. Tells whether it has,
    /// and whether that took waiting.
    pub(crate) fn read(&self, page: u64, within: usize, buf: &mut [u8], wait: bool) -> (bool, bool) {
        let Some(&(chunk, at)) = self.places.get(&page) else {
            return (false, false);
        };
        let mut chunks = lock(&self.chunks);
        let mut waited = false;
        loop {
            match &chunks[chunk] {
                Chunk::Here(content) => {
                    let content = content.clone();
                    drop(chunks);
                    let begin = at * PAGE_SIZE + within;
                    buf.copy_from_slice(&content[begin..begin + buf.len()]);
                    return (true, waited);
                }
                Chunk::Gone => return (false, waited),
                Chunk::Coming if !wait || is_far(&chunks[..chunk]) => return (false, waited),
                Chunk::Coming => {}
            }
            waited = true;
            chunks = self.changed.wait(chunks).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next chunk that is here and not among `seen`, once there is one; none when there will be none.
    pub(crate) fn next_here(&self, seen: &mut Vec<usize>, cancel: &Cancel) -> Option<usize> {
        let mut chunks = lock(&self.chunks);
        while !cancel.is_cancelled() {
            let here = |at: &usize| matches!(chunks[*at], Chunk::Here(_)) && !seen.contains(at);
            if let Some(at) = (0..chunks.len()).find(here) {
                seen.push(at);
                return Some(at);
            }
            if !chunks.iter().any(Chunk::is_coming) {
                return None;
            }
            let waited = self.changed.wait_timeout(chunks, LOOK_EVERY);
            chunks = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Caught, image};
    use crate::{MemoryImage, Pager, PushQueue};
    use std::thread;

    /// An image of 100 pages, and a starter of the first 64 in chunks of 16.
    struct Case {
        shelf: Arc<crate::testing::Shelf>,
        image: Arc<MemoryImage>,
        starter: Arc<Starter>,
        content: Vec<u8>,
        chunks: Vec<Vec<u8>>,
    }

    fn case() -> Case {
        let (shelf, manifest, content) = image(100, 3);
        let index = StarterIndex::new((0..4).map(|chunk| (chunk * 16..chunk * 16 + 16).collect()));
        let chunks = content.chunks(16 * PAGE_SIZE).take(4).map(<[u8]>::to_vec);
        let chunks = chunks.collect();
        let starter = Starter::new(index, &manifest);
        let image = MemoryImage::new(Pager::new(shelf.clone(), 1 << 20), Arc::new(manifest));
        image.set_starter(Some(starter.clone()));
        Case {
            shelf,
            image,
            starter,
            content,
            chunks,
        }
    }

    fn read(image: &MemoryImage, page: usize, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count * PAGE_SIZE];
        image.read((page * PAGE_SIZE) as u64, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_is_here_is_read_without_its_frame() {
        let case = case();
        case.starter.settle(0, Some(case.chunks[0].clone().into()));
        assert_eq!(case.starter.first_coming(), Some(1));
        let mut within = vec![0; 5000];
        case.image.read(100, &mut within).unwrap();
        assert_eq!(within, case.content[100..5100]);
        assert_eq!(read(&case.image, 0, 16), case.content[..16 * PAGE_SIZE]);
        assert_eq!(case.shelf.fetches(), 0);
        assert_eq!(
            read(&case.image, 80, 4),
            case.content[80 * PAGE_SIZE..84 * PAGE_SIZE]
        );
        assert!(case.shelf.fetches() > 0, "the rest is in frames");
    }

    #[test]
    fn what_is_read_around_a_page_is_not_got_for_it() {
        let case = case();
        case.starter.settle(3, Some(case.chunks[3].clone().into()));
        let mut bytes = vec![0; 4 * PAGE_SIZE];
        let around = case.image.read(62 * PAGE_SIZE as u64, &mut bytes);
        assert!(
            matches!(around, Err(crate::SourceError::Apart { page: 62 })),
            "{around:?}"
        );
        assert_eq!(
            read(&case.image, 63, 1),
            case.content[63 * PAGE_SIZE..64 * PAGE_SIZE]
        );
        assert_eq!(case.shelf.fetches(), 0);
        assert_eq!(case.image.stats().failures, 0);
        // Who asks again gets it.
        assert_eq!(
            read(&case.image, 62, 4),
            case.content[62 * PAGE_SIZE..66 * PAGE_SIZE]
        );
    }

    #[test]
    fn a_fault_waits_for_what_comes_next() {
        let case = case();
        let bytes_of =
            |pages: std::ops::Range<usize>| &case.content[pages.start * PAGE_SIZE..pages.end * PAGE_SIZE];
        thread::scope(|scope| {
            let fault = scope.spawn(|| read(&case.image, 20, 3));
            case.starter.settle(1, Some(case.chunks[1].clone().into()));
            assert_eq!(fault.join().unwrap(), bytes_of(20..23));
        });
        assert_eq!(case.shelf.fetches(), 0);
        // Two come before it: the first, and the third.
        assert_eq!(read(&case.image, 50, 3), bytes_of(50..53));
        assert!(case.shelf.fetches() > 0, "its frame is there sooner");
    }

    #[test]
    fn what_does_not_come_is_read_from_frames() {
        let case = case();
        case.starter.settle(0, None);
        case.starter
            .settle(1, Some(case.chunks[1][..100].to_vec().into()));
        assert_eq!(
            read(&case.image, 14, 4),
            case.content[14 * PAGE_SIZE..18 * PAGE_SIZE]
        );
        thread::scope(|scope| {
            let fault = scope.spawn(|| read(&case.image, 40, 1));
            case.starter.give_up();
            assert_eq!(
                fault.join().unwrap(),
                case.content[40 * PAGE_SIZE..41 * PAGE_SIZE]
            );
        });
    }

    #[test]
    fn what_comes_is_pushed_once() {
        let case = case();
        let caught = Arc::new(Caught::default());
        case.image.set_push(Some((PushQueue::start(1), caught.clone())));
        for (chunk, content) in case.chunks.into_iter().enumerate().skip(1) {
            case.starter.settle(chunk, Some(content.into()));
        }
        case.starter.give_up();
        let report = case.image.hand_out(&case.starter, &Cancel::default());
        assert!(report.complete && case.shelf.fetches() == 0);
        let pages = caught.pages();
        assert_eq!(pages.len() as u64, report.pushed_pages);
        assert!(
            pages
                .keys()
                .all(|page| (16..64).contains(page) && case.starter.has(*page))
        );
        assert!(
            pages
                .iter()
                .all(|(page, bytes)| case.content[*page as usize * PAGE_SIZE..][..PAGE_SIZE] == bytes[..])
        );
    }

    #[test]
    fn zeros_and_what_is_beyond_the_end_are_none_of_it() {
        let (_, manifest, _) = image(10, 3);
        let zero = (0..10)
            .find(|page| manifest.locate(*page) == PageLocation::Zero)
            .unwrap();
        let starter = Starter::new(StarterIndex::new([vec![zero as u32, 1 << 30]]), &manifest);
        assert!(!starter.has(zero) && !starter.has(1 << 30));
    }
}
