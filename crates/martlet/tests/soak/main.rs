//! A soak: up to 16 machines on which for minutes all kinds of things happen at random, while daemon, keeper and QEMUs are
//! killed and the disk is full or stalls. No byte may be wrong, no snapshot lost, nothing left at the end.
//!
//! `script/soak [MINUTES] [--json]` runs it. `SOAK_SEED` repeats the choices of an earlier run, as far as what comes of
//! them repeats; `SOAK_MACHINES` says how many machines at most.
//!
//! ```text
//!   driver: choose ──► do, with a fault ──► list ──► reconcile with the model ──► read guests ──► again
//!   ending: verify, resume every machine and snapshot, remove everything, look for what is left
//! ```

mod command;
mod content;
#[allow(dead_code)] // other tests use more of it
#[path = "../real/daemon.rs"]
mod daemon;
#[allow(dead_code)] // other tests use more of it
#[path = "../real/deadline.rs"]
mod deadline;
mod driver;
mod ending;
mod fault;
#[allow(dead_code)] // other tests use more of it
#[path = "../real/fixture.rs"]
mod fixture;
mod model;
mod operation;
mod random;
mod report;
mod room;

use daemon::Daemon;
use driver::{Discrepancy, Driver};
use ending::Files;
use fixture::Fixture;
use operation::{Limits, Numbers};
use random::Random;
use report::Report;
use room::Room;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const MINUTES: f64 = 30.0;
const MACHINES_MOST: usize = 16;
const SNAPSHOTS_MOST: usize = 24;
/// A machine takes this much of the host's memory, and so many share a processor.
const MACHINE_BYTES: u64 = 300 << 20;
const MACHINES_PER_CPU: usize = 8;
/// Base and snapshot that all comes from.
const BASE: &str = "tiny";
const SNAPSHOT: &str = "tiny0:booted";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let is_json = args.iter().any(|arg| arg == "--json");
    let minutes = args.iter().find(|arg| !arg.starts_with('-'));
    let Ok(minutes) = minutes.map_or(Ok(MINUTES), |minutes| minutes.parse::<f64>()) else {
        eprintln!("usage: soak [MINUTES] [--json]");
        return ExitCode::from(2);
    };
    let time = Duration::from_secs_f64(minutes.max(0.0) * 60.0);
    let seed = number("SOAK_SEED").unwrap_or_else(|| u64::from(std::process::id()) ^ unix_seconds() << 16);
    let mut report = Report::new(seed, is_json);
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-{seed}"));
    std::fs::create_dir_all(&logs).expect("cargo's directory for what tests make takes another");

    let ended = soak(&mut report, time, &logs);
    report.show(ended.as_ref().err().map(String::as_str));
    match ended {
        Ok(()) => {
            let _ = std::fs::remove_dir_all(&logs);
            report.say("soak: ok");
            ExitCode::SUCCESS
        }
        Err(discrepancy) => {
            report.say(&format!(
                "soak: FAILED in step {} of seed {seed}: {discrepancy}\nwhat was done, and the logs: {}",
                report.steps,
                logs.display()
            ));
            ExitCode::FAILURE
        }
    }
}

fn soak(report: &mut Report, time: Duration, logs: &Path) -> Result<(), Discrepancy> {
    let daemon = Daemon::with_limit("the soak", time * 3 + Duration::from_secs(1200));
    let room = Room::mount(daemon.state_dir());
    // What an empty state has.
    daemon.ok(&["gc"]);
    daemon.ok(&["daemon", "stop"]);
    let empty = Files::of(&daemon);
    Fixture::Tiny.copy_to(daemon.state_dir());
    // Downloads: only building a base needs them.
    let _ = std::fs::remove_dir_all(daemon.state_dir().join("cache"));

    let limits = Limits {
        machines: number("SOAK_MACHINES").map_or_else(machines_most, |number| number as usize),
        snapshots: SNAPSHOTS_MOST,
    };
    report.say(&format!(
        "soak: seed {}, {} s, at most {} machines; slow disk: {}",
        report.seed,
        time.as_secs(),
        limits.machines,
        match room.can_stall {
            true => "writes to the file system stall (fsfreeze), martletd stands still (SIGSTOP)",
            false => "martletd stands still (SIGSTOP); there is no loop device whose file system could stall",
        }
    ));
    let mut driver = Driver {
        daemon: &daemon,
        room: &room,
        limits,
        random: Random::new(report.seed),
        model: Default::default(),
        report: std::mem::replace(report, Report::new(report.seed, false)),
        log: File::create(logs.join("steps.log")).expect("the directory was just made"),
        kept: SNAPSHOT.into(),
        numbers: Numbers::default(),
        world: Default::default(),
    };
    let ended = run(&mut driver, time, &empty);
    *report = driver.report;
    if ended.is_err() {
        keep_logs(&daemon, logs);
    }
    ended
}

fn run(driver: &mut Driver<'_>, time: Duration, empty: &Files) -> Result<(), Discrepancy> {
    driver.report.begin();
    driver.begin()?;
    while driver.report.elapsed() < time {
        driver.step()?;
    }
    driver.verify_all()?;
    driver.remove_all(BASE, empty)
}

/// Logs of daemon, keeper and machines, for whoever looks for the cause.
fn keep_logs(daemon: &Daemon, logs: &Path) {
    let machines = std::fs::read_dir(daemon.state_dir().join("machines"));
    let runs = machines
        .into_iter()
        .flatten()
        .flatten()
        .map(|machine| machine.path().join("run"));
    let dirs: Vec<PathBuf> = runs.chain([daemon.state_dir().to_owned()]).collect();
    for dir in dirs {
        let id = dir
            .parent()
            .and_then(Path::file_name)
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        for file in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            if name.ends_with(".log") {
                let _ = std::fs::copy(file.path(), logs.join(format!("{id}-{name}")));
            }
        }
    }
}

/// As many as this host carries.
fn machines_most() -> usize {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = available
        .and_then(|words| words.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0);
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    let by_memory = (kib << 10).div_euclid(MACHINE_BYTES) as usize;
    MACHINES_MOST.min(by_memory).min(cpus * MACHINES_PER_CPU).max(2)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn unix_seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
