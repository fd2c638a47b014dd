//! Which pages a start touches, and when.
//!
//! ```text
//!   started ──(every few ms)──► looked at ──(has executed something)──► alive ──(a moment later, or suspended before)──► ended
//! ```
//!
//! A process has the pages that it touched, and those around them that the kernel had already. So that these are few, nothing is
//! pushed meanwhile ([`Learning`]) if nobody knows yet what a start of this image touches.

use martlet_image::{PageSet, Trace};
use martlet_pager::Learning;
use martlet_vm::capture::{Mapping, mapped_pages, private_pages};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// A start takes some tenths of a second, a look less than one millisecond.
const LOOK_EVERY: Duration = Duration::from_millis(15);
/// So many pages that were written are little: 16 MiB.
const SINCE_PAGES_MAX: u64 = 4096;
/// So many of the pages that were touched after that moment are of first commands.
const THEN_PAGES_MAX: usize = 2048;

/// What a machine had of its memory image at each look, and when it had been alive for a moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct StartPages {
    /// Pages that its process has, which are those that it touched, and others around them.
    mapped: PageSet,
    /// At which look it had them first.
    order: Order,
    looks: usize,
    /// Those that it wrote.
    written: PageSet,
    has_ended: bool,
}

impl StartPages {
    #[cfg(test)]
    pub(crate) fn of_looks(looks: impl IntoIterator<Item = Vec<u64>>) -> Self {
        let mut start = Self::default();
        for pages in looks {
            start.has(pages.into_iter().collect());
        }
        start
    }

    /// That its pages cannot be told is no reason not to start.
    fn look(&mut self, pid: u32, memory: &Path) {
        let found = Mapping::find(pid, memory).and_then(|mapping| mapped_pages(pid, &mapping));
        match found {
            Ok(mapped) => self.has(mapped),
            Err(error) => tracing::debug!(%error, pid, "which pages a start has needed so far"),
        }
    }

    /// It has been alive for a moment, unless that is known already. When its pages cannot be told there will be no starter.
    pub(crate) fn end(&mut self, pid: u32, memory: &Path) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let found = Mapping::find(pid, memory)
            .and_then(|mapping| Ok((mapped_pages(pid, &mapping)?, private_pages(pid, &mapping)?)));
        match found {
            Ok((mapped, written)) => {
                self.has(mapped);
                self.written = written;
            }
            Err(error) => {
                self.mapped = PageSet::new();
                tracing::debug!(%error, pid, "which pages a start needed");
            }
        }
    }

    fn has(&mut self, mapped: PageSet) {
        let mut new = mapped.clone();
        new.and_not(&self.mapped);
        for page in new.iter().filter_map(|page| u32::try_from(page).ok()) {
            self.order.note(page, (self.looks, usize::MAX));
        }
        self.mapped = mapped;
        self.looks += 1;
    }

    /// When its pages were first wanted.
    pub(crate) fn order(&self, touched: &Trace) -> Order {
        let mut order = self.order.clone();
        for (at, page) in touched.pages().iter().enumerate() {
            order.note(*page, (self.looks, at));
        }
        order
    }

    /// Those that another start will want: what a start writes; what was written `since`, if it is little, as a guest takes what it
    /// let go of last; what was read; and, which may wait, what was read after that moment, and what was there before anybody read it.
    pub(crate) fn wanted(&self, touched: &Trace, since: &PageSet) -> [Vec<u32>; 4] {
        let all =
            |pages: &PageSet| -> Vec<u32> { pages.iter().filter_map(|page| page.try_into().ok()).collect() };
        let mapped = &self.mapped;
        if mapped.is_empty() {
            return Default::default();
        }
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
        let (read, mut then): (Vec<u32>, Vec<u32>) =
            others.partition(|page| mapped.contains(u64::from(*page)));
        then.truncate(THEN_PAGES_MAX);
        rest.and_not(&read.iter().map(|page| u64::from(*page)).collect());
        then.extend(all(&rest));
        [all(&self.written), all(&since), read, then]
    }
}

/// Looks at a machine's pages while it starts.
#[derive(Debug)]
pub(crate) struct StartWatch {
    over: SyncSender<()>,
    pages: JoinHandle<StartPages>,
}

impl StartWatch {
    /// Of the process that starts, and the file of its memory.
    pub(crate) fn begin(pid: u32, memory: PathBuf, learning: Option<Learning>) -> io::Result<Self> {
        let (over, is_over) = sync_channel(1);
        let watch = move || {
            let _learning = learning;
            let mut pages = StartPages::default();
            loop {
                pages.look(pid, &memory);
                if is_over.recv_timeout(LOOK_EVERY) != Err(RecvTimeoutError::Timeout) {
                    pages.look(pid, &memory);
                    return pages;
                }
            }
        };
        let pages = Builder::new().name("start".into()).spawn(watch)?;
        Ok(Self { over, pages })
    }

    /// It has executed something.
    pub(crate) fn end(self) -> StartPages {
        let _ = self.over.send(()); // one that broke knows nothing
        self.pages.join().unwrap_or_default()
    }
}

/// When pages were first wanted: at which look, and then, of those that were read, after how many others. That is told of neighbours
/// together, as one that is touched brings the others with it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Order(HashMap<u32, (usize, usize)>);

impl Order {
    /// The kernel maps so many at once.
    const NEAR_PAGES: u32 = 16;

    fn note(&mut self, page: u32, (look, at): (usize, usize)) {
        let when = self.0.entry(page / Self::NEAR_PAGES).or_insert((look, at));
        *when = (when.0.min(look), when.1.min(at));
    }

    /// What was wanted sooner has a lower number; neighbours are next to each other.
    pub(crate) fn when(&self, page: u32) -> (usize, usize, u32) {
        let near = page / Self::NEAR_PAGES;
        let of = |near: u32| self.0.get(&near).copied().unwrap_or((usize::MAX, usize::MAX));
        let (look, mut at) = of(near);
        if at == usize::MAX {
            // Nobody had to read it, as it was in a frame with what somebody read.
            at = of(near.saturating_sub(1)).1.min(of(near + 1).1);
        }
        (look, at, page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_wants_what_was_written_then_what_was_read_then_what_else_there_was() {
        let start = StartPages {
            mapped: [1, 2, 3, 4, 10, 11].into_iter().collect(),
            written: [4, 10].into_iter().collect(),
            has_ended: true,
            ..StartPages::default()
        };
        let touched = Trace::new(vec![3, 10, 20, 1]);
        let wanted = start.wanted(&touched, &[4, 11, 30].into_iter().collect());
        assert_eq!(wanted, [vec![4, 10], vec![11, 30], vec![3, 1], vec![20, 2]]);
        let wanted = start.wanted(&touched, &(0..=SINCE_PAGES_MAX).collect());
        assert_eq!(wanted, [vec![4, 10], vec![], vec![3, 1], vec![20, 2, 11]]);
        let nothing = StartPages::default().wanted(&touched, &[1].into_iter().collect());
        assert!(nothing.iter().all(Vec::is_empty));
    }

    #[test]
    fn a_start_whose_end_nobody_could_see_wants_nothing() {
        let mut start = StartPages {
            mapped: [1].into_iter().collect(),
            ..StartPages::default()
        };
        start.end(std::process::id(), Path::new("/no/memory"));
        let wanted = start.wanted(&Trace::new(vec![1]), &PageSet::new());
        assert!(wanted.iter().all(Vec::is_empty));
    }

    #[test]
    fn neighbours_come_together_in_the_order_of_the_looks_that_found_them() {
        let start = StartPages::of_looks([vec![500], vec![500, 20, 40, 300]]);
        let order = start.order(&Trace::new(vec![900, 303, 17, 800]));
        let mut pages = vec![17, 31, 40, 99, 300, 500, 510, 800, 900];
        pages.sort_by_key(|page| order.when(*page));
        assert_eq!(pages, [500, 510, 300, 17, 31, 40, 900, 800, 99]);
    }
}
