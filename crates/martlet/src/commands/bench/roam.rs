//! `martlet bench roam`: a machine that follows its user over links of a lab, by each policy.

use super::{Bench, failed};
use crate::cli::BenchRoamArgs;
use crate::commands::Context;
use crate::failure::{Failure, Outcome};
use martlet_api::{MachineInfo, Problem, ProblemCode};
use martlet_bench::roam::{Bucket, Site, missing};
use martlet_bench::{BenchError, Recipe, Samples};
use martlet_lab::{Lab, Link};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

mod behind;
pub(super) mod fault;
mod moves;

/// The links of sessions, as they are called in the figures, by rate and round-trip time.
const LINKS: [(&str, f64, f64); 3] = [("100", 100.0, 0.0), ("20", 20.0, 20.0), ("5", 5.0, 50.0)];
/// What a guest has in memory and on disk when it is suspended: text of random bytes, which halves when compressed.
const FILL: &str = "mkdir -p /dev/shm && mount -t tmpfs -o size=90% bench /dev/shm 2>/dev/null; \
    fill() { dd if=/dev/urandom bs=64k count=$2 2>/dev/null | od -An -v -tx1 | head -c $(($2 * 65536)) > $1; }; \
    for n in 0 1 2 3 4 5 6 7 8 9; do fill /dev/shm/hot$n 8; done; \
    fill /dev/shm/cold 512; fill /cold 256; sync";
/// One interactive step: something is read, something is written. Then the user thinks.
const THINK: Duration = Duration::from_secs(1);
const STEPS: usize = 10;

/// Measures resumes and sessions over links.
pub fn roam(context: &Context, args: &BenchRoamArgs) -> Outcome {
    check_installed()?;
    let base = args.base.as_deref();
    let steps = u64::from(args.rounds) * 16 + 6;
    let mut bench = Bench::new(context, base, args.memory, args.rounds, steps)?;
    let measured = bench.roam(&args.links);
    bench.clean_up(base.is_none());
    measured?;
    context.show(json!({ "figures": bench.figures }), super::table)
}

/// Is there what a bucket is served by?
pub(super) fn check_installed() -> Outcome {
    let missing = missing();
    if !missing.is_empty() {
        let problem = format!(
            "what a bucket is served by is not installed: {}",
            missing.join(", ")
        );
        return Err(Problem::new(ProblemCode::MissingDependency, problem)
            .remediation("`script/bootstrap --tests` installs both")
            .into());
    }
    Ok(())
}

/// One resume and the session after it.
struct Roamed {
    /// Until the first command was answered.
    first_ms: f64,
    /// Until the session had ended.
    session_ms: f64,
}

/// How a machine comes to the other site.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Baseline,
    Demand,
    Adaptive,
    /// Pulled before the user arrives.
    Proactive,
}

impl Bench<'_> {
    fn roam(&mut self, links: &[String]) -> Outcome {
        self.make_base()?;
        self.step("starting the machine");
        let machine = self.start(&self.machine.clone(), self.memory_bytes)?;
        self.made.clear();
        let lab = Lab::new().map_err(|error| failed(BenchError::Other(error.to_string())))?;
        let program =
            std::env::current_exe().map_err(|error| Failure::io("cannot find this program", error))?;
        let sites = ["home", "away"].map(|name| Site::new(&lab, name, &program));
        let [home, away] = sites;
        let (home, away) = (home.map_err(failed)?, away.map_err(failed)?);
        let bucket = Bucket::start(&lab).map_err(failed)?;
        let moves = links.iter().any(|link| link == moves::LINK);
        let recipe = moves.then(|| Recipe::of(machine.pid.unwrap_or_default()));
        let recipe = recipe.transpose().map_err(failed)?;
        self.step("bringing the machine to its first site");
        self.prepare(&machine, &home, &away, &bucket)?;
        if links
            .iter()
            .any(|link| [fault::LINK, moves::LINK].contains(&&**link))
        {
            home.found_fleet()
                .and_then(|()| home.admit(&away))
                .map_err(failed)?;
        }
        if links.iter().any(|link| link == fault::LINK) {
            self.faults("fault_remote", &home, &away)?;
        }
        if let Some(recipe) = recipe {
            self.moves(&lab, &home, &away, &recipe)?;
        }
        if links.iter().any(|link| link == behind::LINK) {
            self.suspend_behind(&home, true).map_err(failed)?;
        }
        let has_sessions = |link: &String| LINKS.iter().any(|(session, ..)| session == link);
        if !links.iter().any(has_sessions) {
            return Ok(());
        }
        let local = self.local_sessions(&home)?;
        self.second_pull(&home, &away).map_err(failed)?;
        self.suspend_behind(&home, false).map_err(failed)?;
        let usb = tempfile::tempdir().map_err(|error| Failure::io("cannot make a directory", error))?;
        let usb = usb.path().join("usb").to_string_lossy().into_owned();
        home.run(&["carry", &usb, "m:first"]).map_err(failed)?;
        for (link, rate_mbit, rtt_ms) in LINKS
            .into_iter()
            .filter(|(link, ..)| links.iter().any(|wanted| wanted == link))
        {
            away.set_link(Link {
                rate_mbit: Some(rate_mbit),
                delay_ms: rtt_ms / 2.0,
                ..Link::local()
            })
            .map_err(failed)?;
            self.over(link, &away, &local, &usb)?;
        }
        Ok(())
    }

    /// The machine, with all that it is to have, in the bucket; both sites know that.
    fn prepare(&mut self, machine: &MachineInfo, home: &Site, away: &Site, bucket: &Bucket) -> Outcome {
        self.guest(FILL)?;
        let carried = self.carry(machine)?;
        self.conditions = format!(
            "{}; 37 MiB of memory and 16 MiB of disk that compress to half; S3 (SeaweedFS) over links of a lab",
            self.host(machine)
        );
        carried.bring_to(home, &[away])?;
        let prepare = || {
            for site in [home, away] {
                bucket.add_to(site, "bucket", "snapshots")?;
            }
            // It has been resumed before, as machines of people are.
            home.run(&["run", &carried.name, "--name", "m"])?;
            session(home, "m")?;
            home.run(&["suspend", "m", "--tag", "first"])?;
            home.run(&["push", "m:first", "bucket"])
        };
        prepare().map(drop).map_err(failed)
    }

    /// Resumes and sessions where everything is.
    fn local_sessions(&mut self, home: &Site) -> Outcome<Vec<Roamed>> {
        let mut sessions = Vec::new();
        for _ in 0..self.rounds {
            self.step("a session where everything is");
            let round = || {
                let started = Instant::now();
                home.run(&["run", "m:first", "--name", "local"])?;
                let roamed = first_and_session(home, "local", started)?;
                home.run(&["rm", "--force", "local"])?;
                Ok(roamed)
            };
            sessions.push(round().map_err(failed)?);
        }
        Ok(sessions)
    }

    /// What a pull of a second snapshot of the same machine moves.
    fn second_pull(&mut self, home: &Site, away: &Site) -> Result<(), BenchError> {
        self.step("a second snapshot");
        let mut pull = Samples::new();
        home.run(&["resume", "m"])?;
        away.run(&["pull", "bucket", "m:first"])?;
        for round in 0..self.rounds {
            home.exec(
                "m",
                "dd if=/dev/urandom of=/dev/shm/new bs=1M count=16 2>/dev/null",
            )?;
            let name = format!("m:second{round}");
            let stored = home.run(&["checkpoint", "m", "--tag", &name[2..]])?;
            let new_bytes = stored["stored_bytes"].as_f64().unwrap_or(f64::NAN);
            home.run(&["push", &name, "bucket"])?;
            let got = away.run(&["pull", "bucket", &name])?;
            let moved = |report: &Value| report["moved_bytes"].as_f64().unwrap_or(f64::NAN);
            pull.add(moved(&got), new_bytes);
            away.run(&["rmi", &name])?;
        }
        self.keep(
            &pull,
            "pull_second",
            "bytes",
            "what is new in the snapshot, as stored",
        );
        home.run(&["suspend", "m"])?;
        forget(away, "m:first")
    }

    fn over(&mut self, link: &str, away: &Site, local: &[Roamed], usb: &str) -> Outcome {
        let (mut baseline, mut demand) = (Samples::new(), Samples::new());
        let (mut proactive, mut slowdown) = (Samples::new(), Samples::new());
        let mut carried = Samples::new();
        for here in local {
            let mut by = |way: Way, what: &str| {
                self.step(&format!("{what} at {link} Mb/s"));
                roamed(away, way).map_err(failed)
            };
            let adaptive = by(Way::Adaptive, "adaptive")?;
            let all_first = by(Way::Baseline, "baseline")?;
            baseline.add(adaptive.first_ms, all_first.first_ms);
            demand.add(adaptive.first_ms, by(Way::Demand, "demand")?.first_ms);
            slowdown.add(adaptive.session_ms, here.session_ms);
            away.run(&["remote", "add", "usb", usb]).map_err(failed)?;
            carried.add(by(Way::Adaptive, "carried")?.session_ms, here.session_ms);
            away.run(&["remote", "rm", "usb"]).map_err(failed)?;
            if link == "5" {
                proactive.add(by(Way::Proactive, "proactive")?.first_ms, all_first.first_ms);
            }
        }
        let named = |figure: &str| format!("{figure}_{link}");
        self.keep(&baseline, &named("roam_adaptive_vs_baseline"), "ms", "all first");
        self.keep(
            &demand,
            &named("roam_adaptive_vs_demand"),
            "ms",
            "only what is read",
        );
        self.keep(&slowdown, &named("roam_slowdown"), "ms", "everything local");
        self.keep(&carried, &named("roam_carried"), "ms", "everything local");
        self.keep(&proactive, &named("roam_proactive"), "ms", "all first");
        Ok(())
    }
}

/// The machine comes to a site in one of the ways, is worked with, and is gone from there.
fn roamed(site: &Site, way: Way) -> Result<Roamed, BenchError> {
    if way == Way::Proactive {
        site.run(&["pull", "bucket", "m:first"])?;
    }
    let policy = match way {
        Way::Baseline | Way::Proactive => "baseline",
        Way::Demand => "demand",
        Way::Adaptive => "adaptive",
    };
    let started = Instant::now();
    site.run(&["clone", "--policy", policy, "--name", "v", "bucket", "m:first"])?;
    let roamed = first_and_session(site, "v", started)?;
    site.run(&["rm", "--force", "v"])?;
    forget(site, "m:first")?;
    Ok(roamed)
}

fn forget(site: &Site, name: &str) -> Result<(), BenchError> {
    site.run(&["rmi", name])?;
    site.run(&["gc"]).map(drop)
}

fn first_and_session(site: &Site, machine: &str, started: Instant) -> Result<Roamed, BenchError> {
    site.exec(machine, "true")?;
    let first_ms = started.elapsed().as_secs_f64() * 1000.0;
    session(site, machine)?;
    Ok(Roamed {
        first_ms,
        session_ms: started.elapsed().as_secs_f64() * 1000.0,
    })
}

/// A session in three phases: it answers; its user works, step by step, and thinks between; something large is read.
fn session(site: &Site, machine: &str) -> Result<(), BenchError> {
    site.exec(machine, "ls -l /dev/shm >/dev/null")?;
    for step in 0..STEPS {
        let line =
            format!("cat /dev/shm/hot{step} >/dev/null; head -c 100000 /dev/urandom > /dev/shm/work{step}");
        site.exec(machine, &line)?;
        std::thread::sleep(THINK);
    }
    site.exec(machine, "head -c 8388608 /cold >/dev/null")
}
