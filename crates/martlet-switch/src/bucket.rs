//! A bound on how often something may happen (token bucket).

use std::time::{Duration, Instant};

/// Lets through so many in a second, and so many at once after a pause.
#[derive(Debug)]
pub struct Bucket {
    per_s: f64,
    most: f64,
    left: f64,
    filled: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(per_s: f64, most: f64, now: Instant) -> Self {
        Self {
            per_s,
            most,
            left: most,
            filled: now,
        }
    }

    /// May one more go?
    pub fn take(&mut self, now: Instant) -> bool {
        let since: Duration = now.saturating_duration_since(self.filled);
        self.left = (self.left + since.as_secs_f64() * self.per_s).min(self.most);
        self.filled = now;
        let may = self.left >= 1.0;
        self.left -= f64::from(u8::from(may));
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_gets_through_at_the_rate_only() {
        let begun = Instant::now();
        let mut bucket = Bucket::new(10.0, 5.0, begun);
        let passed = (0..10_000).filter(|ms| bucket.take(begun + Duration::from_millis(*ms)));
        assert!(
            (100..=105).contains(&passed.count()),
            "10 s of 10 each, and 5 at once"
        );
        assert!(!bucket.take(begun), "a clock that goes back gives nothing");
    }
}
