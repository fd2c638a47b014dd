//! `martlet bench dead`: ways to keep what a guest does not need any more out of its checkpoints, one beside the other.
//!
//! In each round each way has a machine of its own, started from one snapshot, and is compared with the way that keeps
//! everything. Each round begins with another way.
//!
//! ```text
//! start ─ the way's setting ─ allocate, free, allocate again (timed) ─ load: write, free, delete ─ settle
//!                                            ─ checkpoint ─ a clone of it: first command, then fills free memory
//! ```

use super::{Bench, dead_stock, failed, no_qemu};
use crate::cli::BenchDeadArgs;
use crate::commands::{Context, understood};
use crate::failure::{Failure, Outcome};
use martlet_api::*;
use martlet_bench::{BenchError, Recipe, Samples, usage};
use serde_json::json;
use std::time::{Duration, Instant};

/// What the guest writes on its disk fits beside the base.
const DISK_BYTES: u64 = 1 << 30;
/// The counter of what was read from the store, decompressed.
const FETCHED: &str = "martlet_pager_fetched_bytes_total ";

/// One way.
struct Way {
    name: &'static str,
    /// Makes the guest go it.
    setting: &'static str,
    trim: bool,
    drop_caches: bool,
}

/// Nobody hears of free pages when the guest has no driver for its balloon.
pub(super) const SILENT: &str =
    "cd /sys/bus/virtio/drivers/virtio_balloon; for device in virtio*; do echo $device > unbind; done";
/// What is compared with the others.
const NONE: Way = way("none", SILENT);
const WAYS: [Way; 8] = [
    NONE,
    way("reporting", REPORT_2M),
    way("reporting_64k", "echo 4 > $ORDER"),
    way("reporting_4k", "echo 0 > $ORDER"),
    Way {
        drop_caches: true,
        ..way("drop_caches", REPORT_2M)
    },
    Way {
        trim: true,
        ..way("trim", REPORT_2M)
    },
    way("online_discard", "echo 9 > $ORDER; mount -o remount,discard /"),
    Way {
        trim: true,
        drop_caches: true,
        ..way("all", "echo 0 > $ORDER")
    },
];
/// A kernel's own choice, where it is not told otherwise: free blocks of 2 MiB and more are reported.
const REPORT_2M: &str = "echo 9 > $ORDER";
/// Free blocks of fewer than two to this power pages are not reported.
const ORDER: &str = "ORDER=/sys/module/page_reporting/parameters/page_reporting_order";

const fn way(name: &'static str, setting: &'static str) -> Way {
    Way {
        name,
        setting,
        trim: false,
        drop_caches: false,
    }
}

/// A value of one round, and its unit.
pub(super) type Reading = (&'static str, &'static str, f64);

/// Measures what becomes of free memory, page cache and free disk blocks.
pub fn dead(context: &Context, args: &BenchDeadArgs) -> Outcome {
    let steps = u64::from(args.rounds) * (WAYS.len() + dead_stock::WAYS.len()) as u64 + 2;
    let base = args.base.as_deref();
    let mut bench = Bench::new(context, base, args.memory, args.rounds, steps)?;
    let measured = bench.dead(Duration::from_secs(args.settle));
    bench.clean_up(base.is_none());
    measured?;
    context.show(json!({ "figures": bench.figures }), super::table)
}

impl Bench<'_> {
    fn dead(&mut self, settle: Duration) -> Outcome {
        self.make_base()?;
        self.step("booting");
        let booted = self.start_with_disk(&self.machine.clone(), &self.base.clone())?;
        self.guest("mkdir -p /dev/shm && mount -t tmpfs -o size=90% bench /dev/shm 2>/dev/null; sync")?;
        let recipe = Recipe::of(booted.pid.ok_or_else(no_qemu)?).map_err(failed)?;
        let report: CheckpointReport = understood(self.machine_verb("checkpoint", &json!({}))?)?;
        self.conditions = format!(
            "{}; free memory has {} s to be reported",
            self.host(&booted),
            settle.as_secs()
        );
        self.remove_made();
        self.dead_here(&report.reference, settle)?;
        self.dead_stock(&recipe, settle)
    }

    fn dead_here(&mut self, booted: &str, settle: Duration) -> Outcome {
        let mut all = WAYS.each_ref().map(|way| Compared::new(way.name));
        for round in 0..self.rounds {
            let mut readings = WAYS.each_ref().map(|_| Vec::new());
            for turn in 0..WAYS.len() {
                let turn = (turn + round) % WAYS.len();
                readings[turn] = self.go(&WAYS[turn], booted, settle)?;
            }
            for (compared, ours) in all.iter_mut().zip(&readings) {
                compared.add(ours, &readings[0]);
            }
        }
        for compared in all.into_iter().skip(1) {
            self.keep_compared(compared, "nothing given up");
        }
        Ok(())
    }

    /// One way, once.
    fn go(&mut self, way: &Way, booted: &str, settle: Duration) -> Outcome<Vec<Reading>> {
        self.step(way.name);
        let name = format!("{}-{}", self.machine, way.name.replace('_', "-"));
        self.wait_for_pool()?;
        let machine = self.start_with_disk(&name, booted)?;
        let cpu_ms = || {
            let usage = machine.pid.and_then(usage::of);
            usage.map_or(f64::NAN, |usage| usage.cpu.as_secs_f64() * 1e3)
        };
        self.exec_in(&name, &format!("{ORDER}; {}", way.setting))?;
        let allocate = self.allocate_line();
        self.exec_in(&name, &allocate)?;
        std::thread::sleep(settle);
        let allocate_ms = timed(|| self.exec_in(&name, &allocate))?;
        let cpu_before_ms = cpu_ms();
        let load_ms = timed(|| self.exec_in(&name, &self.load_line()))?;
        std::thread::sleep(settle);
        let request = json!({ "trim": way.trim, "drop_caches": way.drop_caches });
        let path = format!("/v1/machines/{name}/checkpoint");
        let report: CheckpointReport = understood(self.act(&path, &request)?)?;
        let cpu_ms = cpu_ms() - cpu_before_ms;
        let path = format!("/v1/diff?from={booted}&to={}", report.reference);
        let diff: SnapshotDiff = understood(self.client.get(&path)?)?;
        let new_bytes = |image: ImageDiff| (image.changed_bytes + image.added_bytes) as f64;
        let mut readings = vec![
            ("stored", "bytes", report.stored_bytes as f64),
            ("memory_new", "bytes", new_bytes(diff.memory)),
            ("disk_new", "bytes", new_bytes(diff.disk)),
            ("private", "bytes", report.private_bytes as f64),
            ("pause", "ms", report.pause_ms),
            ("allocate", "ms", allocate_ms),
            ("load", "ms", load_ms),
            ("qemu_cpu", "ms", cpu_ms),
        ];
        if way.trim || way.drop_caches {
            readings.push(("give_up", "ms", report.give_up_ms));
        }
        self.remove_made();
        readings.extend(self.clone_of(&report.reference)?);
        self.client
            .delete(&format!("/v1/snapshots/{}", report.reference))?;
        Ok(readings)
    }

    /// What a clone reads from the store.
    fn clone_of(&mut self, reference: &str) -> Outcome<[Reading; 3]> {
        self.wait_for_pool()?;
        let before = self.fetched_bytes()?;
        let name = format!("{}-clone", self.machine);
        self.start_with_disk(&name, reference)?;
        let executed = self.fetched_bytes()?;
        let fill = format!(
            "dd if=/dev/zero of=/dev/shm/fill bs=1M count={} 2>/dev/null",
            self.memory_bytes >> 23
        );
        let fill_ms = timed(|| self.exec_in(&name, &fill))?;
        let filled = self.fetched_bytes()?;
        self.remove_made();
        Ok([
            ("clone_exec_fetched", "bytes", executed - before),
            ("clone_fill_fetched", "bytes", filled - executed),
            ("clone_fill", "ms", fill_ms),
        ])
    }

    fn start_with_disk(&mut self, name: &str, from: &str) -> Outcome<MachineInfo> {
        let mut request = json!({ "from": from, "name": name });
        if from == self.base {
            request["memory_bytes"] = self.memory_bytes.into();
            request["disk_bytes"] = DISK_BYTES.into();
        }
        let machine = understood(self.act("/v1/machines", &request)?)?;
        self.made.push(name.to_owned());
        Ok(machine)
    }

    fn fetched_bytes(&self) -> Outcome<f64> {
        let mut text = Vec::new();
        self.client.download("/metrics", |chunk| {
            text.extend_from_slice(&chunk);
            Ok(true)
        })?;
        String::from_utf8_lossy(&text)
            .lines()
            .find_map(|line| line.strip_prefix(FETCHED)?.parse().ok())
            .ok_or_else(|| {
                failed(BenchError::Other(
                    "the daemon does not say what it has fetched".into(),
                ))
            })
    }

    /// Allocates a quarter of memory and frees it.
    pub(super) fn allocate_line(&self) -> String {
        let mib = self.memory_bytes >> 22;
        format!("dd if=/dev/zero of=/dev/shm/allocated bs=1M count={mib} 2>/dev/null; rm /dev/shm/allocated")
    }

    /// A quarter of memory in one piece, and two sixteenths page by page in turn of which one stays, so that what the other
    /// leaves lies between pages that are used; as much on the disk that stays, and is in the page cache, and as much that
    /// does not stay. All is freed at the end, so that nothing lies where something else was.
    pub(super) fn load_line(&self) -> String {
        let (large, small) = (self.memory_bytes >> 22, self.memory_bytes >> 24);
        let random =
            |file: &str, mib: u64| format!("dd if=/dev/urandom of={file} bs=1M count={mib} 2>/dev/null");
        format!(
            "cd /dev/shm; {}; \
             dd if=/dev/urandom bs=1M count={small} 2>/dev/null | tee kept | tr '\\000-\\376' '\\001-\\377' > freed; \
             {}; {}; sync; rm large freed /deleted; sync",
            random("large", large),
            random("/stays", small),
            random("/deleted", small),
        )
    }

    /// The figures of one way.
    pub(super) fn keep_compared(&mut self, compared: Compared, against: &str) {
        for (name, unit, samples) in compared.samples {
            self.keep(&samples, &format!("{}_{name}", compared.way), unit, against);
        }
    }
}

/// All rounds of one way beside the way that keeps everything.
pub(super) struct Compared {
    way: &'static str,
    samples: Vec<(&'static str, &'static str, Samples)>,
}

impl Compared {
    pub(super) fn new(way: &'static str) -> Self {
        Self {
            way,
            samples: Vec::new(),
        }
    }

    /// A round. What only this way has a value for is compared with what the other's load took, or with what it stored.
    pub(super) fn add(&mut self, ours: &[Reading], theirs: &[Reading]) {
        let value = |name: &str| theirs.iter().find(|reading| reading.0 == name);
        for (name, unit, ours) in ours {
            let instead = if *unit == "ms" { "load" } else { "stored" };
            let theirs = value(name)
                .or_else(|| value(instead))
                .map_or(f64::NAN, |reading| reading.2);
            let at = self.samples.iter().position(|(known, ..)| known == name);
            let at = at.unwrap_or_else(|| {
                self.samples.push((name, unit, Samples::new()));
                self.samples.len() - 1
            });
            self.samples[at].2.add(*ours, theirs);
        }
    }
}

/// Milliseconds that it took.
pub(super) fn timed<E: Into<Failure>>(work: impl FnOnce() -> Result<(), E>) -> Outcome<f64> {
    let begun = Instant::now();
    work().map_err(Into::into)?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}
