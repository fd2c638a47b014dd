//! One direction of a link: frames go in, and come out when they have arrived.
//!
//! ```text
//! put ──► waits while the wire is busy ──► on the wire ──► under way ──► take
//!             (lost: too many)                        (lost: by chance)
//! ```
//!
//! It has no clock and no thread: when a frame arrives is known when it is put.

use crate::Link;
use crate::chance::Chance;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// An Ethernet frame, without preamble and checksum.
pub(crate) type Frame = Box<[u8]>;

pub(crate) struct Pipe {
    pub link: Link,
    chance: Chance,
    /// When the wire is done with all that was put on it.
    wire_free_at: Option<Instant>,
    under_way: VecDeque<(Instant, Frame)>,
}

impl Pipe {
    pub fn new(link: Link, seed: u64) -> Self {
        Self {
            link,
            chance: Chance::new(seed),
            wire_free_at: None,
            under_way: VecDeque::new(),
        }
    }

    pub fn put(&mut self, frame: Frame, now: Instant) {
        let begin = self.wire_free_at.map_or(now, |free_at| free_at.max(now));
        let end = begin + self.link.wire_time(frame.len());
        if end - now > self.link.wait_max() && begin > now {
            return;
        }
        self.wire_free_at = Some(end);
        if self.chance.draw() < self.link.loss {
            return;
        }
        let way_ms = self.link.delay_ms + self.link.jitter_ms * self.chance.draw();
        let mut at = end + Duration::from_secs_f64(way_ms / 1e3);
        if let Some((last, _)) = self.under_way.back() {
            at = at.max(*last);
        }
        self.under_way.push_back((at, frame));
    }

    /// When the next frame arrives.
    pub fn next_at(&self) -> Option<Instant> {
        self.under_way.front().map(|(at, _)| *at)
    }

    /// The next frame, if it has arrived, and when it did.
    pub fn take(&mut self, now: Instant) -> Option<(Instant, Frame)> {
        let has_arrived = self.next_at().is_some_and(|at| at <= now);
        has_arrived.then(|| self.under_way.pop_front()).flatten()
    }

    /// Loses all that is under way.
    pub fn spill(&mut self) {
        self.under_way.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = 1250; // 10 kbit

    /// Puts frames at one instant; after how many ms each arrives.
    fn arrivals_ms(link: Link, frames: usize) -> Vec<f64> {
        let begin = Instant::now();
        let mut pipe = Pipe::new(link, 7);
        for _ in 0..frames {
            pipe.put(vec![0; FRAME].into(), begin);
        }
        let end = begin + Duration::from_secs(3600);
        std::iter::from_fn(|| pipe.take(end))
            .map(|(at, _)| (at - begin).as_secs_f64() * 1e3)
            .collect()
    }

    #[test]
    fn frames_take_the_wire_by_turns_and_then_the_way() {
        let link = Link {
            rate_mbit: Some(10.0),
            delay_ms: 30.0,
            ..Link::local()
        };
        let arrivals = arrivals_ms(link, 3);
        for (arrival, wanted) in arrivals.iter().zip([31.0, 32.0, 33.0]) {
            assert!((arrival - wanted).abs() < 1e-3, "{arrivals:?}");
        }
        assert_eq!(arrivals_ms(Link::local(), 2), [0.0, 0.0]);
    }

    #[test]
    fn what_would_wait_too_long_is_lost() {
        let queued = |rate| {
            arrivals_ms(
                Link {
                    rate_mbit: Some(rate),
                    ..Link::local()
                },
                10_000,
            )
            .len()
        };
        assert_eq!(queued(100.0), 500); // 50 ms
        assert_eq!(queued(1.0), (64 << 10) / FRAME);
    }

    #[test]
    fn jitter_keeps_the_order() {
        let arrivals = arrivals_ms(
            Link {
                delay_ms: 5.0,
                jitter_ms: 10.0,
                ..Link::local()
            },
            1000,
        );
        assert!(arrivals.is_sorted() && arrivals[0] >= 5.0 && arrivals[999] <= 15.0);
    }

    #[test]
    fn as_much_is_lost_as_was_asked_for_and_the_same_each_time() {
        let lossy = |loss| {
            arrivals_ms(
                Link {
                    loss,
                    ..Link::local()
                },
                10_000,
            )
            .len()
        };
        assert!((8900..9100).contains(&lossy(0.1)), "{}", lossy(0.1));
        assert_eq!((lossy(0.1), lossy(0.0), lossy(1.0)), (lossy(0.1), 10_000, 0));
    }

    #[test]
    fn nothing_arrives_before_its_time() {
        let begin = Instant::now();
        let mut pipe = Pipe::new(
            Link {
                delay_ms: 1.0,
                ..Link::local()
            },
            7,
        );
        pipe.put(vec![0; FRAME].into(), begin);
        let at = pipe.next_at().unwrap();
        assert_eq!(at - begin, Duration::from_millis(1));
        assert!(pipe.take(begin).is_none());
        assert_eq!(pipe.take(at).map(|(at, _)| at), Some(at));
        pipe.put(vec![0; FRAME].into(), begin);
        pipe.spill();
        assert!(pipe.next_at().is_none());
    }
}
