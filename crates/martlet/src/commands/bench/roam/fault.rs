//! Single pages that another host has, beside the same bytes over a bare connection.

use super::{Bench, failed, forget};
use crate::failure::{Failure, Outcome};
use martlet_bench::roam::{Bare, Site};
use martlet_bench::{BenchError, ImageFile, Samples};
use martlet_lab::Link;
use serde_json::Value;

/// How the link is called that is measured.
pub(super) const LINK: &str = "1000";
const RATE_MBIT: f64 = 1000.0;
const RTT_MS: f64 = 0.2;
/// Pages with something in them from one that is read to the next: they are in different frames.
const APART_PAGES: usize = 16;
/// Pages that are read before it is the bare connection's turn.
const TURN_PAGES: usize = 25;
/// What is read, as it is called at home.
pub(in super::super) const SNAPSHOT: &str = "m:first";

impl Bench<'_> {
    /// How long a page takes that is at home, and that nobody has read away.
    pub(in super::super) fn faults(&mut self, figure: &str, home: &Site, away: &Site) -> Outcome {
        self.step("single pages of another host");
        let scratch = tempfile::tempdir().map_err(|error| Failure::io("cannot make a directory", error))?;
        let measure = || {
            let link = Link {
                rate_mbit: Some(RATE_MBIT),
                delay_ms: RTT_MS / 2.0,
                ..Link::local()
            };
            away.set_link(link)?;
            let machine = home.run(&["run", SNAPSHOT, "--name", "known"])?;
            let (pid, id) = mapping(&machine)?;
            let known = ImageFile::open(pid, &id, &scratch.path().join("image"))?;
            home.run(&["rm", "--force", "known"])?;
            let machine = away.run(&[
                "clone",
                "--policy",
                "demand",
                "--name",
                "f",
                home.name(),
                SNAPSHOT,
            ])?;
            let (pid, id) = mapping(&machine)?;
            let samples = by_turns(&known.elsewhere(pid, &id)?, away, &mut Bare::between(away, home)?)?;
            away.run(&["rm", "--force", "f"])?;
            forget(away, SNAPSHOT)?;
            Ok(samples)
        };
        let samples = measure().map_err(failed)?;
        let conditions = format!(
            "{}; single pages of memory of another host, 1 Gb/s, {RTT_MS} ms there and back",
            self.conditions
        );
        let against = "as many bytes over a bare connection";
        self.figures
            .extend(samples.figure(figure, "ms", against, &conditions));
        Ok(())
    }
}

/// The process that maps the image of a machine, and the image's name.
fn mapping(machine: &Value) -> Result<(u32, String), BenchError> {
    let pid = machine["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    let id = machine["snapshot"].as_str().map(str::to_owned);
    pid.zip(id)
        .ok_or_else(|| BenchError::Other("a machine has no process or no snapshot".into()))
}

fn by_turns(image: &ImageFile, away: &Site, bare: &mut Bare) -> Result<Samples, BenchError> {
    let mut samples = Samples::new();
    let mut before = Came::at(away)?;
    for turn in image.pages_apart(APART_PAGES).chunks(TURN_PAGES) {
        let mut faults = Vec::new();
        for page in turn {
            let took_ms = image.read_page(*page)?;
            // Sooner than the link allows: it had come because the guest read it.
            if took_ms > RTT_MS {
                faults.push(took_ms);
            }
        }
        let after = Came::at(away)?;
        let bytes = after.mean_bytes_since(&before);
        before = after;
        for ours in faults {
            samples.add(ours, bare.exchange(bytes)?);
        }
    }
    Ok(samples)
}

/// What has come because it was read.
struct Came {
    objects: u64,
    bytes: u64,
}

impl Came {
    fn at(site: &Site) -> Result<Self, BenchError> {
        let away = site.run(&["away"])?;
        let count = |what: &str| away[0][what].as_u64().unwrap_or_default();
        Ok(Self {
            objects: count("read_objects"),
            bytes: count("read_bytes"),
        })
    }

    fn mean_bytes_since(&self, before: &Self) -> usize {
        ((self.bytes - before.bytes) / (self.objects - before.objects).max(1)) as usize
    }
}
