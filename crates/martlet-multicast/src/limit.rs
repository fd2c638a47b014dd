//! How fast to send: while the limit is used it rises by steps, and falls when something was lost to three quarters of what
//! members hear, on the mean. It is never more than what was configured. While little is wanted, what is heard says nothing about what
//! the network takes, and what is lost nothing about the limit.

use crate::{Report, TICK};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// From nothing to the most in so many ticks.
const STEPS: u64 = 200;
/// It is used when so large a part of it is sent: what is wanted comes by fits and starts.
const USED: u64 = 4;
/// The least is this part of the most: members that hear nothing are not to end all sending.
const LEAST: u64 = 32;
/// What was said longer ago counts no more.
const SAID: Duration = Duration::from_secs(1);
/// What is lost at once is told by several members, one after the other: the limit falls once.
const FALLS_ONCE_IN: Duration = Duration::from_millis(50);
/// Members whose words are kept.
const MEMBERS_MAX: usize = 256;

/// See the module's documentation.
#[derive(Debug)]
pub struct Limit {
    most_bytes: u64,
    bytes: u64,
    ticked: Instant,
    fell: Option<Instant>,
    said: HashMap<String, (u64, Instant)>,
}

impl Limit {
    /// Half of the most, to begin with.
    pub fn new(most_bytes: u64, now: Instant) -> Self {
        let most_bytes = most_bytes.max(LEAST);
        Self {
            most_bytes,
            bytes: most_bytes / 2,
            ticked: now,
            fell: None,
            said: HashMap::new(),
        }
    }

    /// Bytes a second.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Time goes on, while so much is sent.
    pub fn go_on(&mut self, sent_bytes: u64, now: Instant) {
        let ticks = now.saturating_duration_since(self.ticked).as_millis() / TICK.as_millis();
        let Ok(ticks @ 1..) = u32::try_from(ticks) else {
            return;
        };
        self.ticked += TICK * ticks;
        if self.is_used(sent_bytes) {
            let steps = u64::from(ticks).min(STEPS);
            self.bytes = (self.bytes + steps * (self.most_bytes / STEPS).max(1)).min(self.most_bytes);
        }
    }

    fn is_used(&self, sent_bytes: u64) -> bool {
        sent_bytes >= self.bytes / USED
    }

    /// A member says what it hears, while so much is sent.
    pub fn hear(&mut self, member: &str, report: Report, sent_bytes: u64, now: Instant) {
        self.said
            .retain(|_, (_, at)| now.saturating_duration_since(*at) < SAID);
        if self.said.len() < MEMBERS_MAX || self.said.contains_key(member) {
            self.said.insert(member.to_owned(), (report.rate_bytes, now));
        }
        let fell_now = |fell: Instant| now.saturating_duration_since(fell) < FALLS_ONCE_IN;
        if report.lost == 0 || !self.is_used(sent_bytes) || self.fell.is_some_and(fell_now) {
            return;
        }
        let rates = self.said.values().map(|(rate, _)| u128::from(*rate));
        let mean = rates.sum::<u128>() / self.said.len().max(1) as u128;
        let fallen = u64::try_from(mean * 3 / 4).unwrap_or(u64::MAX);
        self.bytes = fallen.clamp(self.most_bytes / LEAST, self.bytes);
        self.fell = Some(now);
    }
}

/// Lets through as much as a rate allows: what goes in any time is no more than the rate times it, and what a tick has.
#[derive(Debug)]
pub struct Bucket {
    left_bytes: f64,
    filled: Instant,
}

impl Bucket {
    /// An empty one.
    pub fn new(now: Instant) -> Self {
        Self {
            left_bytes: 0.0,
            filled: now,
        }
    }

    /// How long to wait with these; nothing if they may go now, and then they are taken as gone.
    pub fn take(&mut self, bytes: usize, rate_bytes: u64, now: Instant) -> Option<Duration> {
        let (bytes, rate) = (bytes as f64, rate_bytes.max(1) as f64);
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        let most = (rate * TICK.as_secs_f64()).max(bytes);
        self.left_bytes = (self.left_bytes + since * rate).min(most);
        self.filled = self.filled.max(now);
        match self.left_bytes >= bytes {
            true => {
                self.left_bytes -= bytes;
                None
            }
            false => Some(Duration::from_secs_f64((bytes - self.left_bytes) / rate)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOST: u64 = 64_000_000;

    fn report(rate_bytes: u64, lost: u64) -> Report {
        Report { rate_bytes, lost }
    }

    #[test]
    fn it_rises_by_steps_while_it_is_used_and_not_beyond_the_most() {
        let begin = Instant::now();
        let mut limit = Limit::new(MOST, begin);
        assert_eq!(limit.bytes(), MOST / 2);
        limit.go_on(1000, begin + TICK);
        assert_eq!(limit.bytes(), MOST / 2, "nobody used it");
        limit.go_on(MOST / 2, begin + 2 * TICK);
        assert_eq!(limit.bytes(), MOST / 2 + MOST / STEPS);
        limit.go_on(MOST / 2, begin + 2 * TICK);
        limit.go_on(MOST / 2, begin + 5 * TICK);
        assert_eq!(limit.bytes(), MOST / 2 + 4 * MOST / STEPS);
        limit.go_on(MOST, begin + Duration::from_secs(600));
        assert_eq!(limit.bytes(), MOST);
    }

    #[test]
    fn it_falls_to_three_quarters_of_what_is_heard_on_the_mean_once() {
        let begin = Instant::now();
        let mut limit = Limit::new(MOST, begin);
        limit.hear("a", report(20_000_000, 0), MOST, begin);
        assert_eq!(limit.bytes(), MOST / 2);
        limit.hear("b", report(12_000_000, 3), 1000, begin);
        assert_eq!(limit.bytes(), MOST / 2, "nobody used it");
        limit.hear("b", report(12_000_000, 3), MOST, begin);
        assert_eq!(limit.bytes(), 12_000_000);
        limit.hear("a", report(4_000_000, 3), MOST, begin + Duration::from_millis(5));
        assert_eq!(limit.bytes(), 12_000_000, "of the same loss");
        limit.hear(
            "a",
            report(4_000_000, 1),
            MOST,
            begin + Duration::from_millis(100),
        );
        assert_eq!(limit.bytes(), 6_000_000);
        // Only what members hear now counts, and something is always sent.
        limit.hear("a", report(0, 1), MOST, begin + Duration::from_secs(9));
        assert_eq!(limit.bytes(), MOST / LEAST);
        limit.hear("a", report(u64::MAX, 1), MOST, begin + Duration::from_secs(20));
        assert_eq!(limit.bytes(), MOST / LEAST, "it does not rise by a loss");
    }

    proptest! {
        #[test]
        fn a_bucket_never_lets_more_through_than_its_rate(
            rate in 1_000_000..100_000_000_u64,
            packets in prop::collection::vec((60..1514_usize, 0..300_u64), 1..400),
        ) {
            let begin = Instant::now();
            let (mut bucket, mut now, mut sent) = (Bucket::new(begin), begin, 0);
            for (bytes, idle_us) in packets {
                now += Duration::from_micros(idle_us);
                while let Some(wait) = bucket.take(bytes, rate, now) {
                    prop_assert!(wait < Duration::from_millis(20));
                    now += wait.max(Duration::from_nanos(1));
                }
                sent += bytes;
                let most = rate as f64 * (now - begin).as_secs_f64() + 1.0;
                prop_assert!(sent as f64 <= most, "{sent} {most}");
            }
        }
    }
}
