//! A guest's memory as any number of VMs map it.

use crate::cache::lock;
use crate::push::{PagePush, Piece, PushQueue};
use crate::{PageSet, Pager, SourceError};
use martlet_image::{FRAME_PAGES_MAX, FrameId, Manifest, PAGE_SIZE, PageLocation};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// Most pages a trace holds: 256 MiB of first touches.
pub const TRACE_PAGES_MAX: usize = 65_536;

/// How far from a page the rest of its frame is looked for. A frame's pages are near each other, with holes.
const REACH_PAGES: u64 = 2 * FRAME_PAGES_MAX as u64;

/// Which VM: chosen by the engine, never used for two VMs during a daemon's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmKey(pub u64);

/// What became of an image's pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Reads answered.
    pub reads: u64,
    /// Reads that failed.
    pub failures: u64,
    /// Different pages read on demand.
    pub demand_pages: u64,
    /// Pages handed over before anybody asked.
    pub pushed_pages: u64,
}

#[derive(Default)]
struct Record {
    /// Pages that were handed over, asked for or not.
    known: PageSet,
    /// First touches by demand, in order.
    trace: Vec<u32>,
    demand_pages: u64,
}

pub(crate) struct PushPath {
    queue: Arc<PushQueue>,
    pub(crate) target: Arc<dyn PagePush>,
}

/// The memory image of a snapshot: read-only, shared by every VM restored from it.
pub struct MemoryImage {
    pub(crate) pager: Arc<Pager>,
    manifest: Arc<Manifest>,
    record: Mutex<Record>,
    free: Mutex<HashMap<VmKey, PageSet>>,
    path: Mutex<Option<Arc<PushPath>>>,
    reading: AtomicU32,
    latest_page: AtomicU64,
    reads: AtomicU64,
    failures: AtomicU64,
    pushed_pages: AtomicU64,
}

/// Counts a read as under way while it lives.
struct Reading<'a>(&'a AtomicU32);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl MemoryImage {
    /// The image that `manifest` describes.
    pub fn new(pager: Arc<Pager>, manifest: Arc<Manifest>) -> Arc<Self> {
        Arc::new(Self {
            pager,
            manifest,
            record: Mutex::default(),
            free: Mutex::default(),
            path: Mutex::default(),
            reading: AtomicU32::new(0),
            latest_page: AtomicU64::new(u64::MAX),
            reads: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            pushed_pages: AtomicU64::new(0),
        })
    }

    /// What the image is made of.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }
    /// Its size.
    pub fn size_bytes(&self) -> u64 {
        self.manifest.page_count().saturating_mul(PAGE_SIZE as u64)
    }

    /// From now on pages are pushed to `target` by way of `queue`; `None` ends it.
    pub fn set_push(&self, path: Option<(Arc<PushQueue>, Arc<dyn PagePush>)>) {
        *lock(&self.path) = path.map(|(queue, target)| Arc::new(PushPath { queue, target }));
    }
    pub(crate) fn path(&self) -> Option<Arc<PushPath>> {
        lock(&self.path).clone()
    }

    /// Answers a fault: fills `buf` with the bytes from `offset` (zeros beyond the end). What shares a frame with the
    /// pages read, and was not handed over before, goes to the push queue.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        self.reading.fetch_add(1, Relaxed);
        let _reading = Reading(&self.reading);
        self.reads.fetch_add(1, Relaxed);
        if let Err(error) = self.pager.read(&self.manifest, offset, buf) {
            self.failures.fetch_add(1, Relaxed);
            return Err(error);
        }
        let end = offset.saturating_add(buf.len() as u64).div_ceil(PAGE_SIZE as u64);
        let pages = offset / PAGE_SIZE as u64..end.min(self.manifest.page_count());
        if !pages.is_empty() {
            self.note_access(pages.clone());
            self.push_around(pages);
        }
        Ok(())
    }

    /// Records that these pages were asked for.
    pub fn note_access(&self, pages: Range<u64>) {
        self.latest_page.store(pages.start, Relaxed);
        let mut record = lock(&self.record);
        for page in pages.start..pages.end.min(self.manifest.page_count()) {
            if !record.known.insert(page) {
                continue;
            }
            record.demand_pages += 1;
            if let Ok(page) = u32::try_from(page)
                && record.trace.len() < TRACE_PAGES_MAX
            {
                record.trace.push(page);
            }
        }
    }

    /// Queues the pages around `pages` that are in the same frames. Never fetches: only what is decoded already.
    fn push_around(&self, pages: Range<u64>) {
        let Some(path) = self.path() else { return };
        let before = pages.start.saturating_sub(REACH_PAGES)..pages.start;
        let after = pages.end..pages.end.saturating_add(REACH_PAGES).min(self.manifest.page_count());
        for (asked, around) in [(pages.start, before), (pages.end - 1, after)] {
            let PageLocation::Frame { frame, .. } = self.manifest.locate(asked) else {
                continue;
            };
            let Some(data) = self.pager.cached(&frame) else {
                continue;
            };
            for (page, slots) in self.take_unknown(around, frame) {
                let count = slots.len() as u64;
                let range = slots.start * PAGE_SIZE..slots.end * PAGE_SIZE;
                let offset_bytes = page * PAGE_SIZE as u64;
                if range.end > data.len() {
                    continue;
                }
                if path.queue.offer(Piece {
                    target: path.target.clone(),
                    offset_bytes,
                    data: data.clone(),
                    range,
                }) {
                    self.pushed_pages.fetch_add(count, Relaxed);
                } else {
                    lock(&self.record).known.remove_range(page..page + count);
                }
            }
        }
    }

    /// Runs (first page, slots) of pages in `around` that `frame` holds and nobody has; they count as known now.
    fn take_unknown(&self, around: Range<u64>, frame: FrameId) -> Vec<(u64, Range<usize>)> {
        let mut runs: Vec<(u64, Range<usize>)> = Vec::new();
        let mut record = lock(&self.record);
        for page in around {
            let PageLocation::Frame { frame: here, slot } = self.manifest.locate(page) else {
                continue;
            };
            if here != frame || !record.known.insert(page) {
                continue;
            }
            let slot = slot as usize;
            match runs.last_mut() {
                Some((first, slots)) if *first + slots.len() as u64 == page && slots.end == slot => {
                    slots.end += 1
                }
                _ => runs.push((page, slot..slot + 1)),
            }
        }
        runs
    }

    /// Marks pages as handed over; yields those that were not yet.
    pub(crate) fn take_pages(&self, pages: impl Iterator<Item = u64>) -> Vec<u64> {
        let mut record = lock(&self.record);
        pages.filter(|&page| record.known.insert(page)).collect()
    }
    pub(crate) fn give_back(&self, page: u64) {
        lock(&self.record).known.remove(page);
    }
    pub(crate) fn note_pushed(&self, pages: u64) {
        self.pushed_pages.fetch_add(pages, Relaxed);
    }
    /// Is a fault being served now?
    pub(crate) fn is_reading(&self) -> bool {
        self.reading.load(Relaxed) > 0
    }
    /// First page of the latest fault.
    pub(crate) fn latest_page(&self) -> u64 {
        self.latest_page.load(Relaxed)
    }

    /// The pages touched by demand so far, in the order of their first touch; at most [`TRACE_PAGES_MAX`]. Pages that
    /// were pushed first are not in it.
    pub fn trace(&self) -> Vec<u32> {
        lock(&self.record).trace.clone()
    }
    /// As [`trace`](Self::trace), and starts a new one.
    pub fn take_trace(&self) -> Vec<u32> {
        std::mem::take(&mut lock(&self.record).trace)
    }

    /// `vm`'s guest reports the bytes of `range` as free: whole pages within it count, until the VM's pages are cleared.
    pub fn note_free(&self, vm: VmKey, range: Range<u64>) {
        let page = PAGE_SIZE as u64;
        let pages = range.start.div_ceil(page)..(range.end / page).min(self.manifest.page_count());
        lock(&self.free).entry(vm).or_default().insert_range(pages);
    }
    /// The pages `vm`'s guest reported as free. What it touched since is private to it again: the caller takes the
    /// VM's private pages out.
    pub fn free_pages(&self, vm: VmKey) -> PageSet {
        lock(&self.free).get(&vm).cloned().unwrap_or_default()
    }
    /// Forgets a VM's reports.
    pub fn clear_free(&self, vm: VmKey) {
        lock(&self.free).remove(&vm);
    }

    /// What was done so far.
    pub fn stats(&self) -> MemoryStats {
        MemoryStats {
            reads: self.reads.load(Relaxed),
            failures: self.failures.load(Relaxed),
            demand_pages: lock(&self.record).demand_pages,
            pushed_pages: self.pushed_pages.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Caught, image};

    fn image_of(pages: u64, seed: u64) -> (Arc<MemoryImage>, Vec<u8>, Arc<Caught>, Arc<PushQueue>) {
        let (shelf, manifest, content) = image(pages, seed);
        let image = MemoryImage::new(Pager::new(shelf, 16 << 20), Arc::new(manifest));
        let (queue, caught) = (PushQueue::start(64), Arc::new(Caught::default()));
        image.set_push(Some((queue.clone(), caught.clone())));
        (image, content, caught, queue)
    }

    #[test]
    fn a_fault_pushes_the_rest_of_its_frame_and_nothing_twice() {
        let (image, content, caught, _queue) = image_of(64, 1);
        let mut buf = [0; PAGE_SIZE];
        image.read(10 * 4096, &mut buf).unwrap();
        assert_eq!(buf, content[10 * 4096..11 * 4096]);
        let PageLocation::Frame { frame, .. } = image.manifest().locate(10) else {
            panic!("page 10 is stored")
        };
        let mates = image
            .manifest()
            .stored_pages()
            .filter(|(page, id, _)| *id == frame && *page != 10);
        let mates: Vec<u64> = mates.map(|(page, ..)| page).collect();
        caught.wait_for(mates.len());
        assert!(
            caught
                .pages()
                .iter()
                .all(|(page, bytes)| content[*page as usize * 4096..][..4096] == bytes[..])
        );
        assert_eq!(caught.pages().keys().copied().collect::<Vec<_>>(), mates);
        image.read(11 * 4096, &mut buf).unwrap();
        let stats = image.stats();
        assert_eq!(
            (stats.demand_pages, stats.pushed_pages),
            (1, mates.len() as u64),
            "page 11 was there already"
        );
    }

    #[test]
    fn the_trace_is_the_order_of_first_touches() {
        let (image, ..) = image_of(64, 0);
        image.set_push(None);
        let mut buf = [0; 2 * PAGE_SIZE];
        for page in [40, 3, 41, 3, 63] {
            image.read(page * 4096, &mut buf).unwrap();
        }
        assert_eq!(image.take_trace(), [40, 41, 3, 4, 42, 63]);
        assert!(image.trace().is_empty());
    }

    #[test]
    fn free_reports_are_a_vms_own_and_whole_pages_only() {
        let (image, ..) = image_of(64, 0);
        image.note_free(VmKey(1), 4095..4 * 4096 + 1);
        image.note_free(VmKey(2), 60 * 4096..u64::MAX);
        assert_eq!(image.free_pages(VmKey(1)), (1..4).collect());
        assert_eq!(image.free_pages(VmKey(2)), (60..64).collect());
        image.clear_free(VmKey(1));
        assert!(image.free_pages(VmKey(1)).is_empty() && !image.free_pages(VmKey(2)).is_empty());
    }
}
