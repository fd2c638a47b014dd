//! A set of page indices as a bitmap: 32 KiB for each GiB of image.

use std::ops::Range;

/// A set of page indices.
#[derive(Debug, Clone, Default)]
pub struct PageSet {
    words: Vec<u64>, // grows to the highest page inserted; equality ignores zero words at the end
}

/// The bits of word `index` that lie in `range`.
fn mask(index: usize, range: &Range<u64>) -> u64 {
    let first = index as u64 * 64;
    let low = range.start.saturating_sub(first).min(64);
    let high = range.end.saturating_sub(first).min(64);
    let below = |bits: u64| if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    below(high) & !below(low)
}

impl PageSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }
    /// Adds one page; was it new?
    pub fn insert(&mut self, page: u64) -> bool {
        let new = !self.contains(page);
        self.insert_range(page..page + 1);
        new
    }
    /// Adds a range. Memory grows with `range.end`: bound hostile ranges before.
    pub fn insert_range(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let words = range.end.div_ceil(64) as usize;
        if words > self.words.len() {
            self.words.resize(words, 0);
        }
        for index in (range.start / 64) as usize..words {
            self.words[index] |= mask(index, &range);
        }
    }
    /// Takes one page out; was it in?
    pub fn remove(&mut self, page: u64) -> bool {
        let was = self.contains(page);
        self.remove_range(page..page.saturating_add(1));
        was
    }
    /// Takes a range out.
    pub fn remove_range(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let words = (range.end.div_ceil(64)).min(self.words.len() as u64) as usize;
        for index in (range.start / 64).min(words as u64) as usize..words {
            self.words[index] &= !mask(index, &range);
        }
    }
    /// Is the page in?
    pub fn contains(&self, page: u64) -> bool {
        let word = usize::try_from(page / 64)
            .ok()
            .and_then(|index| self.words.get(index));
        word.is_some_and(|word| word >> (page % 64) & 1 == 1)
    }
    /// Pages in the set.
    pub fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }
    /// Has it no page?
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }
    /// Empties the set.
    pub fn clear(&mut self) {
        self.words.clear();
    }
    /// Keeps only what is in `other` too.
    pub fn and(&mut self, other: &PageSet) {
        self.words.truncate(other.words.len());
        self.words
            .iter_mut()
            .zip(&other.words)
            .for_each(|(word, other)| *word &= other);
    }
    /// Adds what is in `other`.
    pub fn or(&mut self, other: &PageSet) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        self.words
            .iter_mut()
            .zip(&other.words)
            .for_each(|(word, other)| *word |= other);
    }
    /// Takes out what is in `other`.
    pub fn and_not(&mut self, other: &PageSet) {
        self.words
            .iter_mut()
            .zip(&other.words)
            .for_each(|(word, other)| *word &= !other);
    }
    /// The pages, in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.iter_ranges().flatten()
    }
    /// The maximal ranges of pages, in order.
    pub fn iter_ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let start = self.find(next, true)?;
            let end = self.find(start, false).unwrap_or(self.words.len() as u64 * 64);
            next = end;
            Some(start..end)
        })
    }
    /// The first page at or after `from` that is in (or not in) the set, within the bitmap.
    fn find(&self, from: u64, wanted: bool) -> Option<u64> {
        let mut skip = from % 64;
        for (index, &word) in self.words.iter().enumerate().skip((from / 64) as usize) {
            let word = if wanted { word } else { !word } & (u64::MAX << skip);
            if word != 0 {
                return Some(index as u64 * 64 + u64::from(word.trailing_zeros()));
            }
            skip = 0;
        }
        None
    }
}

impl PartialEq for PageSet {
    fn eq(&self, other: &Self) -> bool {
        let common = self.words.len().min(other.words.len());
        let rest = self.words[common..].iter().chain(&other.words[common..]);
        self.words[..common] == other.words[..common] && rest.clone().all(|&word| word == 0)
    }
}
impl Eq for PageSet {}

impl FromIterator<u64> for PageSet {
    fn from_iter<I: IntoIterator<Item = u64>>(pages: I) -> Self {
        let mut set = Self::new();
        for page in pages {
            set.insert(page);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Any sequence of operations leaves what a set of numbers would hold.
        #[test]
        fn is_a_set(steps in prop::collection::vec((0u64..400, 0u64..150, any::<bool>()), 0..20),
                    others in prop::collection::btree_set(0u64..600, 0..80)) {
            let (mut set, mut model) = (PageSet::new(), BTreeSet::new());
            for (start, length, insert) in steps {
                let range = start..start + length;
                if insert {
                    set.insert_range(range.clone());
                    model.extend(range);
                } else {
                    set.remove_range(range.clone());
                    model.retain(|page| !range.contains(page));
                }
            }
            let other: PageSet = others.iter().copied().collect();
            prop_assert_eq!(set.len(), model.len() as u64);
            prop_assert_eq!(set.is_empty(), model.is_empty());
            prop_assert!(set.iter().eq(model.iter().copied()));
            let ranges: Vec<_> = set.iter_ranges().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "ranges are maximal");
            let all = |f: fn(&mut PageSet, &PageSet)| { let mut s = set.clone(); f(&mut s, &other); s.iter().collect::<BTreeSet<_>>() };
            prop_assert_eq!(all(PageSet::and), &model & &others);
            prop_assert_eq!(all(PageSet::or), &model | &others);
            prop_assert_eq!(all(PageSet::and_not), &model - &others);
            for page in 0..700 {
                prop_assert_eq!(set.contains(page), model.contains(&page));
            }
        }
    }

    #[test]
    fn absurd_pages_are_absent() {
        let mut set: PageSet = [3].into_iter().collect();
        assert!(!set.contains(u64::MAX));
        assert!(!set.remove(u64::MAX));
        set.remove_range(u64::MAX - 1..u64::MAX);
        assert_eq!(set.len(), 1);
    }
}
