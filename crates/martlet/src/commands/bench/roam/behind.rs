//! What is left to send of a machine that is suspended, when it was published behind while it worked.

use super::Bench;
use martlet_bench::roam::Site;
use martlet_bench::{BenchError, Samples};
use serde_json::Value;
use std::time::Duration;

/// Something new is written so often, and as often again.
const STEP: Duration = Duration::from_secs(1);
const STEPS: usize = 60;
/// What was written is published this often.
const EVERY_S: &str = "2";

impl Bench<'_> {
    /// The same work twice: suspended after it, with nothing sent before, and published while it goes on.
    pub(super) fn suspend_behind(&mut self, home: &Site) -> Result<(), BenchError> {
        let mut left = Samples::new();
        let bytes = |report: &Value| report.as_f64().unwrap_or(f64::NAN);
        home.run(&["resume", "m"])?;
        home.run(&["publish", "m", "--to", "bucket", "--as", "m:line"])?;
        for _ in 0..self.rounds {
            self.step("a suspend of which nothing was sent before");
            work(home)?;
            let all = home.run(&["suspend", "m"])?;
            home.run(&["resume", "m"])?;
            self.step("a suspend of what was published behind");
            home.run(&["publish", "m", "--every", EVERY_S])?;
            work(home)?;
            let rest = home.run(&["suspend", "m"])?;
            home.run(&["resume", "m"])?;
            home.run(&["publish", "m", "--every", "0"])?;
            left.add(
                bytes(&rest["published"]["moved_bytes"]),
                bytes(&all["stored_bytes"]),
            );
        }
        self.keep(
            &left,
            "suspend_bytes_behind",
            "bytes",
            "what is new in a snapshot after the same work, as stored",
        );
        home.run(&["suspend", "m"]).map(drop)
    }
}

/// Text of random bytes, in new files.
fn work(home: &Site) -> Result<(), BenchError> {
    for step in 0..STEPS {
        let line =
            format!("head -c 400000 /dev/urandom | od -An -v -tx1 | head -c 500000 > /dev/shm/step{step}");
        home.exec("m", &line)?;
        std::thread::sleep(STEP);
    }
    Ok(())
}
