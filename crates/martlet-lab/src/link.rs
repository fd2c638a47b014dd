//! What the way between a host and the switch is like.

use crate::{LabError, Result};
use std::time::Duration;

/// A host's link to the switch, the same in both directions, each for itself. Between two hosts there are two of them: delays
/// add up, the lower rate counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Bits of frames in a second, in millions; none: as fast as this machine relays (1 Gbit/s and more). What waits is
    /// queued up to 50 ms or 64 KiB, whichever is more, and lost beyond that.
    pub rate_mbit: Option<f64>,
    /// How long a frame takes, in one direction.
    pub delay_ms: f64,
    /// How much longer it may take, at random. Frames stay in their order.
    pub jitter_ms: f64,
    /// The share of frames that is lost, 0 to 1, at random (the same numbers in each lab).
    pub loss: f64,
}

impl Link {
    /// A link that adds nothing.
    pub const fn local() -> Self {
        Self {
            rate_mbit: None,
            delay_ms: 0.0,
            jitter_ms: 0.0,
            loss: 0.0,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        const RATES_MBIT: std::ops::RangeInclusive<f64> = 0.001..=1e6;
        const TIMES_MS: std::ops::RangeInclusive<f64> = 0.0..=60_000.0;
        let bad = |quantity, value| Err(LabError::BadLink { quantity, value });
        match *self {
            Self {
                rate_mbit: Some(rate),
                ..
            } if !RATES_MBIT.contains(&rate) => bad("rate in Mbit/s", rate),
            Self { delay_ms, .. } if !TIMES_MS.contains(&delay_ms) => bad("delay in ms", delay_ms),
            Self { jitter_ms, .. } if !TIMES_MS.contains(&jitter_ms) => bad("jitter in ms", jitter_ms),
            Self { loss, .. } if !(0.0..=1.0).contains(&loss) => bad("loss", loss),
            _ => Ok(()),
        }
    }

    /// How long the wire is busy with so many bytes.
    pub(crate) fn wire_time(&self, bytes: usize) -> Duration {
        self.rate_mbit.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(bytes as f64 * 8e-6 / rate)
        })
    }

    /// How long a frame may wait for the wire.
    pub(crate) fn wait_max(&self) -> Duration {
        Duration::from_millis(50).max(self.wire_time(64 << 10))
    }
}
