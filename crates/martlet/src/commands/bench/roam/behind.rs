//! What is left to send of a machine that is suspended, when it was published behind while it worked.

use super::Bench;
use martlet_bench::roam::Site;
use martlet_bench::{BenchError, Samples};
use serde_json::Value;
use std::time::Duration;

/// Something new is written so often, and as often again.
const STEP: Duration = Duration::from_secs(1);
/// How it is called among the links when the work is to be long.
pub(super) const LINK: &str = "work";
/// How often something is written, then and else.
const LONG_STEPS: usize = 600;
const SHORT_STEPS: usize = 60;
/// What was written before is written over after so many steps.
const STEPS_KEPT: usize = 150;
/// What was written is published this often.
const EVERY_S: &str = "2";

impl Bench<'_> {
    /// The same work twice: suspended after it, with nothing sent before, and published while it goes on.
    pub(super) fn suspend_behind(&mut self, home: &Site, is_long: bool) -> Result<(), BenchError> {
        let steps = if is_long { LONG_STEPS } else { SHORT_STEPS };
        let (mut sent, mut left) = (Samples::new(), Samples::new());
        let bytes = |report: &Value| report.as_f64().unwrap_or(f64::NAN);
        home.run(&["resume", "m"])?;
        home.run(&["publish", "m", "--to", "bucket", "--as", "m:line"])?;
        for _ in 0..self.rounds {
            self.step("a suspend of which nothing was sent before");
            work(home, steps)?;
            let all = home.run(&["suspend", "m"])?;
            home.run(&["resume", "m"])?;
            self.step("a suspend of what was published behind");
            home.run(&["publish", "m", "--every", EVERY_S])?;
            work(home, steps)?;
            let rest = home.run(&["suspend", "m"])?;
            home.run(&["resume", "m"])?;
            home.run(&["publish", "m", "--every", "0"])?;
            let new_bytes = bytes(&all["stored_bytes"]);
            sent.add(bytes(&all["published"]["moved_bytes"]), new_bytes);
            left.add(bytes(&rest["published"]["moved_bytes"]), new_bytes);
        }
        let conditions = format!("{}; after {steps} s of work", self.conditions);
        const NEW: &str = "what is new in a snapshot after the same work, as stored";
        for (samples, name) in [(&sent, "suspend_bytes"), (&left, "suspend_bytes_behind")] {
            let figure = samples.figure(name, "bytes", NEW, &conditions);
            self.figures.extend(figure);
        }
        home.run(&["suspend", "m"]).map(drop)
    }
}

/// Text of random bytes, in new files.
fn work(home: &Site, steps: usize) -> Result<(), BenchError> {
    for step in (0..steps).map(|step| step % STEPS_KEPT) {
        let line =
            format!("head -c 400000 /dev/urandom | od -An -v -tx1 | head -c 500000 > /dev/shm/step{step}");
        home.exec("m", &line)?;
        std::thread::sleep(STEP);
    }
    Ok(())
}
