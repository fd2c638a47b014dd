//! `explain`: where the time of a machine's last start went.

use crate::belongs::{Region, first_stored, guest_address, kernel_regions, same_pages};
use crate::engine::Engine;
use crate::ledger::Ledger;
use crate::live::Live;
use crate::machine::Machine;
use crate::phase::Verb;
use crate::stalls;
use martlet_agent_api::Command;
use martlet_api::{Explanation, MachinePart, Problem, ProblemCode, Stall, WaitedFor};
use martlet_image::{Manifest, PAGE_SIZE, SnapshotId};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A guest that says nothing within this time says it another time, or never.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const IOMEM_BYTES: usize = 64 << 10;

impl Engine {
    /// What a machine's last start waited for; of a snapshot, that of the machine which was last started from it. Of the
    /// longest stalls so many.
    pub fn explain(&self, source: &str, top: usize) -> Result<Explanation, Problem> {
        let machine = self.explained(source)?;
        if let Ok(live) = machine.live_for(Verb::Exec) {
            learn_regions(&live);
        }
        let ledger = self.reads_of(&machine).ok_or_else(|| {
            Problem::new(
                ProblemCode::NotFound,
                format!(
                    "nothing is known of how machine {} was started",
                    machine.record().name
                ),
            )
        })?;
        let mut longest = self.placed(&machine, &ledger);
        let waited_for = waited_for(&longest);
        longest.truncate(top);
        let sum = |of: fn(&martlet_api::ReadSource) -> u64| ledger.sources.iter().map(of).sum::<u64>();
        let (reads, stalls) = (sum(|source| source.reads), sum(|source| source.stalls));
        Ok(Explanation {
            machine: machine.record().name,
            snapshot: ledger.snapshot.map(|id| id.to_string()),
            began_unix_ms: ledger.began_unix_ms,
            reads,
            read_bytes: sum(|source| source.read_bytes),
            stalls,
            waited_ms: ledger.sources.iter().map(|source| source.waited_ms).sum(),
            hit_ratio: match reads {
                0 => 1.0,
                reads => (reads - stalls) as f64 / reads as f64,
            },
            sources: ledger.sources,
            waited_for,
            step_ms: ledger.step_ms,
            timeline: ledger.steps,
            longest,
        })
    }

    /// Where the reads of a machine's run are kept.
    pub(crate) fn stalls_file(&self, id: &str) -> PathBuf {
        self.dirs.machine(id).join("stalls.json")
    }

    /// What a machine's run has read, or the last one had.
    fn reads_of(&self, machine: &Machine) -> Option<Ledger> {
        let file = self.stalls_file(&machine.record().id);
        match self.stalls.of(&file) {
            Some(run) => Some(run.ledger()),
            None => stalls::read(&file),
        }
    }

    /// The machine of this name, or that which was last started from this snapshot.
    fn explained(&self, source: &str) -> Result<Arc<Machine>, Problem> {
        let no_machine = match self.find(source) {
            Ok(machine) => return Ok(machine),
            Err(problem) => problem,
        };
        let is_name = martlet_api::names::check_name(source).is_ok();
        let (id, _) = self
            .snapshot_named(source)
            .map_err(|no_snapshot| if is_name { no_machine } else { no_snapshot })?;
        let started = self.all().into_iter().filter_map(|machine| {
            let ledger = self.reads_of(&machine)?;
            (ledger.snapshot == Some(id)).then_some((ledger.began_unix_ms, machine))
        });
        let last = started.max_by_key(|(began_unix_ms, _)| *began_unix_ms);
        last.map(|(_, machine)| machine).ok_or_else(|| {
            Problem::new(
                ProblemCode::NotFound,
                format!("nothing is known of a machine that was started from {source}"),
            )
            .cause("what a machine waited for is kept with it, until it is started again or removed")
        })
    }

    /// The longest stalls first, with all that can be said of where they were. A snapshot that is gone says nothing.
    fn placed(&self, machine: &Machine, ledger: &Ledger) -> Vec<Stall> {
        let mut stalls = ledger.longest();
        let memory_bytes = machine.record().config.memory_bytes;
        let on_disk = ledger.snapshot.and_then(|id| self.found_on_disk(&id, &stalls));
        let on_disk = on_disk.unwrap_or_default();
        for stall in stalls
            .iter_mut()
            .filter(|stall| stall.part == MachinePart::Memory)
        {
            let address = guest_address(stall.offset_bytes, memory_bytes);
            let addresses = address..address + stall.size_bytes;
            let meets = |region: &&Region| {
                region.addresses.start < addresses.end && addresses.start < region.addresses.end
            };
            stall.guest_address = Some(address);
            stall.region = ledger
                .regions
                .iter()
                .find(meets)
                .map(|region| region.name.clone());
            stall.same_on_disk_bytes = on_disk.get(&stall.offset_bytes).copied();
        }
        stalls
    }

    /// Stalls of memory, by their offsets, whose first page is on the disk of the same snapshot too, and where.
    fn found_on_disk(&self, id: &SnapshotId, stalls: &[Stall]) -> Option<HashMap<u64, u64>> {
        let record = self.store.snapshot(id).ok()?;
        let memory: Arc<Manifest> = self.store.manifest(&record.memory?.manifest).ok()?;
        let disk = self.store.manifest(&record.disks.first()?.manifest).ok()?;
        let of_memory = stalls.iter().filter(|stall| stall.part == MachinePart::Memory);
        let first = of_memory.filter_map(|stall| {
            let bytes = stall.offset_bytes..stall.offset_bytes + stall.size_bytes;
            Some((stall.offset_bytes, first_stored(&memory, bytes)?))
        });
        let first: Vec<(u64, u64)> = first.collect();
        let pages: Vec<u64> = first.iter().map(|(_, page)| *page).collect();
        let same = same_pages(&memory, &pages, &disk);
        let found = first
            .into_iter()
            .filter_map(|(offset, page)| Some((offset, same.get(&page)? * PAGE_SIZE as u64)));
        Some(found.collect())
    }
}

/// Stalls by what they were of.
fn waited_for(stalls: &[Stall]) -> Vec<WaitedFor> {
    let mut kinds: Vec<WaitedFor> = Vec::new();
    for stall in stalls {
        let known = kinds.iter().position(|kind| kind.what == stall.what());
        let at = known.unwrap_or_else(|| {
            kinds.push(WaitedFor {
                what: stall.what().to_owned(),
                ..WaitedFor::default()
            });
            kinds.len() - 1
        });
        kinds[at].stalls += 1;
        kinds[at].waited_ms += stall.late_ms;
    }
    kinds.sort_by(|one, other| other.waited_ms.total_cmp(&one.waited_ms));
    kinds
}

/// Asks a guest once where its kernel lies, and remembers it for when it does not run any more.
fn learn_regions(live: &Live) {
    let Some(agent) = live.agent().filter(|_| live.run.ledger().regions.is_empty()) else {
        return;
    };
    let command = Command {
        argv: vec!["cat".into(), "/proc/iomem".into()],
        ..Command::default()
    };
    match agent.exec_wait(command, &[], IOMEM_BYTES, ASK_TIMEOUT) {
        Ok(outcome) => {
            let regions = kernel_regions(&String::from_utf8_lossy(&outcome.stdout));
            live.run.change(|ledger| ledger.regions = regions);
        }
        Err(error) => tracing::debug!(%error, "where a guest's kernel lies"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_add_up_by_what_was_read() {
        let stall = |part, region: Option<&str>, same_on_disk_bytes, late_ms| Stall {
            at_ms: 0.0,
            part,
            offset_bytes: 0,
            size_bytes: 4096,
            guest_address: None,
            same_on_disk_bytes,
            region: region.map(String::from),
            source: "remote far".into(),
            late_ms,
        };
        use MachinePart::{Disk, Memory};
        let kinds = waited_for(&[
            stall(Memory, None, Some(0), 1.0),
            stall(Memory, Some("Kernel code"), Some(0), 10.0),
            stall(Disk, None, None, 2.0),
            stall(Memory, Some("Kernel code"), None, 20.0),
            stall(Memory, None, None, 4.0),
        ]);
        let shown: Vec<_> = kinds
            .iter()
            .map(|kind| (&*kind.what, kind.stalls, kind.waited_ms))
            .collect();
        assert_eq!(
            shown,
            [
                ("Kernel code", 2, 30.0),
                ("memory", 1, 4.0),
                ("disk", 1, 2.0),
                ("page of the disk", 1, 1.0)
            ]
        );
    }
}
