//! Does somebody read in order? Then what comes next is handed over before it is asked for.
//!
//! The kernel does the same for files, but its window belongs to the whole mount and must be small: guests touch memory here
//! and there, and each of their faults would read the window. So reads are watched per image, and the window is as large as
//! what has been read in order so far, up to [`WINDOW_PAGES_MAX`].

use std::ops::Range;

/// Reads in order of fewer pages are chance.
const SEQUENCE_PAGES_MIN: u64 = 32;
/// Most pages handed over ahead of a reader.
pub(crate) const WINDOW_PAGES_MAX: u64 = 1024;

/// The reads of an image, as far as they follow one another.
#[derive(Debug, Default)]
pub(crate) struct Sequence {
    first: u64,
    /// Behind the last page asked for.
    next: u64,
    /// Behind the last page handed over ahead.
    ahead: u64,
}

impl Sequence {
    /// Pages to hand over now that `pages`, of `page_count`, were asked for.
    pub(crate) fn note(&mut self, pages: Range<u64>, page_count: u64) -> Range<u64> {
        // A reader that finds pages there asks for the first one behind them, or sooner if the kernel has dropped some.
        if !(self.next..=self.ahead).contains(&pages.start) {
            *self = Self {
                first: pages.start,
                next: pages.end,
                ahead: pages.end,
            };
        }
        self.next = pages.end;
        self.ahead = self.ahead.max(pages.end);
        let read = self.next - self.first;
        if read < SEQUENCE_PAGES_MIN {
            return 0..0;
        }
        let window = read.min(WINDOW_PAGES_MAX);
        let end = self.next.saturating_add(window).min(page_count);
        // By halves, so that there is always something on its way.
        if end.saturating_sub(self.ahead) < window / 2 {
            return 0..0;
        }
        let pages = self.ahead..end;
        self.ahead = end;
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_in_order_is_served_ahead_by_more_and_more() {
        let mut sequence = Sequence::default();
        let mut handed = Vec::new();
        let mut at = 1000;
        while at < 5000 {
            let pages = sequence.note(at..at + 4, 4096);
            at = at.max(pages.end.saturating_sub(4)) + 4; // what was handed over is not asked for
            if !pages.is_empty() {
                handed.push(pages);
            }
        }
        assert_eq!(handed[0].start, 1032, "{handed:?}");
        assert!(
            handed.windows(2).all(|two| two[0].end <= two[1].start),
            "{handed:?}"
        );
        assert!(
            handed
                .iter()
                .all(|pages| pages.end - pages.start <= WINDOW_PAGES_MAX && pages.end <= 4096)
        );
        assert!(
            handed
                .iter()
                .any(|pages| pages.end - pages.start == WINDOW_PAGES_MAX)
        );
    }

    #[test]
    fn who_jumps_is_not() {
        let mut sequence = Sequence::default();
        let mut page = 1_u64;
        for _ in 0..10_000 {
            page = page
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let at = (page >> 40) % 100_000;
            assert!(sequence.note(at..at + 4, 100_000).is_empty());
        }
    }

    #[test]
    fn the_same_again_begins_anew() {
        let mut sequence = Sequence::default();
        for _ in 0..2 {
            let handed: u64 = (0..64)
                .map(|n| sequence.note(n * 4..n * 4 + 4, 1 << 20))
                .map(|pages| pages.end - pages.start)
                .sum();
            assert!(handed >= 256, "{handed}");
        }
    }
}
