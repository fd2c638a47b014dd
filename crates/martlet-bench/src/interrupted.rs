//! Which operations are interrupted, how and when, and what came of them.

use martlet_lab::Chance;
use serde::{Deserialize, Serialize};

/// What is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// A snapshot goes to a remote that has nothing of it.
    Push,
    /// A snapshot comes into a store that has nothing of it.
    Pull,
    /// A machine that has changed is saved and ends.
    Suspend,
}

/// By what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interruption {
    /// SIGKILL for the daemon that does it.
    DaemonKilled,
    /// SIGKILL for the command that asked for it.
    ClientKilled,
    /// For a while nothing comes through.
    LinkCut,
    /// Less room than it needs, where it writes.
    DiskFull,
}

/// Each of them, the commonest first. A suspend needs no link.
const KINDS: [(Operation, Interruption); 11] = {
    use Interruption::*;
    use Operation::*;
    [
        (Push, DaemonKilled),
        (Pull, DaemonKilled),
        (Suspend, DaemonKilled),
        (Push, LinkCut),
        (Pull, LinkCut),
        (Push, DiskFull),
        (Pull, DiskFull),
        (Suspend, DiskFull),
        (Push, ClientKilled),
        (Pull, ClientKilled),
        (Suspend, ClientKilled),
    ]
};

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    /// What is interrupted.
    pub operation: Operation,
    /// By what.
    pub interruption: Interruption,
    /// When, as a share of what the operation usually takes; of a full disk, how much of what it needs there is room for.
    pub moment: f64,
}

/// So many of them, all kinds by turns, at moments that follow from `seed`.
pub fn plan(times: usize, seed: u64) -> Vec<Case> {
    let mut chance = Chance::new(seed);
    let kinds = KINDS.iter().cycle().take(times);
    kinds
        .map(|&(operation, interruption)| Case {
            operation,
            interruption,
            moment: chance.draw(),
        })
        .collect()
}

/// What came of all cases of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// What was interrupted.
    pub operation: Operation,
    /// By what.
    pub interruption: Interruption,
    /// How often.
    pub times: usize,
    /// How often it failed of that. Otherwise it had ended before, or waited.
    pub failed_first: usize,
    /// How often it then came to its end.
    pub went_on: usize,
    /// How often anything was then missing or not what it had been.
    pub corrupt: usize,
}

/// What came of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// It failed of the interruption.
    pub failed_first: bool,
    /// It came to its end when it was continued; or why it did not.
    pub went_on: Result<(), String>,
    /// What there is then is whole.
    pub is_whole: bool,
}

/// All of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How many were interrupted.
    pub times: usize,
    /// From which their moments follow.
    pub seed: u64,
    /// How many failed of it.
    pub failed_first: usize,
    /// How many then came to their end.
    pub went_on: usize,
    /// After how many anything was missing or not what it had been.
    pub corrupt: usize,
    /// The same by kinds.
    pub kinds: Vec<Tally>,
    /// What did not come to its end, and why.
    pub stopped_by: Option<String>,
}

impl Report {
    /// Nothing yet.
    pub const fn new(seed: u64) -> Self {
        Self {
            times: 0,
            seed,
            failed_first: 0,
            went_on: 0,
            corrupt: 0,
            kinds: Vec::new(),
            stopped_by: None,
        }
    }

    /// Adds what came of a case.
    pub fn add(&mut self, case: &Case, end: &End) {
        let is_kind =
            |tally: &Tally| (tally.operation, tally.interruption) == (case.operation, case.interruption);
        let at = self.kinds.iter().position(is_kind).unwrap_or_else(|| {
            self.kinds.push(Tally {
                operation: case.operation,
                interruption: case.interruption,
                times: 0,
                failed_first: 0,
                went_on: 0,
                corrupt: 0,
            });
            self.kinds.len() - 1
        });
        let tally = &mut self.kinds[at];
        for (sum, of_kind, counts) in [
            (&mut self.times, &mut tally.times, true),
            (&mut self.failed_first, &mut tally.failed_first, end.failed_first),
            (&mut self.went_on, &mut tally.went_on, end.went_on.is_ok()),
            (
                &mut self.corrupt,
                &mut tally.corrupt,
                end.went_on.is_ok() && !end.is_whole,
            ),
        ] {
            *sum += usize::from(counts);
            *of_kind += usize::from(counts);
        }
    }

    /// Did everything go on and stay whole?
    pub const fn is_good(&self) -> bool {
        self.went_on == self.times && self.corrupt == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_has_all_kinds_at_moments_of_its_seed() {
        let cases = plan(200, 7);
        assert_eq!((cases.len(), plan(200, 7) == cases), (200, true));
        assert_ne!(plan(200, 8), cases);
        for kind in KINDS {
            let moments: Vec<f64> = cases
                .iter()
                .filter(|case| (case.operation, case.interruption) == kind)
                .map(|case| case.moment)
                .collect();
            assert!(moments.len() >= 18, "{kind:?}");
            let (early, late) = (
                moments.iter().any(|at| *at < 0.3),
                moments.iter().any(|at| *at > 0.7),
            );
            assert!(early && late && moments.iter().all(|at| (0.0..1.0).contains(at)));
        }
    }

    #[test]
    fn a_report_counts_by_kinds_and_is_good_only_if_all_is() {
        let cases = plan(12, 1);
        let good = End {
            failed_first: true,
            went_on: Ok(()),
            is_whole: true,
        };
        let mut report = Report::new(1);
        cases.iter().for_each(|case| report.add(case, &good));
        assert_eq!(
            (report.times, report.failed_first, report.kinds.len()),
            (12, 12, 11)
        );
        assert_eq!((report.kinds[0].times, report.kinds[1].times), (2, 1));
        assert!(report.is_good());
        let corrupt = End {
            is_whole: false,
            ..good
        };
        report.add(&cases[0], &corrupt);
        assert_eq!((report.corrupt, report.kinds[0].corrupt), (1, 1));
        assert!(!report.is_good());
        let mut report = Report::new(1);
        report.add(
            &cases[0],
            &End {
                went_on: Err("why".into()),
                ..corrupt
            },
        );
        assert_eq!(
            (report.corrupt, report.is_good()),
            (0, false),
            "what did not end is not looked at"
        );
    }
}
