//! `martlet bench fork`: forks across hosts of a lab, beside copying a suspended image to each of them.

mod adversarial;
mod avoidance;
mod model;
mod multicast;
mod overhead;
mod plots;
mod scaling;
mod watched;

pub use model::fork_model;

use super::carried::Carried;
use super::roam::fault;
use super::{Bench, failed};
use crate::cli::BenchForkArgs;
use crate::commands::Context;
use crate::failure::Outcome;
use martlet_bench::roam::{Site, copy_to_all};
use martlet_bench::{BenchError, Recipe, Samples};
use martlet_lab::{Lab, Link};
use scaling::Scaling;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::thread::ScopedJoinHandle;

/// How the forks of one machine are called among what is measured.
const SPREAD: &str = "spread";
/// The tag that makes a snapshot a base.
const BASE_TAG: &str = "base";
/// Between all hosts, as in SnowFlock's cluster.
const LINK: Link = Link {
    rate_mbit: Some(1000.0),
    delay_ms: 0.05,
    jitter_ms: 0.0,
    loss: 0.0,
};
/// The same in words.
const LINK_WORDS: &str = "1 Gb/s and 0.2 ms between them";
/// The machine that is forked.
const PARENT: &str = "m";
/// Memory of the machines that differ in nothing else.
const SMALL: &str = "512M";
const LARGE: &str = "2G";
/// What each clone fills of its memory.
const FILL_BYTES: u64 = 256 << 20;
const FILL: &str = "mkdir -p /dev/shm && mount -t tmpfs -o size=90% bench /dev/shm; cd /dev/shm; \
                    head -c 8388608 /dev/urandom > part; n=1; while [ $n -lt 32 ]; do cat part; n=$((n+1)); done > filled";

/// Hosts of a lab, of one fleet.
struct Hosts {
    origin: Site,
    others: Vec<Site>,
    /// One that starts no clones of forks: it has nothing of what they have.
    reader: Site,
}

impl Hosts {
    /// The first of them has what is carried.
    fn new(lab: &Lab, count: u32, carried: &Carried) -> Outcome<Self> {
        let origin = site(lab, "origin").map_err(failed)?;
        // Before it has a realm of its own.
        carried.bring_to(&origin, &[])?;
        Self::of_fleet(lab, count, origin).map_err(failed)
    }

    fn of_fleet(lab: &Lab, count: u32, origin: Site) -> Result<Self, BenchError> {
        origin.found_fleet()?;
        let other = |number| {
            let other = site(lab, &format!("host{number}"))?;
            origin.admit(&other)?;
            Ok(other)
        };
        let others = (1..=count).map(other).collect::<Result<Vec<_>, BenchError>>()?;
        let reader = site(lab, "reader")?;
        origin.admit(&reader)?;
        Ok(Self {
            origin,
            others,
            reader,
        })
    }

    /// Forks the machine into so many clones at so many of the hosts, with what else is said; the report.
    fn fork(&self, count: u32, hosts: usize, rest: &[&str]) -> Result<Value, BenchError> {
        let names: Vec<&str> = self.others.iter().take(hosts).map(Site::name).collect();
        let (count, on) = (count.to_string(), names.join(","));
        let args = [&["fork", PARENT, "-n", &count, "--on", &on], rest].concat();
        all_well(self.origin.run(&args)?)
    }

    /// Nothing of earlier clones is left at the hosts, nor anything that they were made from.
    fn clear(&self) -> Result<(), BenchError> {
        for site in &self.others {
            let machines = site.run(&["ps"])?;
            let names = machines.as_array().into_iter().flatten();
            let names: Vec<&str> = names.filter_map(|machine| machine["name"].as_str()).collect();
            if !names.is_empty() {
                site.run(&[&["rm", "--force"], &names[..]].concat())?;
            }
            site.run(&["gc"])?;
        }
        Ok(())
    }

    fn received_bytes(&self) -> Result<u64, BenchError> {
        self.others.iter().map(Site::received_bytes).sum()
    }

    /// Another machine takes the place of the one that is forked.
    fn boot(&self, base: &str, memory: &str, more: &[&str]) -> Result<Value, BenchError> {
        let run = ["run", base, "--name", PARENT, "--memory", memory];
        let machine = self.origin.run(&[&run, more].concat())?;
        self.origin.exec(PARENT, "sync")?;
        Ok(machine)
    }

    fn end(&self) -> Result<(), BenchError> {
        self.clear()?;
        self.origin.run(&["rm", "--force", PARENT]).map(drop)
    }
}

fn new_lab() -> Outcome<Lab> {
    Lab::new().map_err(|error| failed(BenchError::Other(error.to_string())))
}

fn site(lab: &Lab, name: &str) -> Result<Site, BenchError> {
    let program = std::env::current_exe().map_err(|error| BenchError::Other(error.to_string()))?;
    let site = Site::new(lab, name, &program)?;
    site.set_link(LINK)?;
    Ok(site)
}

/// A fork's report, if no clone failed.
fn all_well(report: Value) -> Result<Value, BenchError> {
    let mut clones = report["clones"].as_array().into_iter().flatten();
    match clones.find(|clone| !clone["problem"].is_null()) {
        Some(failed) => Err(BenchError::Other(format!(
            "a clone failed: {}",
            failed["problem"]
        ))),
        None => Ok(report),
    }
}

/// What a thread has come to.
fn joined<T>(thread: ScopedJoinHandle<'_, Result<T, BenchError>>) -> Result<T, BenchError> {
    let panicked = |_| Err(BenchError::Other("a thread panicked".into()));
    thread.join().unwrap_or_else(panicked)
}

fn number(report: &Value, of: &str) -> f64 {
    report[of].as_f64().unwrap_or(f64::NAN)
}

/// From the call until all clones run, by the clock of the host that was asked. Clones tell when they came to what by
/// their own host's, which began later: all of that time is counted.
fn all_run_ms(report: &Value) -> f64 {
    let clones = || report["clones"].as_array().into_iter().flatten();
    let last = |of: &str| {
        let times = clones().map(|clone| number(&clone["timeline"], of));
        times.fold(
            0.0,
            |last: f64, time| if time > last || time.is_nan() { time } else { last },
        )
    };
    number(report, "total_ms") - last("first_exec_ms") + last("first_instruction_ms")
}

/// Measures forks.
pub fn fork(context: &Context, args: &BenchForkArgs) -> Outcome {
    let base = args.base.as_deref();
    let more = if args.plots.is_some() {
        scaling::STEPS_A_ROUND
    } else {
        0
    };
    let steps = u64::from(args.rounds) * (7 + more) + 9; // of `spread`
    let mut bench = Bench::new(context, base, args.memory, args.rounds, steps)?;
    let mut scaling = args.plots.is_some().then(Scaling::default);
    let measured = bench.chosen(args, scaling.as_mut());
    bench.clean_up(base.is_none());
    // What was measured before something failed took long to come by.
    let answered = match (scaling, &args.plots) {
        _ if measured.is_err() && bench.figures.is_empty() => Ok(()),
        (Some(scaling), Some(dir)) => {
            plots::answer(context, bench.figures, &scaling, (&bench.conditions, dir))
        }
        _ => context.show(json!({ "figures": bench.figures }), super::table),
    };
    measured.and(answered)
}

impl Bench<'_> {
    fn chosen(&mut self, args: &BenchForkArgs, scaling: Option<&mut Scaling>) -> Outcome {
        let wants = |what: &str| args.only.iter().any(|only| only == what);
        if wants(SPREAD) {
            self.spread(args.hosts, args.clones, scaling)?;
        }
        if wants(multicast::ONLY) {
            self.multicast(args.hosts)?;
        }
        if wants(avoidance::ONLY) {
            self.avoidance(args.hosts)?;
        }
        if wants(overhead::ONLY) {
            self.overhead(args)?;
        }
        if wants(adversarial::ONLY) {
            self.adversarial(args.hosts)?;
        }
        Ok(())
    }

    /// Hosts of a lab, of which the first has a machine, run with `more` options.
    fn hosts(&mut self, lab: &Lab, count: u32, more: &[&str]) -> Outcome<(Hosts, Value)> {
        self.make_base()?;
        let carried = self.carry_snapshot(format!("{}:{BASE_TAG}", self.base))?;
        self.step("starting hosts");
        let hosts = Hosts::new(lab, count, &carried)?;
        self.step("starting the machine");
        let memory = self.memory_bytes.to_string();
        let machine = hosts.boot(&self.base, &memory, more).map_err(failed)?;
        self.conditions = format!(
            "{} guest, {} hosts of a lab on {} processors, {LINK_WORDS}, QEMU {}",
            crate::show::size(self.memory_bytes),
            hosts.others.len(),
            std::thread::available_parallelism().map_or(1, |count| count.get()),
            machine["qemu_version"].as_str().unwrap_or("?"),
        );
        Ok((hosts, machine))
    }

    /// Fills half of a machine's memory with what nobody else has.
    fn fill(&self) -> String {
        format!(
            "mkdir -p /dev/shm; grep -q '^bench /dev/shm' /proc/mounts || mount -t tmpfs -o size=90% bench /dev/shm; \
             dd if=/dev/urandom of=/dev/shm/load bs=1M count={} 2>/dev/null; sync",
            self.memory_bytes >> 21
        )
    }

    fn spread(&mut self, hosts: u32, clones: u32, scaling: Option<&mut Scaling>) -> Outcome {
        let lab = new_lab()?;
        let (hosts, machine) = self.hosts(&lab, hosts, &[])?;
        self.filling(&hosts, clones).map_err(failed)?;
        self.against_copies(&hosts, &machine, clones, scaling)?;
        self.fetches(&hosts)?;
        hosts.end().map_err(failed)?;
        self.by_memory(&hosts, clones).map_err(failed)
    }

    /// Bytes that go for clones which fill memory of theirs. The parent is one that has just booted.
    fn filling(&mut self, hosts: &Hosts, clones: u32) -> Result<(), BenchError> {
        let mut bytes = Samples::new();
        self.step("clones that fill memory");
        // Once: after it the hosts have what has come.
        let before = hosts.received_bytes()?;
        hosts.fork(clones, hosts.others.len(), &["--", "sh", "-c", FILL])?;
        let came_bytes = hosts.received_bytes()? - before;
        bytes.add(came_bytes as f64, f64::from(clones) * self.memory_bytes as f64);
        hosts.clear()?;
        let conditions = format!(
            "{}; each of {clones} clones fills {} MiB, and what else its host lacks comes behind",
            self.conditions,
            FILL_BYTES >> 20
        );
        self.figures
            .extend(bytes.figure("fork_bytes", "bytes", "the memory of all clones", &conditions));
        Ok(())
    }

    /// Half of the memory is in use: forks beside copies of QEMU's own image of the same.
    fn against_copies(
        &mut self,
        hosts: &Hosts,
        machine: &Value,
        clones: u32,
        scaling: Option<&mut Scaling>,
    ) -> Outcome {
        self.step("filling memory");
        let fill = self.fill();
        let pid = machine["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let recipe = Recipe::of(pid.ok_or_else(super::no_qemu)?).map_err(failed)?;
        let image = self.suspended_image(&recipe, &fill)?;
        let mut measure = || -> Result<_, BenchError> {
            hosts.origin.exec(PARENT, &fill)?;
            let [mut remote, mut worked, mut descriptor, mut pause] = [(); 4].map(|()| Samples::new());
            for round in 0..self.rounds {
                self.step("a fork to one host");
                let one = hosts.fork(1, 1, &[])?;
                hosts.clear()?;
                self.step("a fork to all hosts");
                let all = hosts.fork(clones, hosts.others.len(), &[])?;
                hosts.clear()?;
                self.step("copies of the image");
                let copied_ms = copy_to_all(&image, &hosts.origin, &hosts.others)?;
                if round == 0 {
                    // Later the host has nearly all of it.
                    descriptor.add(number(&one, "sent_bytes"), self.memory_bytes as f64);
                }
                pause.add(number(&all, "pause_ms"), number(&one, "pause_ms"));
                remote.add(all_run_ms(&all), copied_ms);
                worked.add(number(&all, "total_ms"), copied_ms);
            }
            Ok([descriptor, remote, worked, pause])
        };
        let [descriptor, remote, worked, pause] = measure().map_err(failed)?;
        if let Some(scaling) = scaling {
            let how_much = (clones, self.rounds);
            let measured = scaling.measure(hosts, &image, how_much, &mut |stage| self.step(stage));
            measured.map_err(failed)?;
        }
        let image_bytes = std::fs::metadata(&image).map_or(0, |image| image.len());
        let _ = std::fs::remove_file(&image); // its directory goes too
        let half = format!(
            "{}; half of the memory in use, the image takes {}; {clones} clones, until each runs, or has executed a command",
            self.conditions,
            crate::show::size(image_bytes)
        );
        self.conditions = half;
        self.keep(&descriptor, "descriptor_size", "bytes", "the guest's memory");
        let copies = "QEMU's image copied to all hosts";
        self.keep(&remote, "fork_remote", "ms", copies);
        self.keep(&worked, "fork_remote_exec", "ms", copies);
        self.keep(&pause, "fork_pause", "ms", "one clone");
        Ok(())
    }

    /// Single pages that a clone reads of its parent's host.
    fn fetches(&mut self, hosts: &Hosts) -> Outcome {
        let tag = |(_, tag)| tag;
        let tag = fault::SNAPSHOT.split_once(':').map(tag).unwrap_or_default();
        let checkpoint = hosts.origin.run(&["checkpoint", PARENT, "--tag", tag]);
        checkpoint.map_err(failed)?;
        self.faults("fork_fetch", &hosts.origin, &hosts.reader)
    }

    /// What a stock QEMU with the same in its memory writes when it is suspended.
    fn suspended_image(&mut self, recipe: &Recipe, fill: &str) -> Outcome<PathBuf> {
        self.step("suspending a stock QEMU");
        let stock = self.boot_stock(recipe)?;
        let image = recipe.file("suspended");
        stock
            .exec(fill)
            .and_then(|()| stock.save(&image, false))
            .map_err(failed)?;
        Ok(image)
    }

    /// Forks of machines that differ in the size of their memory alone.
    fn by_memory(&mut self, hosts: &Hosts, clones: u32) -> Result<(), BenchError> {
        let mut by_memory = Samples::new();
        let mut times = Vec::new();
        for memory in [SMALL, LARGE] {
            self.step("a fork by memory");
            hosts.boot(&self.base, memory, &[])?;
            let mut took = Vec::new();
            for _ in 0..self.rounds {
                took.push(all_run_ms(&hosts.fork(clones, hosts.others.len(), &[])?));
                hosts.clear()?;
            }
            hosts.end()?;
            times.push(took);
        }
        if let [small, large] = &times[..] {
            large
                .iter()
                .zip(small)
                .for_each(|(large, small)| by_memory.add(*large, *small));
        }
        let conditions = format!("{}; {LARGE} against {SMALL}, just booted", self.conditions);
        self.figures
            .extend(by_memory.figure("fork_remote_by_ram", "ms", SMALL, &conditions));
        Ok(())
    }
}
