//! Forks by the number of clones, and what one would do without them: an image copied to each host, or clones that are there
//! already.

use super::watched::{Needed, Watch, Watched, clones, costs, last_ms};
use super::{Hosts, LINK, PARENT, all_run_ms, number};
use martlet_bench::fork_model::Costs;
use martlet_bench::roam::{copy_to_all, multicast_to_all};
use martlet_bench::{BenchError, Point, Rounds, plots};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

/// How many clones are forked, as far as so many are wanted.
const COUNTS: [u32; 5] = [1, 2, 4, 8, 16];
/// Those that also do the task.
const TASK_COUNTS: [u32; 3] = [2, 4, 16];
/// As many as there are with all of these, at four hosts.
pub(super) const STEPS_A_ROUND: u64 = (COUNTS.len() + TASK_COUNTS.len()) as u64 + 2 + 2 * 3;
/// The task reads so much of the parent's memory, which no host has yet, and works on it.
pub(super) const TASK_MIB: u32 = 64;
const PREPARE: &str = "head -c 67108864 /dev/urandom > /dev/shm/task";
const TASK: &str = "sha256sum /dev/shm/task > /dev/null";
/// Clones that are to be there have all of their memory within this time.
const COMES_WITHIN: Duration = Duration::from_secs(300);

/// What is drawn.
#[derive(Default)]
pub(super) struct Scaling {
    rounds: Rounds,
    forks: Vec<Watched>,
    needed: Vec<Needed>,
    image_bytes: f64,
    lab_hosts: u32,
}

impl Scaling {
    /// Measures all of it. Half of the parent's memory is in use; `image` is what a stock QEMU with the same writes.
    pub fn measure(
        &mut self,
        hosts: &Hosts,
        image: &Path,
        (clones, rounds): (u32, usize),
        step: &mut dyn FnMut(&str),
    ) -> Result<(), BenchError> {
        let watch = Watch::of(hosts)?;
        self.image_bytes = std::fs::metadata(image).map_or(0, |image| image.len()) as f64;
        self.lab_hosts = hosts.others.len() as u32;
        let counts: Vec<u32> = COUNTS.into_iter().filter(|count| *count <= clones).collect();
        let most = counts.last().copied().unwrap_or(1);
        for round in 0..rounds {
            let mut there_ms = 0.0;
            hosts.origin.exec(PARENT, PREPARE)?;
            for &count in &counts {
                step(&format!("a fork of {count}"));
                let fork = watch.fork(count, None)?;
                self.started(count, &fork);
                if count == most {
                    step("a task in clones that are there");
                    there_ms = in_clones_that_are_there_ms(hosts, &fork.report)?;
                    self.rounds.add(plots::WORK, plots::THERE, 0.0, "ms", there_ms);
                }
                self.forks.push(fork);
                hosts.clear()?;
            }
            step("a task in a clone that has nothing");
            self.needed.push(watch.needs(TASK, round)?);
            let has_task = |count: &&u32| TASK_COUNTS.contains(count) || **count == most;
            for &count in counts.iter().filter(has_task) {
                step(&format!("a task in {count} clones"));
                hosts.origin.exec(PARENT, PREPARE)?;
                let fork = watch.fork(count, Some(TASK))?;
                let total_ms = number(&fork.report, "total_ms");
                self.rounds
                    .add(plots::CHECK, plots::TASK, f64::from(count), "ms", total_ms);
                if count == most {
                    self.rounds.add(plots::WORK, plots::FORK, 0.0, "ms", total_ms);
                    self.rounds
                        .add(plots::SENT, plots::FORK, 0.0, "bytes", fork.sent_bytes);
                }
                self.forks.push(fork);
                hosts.clear()?;
            }
            self.copies(hosts, image, &counts, there_ms, step)?;
        }
        Ok(())
    }

    fn started(&mut self, count: u32, fork: &Watched) {
        let report = &fork.report;
        let [load_ms, instruction_ms, exec_ms] =
            ["load_ms", "first_instruction_ms", "first_exec_ms"].map(|of| last_ms(report, of));
        let (total_ms, pause_ms) = (number(report, "total_ms"), number(report, "pause_ms"));
        let x = f64::from(count);
        for (stage, ms) in [
            ("the parent stands still", pause_ms),
            ("stored, handed over", fork.begun_ms() - pause_ms),
            ("QEMU, device state", load_ms),
            ("until each runs", instruction_ms - load_ms),
            ("first command", exec_ms - instruction_ms),
        ] {
            self.rounds.add(plots::STAGES, stage, x, "ms", ms);
        }
        let run_ms = all_run_ms(report);
        for (plot, series, ms) in [
            (plots::CLONES, "fork: each runs", run_ms),
            (plots::CLONES, "fork: each did a command", total_ms),
            (plots::CHECK, plots::FIRST_COMMAND, total_ms),
        ] {
            self.rounds.add(plot, series, x, "ms", ms);
        }
    }

    /// QEMU's image at all hosts that clones are to start at: each needs it once, however many these are.
    fn copies(
        &mut self,
        hosts: &Hosts,
        image: &Path,
        counts: &[u32],
        there_ms: f64,
        step: &mut dyn FnMut(&str),
    ) -> Result<(), BenchError> {
        for series in [plots::IMAGE_MULTICAST, plots::IMAGE_TCP] {
            let (mut copied_to, mut took_ms) = (0, 0.0);
            for &count in counts {
                let to = &hosts.others[..hosts.others.len().min(count as usize)];
                let x = f64::from(count);
                if to.len() > copied_to {
                    copied_to = to.len();
                    step("copies of the image");
                    let before_bytes = hosts.origin.sent_bytes()?;
                    took_ms = match (series, LINK.rate_mbit) {
                        (plots::IMAGE_MULTICAST, Some(rate_mbit)) => {
                            multicast_to_all(image, &hosts.origin, to, rate_mbit)?.took_ms
                        }
                        _ => copy_to_all(image, &hosts.origin, to)?,
                    };
                    let sent_bytes = hosts.origin.sent_bytes()? - before_bytes;
                    self.rounds.add(plots::CHECK, series, x, "ms", took_ms);
                    if copied_to == hosts.others.len() {
                        self.rounds
                            .add(plots::SENT, series, 0.0, "bytes", sent_bytes as f64);
                    }
                }
                self.rounds.add(plots::CLONES, series, x, "ms", took_ms);
            }
            // As if clones were there at once when the image is.
            self.rounds
                .add(plots::WORK, series, 0.0, "ms", took_ms + there_ms);
        }
        Ok(())
    }

    /// All points that were measured.
    pub fn points(&self) -> Vec<Point> {
        self.rounds.points()
    }

    /// What the parts cost.
    pub fn costs(&self, fetch_ms: f64, outline_bytes: f64) -> Option<Costs> {
        costs(
            &self.forks,
            &self.needed,
            self.lab_hosts,
            (fetch_ms, outline_bytes),
            self.image_bytes,
        )
    }
}

/// The task in clones that have been started, once they have all of their memory at their hosts.
fn in_clones_that_are_there_ms(hosts: &Hosts, report: &Value) -> Result<f64, BenchError> {
    let until = Instant::now() + COMES_WITHIN;
    for site in &hosts.others {
        let lacks = |snapshot: &Value| number(snapshot, "missing_objects") > 0.0;
        while site.run(&["away"])?.as_array().into_iter().flatten().any(lacks) {
            if Instant::now() > until {
                let words = format!("{} still lacks memory of its clones", site.name());
                return Err(BenchError::Other(words));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let tasks: Vec<_> = clones(report)
            .filter_map(|clone| {
                let site = hosts.others.iter().find(|site| clone["host"] == site.name())?;
                let name = clone["name"].as_str()?;
                Some(scope.spawn(|| site.exec(name, TASK)))
            })
            .collect();
        tasks.into_iter().try_for_each(|task| {
            task.join()
                .unwrap_or_else(|_| Err(BenchError::Other("a task panicked".into())))
        })
    })?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}
