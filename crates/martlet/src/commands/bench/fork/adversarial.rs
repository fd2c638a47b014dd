//! Several parents fork at the same time, time and again, and where their clones go is as bad as can be: each host starts clones
//! of all parents, and none is at its parent's. Beside it, clones that are there already; and nothing may be left behind.

use super::overhead::wait_until_all_came;
use super::{BASE_TAG, Bench, Hosts, LINK_WORDS, all_well, failed, joined};
use crate::failure::Outcome;
use martlet_bench::roam::{Census, Site};
use martlet_bench::{BenchError, Samples};
use martlet_lab::Lab;
use serde_json::Value;
use std::time::Instant;

/// How it is called among what is measured.
pub(super) const ONLY: &str = "adversarial";
const PARENTS: u32 = 4;
/// Of each parent, each time.
const CLONES: u32 = 16;
/// Small, so that all of them fit.
const MEMORY: &str = "128M";
const MEMORY_BYTES: u64 = 128 << 20;
/// What a parent has that no other one does.
const FILL: &str = "mkdir -p /dev/shm && mount -t tmpfs -o size=90% bench /dev/shm 2>/dev/null; \
                    head -c 8388608 /dev/urandom > /dev/shm/own";
/// A job of some seconds of a processor's time. What it says tells whose clone it ran in.
const JOB: &str = "n=0; while [ $n -lt 200000 ]; do n=$((n+1)); done; md5sum < /dev/shm/own";
const AGAINST: &str = "clones that are there already, and idle";

/// A machine that is forked, at a host of its own.
struct Parent<'a> {
    site: &'a Site,
    name: String,
    /// What a job says in its clones.
    says: String,
}

/// The machines that fork, and the hosts that start their clones.
struct Field<'a> {
    parents: Vec<Parent<'a>>,
    workers: &'a [Site],
}

impl<'a> Field<'a> {
    /// Has machines of the base be at their hosts, each with something of its own.
    fn new(hosts: &'a Hosts, base: &str) -> Result<Self, BenchError> {
        let (others, workers) = hosts.others.split_at(PARENTS as usize - 1);
        // Who joined later is known to who asks.
        for site in &hosts.others {
            site.run(&["host", "ls"])?;
        }
        let mut parents = Vec::new();
        for site in std::iter::once(&hosts.origin).chain(others) {
            if site.name() != hosts.origin.name() {
                site.run(&["pull", hosts.origin.name(), base])?;
            }
            // Clones of several are at one host, by names of their own.
            let name = format!("of-{}", site.name());
            site.run(&["run", base, "--name", &name, "--memory", MEMORY])?;
            site.exec(&name, FILL)?;
            let says = site.output(&["exec", &name, "--", "sh", "-c", "md5sum < /dev/shm/own"])?;
            parents.push(Parent { site, name, says });
        }
        Ok(Self { parents, workers })
    }

    /// Something is done for all parents at once; how long it took for each.
    fn at_once(
        &self,
        act: impl Fn(usize, &Parent<'_>) -> Result<f64, BenchError> + Sync,
    ) -> Result<Vec<f64>, BenchError> {
        let act = &act;
        std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .parents
                .iter()
                .enumerate()
                .map(|(at, parent)| scope.spawn(move || act(at, parent)))
                .collect();
            threads.into_iter().map(joined).collect()
        })
    }

    fn fork(&self, parent: &Parent<'_>, count: u32, rest: &[&str]) -> Result<Value, BenchError> {
        let on: Vec<&str> = self.workers.iter().map(Site::name).collect();
        let (count, on) = (count.to_string(), on.join(","));
        let args = [&["fork", &parent.name, "-n", &count, "--on", &on], rest].concat();
        let report = all_well(parent.site.run(&args)?)?;
        // That they are everywhere is what makes it as bad as can be.
        match self
            .workers
            .iter()
            .all(|worker| clones(&report).any(|clone| clone["host"] == worker.name()))
        {
            true => Ok(report),
            false => Err(BenchError::Other("a host has no clone of a parent".into())),
        }
    }

    /// Clones that are forked for their job.
    fn forked(&self) -> Result<Vec<f64>, BenchError> {
        self.at_once(|_, parent| {
            let begun = Instant::now();
            let report = self.fork(parent, CLONES, &["--", "sh", "-c", JOB])?;
            let took_ms = begun.elapsed().as_secs_f64() * 1e3;
            let said: Vec<_> = clones(&report)
                .map(|clone| clone["output"]["stdout"].as_str().unwrap_or_default())
                .collect();
            parent.check(&said).map(|()| took_ms)
        })
    }

    /// Clones that are there when their job comes.
    fn idle(&self) -> Result<Vec<f64>, BenchError> {
        let mut reports = Vec::new();
        for parent in &self.parents {
            reports.push(self.fork(parent, CLONES, &[])?);
        }
        self.workers.iter().try_for_each(wait_until_all_came)?;
        self.at_once(|at, parent| {
            let given: Vec<_> = clones(&reports[at])
                .filter_map(|clone| Some((self.worker(&clone["host"])?, clone["name"].as_str()?)))
                .collect();
            let begun = Instant::now();
            let said: Vec<String> = std::thread::scope(|scope| {
                let jobs: Vec<_> = given
                    .iter()
                    .map(|(site, clone)| scope.spawn(|| site.output(&["exec", clone, "--", "sh", "-c", JOB])))
                    .collect();
                jobs.into_iter().map(joined).collect::<Result<_, _>>()
            })?;
            let took_ms = begun.elapsed().as_secs_f64() * 1e3;
            let said: Vec<&str> = said.iter().map(String::as_str).collect();
            parent.check(&said).map(|()| took_ms)
        })
    }

    fn worker(&self, host: &Value) -> Option<&Site> {
        self.workers.iter().find(|site| *host == site.name())
    }

    /// Removes the snapshots that parents have named after their forks, but for the last, which the parent is on top of.
    fn remove_named(&self) -> Result<(), BenchError> {
        for parent in &self.parents {
            let images = parent.site.run(&["images"])?;
            let is_in_use =
                |image: &Value| image["used_by"].as_array().is_some_and(|users| !users.is_empty());
            let images = images.as_array().into_iter().flatten();
            let named = images
                .filter(|image| image["machine"] == *parent.name && !is_in_use(image))
                .flat_map(|image| image["references"].as_array().into_iter().flatten());
            for name in named.filter_map(Value::as_str) {
                parent.site.run(&["rmi", name])?;
            }
        }
        Ok(())
    }

    /// Removes clones that stay.
    fn remove_clones(&self) -> Result<(), BenchError> {
        for site in self.workers {
            let machines = site.run(&["ps"])?;
            let names = machines.as_array().into_iter().flatten();
            let names: Vec<&str> = names.filter_map(|machine| machine["name"].as_str()).collect();
            if !names.is_empty() {
                site.run(&[&["rm", "--force"], &names[..]].concat())?;
            }
        }
        Ok(())
    }

    fn sites(&self) -> impl Iterator<Item = &Site> {
        let of_parents = self.parents.iter().map(|parent| parent.site);
        of_parents.chain(self.workers)
    }

    fn check_left(&self, before: &[Census]) -> Result<(), BenchError> {
        self.sites()
            .zip(before)
            .try_for_each(|(site, before)| site.check_left(before))
    }
}

impl Parent<'_> {
    /// Did each of its clones say what only they can?
    fn check(&self, said: &[&str]) -> Result<(), BenchError> {
        match said.len() == CLONES as usize && said.iter().all(|said| *said == self.says) {
            true => Ok(()),
            false => Err(BenchError::Other(format!(
                "clones of {} said {said:?}",
                self.name
            ))),
        }
    }
}

fn clones(report: &Value) -> impl Iterator<Item = &Value> {
    report["clones"].as_array().into_iter().flatten()
}

impl Bench<'_> {
    pub(super) fn adversarial(&mut self, workers: u32) -> Outcome {
        self.make_base()?;
        let base = format!("{}:{BASE_TAG}", self.base);
        let carried = self.carry_snapshot(base.clone())?;
        self.step("starting hosts");
        let lab = Lab::new().map_err(|error| failed(BenchError::Other(error.to_string())))?;
        let hosts = Hosts::new(&lab, PARENTS - 1 + workers, &carried)?;
        let samples = self.cycles(&hosts, &base).map_err(failed)?;
        let conditions = format!(
            "{PARENTS} parents at hosts of their own fork {CLONES} clones each at once, {} times; {} guests; {workers} other hosts \
             of a lab on {} processors start clones of all of them, {LINK_WORDS}; until each parent has its clones' results; \
             nothing was left at any host",
            self.rounds,
            crate::show::size(MEMORY_BYTES),
            std::thread::available_parallelism().map_or(1, |count| count.get()),
        );
        self.figures
            .extend(samples.figure("fork_adversarial", "ms", AGAINST, &conditions));
        Ok(())
    }

    /// A sample for each parent and round.
    fn cycles(&mut self, hosts: &Hosts, base: &str) -> Result<Samples, BenchError> {
        self.step("starting the parents");
        let field = Field::new(hosts, base)?;
        // From now on each of them has a last fork, whose snapshot it is on top of.
        let each = field.workers.len() as u32;
        field.at_once(|_, parent| field.fork(parent, each, &[]).map(|_| 0.0))?;
        field.remove_clones()?;
        field.remove_named()?;
        let before: Vec<Census> = field.sites().map(Site::census).collect::<Result<_, _>>()?;
        let mut samples = Samples::new();
        for _ in 0..self.rounds {
            self.step("all parents fork");
            let ours = field.forked()?;
            field.remove_named()?;
            field.check_left(&before)?;
            self.step("clones that are there");
            let theirs = field.idle()?;
            field.remove_clones()?;
            field.remove_named()?;
            field.check_left(&before)?;
            ours.into_iter()
                .zip(theirs)
                .for_each(|(ours, theirs)| samples.add(ours, theirs));
        }
        Ok(samples)
    }
}
