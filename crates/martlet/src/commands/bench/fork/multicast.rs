//! How often the frames of a fork cross the link of the host that is forked from: with multicast, beside each host getting them by itself.

use super::{Hosts, number};
use crate::commands::bench::Bench;
use martlet_bench::{BenchError, Samples};
use std::time::{Duration, Instant};

/// Of what the hosts' links carry, half.
const RATE: &str = "500mbit";
/// All has come to all hosts after this time, or never will.
const REST_TIMEOUT: Duration = Duration::from_secs(600);

impl Hosts {
    /// Has every host use multicast, or none, from its next command on.
    fn set_multicast(&mut self, rate: &str) -> Result<(), BenchError> {
        for site in std::iter::once(&mut self.origin).chain(&mut self.others) {
            site.set_env("MARTLET_MULTICAST", rate);
            site.run(&["daemon", "stop"])?; // machines go on
        }
        Ok(())
    }

    /// Forks into one clone at each host, and waits until all of it is there; what left the origin's link for its frames, and what
    /// these are.
    fn frames_sent(&self) -> Result<(f64, f64), BenchError> {
        let host = &self.others[0];
        let packs_bytes = || host.run(&["df"]).map(|usage| number(&usage, "pack_bytes"));
        let (packs_before, sent_before) = (packs_bytes()?, self.origin.sent_bytes()?);
        let report = self.fork(self.others.len() as u32, self.others.len(), &[])?;
        let until = Instant::now() + REST_TIMEOUT;
        for site in &self.others {
            while site
                .run(&["away"])?
                .as_array()
                .is_none_or(|away| !away.is_empty())
            {
                if Instant::now() > until {
                    return Err(BenchError::Other(format!("not all came to {}", site.name())));
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        let outlines_bytes = number(&report, "sent_bytes");
        let outline_bytes = outlines_bytes / self.others.len() as f64;
        let sent_bytes = (self.origin.sent_bytes()? - sent_before) as f64 - outlines_bytes;
        let frames_bytes = packs_bytes()? - packs_before - outline_bytes;
        self.clear()?;
        Ok((sent_bytes / frames_bytes, frames_bytes))
    }
}

impl Bench<'_> {
    /// The rest of each fork comes to all hosts entirely.
    pub(super) fn multicast(&mut self, hosts: &mut Hosts) -> Result<(), BenchError> {
        let mut times = Samples::new();
        let mut frames_bytes = 0.0;
        for _ in 0..self.rounds {
            self.step("frames to each host");
            let (by_unicast, _) = hosts.frames_sent()?;
            self.step("frames to all hosts");
            hosts.set_multicast(RATE)?;
            let by_multicast = hosts.frames_sent();
            hosts.set_multicast("off")?;
            let (by_multicast, bytes) = by_multicast?;
            times.add(by_multicast, by_unicast);
            frames_bytes = bytes;
        }
        let conditions = format!(
            "{}; one clone at each of {} hosts, until all {} of frames have come to all of them; bytes on the link of the host that is forked \
             from, headers, answers and what was lost included, by the bytes of the frames; at most {RATE}",
            self.conditions,
            hosts.others.len(),
            crate::show::size(frames_bytes as u64),
        );
        let figure = times.figure(
            "fork_multicast",
            "times",
            "frames to each host by itself",
            &conditions,
        );
        self.figures.extend(figure);
        Ok(())
    }
}
