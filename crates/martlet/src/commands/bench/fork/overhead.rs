//! Work of the examples in clones that are forked for it, beside clones that are there already and do nothing: what a fork
//! that costs nothing would take.

use super::{Bench, Hosts, LINK_WORDS, PARENT, failed};
use crate::cli::BenchForkArgs;
use crate::commands::understood;
use crate::failure::{Failure, Outcome};
use martlet_api::{MachineInfo, ProblemCode};
use martlet_bench::roam::Site;
use martlet_bench::{BenchError, Samples};
use martlet_lab::Lab;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How it is called among what is measured.
pub(super) const ONLY: &str = "overhead";
/// How many times the usual work takes a minute and more of two processors.
const SIZES: [(&str, u32); 6] = [
    ("blast", 7),
    ("clustal", 8),
    ("bwa", 18),
    ("quantlib", 3),
    ("povray", 18),
    ("python-trials", 18),
];
/// What else clones' hosts lack comes within this.
const COMES_WITHIN: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(200);
const AGAINST: &str = "clones that are there already, and idle";

/// An example's work: a command, for each of many inputs.
struct Work {
    command: Vec<String>,
    inputs: Vec<String>,
    /// Where they are, one on each line.
    file: PathBuf,
}

/// What came of it, in the order of the inputs, and how long it took.
struct Done {
    outputs: Vec<String>,
    took_ms: f64,
}

impl Work {
    /// What an example has left in a directory.
    fn left_in(dir: &Path) -> Outcome<Self> {
        let read = |name: &str| {
            std::fs::read_to_string(dir.join(name))
                .map_err(|error| Failure::io("cannot read what an example has left", error))
        };
        Ok(Self {
            command: read("command")?
                .split_terminator('\0')
                .map(str::to_owned)
                .collect(),
            inputs: read("inputs")?.lines().map(str::to_owned).collect(),
            file: dir.join("inputs"),
        })
    }

    /// By clones that are forked for it, one at each host.
    fn by_forks(&self, hosts: &Hosts) -> Result<Done, BenchError> {
        let names: Vec<&str> = hosts.others.iter().map(Site::name).collect();
        let (count, on, file) = (
            names.len().to_string(),
            names.join(","),
            self.file.to_string_lossy(),
        );
        let mut args = vec!["map", PARENT, "-n", &count, "--on", &on, "--input", &file, "--"];
        args.extend(self.command.iter().map(String::as_str));
        let begun = Instant::now();
        let report = hosts.origin.run(&args)?;
        let took_ms = begun.elapsed().as_secs_f64() * 1e3;
        let outputs = report["outputs"].as_array().into_iter().flatten();
        let written = |output: &serde_json::Value| output["output"]["stdout"].as_str().map(str::to_owned);
        Ok(Done {
            outputs: outputs.filter_map(written).collect(),
            took_ms,
        })
    }

    /// By such clones that have been there before, each given an input when it has done the last.
    fn by_idle(&self, hosts: &Hosts) -> Result<Done, BenchError> {
        let report = hosts.fork(hosts.others.len() as u32, hosts.others.len(), &[])?;
        let clone_at = |site: &Site| -> Option<String> {
            let mut clones = report["clones"].as_array()?.iter();
            let there = clones.find(|clone| clone["host"] == site.name())?;
            there["name"].as_str().map(str::to_owned)
        };
        hosts.others.iter().try_for_each(wait_until_all_came)?;
        let next = AtomicUsize::new(0);
        let outputs = Mutex::new(vec![String::new(); self.inputs.len()]);
        let work_off = |site: &Site| -> Result<(), BenchError> {
            let clone =
                clone_at(site).ok_or_else(|| BenchError::Other(format!("no clone is at {}", site.name())))?;
            while let Some((at, input)) = self.take(&next) {
                let words: Vec<String> = self
                    .command
                    .iter()
                    .map(|word| word.replace("{}", input))
                    .collect();
                let mut args = vec!["exec", &*clone, "--"];
                args.extend(words.iter().map(String::as_str));
                let output = site.output(&args)?;
                outputs.lock().unwrap_or_else(PoisonError::into_inner)[at] = output;
            }
            Ok(())
        };
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let workers: Vec<_> = hosts
                .others
                .iter()
                .map(|site| scope.spawn(|| work_off(site)))
                .collect();
            workers.into_iter().try_for_each(super::joined)
        })?;
        let took_ms = begun.elapsed().as_secs_f64() * 1e3;
        Ok(Done {
            outputs: outputs.into_inner().unwrap_or_else(PoisonError::into_inner),
            took_ms,
        })
    }

    fn take(&self, next: &AtomicUsize) -> Option<(usize, &str)> {
        let at = next.fetch_add(1, Ordering::Relaxed);
        Some((at, self.inputs.get(at)?))
    }
}

/// Nothing of any clone at a site is elsewhere any more.
pub(super) fn wait_until_all_came(site: &Site) -> Result<(), BenchError> {
    let until = Instant::now() + COMES_WITHIN;
    while site
        .run(&["away"])?
        .as_array()
        .is_some_and(|away| !away.is_empty())
    {
        if Instant::now() > until {
            let words = format!("what clones at {} consist of does not come", site.name());
            return Err(BenchError::Other(words));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

impl Bench<'_> {
    /// Each of the examples, and all together.
    pub(super) fn overhead(&mut self, args: &BenchForkArgs) -> Outcome {
        let mut all = vec![(0.0, 0.0); self.rounds];
        for (example, size) in SIZES
            .into_iter()
            .filter(|(example, _)| args.works.iter().any(|work| work == example))
        {
            let dir = tempfile::tempdir().map_err(|error| Failure::io("cannot make a directory", error))?;
            self.step(&format!("preparing {example}"));
            self.prepare_example(&args.examples, example, size, dir.path())?;
            let rounds = self.example(example, &Work::left_in(dir.path())?, args.hosts)?;
            self.forget_machine();
            for (sum, (ours, theirs)) in all.iter_mut().zip(rounds) {
                *sum = (sum.0 + ours, sum.1 + theirs);
            }
        }
        let mut together = Samples::new();
        all.into_iter()
            .for_each(|(ours, theirs)| together.add(ours, theirs));
        self.keep(&together, "fork_overhead", "ms", AGAINST);
        Ok(())
    }

    /// Has an example go as far as its work; the machine that it leaves is the one that is measured.
    fn prepare_example(&self, examples: &Path, example: &str, size: u32, dir: &Path) -> Outcome {
        let program =
            std::env::current_exe().map_err(|error| Failure::io("cannot find this program", error))?;
        let output = Command::new(examples.join(example).join("run"))
            .env("MARTLET", program)
            .env("MARTLET_SOCKET", &self.context.daemon.socket)
            .env("PREPARE", dir)
            .env("MACHINE", &self.machine)
            .env("SIZE", size.to_string())
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                Failure::io(
                    "cannot run an example (`--examples DIR` says where they are)",
                    error,
                )
            })?;
        match output.status.success() {
            true => Ok(()),
            false => Err(Failure::new(
                ProblemCode::GuestFailed,
                format!(
                    "example {example} cannot be prepared: {}",
                    String::from_utf8_lossy(&output.stderr)
                ),
            )),
        }
    }

    /// Milliseconds of each round, ours and theirs.
    fn example(&mut self, example: &str, work: &Work, hosts: u32) -> Outcome<Vec<(f64, f64)>> {
        let machine = format!("/v1/machines/{}", self.machine);
        let machine: MachineInfo = understood(self.client.get(&machine)?)?;
        let carried = self.carry(&machine)?;
        let lab = Lab::new().map_err(|error| failed(BenchError::Other(error.to_string())))?;
        let hosts = Hosts::new(&lab, hosts, &carried)?;
        let mut measure = || -> Result<_, BenchError> {
            hosts.origin.run(&["run", &carried.name, "--name", PARENT])?;
            let mut rounds = Vec::new();
            for round in 0..self.rounds {
                self.step(&format!("the work of {example}"));
                let forked = || {
                    work.by_forks(&hosts)
                        .and_then(|done| hosts.clear().map(|()| done))
                };
                let idle = || work.by_idle(&hosts).and_then(|done| hosts.clear().map(|()| done));
                // Each is first as often as the other: what else the machine has to do comes and goes.
                let (ours, theirs) = match round % 2 {
                    0 => (forked()?, idle()?),
                    _ => {
                        let theirs = idle()?;
                        (forked()?, theirs)
                    }
                };
                if ours.outputs != theirs.outputs {
                    return Err(BenchError::Other(format!("{example}: the results differ")));
                }
                rounds.push((ours.took_ms, theirs.took_ms));
            }
            Ok(rounds)
        };
        let rounds = measure().map_err(failed)?;
        let mut samples = Samples::new();
        rounds
            .iter()
            .for_each(|(ours, theirs)| samples.add(*ours, *theirs));
        self.conditions = format!(
            "{}; {} hosts of a lab, a clone at each, {LINK_WORDS}; hosts that have nothing of the machine, until all results are there",
            self.host(&machine),
            hosts.others.len(),
        );
        self.keep(&samples, &format!("fork_overhead_{example}"), "ms", AGAINST);
        Ok(rounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_example_has_left_is_its_work() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("command"), "sh\0-c\0echo {}\necho\0\0").unwrap();
        std::fs::write(dir.path().join("inputs"), "1\n2 3\n").unwrap();
        let work = Work::left_in(dir.path()).unwrap();
        assert_eq!(work.command, ["sh", "-c", "echo {}\necho", ""]);
        assert_eq!(work.inputs, ["1", "2 3"]);
        let next = AtomicUsize::new(0);
        let taken: Vec<_> = std::iter::from_fn(|| work.take(&next)).collect();
        assert_eq!(taken, [(0, "1"), (1, "2 3")]);
    }
}
