//! What is to be sent next: what somebody waits for first, and what several want at the same time once.
//!
//! Hosts that do the same at the same time are in lockstep: what the first asks for, the others ask for a moment later, and all have it of
//! one sending.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// What was sent so shortly ago is not sent again.
pub const LOCKSTEP: Duration = Duration::from_secs(1);
/// No more than so many wait to be sent.
pub const WANTS_MAX: usize = 16 << 10;

/// See the module's documentation.
#[derive(Debug)]
pub struct Wants<K> {
    urgent: VecDeque<K>,
    rest: VecDeque<K>,
    waiting: HashSet<K>,
    sent: HashMap<K, Instant>,
    /// The same, the oldest first.
    in_order: VecDeque<(Instant, K)>,
}

impl<K> Default for Wants<K> {
    fn default() -> Self {
        Self {
            urgent: VecDeque::new(),
            rest: VecDeque::new(),
            waiting: HashSet::new(),
            sent: HashMap::new(),
            in_order: VecDeque::new(),
        }
    }
}

impl<K: Copy + Eq + Hash> Wants<K> {
    /// Somebody wants it. It is sent if it was not a moment ago: then it is here by now, or lost.
    pub fn want(&mut self, what: K, is_urgent: bool, now: Instant) {
        self.forget(now);
        if self.sent.contains_key(&what) {
            return;
        }
        let waits = self.waiting.contains(&what);
        if !waits {
            // Some of the rest may have been sent as urgent since.
            if self.waiting.len() >= WANTS_MAX || self.rest.len() >= 2 * WANTS_MAX {
                return;
            }
            self.waiting.insert(what);
        }
        if is_urgent && self.urgent.len() < WANTS_MAX {
            self.urgent.push_back(what); // where it waited before it is passed over
        } else if !waits {
            self.rest.push_back(what);
        }
    }

    /// Is it still to be sent?
    pub fn waits(&self, what: &K) -> bool {
        self.waiting.contains(what)
    }

    /// What to send next. From now on it is sent.
    pub fn next(&mut self, now: Instant) -> Option<K> {
        self.forget(now);
        loop {
            let what = self.urgent.pop_front().or_else(|| self.rest.pop_front())?;
            if self.waiting.remove(&what) {
                self.sent.insert(what, now);
                self.in_order.push_back((now, what));
                return Some(what);
            }
        }
    }

    /// Nobody wants these any more.
    pub fn drop_all(&mut self, is_dropped: impl Fn(&K) -> bool) {
        self.waiting.retain(|what| !is_dropped(what));
        self.urgent.retain(|what| !is_dropped(what));
        self.rest.retain(|what| !is_dropped(what));
    }

    fn forget(&mut self, now: Instant) {
        while let Some((at, what)) = self.in_order.front() {
            if now.saturating_duration_since(*at) < LOCKSTEP {
                return;
            }
            self.sent.remove(what);
            self.in_order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(wants: &mut Wants<u32>, now: Instant) -> Vec<u32> {
        std::iter::from_fn(|| wants.next(now)).collect()
    }

    #[test]
    fn what_is_waited_for_comes_first_and_each_once() {
        let (mut wants, now) = (Wants::default(), Instant::now());
        [1, 2, 3, 2]
            .into_iter()
            .for_each(|what| wants.want(what, false, now));
        [3, 9, 3].into_iter().for_each(|what| wants.want(what, true, now));
        assert!(wants.waits(&3));
        assert_eq!(all(&mut wants, now), [3, 9, 1, 2]);
        assert!(!wants.waits(&3) && wants.waiting.is_empty());
    }

    #[test]
    fn of_those_in_lockstep_one_is_heard() {
        let (mut wants, begin) = (Wants::default(), Instant::now());
        let after = |ms| begin + Duration::from_millis(ms);
        wants.want(1, false, begin);
        assert_eq!(all(&mut wants, after(5)), [1]);
        wants.want(1, true, after(900));
        assert!(!wants.waits(&1), "it has gone by");
        assert_eq!(all(&mut wants, after(900)), []);
        wants.want(1, true, after(1006));
        assert_eq!(all(&mut wants, after(1006)), [1], "who came late has it too");
        assert!(wants.sent.len() == 1 && wants.in_order.len() == 1);
    }

    #[test]
    fn no_more_waits_than_so_much_and_nothing_for_who_has_gone() {
        let (mut wants, now) = (Wants::default(), Instant::now());
        for what in 0..WANTS_MAX as u32 {
            wants.want(what, what % 2 == 0, now);
        }
        wants.want(u32::MAX, true, now);
        assert!(!wants.waits(&u32::MAX));
        (0..3 * WANTS_MAX).for_each(|_| wants.want(1, true, now));
        assert!(wants.urgent.len() <= WANTS_MAX);
        wants.drop_all(|what| *what != 7);
        assert_eq!(all(&mut wants, now), [7]);
    }
}
