//! How often the frames of a fork cross the link of the host that is forked from: with multicast, beside each host getting them by itself.

use super::{Hosts, PARENT, new_lab, number};
use crate::commands::bench::{Bench, failed};
use crate::failure::Outcome;
use martlet_bench::{BenchError, Samples};
use serde_json::Value;
use std::time::{Duration, Instant};

/// What `--only` calls it.
pub(super) const ONLY: &str = "multicast";
/// Of what the hosts' links carry, half.
const RATE: &str = "500mbit";
/// A daemon that was started again serves the fleet after this time.
const REACHED_TIMEOUT: Duration = Duration::from_secs(60);
/// All has come to all hosts after this time, or never will.
const REST_TIMEOUT: Duration = Duration::from_secs(600);

/// What a fork took, until all of it was at all hosts.
struct Sent {
    sent_bytes: f64,
    frames_bytes: f64,
    took_ms: f64,
}

impl Sent {
    fn times(&self) -> f64 {
        self.sent_bytes / self.frames_bytes
    }
}

impl Hosts {
    /// Has every host use multicast, or none, from its next command on.
    fn set_multicast(&mut self, rate: &str) -> Result<(), BenchError> {
        for site in std::iter::once(&mut self.origin).chain(&mut self.others) {
            site.set_env("MARTLET_MULTICAST", rate);
            site.run(&["daemon", "stop"])?; // machines go on
            site.run(&["ps"])?; // has it started again
        }
        let until = Instant::now() + REACHED_TIMEOUT;
        let is_reached = |top: &Value| top["problem"].is_null();
        while !self
            .origin
            .run(&["host", "top"])?
            .as_array()
            .is_some_and(|tops| tops.iter().all(is_reached))
        {
            if Instant::now() > until {
                return Err(BenchError::Other("a host does not come back".into()));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Forks into one clone at each host, and waits until all of it is there; what left the origin's link for its frames, and what
    /// these are.
    fn frames_sent(&self, fill: &str) -> Result<Sent, BenchError> {
        // Each time with something else: hosts keep for a while what they had.
        self.origin.exec(PARENT, fill)?;
        let begun = Instant::now();
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
        let took_ms = begun.elapsed().as_secs_f64() * 1e3;
        self.clear()?;
        Ok(Sent {
            sent_bytes,
            frames_bytes,
            took_ms,
        })
    }
}

impl Bench<'_> {
    /// The rest of each fork comes to all hosts entirely.
    pub(super) fn multicast(&mut self, hosts: u32) -> Outcome {
        let lab = new_lab()?;
        let (mut hosts, _) = self.hosts(&lab, hosts, &[])?;
        self.times(&mut hosts).map_err(failed)?;
        hosts.end().map_err(failed)
    }

    fn times(&mut self, hosts: &mut Hosts) -> Result<(), BenchError> {
        let (mut times, mut took) = (Samples::new(), Samples::new());
        let mut frames_bytes = 0.0;
        for _ in 0..self.rounds {
            self.step("frames to each host");
            let by_unicast = hosts.frames_sent(&self.fill())?;
            self.step("frames to all hosts");
            hosts.set_multicast(RATE)?;
            let by_multicast = hosts.frames_sent(&self.fill());
            hosts.set_multicast("off")?;
            let by_multicast = by_multicast?;
            times.add(by_multicast.times(), by_unicast.times());
            took.add(by_multicast.took_ms, by_unicast.took_ms);
            frames_bytes = by_multicast.frames_bytes;
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
        let figure = took.figure(
            "fork_multicast_all",
            "ms",
            "frames to each host by itself",
            &conditions,
        );
        self.figures.extend(figure);
        Ok(())
    }
}
