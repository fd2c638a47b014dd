//! What clones do not fetch because it is overwritten: memory that they allocate, and memory into which a device writes
//! (the two heuristics of SnowFlock, section 4.4). Here free pages do both: beside clones of a guest that reports
//! them, the same of one that does not.

use super::{FILL, FILL_BYTES, Hosts, PARENT, new_lab};
use crate::commands::bench::dead::SILENT;
use crate::commands::bench::{Bench, failed};
use crate::failure::Outcome;
use martlet_bench::{BenchError, Samples};
use std::time::{Duration, Instant};

/// What `--only` calls it.
pub(super) const ONLY: &str = "avoidance";
/// Free memory is reported two seconds after it was freed, a part at a time.
const REPORTED_AFTER: Duration = Duration::from_secs(15);
/// What was in the guest's memory is none of its business any more, but still there.
const USED_AND_FREED: &str = "rm /dev/shm/load; sync; echo 3 > /proc/sys/vm/drop_caches";
/// The driver that `SILENT` takes away is there again.
const TELLING: &str = "cd /sys/bus/virtio/devices; for device in virtio*; do \
                       test $(cat $device/device) != 0x0005 || echo $device > ../drivers/virtio_balloon/bind; done";
const AGAINST: &str = "a guest that does not tell what is free";
/// What is read fits beside the base.
const DISK: [&str; 2] = ["--disk", "1G"];

/// What overwrites pages of clones.
struct Overwriting {
    figure: &'static str,
    what: &'static str,
    task: String,
}

/// Of clones at hosts that have nothing of theirs.
struct Came {
    bytes: f64,
    took_ms: f64,
}

impl Hosts {
    fn work_of_clones(&self, fill: &str, driver: &str, task: &str) -> Result<Came, BenchError> {
        // Each time something else: hosts keep for a while what they had.
        self.origin.exec(PARENT, fill)?;
        self.origin.exec(PARENT, driver)?;
        self.origin.exec(PARENT, USED_AND_FREED)?;
        std::thread::sleep(REPORTED_AFTER);
        let (begun, before) = (Instant::now(), self.received_bytes()?);
        let count = self.others.len();
        self.fork(count as u32, count, &["--", "sh", "-c", task])?;
        let took_ms = begun.elapsed().as_secs_f64() * 1e3;
        let bytes = (self.received_bytes()? - before) as f64;
        self.clear()?;
        Ok(Came { bytes, took_ms })
    }
}

impl Bench<'_> {
    /// By turns with a guest that reports what is free and one that does not.
    pub(super) fn avoidance(&mut self, hosts: u32) -> Outcome {
        let lab = new_lab()?;
        let (hosts, _) = self.hosts(&lab, hosts, &DISK)?;
        let size_mib = FILL_BYTES >> 20;
        // The same bytes all over, so that the disk's own hardly count.
        let written = format!("yes | head -c {FILL_BYTES} > /read; sync");
        hosts.origin.exec(PARENT, &written).map_err(failed)?;
        let overwriting = [
            Overwriting {
                figure: "fork_avoidance_allocated",
                what: "fills that much memory",
                task: FILL.into(),
            },
            Overwriting {
                figure: "fork_avoidance_device",
                what: "reads that much from its disk",
                task: format!("test $(cat /read | wc -c) = {FILL_BYTES}"),
            },
        ];
        for by in overwriting {
            let conditions = format!(
                "{}; half of the memory was in use before the fork and is free; one clone at each host {} ({size_mib} MiB); from the call until all have",
                self.conditions, by.what,
            );
            let (bytes, took) = self.avoided(&hosts, &by.task).map_err(failed)?;
            self.figures
                .extend(bytes.figure(by.figure, "bytes", AGAINST, &conditions));
            let took_figure = format!("{}_time", by.figure);
            self.figures
                .extend(took.figure(&took_figure, "ms", AGAINST, &conditions));
        }
        hosts.end().map_err(failed)
    }

    /// Bytes and time.
    fn avoided(&mut self, hosts: &Hosts, task: &str) -> Result<(Samples, Samples), BenchError> {
        let (mut bytes, mut took) = (Samples::new(), Samples::new());
        for _ in 0..self.rounds {
            self.step("clones of a guest that does not tell what is free");
            let fetched = hosts.work_of_clones(&self.fill(), SILENT, task)?;
            hosts.origin.exec(PARENT, TELLING)?;
            self.step("clones of a guest that does");
            let avoided = hosts.work_of_clones(&self.fill(), ":", task)?;
            bytes.add(avoided.bytes, fetched.bytes);
            took.add(avoided.took_ms, fetched.took_ms);
        }
        Ok((bytes, took))
    }
}
