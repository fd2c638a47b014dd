//! How fast something goes: bytes of each tick, weighted, the latest most.

use std::time::{Duration, Instant};

/// How long a tick is.
pub const TICK: Duration = Duration::from_millis(10);
/// What the latest tick counts for beside all before it.
const WEIGHT: f64 = 1.0 / 8.0;

/// See the module's documentation.
#[derive(Debug)]
pub struct Meter {
    tick_from: Instant,
    tick_bytes: u64,
    rate_bytes: f64,
}

impl Meter {
    /// Nothing so far.
    pub fn new(now: Instant) -> Self {
        Self {
            tick_from: now,
            tick_bytes: 0,
            rate_bytes: 0.0,
        }
    }

    /// So many bytes more.
    pub fn add(&mut self, bytes: usize, now: Instant) {
        self.go_on(now);
        self.tick_bytes = self.tick_bytes.saturating_add(bytes as u64);
    }

    /// Bytes a second.
    pub fn rate_bytes(&mut self, now: Instant) -> u64 {
        self.go_on(now);
        self.rate_bytes as u64
    }

    /// Ends ticks that are over.
    fn go_on(&mut self, now: Instant) {
        let ticks = now.saturating_duration_since(self.tick_from).as_millis() / TICK.as_millis();
        let Ok(ticks @ 1..) = u32::try_from(ticks) else {
            return;
        };
        let latest = std::mem::take(&mut self.tick_bytes) as f64 / TICK.as_secs_f64();
        self.rate_bytes += (latest - self.rate_bytes) * WEIGHT;
        // In the others there was nothing.
        self.rate_bytes *= (1.0 - WEIGHT).powi((ticks - 1).min(10_000) as i32);
        self.tick_from += TICK * ticks;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_to_the_rate_and_away_from_it() {
        let begin = Instant::now();
        let mut meter = Meter::new(begin);
        let at = |ms| begin + Duration::from_millis(ms);
        (0..1000).for_each(|ms| meter.add(1000, at(ms)));
        let rate = meter.rate_bytes(at(1000));
        assert!((990_000..=1_000_000).contains(&rate), "{rate}");
        let half = meter.rate_bytes(at(1060));
        assert!((300_000..600_000).contains(&half), "{half}");
        assert_eq!(meter.rate_bytes(at(60_000)), 0);
        assert_eq!(meter.rate_bytes(begin), 0, "a clock that goes back");
    }
}
