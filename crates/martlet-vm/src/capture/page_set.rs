//! A set of page indices: one bit for each page of a mapping.

/// A set of page indices below a bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    page_count: u64,
}

impl PageSet {
    /// The empty set of pages below `page_count`.
    pub fn new(page_count: u64) -> Self {
        Self {
            words: vec![0; page_count.div_ceil(64) as usize],
            page_count,
        }
    }

    /// The bound.
    pub fn page_count(&self) -> u64 {
        self.page_count
    }

    /// Adds `count` pages from `first` on; those beyond the bound are left out. Adding twice changes nothing.
    pub fn insert_range(&mut self, first: u64, count: u64) {
        let end = first.saturating_add(count).min(self.page_count);
        let mut page = first;
        while page < end {
            let bit = page % 64;
            let bits = (64 - bit).min(end - page);
            self.words[(page / 64) as usize] |= (u64::MAX >> (64 - bits)) << bit;
            page += bits;
        }
    }

    /// Is this page in it?
    pub fn contains(&self, page: u64) -> bool {
        page < self.page_count && self.words[(page / 64) as usize] >> (page % 64) & 1 == 1
    }

    /// How many pages.
    pub fn len(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// The pages, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.ranges().flat_map(|(first, count)| first..first + count)
    }

    /// Maximal runs of pages as (first, count), ascending.
    pub fn ranges(&self) -> Ranges<'_> {
        Ranges { set: self, next: 0 }
    }

    /// The first page from `from` on that is in the set (`wanted`) or is not; the bound if there is none.
    fn find(&self, from: u64, wanted: bool) -> u64 {
        let mut page = from;
        while page < self.page_count {
            let word = self.words[(page / 64) as usize];
            let word = if wanted { word } else { !word } >> (page % 64);
            if word != 0 {
                return (page + u64::from(word.trailing_zeros())).min(self.page_count);
            }
            page = (page / 64 + 1) * 64;
        }
        self.page_count
    }
}

/// Iterator over runs of pages.
#[derive(Debug)]
pub struct Ranges<'a> {
    set: &'a PageSet,
    next: u64,
}

impl Iterator for Ranges<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.set.find(self.next, true);
        if first >= self.set.page_count {
            return None;
        }
        self.next = self.set.find(first, false);
        Some((first, self.next - first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn it_agrees_with_a_plain_set() {
        // Bounds and runs around word borders, where such code goes wrong.
        for page_count in [0, 1, 63, 64, 65, 128, 200] {
            for (first, count) in [
                (0, 1),
                (63, 1),
                (63, 2),
                (64, 64),
                (1, 62),
                (0, 64),
                (10, 500),
                (u64::MAX - 1, 9),
            ] {
                let mut set = PageSet::new(page_count);
                set.insert_range(first, count);
                set.insert_range(5, 3);
                set.insert_range(5, 3);
                let mut model: BTreeSet<u64> = (first..first.saturating_add(count)).collect();
                model.extend(5..8);
                model.retain(|p| *p < page_count);
                assert_eq!(
                    set.iter().collect::<Vec<_>>(),
                    model.iter().copied().collect::<Vec<_>>()
                );
                assert_eq!(set.len(), model.len() as u64);
                assert_eq!(set.is_empty(), model.is_empty());
                assert!((0..page_count + 70).all(|p| set.contains(p) == model.contains(&p)));
                let runs: Vec<_> = set.ranges().collect();
                assert!(
                    runs.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0),
                    "runs are maximal: {runs:?}"
                );
            }
        }
    }
}
