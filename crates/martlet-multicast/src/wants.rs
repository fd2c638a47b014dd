//! What is to be sent next: what somebody waits for first, and what several want at the same time once.
//!
//! Hosts that do the same at the same time are in lockstep: what the first asks for, the others ask for a moment later, and all have it of
//! one sending.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// What was sent so shortly ago is not sent again.
pub const LOCKSTEP: Duration = Duration::from_secs(1);
/// Who wants it so shortly after it was sent will hear it; who comes later has missed it, and gets it otherwise.
const ON_ITS_WAY: Duration = Duration::from_millis(50);
/// No more than so many wait to be sent.
pub const WANTS_MAX: usize = 16 << 10;

/// See the module's documentation.
#[derive(Debug)]
pub struct Wants<K> {
    urgent: VecDeque<K>,
    rest: VecDeque<K>,
    /// Those that wait, and how large each is.
    waiting: HashMap<K, usize>,
    waiting_bytes: u64,
    sent: HashMap<K, Instant>,
    /// The same, the oldest first.
    in_order: VecDeque<(Instant, K)>,
}

impl<K> Default for Wants<K> {
    fn default() -> Self {
        Self {
            urgent: VecDeque::new(),
            rest: VecDeque::new(),
            waiting: HashMap::new(),
            waiting_bytes: 0,
            sent: HashMap::new(),
            in_order: VecDeque::new(),
        }
    }
}

impl<K: Copy + Eq + Hash> Wants<K> {
    /// Somebody wants it. Tells whether it comes: it was sent a moment ago, or will be.
    pub fn want(&mut self, what: K, size_bytes: usize, is_urgent: bool, now: Instant) -> bool {
        self.forget(now);
        if let Some(at) = self.sent.get(&what) {
            return now.saturating_duration_since(*at) < ON_ITS_WAY;
        }
        let waits = self.waiting.contains_key(&what);
        if !waits {
            // Some of the rest may have been sent as urgent since.
            if self.waiting.len() >= WANTS_MAX || self.rest.len() >= 2 * WANTS_MAX {
                return false;
            }
            self.waiting.insert(what, size_bytes);
            self.waiting_bytes += size_bytes as u64;
        }
        if is_urgent && self.urgent.len() < WANTS_MAX {
            self.urgent.push_back(what); // where it waited before it is passed over
        } else if !waits {
            self.rest.push_back(what);
        }
        true
    }

    /// What to send next. From now on it is sent.
    pub fn next(&mut self, now: Instant) -> Option<K> {
        self.forget(now);
        loop {
            let what = self.urgent.pop_front().or_else(|| self.rest.pop_front())?;
            if let Some(size_bytes) = self.waiting.remove(&what) {
                self.waiting_bytes -= size_bytes as u64;
                self.sent.insert(what, now);
                self.in_order.push_back((now, what));
                return Some(what);
            }
        }
    }

    /// Bytes of what waits.
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// Nobody wants these any more.
    pub fn drop_all(&mut self, is_dropped: impl Fn(&K) -> bool) {
        self.waiting.retain(|what, size_bytes| {
            let is_kept = !is_dropped(what);
            if !is_kept {
                self.waiting_bytes -= *size_bytes as u64;
            }
            is_kept
        });
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
        for what in [1, 2, 3, 2] {
            assert!(wants.want(what, 10, false, now));
        }
        assert!(wants.want(3, 10, true, now) && wants.want(9, 10, true, now) && wants.want(3, 10, true, now));
        assert_eq!(wants.waiting_bytes(), 40);
        assert_eq!(all(&mut wants, now), [3, 9, 1, 2]);
        assert_eq!(wants.waiting_bytes(), 0);
    }

    #[test]
    fn of_those_in_lockstep_one_is_heard() {
        let (mut wants, begin) = (Wants::default(), Instant::now());
        let after = |ms| begin + Duration::from_millis(ms);
        assert!(wants.want(1, 10, false, begin));
        assert_eq!(all(&mut wants, after(5)), [1]);
        assert!(wants.want(1, 10, true, after(50)), "it is on its way");
        assert!(!wants.want(1, 10, true, after(900)), "it has gone by");
        assert_eq!(all(&mut wants, after(900)), []);
        assert!(wants.want(1, 10, true, after(1006)));
        assert_eq!(all(&mut wants, after(1006)), [1], "who came late has it too");
        assert!(wants.sent.len() == 1 && wants.in_order.len() == 1);
    }

    #[test]
    fn no_more_waits_than_so_much_and_nothing_for_who_has_gone() {
        let (mut wants, now) = (Wants::default(), Instant::now());
        for what in 0..WANTS_MAX as u32 {
            assert!(wants.want(what, 1, what % 2 == 0, now));
        }
        assert!(!wants.want(u32::MAX, 1, true, now));
        assert!((0..3 * WANTS_MAX).all(|_| wants.want(1, 1, true, now)));
        assert!(wants.urgent.len() <= WANTS_MAX);
        wants.drop_all(|what| *what != 7);
        assert_eq!((wants.waiting_bytes(), all(&mut wants, now)), (1, vec![7]));
    }
}
