//! `martlet bench interrupted`: pushes, pulls and suspends that are interrupted and continued, between two hosts of a lab.
//!
//! ```text
//!   a case ──► interrupted: killed, cut, full ──► continued until it ends ──► compared with what it was ──► cleared away
//! ```

use super::carried::Carried;
use super::{Bench, failed};
use crate::cli::BenchInterruptedArgs;
use crate::commands::Context;
use crate::failure::{Failure, Outcome};
use crate::show;
use martlet_api::{Problem, ProblemCode};
use martlet_bench::BenchError;
use martlet_bench::interrupted::{Case, End, Interruption, Operation, Report, plan};
use martlet_bench::roam::{Bucket, Site, SmallDisk};
use martlet_lab::{Lab, Link};
use serde_json::{Value, json};
use std::process::Child;
use std::time::{Duration, Instant};

const MEMORY_BYTES: u64 = 96 << 20;
/// Slow enough that there is a middle of a transfer.
const LINK: Link = Link {
    rate_mbit: Some(400.0),
    delay_ms: 1.0,
    jitter_ms: 0.0,
    loss: 0.0,
};
const DISK_MIB: u64 = 2048;
const SHELF_MIB: u64 = 256;
/// So long is a link cut.
const CUT: Duration = Duration::from_millis(800);
/// What is interrupted ends after this time, one way or the other.
const PATIENCE: Duration = Duration::from_secs(120);
/// So often is tried to continue.
const TRIES_MAX: usize = 10;
const TRY_EVERY: Duration = Duration::from_millis(300);
/// What the machine has that is new when it is suspended.
const CHANGED_BYTES: u64 = 2_000_000;
const QUIET: &str = "mkdir -p /dev/shm && mount -t tmpfs -o size=50% bench /dev/shm 2>/dev/null; \
    mount -o remount,noatime / && sync";

/// Interrupts, continues and compares.
pub fn interrupted(context: &Context, args: &BenchInterruptedArgs) -> Outcome {
    super::roam::check_installed()?;
    let base = args.base.as_deref();
    let times = args.times as usize;
    let mut bench = Bench::new(context, base, MEMORY_BYTES, 1, times as u64 + 4)?;
    let done = bench.interrupted(times, args.seed);
    bench.clean_up(base.is_none());
    let report = done?;
    context.show(json!(report), table)?;
    match report.is_good() {
        true => Ok(()),
        false => Err(Failure::new(
            ProblemCode::Damaged,
            "not everything went on and stayed whole",
        )),
    }
}

fn table(report: Report) -> String {
    let word = |value: Value| value.as_str().unwrap_or_default().replace('_', " ");
    let rows = report.kinds.iter().map(|tally| {
        [
            word(serde_json::to_value(tally.operation).unwrap_or_default()),
            word(serde_json::to_value(tally.interruption).unwrap_or_default()),
            tally.times.to_string(),
            tally.failed_first.to_string(),
            tally.went_on.to_string(),
            tally.corrupt.to_string(),
        ]
    });
    let heads = [
        "OPERATION",
        "INTERRUPTION",
        "TIMES",
        "FAILED FIRST",
        "WENT ON",
        "CORRUPT",
    ];
    format!(
        "{}\n{} interrupted, {} failed of it, {} went on, {} corrupt; seed {}\n",
        show::table(heads, rows),
        report.times,
        report.failed_first,
        report.went_on,
        report.corrupt,
        report.seed
    )
}

impl Bench<'_> {
    fn interrupted(&mut self, times: usize, seed: u64) -> Outcome<Report> {
        self.make_base()?;
        self.step("starting the machine");
        let machine = self.start(&self.machine.clone(), self.memory_bytes)?;
        self.made.clear();
        self.guest(QUIET)?;
        self.step("bringing the machine to a lab");
        let carried = self.carry(&machine)?;
        let lab = Lab::new().map_err(|error| failed(BenchError::Other(error.to_string())))?;
        let mut trials = Trials::new(&lab, carried)?;
        self.step("each operation without interruption");
        trials.measure().map_err(failed)?;
        let mut report = Report::new(seed);
        for (number, case) in plan(times, seed).iter().enumerate() {
            self.step(&format!("{:?}, {:?}", case.operation, case.interruption));
            let end = trials.run(number, case).map_err(|error| {
                Problem::new(
                    ProblemCode::Internal,
                    format!("case {number} of seed {seed}, {case:?}"),
                )
                .cause(error)
            })?;
            report.add(case, &end);
            if let Err(words) = end.went_on {
                // What is half done would be in the way of the next.
                report.stopped_by = Some(format!("case {number}, {case:?}: {words}"));
                break;
            }
        }
        Ok(report)
    }
}

/// Two hosts and what is between them.
struct Trials {
    home: Site,
    away: Site,
    bucket: Bucket,
    /// A directory that is a remote, where it may be full.
    shelf: SmallDisk,
    _shelf_dir: tempfile::TempDir,
    /// What is pushed and pulled.
    snapshot: String,
    id: Value,
    usual: Usual,
}

/// The answer to what was continued, or the words with which it failed to the end.
type Continued = Result<Value, String>;

/// What operations take when nothing interrupts them.
#[derive(Default)]
struct Usual {
    push: Duration,
    pull: Duration,
    suspend: Duration,
    pulled_bytes: u64,
}

impl Trials {
    /// The machine `w` runs at home, the other host has nothing.
    fn new(lab: &Lab, carried: Carried) -> Outcome<Self> {
        let program =
            std::env::current_exe().map_err(|error| Failure::io("cannot find this program", error))?;
        let site = |name| Site::on_small_disk(lab, name, &program, DISK_MIB).map_err(failed);
        let (home, away) = (site("home")?, site("away")?);
        carried.bring_to(&home, &[&away])?;
        let shelf_dir = tempfile::tempdir().map_err(|error| Failure::io("cannot make a directory", error))?;
        let shelf = SmallDisk::mount(shelf_dir.path(), SHELF_MIB).map_err(failed)?;
        let bucket = Bucket::start(lab).map_err(failed)?;
        let prepare = || {
            home.set_link(LINK)?;
            away.set_link(LINK)?;
            for site in [&home, &away] {
                bucket.add_to(site, "bucket", "snapshots")?;
            }
            home.run(&["run", &carried.name, "--name", "w"])?;
            home.run(&["push", &carried.name, "bucket"])
        };
        let pushed = prepare().map_err(failed)?;
        Ok(Self {
            id: pushed["snapshot"].clone(),
            snapshot: carried.name.clone(),
            home,
            away,
            bucket,
            shelf,
            _shelf_dir: shelf_dir,
            usual: Usual::default(),
        })
    }

    /// How long each takes.
    fn measure(&mut self) -> Result<(), BenchError> {
        self.bucket.add_to(&self.home, "usual", "usual")?;
        let begun = Instant::now();
        self.home.run(&["push", &self.snapshot, "usual"])?;
        self.usual.push = begun.elapsed();
        let begun = Instant::now();
        let pulled = self.away.run(&["pull", "bucket", &self.snapshot])?;
        self.usual.pull = begun.elapsed();
        self.usual.pulled_bytes = pulled["moved_bytes"].as_u64().unwrap_or_default();
        self.empty_away()?;
        self.change_machine(usize::MAX)?;
        let begun = Instant::now();
        self.home.run(&["suspend", "w"])?;
        self.usual.suspend = begun.elapsed();
        self.home.run(&["resume", "w"]).map(drop)
    }

    fn run(&self, number: usize, case: &Case) -> Result<End, BenchError> {
        match case.operation {
            Operation::Push => self.push(number, case),
            Operation::Pull => self.pull(case),
            Operation::Suspend => self.suspend(number, case),
        }
    }

    fn push(&self, number: usize, case: &Case) -> Result<End, BenchError> {
        let remote = format!("push{number}");
        let dir = self.shelf.path().join(&remote);
        for site in [&self.home, &self.away] {
            match case.interruption {
                Interruption::DiskFull => {
                    site.run(&["remote", "add", &remote, &dir.to_string_lossy()])?;
                }
                _ => self.bucket.add_to(site, &remote, &remote)?,
            }
        }
        let args = ["push", &self.snapshot, &remote];
        let room = (&self.shelf, self.usual.pulled_bytes);
        let failed_first = interrupt(case, &self.home, &args, self.usual.push, room)?;
        let pushed = goes_on(&self.home, &args)?;
        let pulled = match &pushed {
            Ok(_) => goes_on(&self.away, &["pull", &remote, &self.snapshot])?,
            Err(words) => Err(words.clone()),
        };
        let is_whole = self.is_whole(&pulled)?;
        if pulled.is_ok() {
            self.empty_away()?;
        }
        for site in [&self.home, &self.away] {
            site.run(&["remote", "rm", &remote])?;
        }
        let _ = std::fs::remove_dir_all(dir); // it may be no directory
        Ok(End {
            failed_first,
            went_on: pushed.map(drop),
            is_whole,
        })
    }

    fn pull(&self, case: &Case) -> Result<End, BenchError> {
        let args = ["pull", "bucket", &self.snapshot];
        let room = (disk_of(&self.away)?, self.usual.pulled_bytes);
        let failed_first = interrupt(case, &self.away, &args, self.usual.pull, room)?;
        let pulled = goes_on(&self.away, &args)?;
        let is_whole = self.is_whole(&pulled)?;
        if pulled.is_ok() {
            self.empty_away()?;
        }
        Ok(End {
            failed_first,
            went_on: pulled.map(drop),
            is_whole,
        })
    }

    fn suspend(&self, number: usize, case: &Case) -> Result<End, BenchError> {
        self.change_machine(number)?;
        let room = (disk_of(&self.home)?, CHANGED_BYTES * 2);
        let failed_first = interrupt(case, &self.home, &["suspend", "w"], self.usual.suspend, room)?;
        let went_on = match self.is_suspended_in_the_end()? {
            Ok(()) => goes_on(&self.home, &["resume", "w"])?.map(drop),
            Err(words) => Err(words),
        };
        let check = format!("grep -qx {number} /dev/shm/number && sha256sum -c -s /dev/shm/sums");
        let is_whole = went_on.is_ok() && self.home.exec("w", &check).is_ok() && is_undamaged(&self.home)?;
        Ok(End {
            failed_first,
            went_on,
            is_whole,
        })
    }

    /// Something new in the machine's memory and on its disk, by which it is known whether it is the newest.
    fn change_machine(&self, number: usize) -> Result<(), BenchError> {
        let change = format!(
            "echo {number} >/dev/shm/number; head -c {CHANGED_BYTES} /dev/urandom >/dev/shm/new; cp /dev/shm/new /new; \
             sha256sum /new /dev/shm/new >/dev/shm/sums; sync"
        );
        self.home.exec("w", &change)
    }

    /// It may be so already: the daemon goes on without the command that asked for it.
    fn is_suspended_in_the_end(&self) -> Result<Result<(), String>, BenchError> {
        let mut last = String::new();
        for _ in 0..TRIES_MAX {
            if let Err(words) = self.home.attempt(&["suspend", "w"])? {
                last = words; // it may be suspended
            }
            if self.home.run(&["inspect", "w"])?["state"] == "suspended" {
                return Ok(Ok(()));
            }
            std::thread::sleep(TRY_EVERY);
        }
        Ok(Err(last))
    }

    /// Is what was pulled the snapshot, and all of it there and as it was?
    fn is_whole(&self, pulled: &Continued) -> Result<bool, BenchError> {
        let is_it = pulled.as_ref().is_ok_and(|pulled| pulled["snapshot"] == self.id);
        Ok(is_it && is_undamaged(&self.away)?)
    }

    fn empty_away(&self) -> Result<(), BenchError> {
        self.away.run(&["rmi", &self.snapshot])?;
        self.away.run(&["gc"]).map(drop)
    }
}

fn disk_of(site: &Site) -> Result<&SmallDisk, BenchError> {
    site.disk()
        .ok_or_else(|| BenchError::Other("a site has no disk of its own".into()))
}

fn is_undamaged(site: &Site) -> Result<bool, BenchError> {
    let verified = site.run(&["verify"])?;
    Ok(verified["damaged"]
        .as_array()
        .is_some_and(|damaged| damaged.is_empty()))
}

/// Starts an operation at a site and interrupts it: did it fail? `room`: the disk where it writes, and what it needs there.
fn interrupt(
    case: &Case,
    site: &Site,
    args: &[&str],
    usual: Duration,
    (disk, needed_bytes): (&SmallDisk, u64),
) -> Result<bool, BenchError> {
    let _ballast = match case.interruption {
        Interruption::DiskFull => Some(disk.fill_up((needed_bytes as f64 * case.moment) as u64)?),
        _ => None,
    };
    let mut child = site.spawn(args)?;
    if case.interruption != Interruption::DiskFull {
        std::thread::sleep(usual.mul_f64(case.moment));
    }
    match case.interruption {
        Interruption::DaemonKilled => site.kill_daemon()?,
        Interruption::ClientKilled => {
            let _ = child.kill(); // it may have ended
        }
        Interruption::LinkCut => {
            site.cut()?;
            std::thread::sleep(CUT);
            site.mend()?;
        }
        Interruption::DiskFull => {}
    }
    Ok(!has_succeeded(child)?)
}

fn has_succeeded(mut child: Child) -> Result<bool, BenchError> {
    let until = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            ended => {
                let _ = child.kill();
                let _ = child.wait();
                return match ended {
                    Ok(_) => Ok(false),
                    Err(error) => Err(BenchError::Other(format!(
                        "a command cannot be waited for: {error}"
                    ))),
                };
            }
        }
    }
}

/// Does it again until it succeeds; its answer, or why it never does.
fn goes_on(site: &Site, args: &[&str]) -> Result<Continued, BenchError> {
    let mut last = Err(String::new());
    for _ in 0..TRIES_MAX {
        last = site.attempt(args)?;
        if last.is_ok() {
            break;
        }
        std::thread::sleep(TRY_EVERY);
    }
    Ok(last)
}
