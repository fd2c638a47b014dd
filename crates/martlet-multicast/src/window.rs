//! Which packets have come, by their counts: each is taken once, and what falls out of the window without having come is lost.

/// A packet that is overtaken by so many others is late for ever.
pub const WINDOW: u64 = 1024;
const WORDS: usize = (WINDOW / 64) as usize;

/// See the module's documentation.
#[derive(Debug)]
pub struct Window {
    /// The highest count so far; none before the first.
    highest: Option<u64>,
    /// A bit for each of the latest counts, by count modulo [`WINDOW`].
    has_come: [u64; WORDS],
    lost: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            highest: None,
            // What was sent before the first that is heard is not lost.
            has_come: [u64::MAX; WORDS],
            lost: 0,
        }
    }
}

impl Window {
    /// One more than the highest count so far; 0 before the first.
    pub fn through(&self) -> u64 {
        self.highest.map_or(0, |highest| highest.saturating_add(1))
    }

    /// Would a packet of this count be taken?
    pub fn is_new(&self, count: u64) -> bool {
        match self.highest {
            Some(highest) if count <= highest => highest - count < WINDOW && !self.has(count),
            _ => true,
        }
    }

    /// A packet that was found to be the sender's. Is it taken?
    pub fn note(&mut self, count: u64) -> bool {
        if !self.is_new(count) {
            return false;
        }
        if let Some(highest) = self.highest.filter(|highest| *highest < count) {
            // Of a long gap all but the last are lost without ever having had a place.
            let passed = (count - highest).min(WINDOW);
            self.lost = self.lost.saturating_add(count - highest - passed);
            for at in count - passed + 1..=count {
                self.lost = self.lost.saturating_add(u64::from(!self.has(at)));
                self.set(at, false);
            }
        }
        self.highest = self.highest.max(Some(count));
        self.set(count, true);
        true
    }

    /// How many were lost since this was asked.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    fn has(&self, count: u64) -> bool {
        let at = count % WINDOW;
        self.has_come[(at / 64) as usize] >> (at % 64) & 1 == 1
    }

    fn set(&mut self, count: u64, has_come: bool) {
        let at = count % WINDOW;
        let word = &mut self.has_come[(at / 64) as usize];
        *word = *word & !(1 << (at % 64)) | u64::from(has_come) << (at % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_is_late_comes_once_and_what_never_comes_is_lost() {
        let mut window = Window::default();
        assert!(
            window.note(10) && !window.note(10) && !window.note(9),
            "before the first"
        );
        assert!(window.note(13) && window.note(11) && !window.note(11));
        assert_eq!(window.take_lost(), 0, "12 may still come");
        assert!(window.note(12 + WINDOW));
        assert_eq!(window.take_lost(), 1);
        assert!(!window.note(12));
        // A gap that is longer than the window.
        assert!(window.note(12 + 3 * WINDOW));
        assert_eq!(window.take_lost(), WINDOW - 2 + WINDOW);
        assert!(window.note(u64::MAX) && !window.note(u64::MAX));
    }

    proptest! {
        #[test]
        fn each_is_taken_once_and_all_are_taken_or_lost(
            jumps in prop::collection::vec(prop_oneof![4 => 0..20_u64, 1 => 0..3 * WINDOW], 1..200),
            back in prop::collection::vec(0..200_u64, 200),
        ) {
            let (mut window, mut taken, mut highest, mut lost) = (Window::default(), BTreeSet::new(), 5000, 0);
            let first = highest;
            window.note(first);
            taken.insert(first);
            for (jump, back) in jumps.iter().zip(back) {
                highest += jump;
                for count in [highest, highest - back] {
                    if window.note(count) {
                        prop_assert!(taken.insert(count) && count >= first);
                    }
                }
                lost += window.take_lost();
            }
            window.note(highest + WINDOW);
            lost += window.take_lost();
            prop_assert_eq!(lost, highest - first + 1 - taken.len() as u64);
        }
    }
}
