//! Pages of a former run, handed over before the guest asks.
//!
//! The trace is cut into windows of [`WINDOW_PAGES`]; within one the pages are sorted, so that they go out in few large
//! pieces. The window that follows the guest's latest fault comes first, so a prefetch that fell behind jumps to
//! where the guest is. A prefetch must never make a restore slower: it stops before each fetch and each push while
//! a fault is being served (for [`YIELD_MAX`] at most, since behind a slow source a fault is always being served),
//! spends no more than its budget, and ends when it is cancelled.

use crate::MemoryImage;
use crate::memory::Handed;
use crate::push::{PagePush, PushBuffer};
use crate::starter::Starter;
use martlet_image::{PAGE_SIZE, Trace};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

const WINDOW_PAGES: usize = 64;
const YIELD_MAX: Duration = Duration::from_millis(2);
const YIELD_STEP: Duration = Duration::from_micros(50);

/// Ends a prefetch from another thread.
#[derive(Debug, Default)]
pub struct Cancel(AtomicBool);

impl Cancel {
    /// Asks it to end soon.
    pub fn cancel(&self) {
        self.0.store(true, Relaxed);
    }
    /// Was it asked?
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// What a prefetch did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrefetchReport {
    /// Pages pushed.
    pub pushed_pages: u64,
    /// Pages of the trace that were handed over already.
    pub known_pages: u64,
    /// Pages whose frame could not be had: a fault will say why.
    pub failed_pages: u64,
    /// Pages that were not taken: nobody has the image open, or it is gone.
    pub refused_pages: u64,
    /// Pushes made.
    pub pushes: u64,
    /// It came to the end of the trace.
    pub complete: bool,
}

impl MemoryImage {
    /// Pushes the pages of `trace`, first touch first, until all are handed over, `budget_bytes` are
    /// spent or it is cancelled. Blocks: give it a thread of its own. Does nothing while the image has no push path.
    pub fn prefetch(&self, trace: &Trace, budget_bytes: u64, cancel: &Cancel) -> PrefetchReport {
        let mut report = PrefetchReport::default();
        let windows: Vec<&[u32]> = trace.pages().chunks(WINDOW_PAGES).collect();
        let window_of: HashMap<u32, usize> = windows
            .iter()
            .enumerate()
            .flat_map(|(n, window)| window.iter().map(move |&page| (page, n)))
            .collect();
        let mut done = vec![false; windows.len()];
        let mut first = 0;
        loop {
            while done.get(first) == Some(&true) {
                first += 1;
            }
            let near = u32::try_from(self.latest_page())
                .ok()
                .and_then(|page| window_of.get(&page));
            let near = near.and_then(|&near| (near..windows.len().min(near + 2)).find(|&n| !done[n]));
            let Some(window) = near.or((first < windows.len()).then_some(first)) else {
                report.complete = true;
                return report;
            };
            done[window] = true;
            if !self.prefetch_window(windows[window], budget_bytes, cancel, &mut report) {
                return report;
            }
        }
    }

    /// Pushes the pages of a starter as its chunks come, until all have come or it is cancelled; then the starter has done
    /// its work. Blocks: give it a thread of its own.
    pub fn hand_out(&self, starter: &Starter, cancel: &Cancel) -> PrefetchReport {
        let (mut report, mut buffer) = (PrefetchReport::default(), PushBuffer::default());
        let mut seen = Vec::new();
        while let Some(chunk) = starter.next_here(&mut seen, cancel) {
            let Some(path) = self.path() else { return report };
            let pages = self.take_pages(starter.pages(chunk));
            for run in runs(&pages) {
                self.push_run(&*path.target, run, &mut buffer, &mut report);
            }
        }
        report.complete = !cancel.is_cancelled();
        if report.complete {
            self.set_starter(None);
        }
        report
    }

    /// False when the budget is spent, the path gone, or the prefetch cancelled.
    fn prefetch_window(
        &self,
        window: &[u32],
        budget_bytes: u64,
        cancel: &Cancel,
        report: &mut PrefetchReport,
    ) -> bool {
        let left = (budget_bytes / PAGE_SIZE as u64).saturating_sub(report.pushed_pages) as usize;
        let Some(path) = self.path().filter(|_| left > 0 && !cancel.is_cancelled()) else {
            return false;
        };
        let wanted = window
            .iter()
            .map(|&page| u64::from(page))
            .filter(|&page| page < self.page_count());
        let mut pages = self.take_pages(wanted.take(left));
        report.known_pages += (window.len().min(left) - pages.len()) as u64;
        pages.sort_unstable();

        let mut buffer = PushBuffer::default();
        for run in runs(&pages) {
            self.fetch_run(run, cancel);
            self.yield_to_faults(cancel);
            match cancel.is_cancelled() {
                true => self.give_back(run[0]..run[0] + run.len() as u64),
                false => self.push_run(&*path.target, run, &mut buffer, report),
            }
        }
        true
    }

    fn push_run(
        &self,
        target: &dyn PagePush,
        run: &[u64],
        buffer: &mut PushBuffer,
        report: &mut PrefetchReport,
    ) {
        let count = run.len() as u64;
        match self.hand_over(target, run[0]..run[0] + count, buffer) {
            Handed::Pushed => {
                report.pushes += 1;
                report.pushed_pages += count;
            }
            Handed::Refused => report.refused_pages += count,
            Handed::Failed => report.failed_pages += count,
        }
    }

    /// Brings the frames of a run into the cache, one at a time, faults first.
    fn fetch_run(&self, run: &[u64], cancel: &Cancel) {
        for &page in run {
            if let Some(frame) = self.frame_of(page)
                && self.pager.cached(&frame).is_none()
            {
                self.yield_to_faults(cancel);
                let _ = self.pager.frame(&frame); // a failure shows in the read that follows
            }
        }
    }

    fn yield_to_faults(&self, cancel: &Cancel) {
        let start = Instant::now();
        while self.is_reading() && !cancel.is_cancelled() && start.elapsed() < YIELD_MAX {
            std::thread::sleep(YIELD_STEP);
        }
    }
}

/// Ascending pages in runs of neighbours.
fn runs(pages: &[u64]) -> impl Iterator<Item = &[u64]> {
    pages.chunk_by(|page, next| *page + 1 == *next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Caught, image};
    use crate::{Pager, PushQueue};
    use std::sync::Arc;

    #[test]
    fn pushes_the_trace_within_its_budget() {
        let (shelf, manifest, content) = image(300, 5);
        let image = MemoryImage::new(Pager::new(shelf, 16 << 20), Arc::new(manifest));
        let trace = (0..300)
            .rev()
            .filter(|page| page % 3 != 0)
            .chain([4_000_000_000, 299]);
        let trace = Trace::new(trace.collect());
        let cancel = Cancel::default();
        assert_eq!(
            image.prefetch(&trace, 1 << 30, &cancel).pushed_pages,
            0,
            "nowhere to push"
        );

        let caught = Arc::new(Caught::default());
        image.set_push(Some((PushQueue::start(1), caught.clone())));
        let report = image.prefetch(&trace, 50 * 4096 + 1, &cancel);
        assert_eq!((report.pushed_pages, report.complete), (50, false));
        let report = image.prefetch(&trace, 1 << 30, &cancel);
        assert_eq!(
            (report.pushed_pages, report.failed_pages, report.complete),
            (150, 0, true)
        );
        let pages = caught.pages();
        assert_eq!(pages.len(), 200);
        assert!(
            pages
                .iter()
                .all(|(page, bytes)| content[*page as usize * 4096..][..4096] == bytes[..])
        );
        assert!(image.trace().pages().is_empty(), "prefetched pages are no demand");
    }

    #[test]
    fn neighbours_go_out_together_and_a_cancelled_prefetch_ends() {
        let (shelf, manifest, _) = image(128, 5);
        let image = MemoryImage::new(Pager::new(shelf, 16 << 20), Arc::new(manifest));
        image.set_push(Some((PushQueue::start(1), Arc::new(Caught::default()))));
        let trace = Trace::new((0..64).rev().collect());
        let cancel = Cancel::default();
        assert_eq!(image.prefetch(&trace, 1 << 30, &cancel).pushes, 1);
        cancel.cancel();
        let report = image.prefetch(&Trace::new((64..128).collect()), 1 << 30, &cancel);
        assert_eq!((report.pushed_pages, report.complete), (0, false));
    }

    #[test]
    fn a_damaged_frame_is_left_to_the_fault() {
        let (shelf, manifest, _) = image(16, 5);
        let (page, frame, _) = manifest.stored_pages().next().unwrap();
        shelf.break_frame(frame);
        let image = MemoryImage::new(Pager::new(shelf.clone(), 16 << 20), Arc::new(manifest));
        let caught = Arc::new(Caught::default());
        image.set_push(Some((PushQueue::start(1), caught.clone())));
        let report = image.prefetch(&Trace::new(vec![page as u32]), 1 << 30, &Cancel::default());
        assert_eq!((report.failed_pages, caught.pages().len()), (1, 0));
        shelf.mend();
        assert_eq!(
            image
                .prefetch(&Trace::new(vec![page as u32]), 1 << 30, &Cancel::default())
                .pushed_pages,
            1
        );
    }
}
