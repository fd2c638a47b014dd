//! A guest's memory as any number of VMs map it.

use crate::cache::lock;
use crate::push::{PagePush, Piece, PushBuffer, PushQueue};
use crate::sequence::Sequence;
use crate::starter::Starter;
use crate::{Pager, SourceError};
use martlet_image::{
    FRAME_PAGES_MAX, FrameId, Manifest, PAGE_SIZE, PageLocation, PageSet, TRACE_PAGES_MAX, Trace,
};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};

/// How far from a page the rest of its frame is looked for. A frame's pages are near each other, with holes.
const REACH_PAGES: u64 = 2 * FRAME_PAGES_MAX as u64;

/// Handed over at once to who reads in order: each piece wakes two threads.
const PIECE_PAGES: usize = 8 * FRAME_PAGES_MAX;

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

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handed {
    Pushed,
    Refused,
    Failed,
}

#[derive(Default)]
struct Record {
    /// Pages that were handed over, asked for or not.
    known: PageSet,
    /// Pages that were asked for.
    asked: PageSet,
    /// Pages of reads that were refused.
    refused: PageSet,
    /// First touches by demand, in order.
    trace: Vec<u32>,
    demand_pages: u64,
}

pub(crate) struct PushPath {
    pub(crate) queue: Arc<PushQueue>,
    pub(crate) target: Arc<dyn PagePush>,
}

/// The memory image of a snapshot: read-only, shared by every VM restored from it.
pub struct MemoryImage {
    me: Weak<MemoryImage>, // for what outlives a read: the queue
    pub(crate) pager: Arc<Pager>,
    manifest: Arc<Manifest>,
    starter: Mutex<Option<Arc<Starter>>>,
    page_count: u64,
    record: Mutex<Record>,
    sequence: Mutex<Sequence>,
    free: Mutex<HashMap<VmKey, PageSet>>,
    path: Mutex<Option<Arc<PushPath>>>,
    reading: AtomicU32,
    /// Those who want to know all that is touched.
    learning: AtomicU32,
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

/// While it lives, what is read of an image brings no neighbours: so its trace has all that is touched. See
/// [`MemoryImage::learn`].
pub struct Learning(Arc<MemoryImage>);

impl std::fmt::Debug for Learning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Learning")
    }
}

impl Drop for Learning {
    fn drop(&mut self) {
        self.0.learning.fetch_sub(1, Relaxed);
    }
}

/// What was read makes likely to be asked for next: the rest of its frames, or what follows. It is queued to be pushed when this is
/// dropped. Waking who pushes takes a moment, so answer first.
pub struct Neighbours {
    image: Arc<MemoryImage>,
    pages: Range<u64>,
    /// Were they read before?
    again: bool,
}

impl Neighbours {
    /// Nothing of them is to be pushed.
    pub fn let_be(mut self) {
        self.pages = 0..0;
    }
}

impl std::fmt::Debug for Neighbours {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Neighbours")
            .field("pages", &self.pages)
            .finish_non_exhaustive()
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        if !self.pages.is_empty() && self.image.learning.load(Relaxed) == 0 {
            self.image.push_ahead(self.pages.clone(), self.again);
            self.image.push_around(self.pages.clone());
        }
    }
}

impl MemoryImage {
    /// The image that `manifest` describes.
    pub fn new(pager: Arc<Pager>, manifest: Arc<Manifest>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            pager,
            page_count: manifest.page_count(),
            manifest,
            starter: Mutex::default(),
            record: Mutex::default(),
            sequence: Mutex::default(),
            free: Mutex::default(),
            path: Mutex::default(),
            reading: AtomicU32::new(0),
            learning: AtomicU32::new(0),
            latest_page: AtomicU64::new(u64::MAX),
            reads: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            pushed_pages: AtomicU64::new(0),
        })
    }

    /// It, for what outlives a call.
    pub(crate) fn me(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    /// What the image is made of.
    pub fn manifest(&self) -> Arc<Manifest> {
        self.manifest.clone()
    }
    /// The frame that a page is in; none if it is zero.
    pub(crate) fn frame_of(&self, page: u64) -> Option<FrameId> {
        match self.manifest.locate(page) {
            PageLocation::Zero => None,
            PageLocation::Frame { frame, .. } => Some(frame),
        }
    }
    /// From now on, pages that are in a starter of this image are read from there; `None` ends it.
    pub fn set_starter(&self, starter: Option<Arc<Starter>>) {
        *lock(&self.starter) = starter;
    }
    fn starter(&self) -> Option<Arc<Starter>> {
        lock(&self.starter).clone()
    }
    /// Pages in it.
    pub fn page_count(&self) -> u64 {
        self.page_count
    }
    /// Its size.
    pub fn size_bytes(&self) -> u64 {
        self.page_count.saturating_mul(PAGE_SIZE as u64)
    }

    /// While what is returned lives, nothing is pushed because of what is read.
    pub fn learn(self: &Arc<Self>) -> Learning {
        self.learning.fetch_add(1, Relaxed);
        Learning(self.clone())
    }

    /// From now on pages are pushed to `target` by way of `queue`; `None` ends it.
    pub fn set_push(&self, path: Option<(Arc<PushQueue>, Arc<dyn PagePush>)>) {
        *lock(&self.path) = path.map(|(queue, target)| Arc::new(PushPath { queue, target }));
    }
    pub(crate) fn path(&self) -> Option<Arc<PushPath>> {
        lock(&self.path).clone()
    }

    /// Answers a fault: fills `buf` with the bytes from `offset` (zeros beyond the end). What is dropped afterwards pushes what
    /// is likely to be asked for next: who waits for an answer has it first.
    ///
    /// A read of several pages is refused when a starter has some of them and others would have to be got: it is of one page that
    /// somebody waits for and of those around it, and a kernel asks for that page alone then. What was refused once is read
    /// when it is asked for again, in whatever piece.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<Neighbours, SourceError> {
        let end = offset.saturating_add(buf.len() as u64).div_ceil(PAGE_SIZE as u64);
        let pages = offset / PAGE_SIZE as u64..end.min(self.page_count);
        if self.is_apart(pages.clone()) && self.is_first_refusal(pages.clone()) {
            return Err(SourceError::Apart { page: pages.start });
        }
        self.reading.fetch_add(1, Relaxed);
        let _reading = Reading(&self.reading);
        self.reads.fetch_add(1, Relaxed);
        if let Err(error) = self.fill(offset, buf, true) {
            self.failures.fetch_add(1, Relaxed);
            return Err(error);
        }
        let image = self.me.upgrade().expect("images are shared from the start");
        let again = lock(&self.record).asked.contains(pages.start);
        if !pages.is_empty() {
            self.note_access(pages.clone());
        }
        Ok(Neighbours { image, pages, again })
    }

    fn is_apart(&self, pages: Range<u64>) -> bool {
        let Some(starter) = self.starter().filter(|_| pages.end > pages.start + 1) else {
            return false;
        };
        let is_elsewhere = |page: &u64| {
            let is_here = |frame| self.pager.cached(&frame).is_some();
            !starter.has(*page) && !self.frame_of(*page).is_none_or(is_here)
        };
        pages.clone().any(|page| starter.has(page)) && pages.clone().any(|page| is_elsewhere(&page))
    }

    fn is_first_refusal(&self, pages: Range<u64>) -> bool {
        let mut record = lock(&self.record);
        let is_first = !pages.clone().any(|page| record.refused.contains(page));
        if is_first {
            record.refused.insert_range(pages);
        }
        is_first
    }

    /// Fills `buf` from a starter as far as that has it, or with `wait` will have it, and else from frames.
    fn fill(&self, offset: u64, buf: &mut [u8], wait: bool) -> Result<(), SourceError> {
        let Some(starter) = self.starter() else {
            return self.fill_from_frames(offset, buf);
        };
        // What lies between pages of the starter is read at once. Begun behind `begin`, up to `at`.
        let (mut begin, mut at) = (0, 0);
        while at < buf.len() {
            let from = offset.saturating_add(at as u64);
            let (page, within) = (from / PAGE_SIZE as u64, (from % PAGE_SIZE as u64) as usize);
            let end = buf.len().min(at + PAGE_SIZE - within);
            let (is_there, waited) = starter.read(page, within, &mut buf[at..end], wait);
            if let (true, Some(frame)) = (waited, self.frame_of(page)) {
                self.pager.waited(&frame);
            }
            if is_there {
                self.fill_from_frames(offset.saturating_add(begin as u64), &mut buf[begin..at])?;
                begin = end;
            }
            at = end;
        }
        self.fill_from_frames(offset.saturating_add(begin as u64), &mut buf[begin..])
    }

    fn fill_from_frames(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        self.pager.read(&self.manifest, offset, buf)
    }

    /// Records that these pages were asked for.
    pub fn note_access(&self, pages: Range<u64>) {
        self.latest_page.store(pages.start, Relaxed);
        let mut record = lock(&self.record);
        for page in pages.start..pages.end.min(self.page_count) {
            record.asked.insert(page);
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

    /// Queues what a reader that goes through the image in order will ask for next. Who asks for the same again does not
    /// have what follows either, although it was handed over before. Zeros cost the reader nothing but the way, and are
    /// left out.
    fn push_ahead(self: &Arc<Self>, pages: Range<u64>, again: bool) {
        let ahead = lock(&self.sequence).note(pages, self.page_count);
        if ahead.is_empty() || self.pager.is_far() {
            return;
        }
        let Some(path) = self.path() else {
            return;
        };
        let is_stored = |page: &u64| self.frame_of(*page).is_some();
        for begin in ahead.clone().step_by(PIECE_PAGES) {
            let some = begin..(begin + PIECE_PAGES as u64).min(ahead.end);
            let run = {
                let mut record = lock(&self.record);
                let is_missing = |page: &u64| again || !record.known.contains(*page);
                let Some(start) = some.clone().find(|page| is_stored(page) && is_missing(page)) else {
                    continue;
                };
                // Zeros between are less than a push of their own.
                let last = (start..some.end).take_while(is_missing).filter(is_stored).last();
                let run = start..last.map_or(start, |last| last + 1);
                for page in run.clone() {
                    record.known.insert(page);
                }
                run
            };
            let piece = Piece {
                image: self.clone(),
                target: path.target.clone(),
                pages: run.clone(),
            };
            if !path.queue.offer(piece) {
                return self.give_back(run);
            }
        }
    }

    /// Queues the rest of the frames at both ends of `pages`, which are decoded already, with the zeros between.
    fn push_around(self: &Arc<Self>, pages: Range<u64>) {
        let Some(path) = self.path() else {
            return;
        };
        let before = pages.start.saturating_sub(REACH_PAGES)..pages.start;
        let after = pages.end..pages.end.saturating_add(REACH_PAGES).min(self.page_count);
        let starter = self.starter();
        for (asked, around) in [(pages.start, before), (pages.end - 1, after)] {
            if starter.as_ref().is_some_and(|starter| starter.has(asked)) {
                continue; // its frame may be far away
            }
            for run in self.take_mates(asked, around) {
                let piece = Piece {
                    image: self.clone(),
                    target: path.target.clone(),
                    pages: run.clone(),
                };
                if !path.queue.offer(piece) {
                    self.give_back(run);
                }
            }
        }
    }

    /// Runs of pages in `around` that nobody has and that are likely to be asked for after `asked`. They count as handed
    /// over now.
    fn take_mates(&self, asked: u64, around: Range<u64>) -> Vec<Range<u64>> {
        let mut record = lock(&self.record);
        let place = self.frame_of(asked);
        let is_like = |page: &u64| self.frame_of(*page) == place;
        let hull = match place {
            Some(_) => hull(asked, around, is_like),
            // A guest that goes through free memory in order: zeros cost nothing but the way here.
            None if around.start > asked && asked > 0 && record.known.contains(asked - 1) => {
                let zeros = around.clone().take(FRAME_PAGES_MAX).take_while(is_like).count() as u64;
                around.start..around.start + zeros
            }
            None => return Vec::new(),
        };
        let mut runs: Vec<Range<u64>> = Vec::new();
        for page in hull {
            let here = self.frame_of(page);
            let wanted = here.is_none() || here == place;
            if !wanted || !record.known.insert(page) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == page => run.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        runs
    }

    /// Pushes a run of pages that were taken; what was not pushed is given back.
    pub(crate) fn hand_over(
        &self,
        target: &dyn PagePush,
        pages: Range<u64>,
        buffer: &mut PushBuffer,
    ) -> Handed {
        let count = pages.end - pages.start;
        let offset_bytes = pages.start * PAGE_SIZE as u64;
        let filled = buffer.fill(count as usize * PAGE_SIZE, |bytes| {
            self.fill(offset_bytes, bytes, false)
        });
        let handed = match filled {
            Err(_) => Handed::Failed,
            Ok(bytes) if target.push(offset_bytes, bytes) => Handed::Pushed,
            Ok(_) => Handed::Refused,
        };
        match handed {
            Handed::Pushed => drop(self.pushed_pages.fetch_add(count, Relaxed)),
            Handed::Failed | Handed::Refused => self.give_back(pages),
        }
        handed
    }

    /// Marks pages as handed over; yields those that were not yet.
    pub(crate) fn take_pages(&self, pages: impl Iterator<Item = u64>) -> Vec<u64> {
        let mut record = lock(&self.record);
        pages.filter(|&page| record.known.insert(page)).collect()
    }
    pub(crate) fn give_back(&self, pages: Range<u64>) {
        lock(&self.record).known.remove_range(pages);
    }
    /// Is a fault being served now?
    pub(crate) fn is_reading(&self) -> bool {
        self.reading.load(Relaxed) > 0
    }
    /// First page of the latest fault.
    pub(crate) fn latest_page(&self) -> u64 {
        self.latest_page.load(Relaxed)
    }

    /// The pages touched by demand so far, in the order of their first touch; bounded. Pages that were pushed first
    /// are not in it.
    pub fn trace(&self) -> Trace {
        Trace::new(lock(&self.record).trace.clone())
    }
    /// As [`trace`](Self::trace), and starts a new one.
    pub fn take_trace(&self) -> Trace {
        Trace::new(std::mem::take(&mut lock(&self.record).trace))
    }

    /// `vm`'s guest reports the bytes of `range` as free: whole pages within it count, until the VM's pages are cleared.
    pub fn note_free(&self, vm: VmKey, range: Range<u64>) {
        let page = PAGE_SIZE as u64;
        let pages = range.start.div_ceil(page)..(range.end / page).min(self.page_count);
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

/// The part of `around`, which lies on one side of `asked`, up to the farthest page that is like it.
fn hull(asked: u64, around: Range<u64>, is_like: impl Fn(&u64) -> bool) -> Range<u64> {
    if around.start > asked {
        let last = around.clone().rfind(is_like);
        around.start..last.map_or(around.start, |last| last + 1)
    } else {
        around.clone().find(is_like).unwrap_or(around.end)..around.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Caught, image};
    use martlet_image::{PageLocation, ZERO_PAGE};

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
        let stored: Vec<_> = image
            .manifest()
            .stored_pages()
            .filter(|(_, id, _)| *id == frame)
            .collect();
        let mates = stored[0].0..=stored.last().unwrap().0; // with the zeros between
        let mates: Vec<u64> = mates.filter(|page| *page != 10).collect();
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
    fn nothing_is_pushed_while_somebody_learns_what_is_touched() {
        let (image, _, caught, _queue) = image_of(200, 1);
        let manifest = image.manifest();
        let frame_of = |page| match manifest.locate(page) {
            PageLocation::Frame { frame, .. } => Some(frame),
            PageLocation::Zero => None,
        };
        let first = (0..200).find(|page| frame_of(*page).is_some()).unwrap();
        let last = (0..200).rfind(|page| frame_of(*page).is_some()).unwrap();
        assert_ne!(frame_of(first), frame_of(last));
        let mut buf = [0; PAGE_SIZE];
        let learning = image.learn();
        image.read(first * 4096, &mut buf).unwrap();
        drop(learning);
        image.read(last * 4096, &mut buf).unwrap();
        caught.wait_for(1);
        let pushed = caught.pages();
        assert!(pushed.keys().all(|page| frame_of(*page) != frame_of(first)));
        assert_eq!(image.trace().pages(), [first as u32, last as u32]);
    }

    #[test]
    fn zeros_are_pushed_to_who_goes_through_them_in_order() {
        let shelf = image(1, 0).0;
        let image = MemoryImage::new(Pager::new(shelf, 1 << 20), Arc::new(Manifest::zero(100)));
        let (queue, caught) = (PushQueue::start(64), Arc::new(Caught::default()));
        image.set_push(Some((queue.clone(), caught.clone())));
        let mut buf = [0xEE; PAGE_SIZE];
        for page in [50, 70, 51] {
            image.read(page * 4096, &mut buf).unwrap();
            assert_eq!(buf, ZERO_PAGE);
        }
        caught.wait_for(16);
        assert_eq!(
            caught.pages().keys().copied().collect::<Vec<_>>(),
            (52..68).collect::<Vec<_>>()
        );
        assert_eq!(image.stats().pushed_pages, 16);
    }

    #[test]
    fn who_reads_in_order_finds_the_next_pages_there_also_the_second_time() {
        let (image, content, caught, _queue) = image_of(400, 3);
        let mut buf = [0; 4 * PAGE_SIZE];
        for round in 0..2 {
            for page in (0..128).step_by(4) {
                image.read(page * 4096, &mut buf).unwrap();
            }
            let stored = |page: &u64| image.manifest().locate(*page) != PageLocation::Zero;
            let next: Vec<u64> = (128..192).filter(stored).collect();
            caught.wait_until("all that comes next", |pushed| {
                next.iter().all(|page| pushed.contains_key(page))
            });
            for (page, bytes) in caught.pages() {
                assert_eq!(
                    content[page as usize * 4096..][..4096],
                    bytes[..],
                    "round {round}"
                );
            }
            caught.clear();
        }
    }

    #[test]
    fn the_trace_is_the_order_of_first_touches() {
        let (image, ..) = image_of(64, 0);
        image.set_push(None);
        let mut buf = [0; 2 * PAGE_SIZE];
        for page in [40, 3, 41, 3, 63] {
            image.read(page * 4096, &mut buf).unwrap();
        }
        assert_eq!(image.take_trace().pages(), [40, 41, 3, 4, 42, 63]);
        assert!(image.trace().pages().is_empty());
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
