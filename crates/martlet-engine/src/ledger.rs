//! The reads of one run of a machine, in an account that does not grow with the run: sums, a timeline whose steps get
//! longer, and the longest stalls.

use crate::answer::Answer;
use crate::belongs::Region;
use martlet_api::{MachinePart, ReadSource, Stall, StallStep};
use martlet_fuse::Answered;
use martlet_image::SnapshotId;
use serde::{Deserialize, Serialize};

/// What this host's own store answers is a stall from here on.
const STALL_MS: f64 = 1.0;
/// The longest stalls are remembered, at least so many, and at most twice as many.
const STALLS_KEPT: usize = 1024;
/// A timeline has no more steps.
const STEPS_MAX: usize = 600;
const LOCAL: &str = "local store";

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// What it started from; none if it booted.
    pub snapshot: Option<SnapshotId>,
    /// When it was asked to start.
    pub began_unix_ms: u64,
    /// Who answered.
    pub sources: Vec<ReadSource>,
    /// Length of a step.
    pub step_ms: u64,
    /// From the start on.
    pub steps: Vec<StallStep>,
    /// In no order.
    pub stalls: Vec<Stall>,
    /// What the guest's kernel lies in, once somebody wanted to know.
    #[serde(default)]
    pub regions: Vec<Region>,
}

impl Ledger {
    /// No reads yet.
    pub fn new(snapshot: Option<SnapshotId>, began_unix_ms: u64) -> Self {
        Self {
            snapshot,
            began_unix_ms,
            sources: Vec::new(),
            step_ms: 1000,
            steps: Vec::new(),
            stalls: Vec::new(),
            regions: Vec::new(),
        }
    }

    /// Enters a read that was answered so long after the start. Was it a stall?
    pub fn enter(&mut self, read: &Answered, answer: &Answer, ended_ms: f64) -> bool {
        let late_ms = read.took.as_secs_f64() * 1e3;
        // Who waited next to nothing for what came for another might as well have found it here.
        let from = answer.from.as_deref();
        let from = from.filter(|_| answer.came_bytes > 0 || late_ms >= STALL_MS);
        let is_stall = from.is_some() || late_ms >= STALL_MS;
        let size_bytes = read.bytes.end - read.bytes.start;
        let source = self.source(from.unwrap_or(LOCAL));
        source.reads += 1;
        source.read_bytes += size_bytes;
        source.came_bytes += answer.came_bytes;
        if !is_stall {
            return false;
        }
        source.stalls += 1;
        source.waited_ms += late_ms;
        source.waited_max_ms = source.waited_max_ms.max(late_ms);
        let stall = Stall {
            at_ms: (ended_ms - late_ms).max(0.0),
            part: if read.is_disk {
                MachinePart::Disk
            } else {
                MachinePart::Memory
            },
            offset_bytes: read.bytes.start,
            size_bytes,
            guest_address: None,
            same_on_disk_bytes: None,
            region: None,
            source: source.source.clone(),
            late_ms,
        };
        self.stalls.push(stall);
        if self.stalls.len() == 2 * STALLS_KEPT {
            self.stalls.sort_by(longest_first);
            self.stalls.truncate(STALLS_KEPT);
        }
        let step = self.step(ended_ms);
        step.stalls += 1;
        step.waited_ms += late_ms;
        true
    }

    fn source(&mut self, name: &str) -> &mut ReadSource {
        let at = self.sources.iter().position(|source| source.source == name);
        let at = at.unwrap_or_else(|| {
            self.sources.push(ReadSource {
                source: name.to_owned(),
                reads: 0,
                read_bytes: 0,
                came_bytes: 0,
                stalls: 0,
                waited_ms: 0.0,
                waited_max_ms: 0.0,
            });
            self.sources.len() - 1
        });
        &mut self.sources[at]
    }

    /// The step of this instant. When there would be too many, two become one.
    fn step(&mut self, at_ms: f64) -> &mut StallStep {
        while at_ms as u64 / self.step_ms >= STEPS_MAX as u64 {
            self.step_ms *= 2;
            let pairs = self.steps.chunks(2).map(|pair| StallStep {
                stalls: pair.iter().map(|step| step.stalls).sum(),
                waited_ms: pair.iter().map(|step| step.waited_ms).sum(),
            });
            self.steps = pairs.collect();
        }
        let at = (at_ms as u64 / self.step_ms) as usize;
        if self.steps.len() <= at {
            self.steps.resize(at + 1, StallStep::default());
        }
        &mut self.steps[at]
    }

    /// The longest stalls, the longest first.
    pub fn longest(&self) -> Vec<Stall> {
        let mut stalls = self.stalls.clone();
        stalls.sort_by(longest_first);
        stalls
    }
}

fn longest_first(one: &Stall, other: &Stall) -> std::cmp::Ordering {
    let by_length = other.late_ms.total_cmp(&one.late_ms);
    by_length.then(one.at_ms.total_cmp(&other.at_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use martlet_pager::VmKey;
    use std::sync::Arc;
    use std::time::Duration;

    fn read(is_disk: bool, page: u64, took_us: u64) -> Answered {
        Answered {
            vm: VmKey(1),
            is_disk,
            bytes: page * 4096..(page + 1) * 4096,
            took: Duration::from_micros(took_us),
        }
    }

    fn from(place: &str, came_bytes: u64) -> Answer {
        Answer {
            from: Some(Arc::from(place)),
            came_bytes,
        }
    }

    #[test]
    fn reads_add_up_by_who_answered() {
        let mut ledger = Ledger::new(None, 0);
        let here = Answer::default();
        assert!(!ledger.enter(&read(false, 0, 900), &here, 5.0));
        assert!(
            ledger.enter(&read(true, 1, 2000), &here, 10.0),
            "a slow disk of this host"
        );
        assert!(ledger.enter(&read(false, 2, 50_000), &from("remote far", 3000), 100.0));
        assert!(
            ledger.enter(&read(false, 3, 40_000), &from("remote far", 0), 101.0),
            "it came for another read"
        );
        assert!(
            !ledger.enter(&read(false, 4, 20), &from("remote far", 0), 102.0),
            "it had just come"
        );
        assert!(ledger.enter(&read(false, 5, 300), &from("host near", 500), 103.0));
        let sums: Vec<_> = ledger
            .sources
            .iter()
            .map(|of| (&*of.source, of.reads, of.read_bytes, of.came_bytes, of.stalls))
            .collect();
        assert_eq!(
            sums,
            [
                (LOCAL, 3, 3 * 4096, 0, 1),
                ("remote far", 2, 2 * 4096, 3000, 2),
                ("host near", 1, 4096, 500, 1)
            ]
        );
        assert_eq!(
            (ledger.sources[1].waited_ms, ledger.sources[1].waited_max_ms),
            (90.0, 50.0)
        );
        let longest = ledger.longest();
        assert_eq!(
            (longest[0].at_ms, longest[0].offset_bytes, longest[0].late_ms),
            (50.0, 2 * 4096, 50.0)
        );
        assert_eq!((longest.len(), &*longest[1].source), (4, "remote far"));
        assert_eq!((ledger.steps.len(), ledger.steps[0].stalls), (1, 4));
    }

    #[test]
    fn a_long_run_takes_no_more_room_and_forgets_no_sum() {
        let mut ledger = Ledger::new(None, 0);
        for n in 0..10_000 {
            ledger.enter(
                &read(false, n, 1000 + n),
                &from("remote far", 1),
                n as f64 * 1000.0,
            );
        }
        assert!(ledger.stalls.len() < 2 * STALLS_KEPT);
        let longest = ledger.longest();
        let late: Vec<f64> = longest[..STALLS_KEPT].iter().map(|stall| stall.late_ms).collect();
        let expected: Vec<f64> = (0..STALLS_KEPT as u64)
            .map(|n| Duration::from_micros(10_999 - n).as_secs_f64() * 1e3)
            .collect();
        assert_eq!(late, expected);
        assert_eq!((ledger.step_ms, ledger.steps.len()), (32_000, 313));
        let stalls: u64 = ledger.steps.iter().map(|step| step.stalls).sum();
        assert_eq!((stalls, ledger.sources[0].stalls), (10_000, 10_000));
        assert_eq!(ledger.steps[1].stalls, 32);
        let kept: Ledger = serde_json::from_slice(&serde_json::to_vec(&ledger).unwrap()).unwrap();
        assert_eq!((kept.steps.len(), kept.stalls.len()), (313, ledger.stalls.len()));
    }
}
