//! What was done, as a line every few seconds and as a table at the end.

use crate::model::{Model, State};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(5);

/// Operations of one kind.
#[derive(Debug, Default)]
struct Count {
    done: u64,
    /// Failed as they had to, or as a fault excuses.
    expected: u64,
    unexpected: u64,
}

pub struct Report {
    pub seed: u64,
    begun: Instant,
    shown: Instant,
    is_json: bool,
    operations: BTreeMap<&'static str, Count>,
    /// Why operations failed as expected: fault and code of the problem.
    reasons: BTreeMap<String, u64>,
    faults: BTreeMap<&'static str, u64>,
    pub steps: u64,
    pub machines_most: usize,
    pub contents_verified: u64,
    pub bytes_verified: u64,
    pub snapshots_resumed: u64,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Done,
    Expected,
    Unexpected,
}

impl Report {
    pub fn new(seed: u64, is_json: bool) -> Self {
        Self {
            seed,
            begun: Instant::now(),
            shown: Instant::now(),
            is_json,
            operations: BTreeMap::new(),
            reasons: BTreeMap::new(),
            faults: BTreeMap::new(),
            steps: 0,
            machines_most: 0,
            contents_verified: 0,
            bytes_verified: 0,
            snapshots_resumed: 0,
        }
    }

    pub fn count(&mut self, kind: &'static str, end: End) {
        let count = self.operations.entry(kind).or_default();
        match end {
            End::Done => count.done += 1,
            End::Expected => count.expected += 1,
            End::Unexpected => count.unexpected += 1,
        }
    }

    pub fn count_reason(&mut self, reason: String) {
        *self.reasons.entry(reason).or_default() += 1;
    }

    pub fn count_fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    /// From here on time counts.
    pub fn begin(&mut self) {
        self.begun = Instant::now();
    }

    fn total(&self, of: impl Fn(&Count) -> u64) -> u64 {
        self.operations.values().map(of).sum()
    }

    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// A line for whoever waits.
    pub fn say(&self, words: &str) {
        match self.is_json {
            true => eprintln!("{words}"),
            false => println!("{words}"),
        }
    }

    /// How far it is, now and then.
    pub fn progress(&mut self, model: &Model) {
        self.machines_most = self.machines_most.max(model.machines.len());
        if self.shown.elapsed() < INTERVAL {
            return;
        }
        self.shown = Instant::now();
        self.say(&format!(
            "{:4} s  step {:4}  {:2} machines ({:2} running)  {:2} snapshots  {:4} operations ({} failed as expected)  {} faults  {} MiB verified",
            self.elapsed().as_secs(),
            self.steps,
            model.machines.len(),
            model.count(State::Running),
            model.snapshots.len(),
            self.total(|count| count.done + count.expected + count.unexpected),
            self.total(|count| count.expected),
            self.faults.values().sum::<u64>(),
            self.bytes_verified >> 20,
        ));
    }

    /// Everything, with the discrepancy that ended it.
    pub fn show(&self, discrepancy: Option<&str>) {
        match self.is_json {
            true => println!("{}", self.json(discrepancy)),
            false => print!("{}", self.table()),
        }
    }

    fn table(&self) -> String {
        let mut text = format!(
            "\n{:20} {:>8} {:>20} {:>12}\n",
            "OPERATION", "DONE", "FAILED AS EXPECTED", "UNEXPECTED"
        );
        let row = |text: &mut String, kind: &str, count: &Count| {
            let _ = writeln!(
                text,
                "{kind:20} {:8} {:20} {:12}",
                count.done, count.expected, count.unexpected
            );
        };
        for (kind, count) in &self.operations {
            row(&mut text, kind, count);
        }
        let all = Count {
            done: self.total(|count| count.done),
            expected: self.total(|count| count.expected),
            unexpected: self.total(|count| count.unexpected),
        };
        row(&mut text, "all", &all);
        let _ = writeln!(text, "\n{:20} {:>8}", "FAULT", "NUMBER");
        for (kind, number) in &self.faults {
            let _ = writeln!(text, "{kind:20} {number:8}");
        }
        let _ = writeln!(text, "\n{:50} {:>8}", "FAILED AS EXPECTED BECAUSE OF", "NUMBER");
        for (reason, number) in &self.reasons {
            let _ = writeln!(text, "{reason:50} {number:8}");
        }
        let _ = writeln!(
            text,
            "\nverified: {} contents, {} MiB; {} snapshots resumed at the end; at most {} machines; {} steps in {} s; seed {}",
            self.contents_verified,
            self.bytes_verified >> 20,
            self.snapshots_resumed,
            self.machines_most,
            self.steps,
            self.elapsed().as_secs(),
            self.seed,
        );
        text
    }

    fn json(&self, discrepancy: Option<&str>) -> Value {
        let counts = self.operations.iter().map(|(kind, count)| {
            let count = json!({
                "done": count.done,
                "failed_as_expected": count.expected,
                "unexpected": count.unexpected,
            });
            ((*kind).to_owned(), count)
        });
        json!({
            "seed": self.seed,
            "steps": self.steps,
            "seconds": self.elapsed().as_secs(),
            "operations": counts.collect::<serde_json::Map<_, _>>(),
            "faults": self.faults,
            "reasons": self.reasons,
            "machines_most": self.machines_most,
            "contents_verified": self.contents_verified,
            "bytes_verified": self.bytes_verified,
            "snapshots_resumed": self.snapshots_resumed,
            "discrepancy": discrepancy,
        })
    }
}
