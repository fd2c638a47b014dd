//! The work on pages that is worth more than one thread: hashing, and compressing frames.

use martlet_image::{EncodedFrame, FrameId, PAGE_SIZE, encode_frame, is_zero};

/// Pages in a new frame, of the 16 that the format allows: more compress 1 % better, but a cold fault waits for the
/// whole frame (docs/format.md has the figures).
const FRAME_PAGES: usize = 8;

/// Pages looked at together: 8 MiB, enough to keep the threads busy and few enough to stay in the cache.
pub(crate) const SLAB_PAGES: usize = 2048;

/// Fewer than this are not worth a thread.
const PAGES_PER_THREAD_MIN: usize = 128;

type Page = [u8; PAGE_SIZE];

/// Where a page of a slab is, or will be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Zero,
    /// In the store or in the batch already.
    Known(FrameId, u8),
    /// The n-th new page of the slab.
    New(usize),
    /// The same content as the n-th new page of the slab.
    Again(usize),
}

/// The BLAKE3 hash of every page, `None` for zero pages.
pub(crate) fn hash_pages(pages: &[(u64, &Page)]) -> Vec<Option<[u8; 32]>> {
    parallel(pages, PAGES_PER_THREAD_MIN, |part| {
        part.iter()
            .map(|(_, page)| (!is_zero(*page)).then(|| *blake3::hash(*page).as_bytes()))
            .collect()
    })
}

/// Frames of these pages, in order.
pub(crate) fn encode_frames(pages: &[&Page]) -> Vec<EncodedFrame> {
    let chunks: Vec<&[&Page]> = pages.chunks(FRAME_PAGES).collect();
    parallel(&chunks, PAGES_PER_THREAD_MIN / FRAME_PAGES, |part| {
        let mut content = Vec::with_capacity(FRAME_PAGES * PAGE_SIZE);
        let mut frames = Vec::with_capacity(part.len());
        for pages in part {
            content.clear();
            pages.iter().for_each(|page| content.extend_from_slice(*page));
            frames.push(encode_frame(&content));
        }
        frames
    })
}

/// Frame and slot of the n-th page given to [`encode_frames`].
pub(crate) fn slot_of(frames: &[EncodedFrame], page: usize) -> (FrameId, u8) {
    (frames[page / FRAME_PAGES].id, (page % FRAME_PAGES) as u8)
}

/// Maps parts of `items` on as many threads as there are cores, keeping the order.
fn parallel<T: Sync, R: Send>(items: &[T], part_min: usize, map: impl Fn(&[T]) -> Vec<R> + Sync) -> Vec<R> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(4).min(items.len() / part_min.max(1)).max(1);
    if threads == 1 {
        return map(items);
    }
    let (first, rest) = items.split_at(items.len().div_ceil(threads));
    std::thread::scope(|scope| {
        let parts = rest.chunks(items.len().div_ceil(threads));
        let workers: Vec<_> = parts.map(|part| scope.spawn(|| map(part))).collect();
        let mut results = map(first);
        for worker in workers {
            match worker.join() {
                Ok(part) => results.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    })
}
