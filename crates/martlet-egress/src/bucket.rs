//! How much may go now: so many bytes a second, both ways together.

use std::time::Instant;

/// So much may go at once after a silence, in seconds of the rate.
const BURST_S: f64 = 0.1;
/// But at least so much, so that slow ones go on by more than bytes.
const BURST_BYTES_MIN: f64 = 16e3;

/// See the module's documentation.
#[derive(Debug)]
pub struct Bucket {
    /// None: no limit.
    rate_bytes: Option<f64>,
    left_bytes: f64,
    filled: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(rate_bytes: Option<u64>, now: Instant) -> Self {
        let rate_bytes = rate_bytes.map(|rate| rate as f64);
        Self {
            rate_bytes,
            left_bytes: rate_bytes.map_or(0.0, burst),
            filled: now,
        }
    }

    /// So many bytes may go now.
    pub fn left(&mut self, now: Instant) -> usize {
        let Some(rate) = self.rate_bytes else {
            return usize::MAX;
        };
        let since_s = now.saturating_duration_since(self.filled).as_secs_f64();
        self.left_bytes = (self.left_bytes + rate * since_s).min(burst(rate));
        self.filled = self.filled.max(now);
        self.left_bytes as usize // none when it is less than none
    }

    /// So many have gone.
    pub fn take(&mut self, bytes: usize) {
        self.left_bytes -= bytes as f64;
    }
}

fn burst(rate_bytes: f64) -> f64 {
    (rate_bytes * BURST_S).max(BURST_BYTES_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn never_more_goes_than_the_rate_and_a_burst(
            rate in 1000..100_000_000_u64,
            steps in prop::collection::vec((0..200_u64, 1..200_000_usize), 1..200),
        ) {
            let begun = Instant::now();
            let (mut now, mut gone) = (begun, 0);
            let mut bucket = Bucket::new(Some(rate), now);
            for (ms, wanted) in steps {
                now += Duration::from_millis(ms);
                let bytes = bucket.left(now).min(wanted);
                bucket.take(bytes);
                gone += bytes;
                let most = burst(rate as f64) + rate as f64 * (now - begun).as_secs_f64();
                prop_assert!(gone as f64 <= most + 1.0, "{} of {}", gone, most);
            }
        }
    }

    #[test]
    fn without_a_rate_all_goes() {
        let now = Instant::now();
        let mut bucket = Bucket::new(None, now);
        bucket.take(1 << 40);
        assert_eq!(bucket.left(now), usize::MAX);
    }
}
