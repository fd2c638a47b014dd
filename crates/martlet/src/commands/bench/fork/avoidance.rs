//! What clones do not fetch because they overwrite it: memory that they allocate. Beside it, the
//! same clones of a guest that does not tell its host what is free (SnowFlock, section 4.4, has two heuristics for that).

use super::{FILL, Hosts, PARENT, new_lab};
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
    /// Memory that is allocated, by turns with a guest that reports and one that does not.
    pub(super) fn avoidance(&mut self, hosts: u32) -> Outcome {
        let lab = new_lab()?;
        let (hosts, _) = self.hosts(&lab, hosts)?;
        let words = "fills 256 MiB of memory";
        self.avoided(&hosts, "fork_avoidance_allocated", FILL, words)
            .map_err(failed)?;
        hosts.end().map_err(failed)
    }

    fn avoided(&mut self, hosts: &Hosts, name: &str, task: &str, words: &str) -> Result<(), BenchError> {
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
        let conditions = format!(
            "{}; half of the memory was in use before the fork and is free; one clone at each host {words}; from the call until all have",
            self.conditions
        );
        self.figures
            .extend(bytes.figure(name, "bytes", AGAINST, &conditions));
        let name = format!("{name}_time");
        self.figures
            .extend(took.figure(&name, "ms", AGAINST, &conditions));
        Ok(())
    }
}
