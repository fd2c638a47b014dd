//! Cycles of checkpoint, fork, suspend and resume of a guest under memory and disk load, verified in each: `script/cycles`.

#[path = "../real/cycles.rs"]
mod cycles;
#[allow(dead_code)] // other tests use more of it
#[path = "../real/daemon.rs"]
mod daemon;
#[allow(dead_code)] // other tests use more of it
#[path = "../real/deadline.rs"]
mod deadline;
#[allow(dead_code)] // other tests use more of it
#[path = "../real/fixture.rs"]
mod fixture;
#[path = "../real/stress.rs"]
mod stress;

use cycles::Cycle;
use daemon::Daemon;
use fixture::Fixture;
use serde_json::json;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use stress::Stress;

const CYCLES: u64 = 50;
const MACHINE: &str = "stress";
/// A cycle takes a few seconds; one that takes longer than this hangs.
const CYCLE_LIMIT: Duration = Duration::from_secs(120);
/// For what comes before and after all cycles: a fixture to be made, a rollback.
const REST_LIMIT: Duration = Duration::from_secs(1800);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let is_json = args.iter().any(|arg| arg == "--json");
    let count = args.iter().find(|arg| !arg.starts_with('-'));
    let Ok(count @ 1..) = count.map_or(Ok(CYCLES), |count| count.parse()) else {
        eprintln!("usage: cycles [N] [--json]");
        return ExitCode::from(2);
    };
    let say = |words: &str| match is_json {
        true => eprintln!("{words}"),
        false => println!("{words}"),
    };
    let mut done: Vec<Cycle> = Vec::new();
    let daemon = Daemon::with_limit("the cycles", CYCLE_LIMIT * count as u32 + REST_LIMIT);
    Fixture::Debian.copy_to(daemon.state_dir());
    let mut begun = Instant::now();
    // What is wrong panics, as in any test.
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let stress = Stress::start(&daemon, MACHINE);
        begun = Instant::now();
        let verify = |machine: &str| stress.verify(machine);
        cycles::run(&daemon, MACHINE, count, verify, |cycle| {
            say(&line(cycle, count, begun.elapsed()));
            done.push(Cycle { ..*cycle });
        });
        stress.end();
    }));
    let took_s = begun.elapsed().as_secs_f64();
    let (pause_ms, fork_ms) = (median(&done, |c| c.pause_ms), median(&done, |c| c.fork_ms));
    if is_json {
        let summary = json!({
            "ok": ended.is_ok(), "cycles": done.len(), "of": count, "seconds": took_s,
            "pause_ms_median": pause_ms, "fork_ms_median": fork_ms,
        });
        println!("{summary}");
    }
    match ended {
        Ok(()) => {
            say(&format!(
                "cycles: ok: {count} in {took_s:.0} s, no wrong byte; median pause {pause_ms:.0} ms, median fork {fork_ms:.0} ms"
            ));
            ExitCode::SUCCESS
        }
        Err(_) => {
            say(&format!("cycles: FAILED in cycle {} of {count}", done.len() + 1));
            ExitCode::FAILURE
        }
    }
}

/// How far it is.
fn line(cycle: &Cycle, count: u64, elapsed: Duration) -> String {
    const WIDTH: u64 = 30;
    let filled = (cycle.number * WIDTH / count) as usize;
    let left = elapsed.mul_f64((count - cycle.number) as f64 / cycle.number as f64);
    format!(
        "[{:.<width$}] of {count}, {cycle}; {} s, about {} s left",
        "#".repeat(filled),
        elapsed.as_secs(),
        left.as_secs(),
        width = WIDTH as usize,
    )
}

fn median(cycles: &[Cycle], of: impl Fn(&Cycle) -> f64) -> f64 {
    let mut all: Vec<f64> = cycles.iter().map(of).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}
