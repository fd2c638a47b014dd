//! How long a machine pauses whose memory is handed over, and how that grows with it.

use super::{Bench, failed};
use crate::commands::understood;
use crate::failure::Outcome;
use martlet_api::*;
use martlet_bench::{Samples, Stock};
use serde_json::json;
use std::path::Path;

const STOCK: &str = "QEMU: stop, save to a file, go on";
/// Memory of the machine that is compared with the one that is measured: so many times that one's.
const TIMES_LARGER: u64 = 4;
/// Its guest writes half of that.
const DIRTY_PART: u64 = 2;

/// Writes what is in `/dev/shm/load` over itself.
const WRITE_AGAIN: &str = "dd if=/dev/shm/load of=/dev/shm/load bs=64k conv=notrunc 2>/dev/null";

impl Bench<'_> {
    /// All is written again before each round, so that the checkpoint before has nothing in common with it.
    pub(super) fn handovers(&mut self, theirs: &Stock, state: &Path) -> Outcome {
        let large = format!("{}-large", self.machine);
        let large_bytes = self.memory_bytes * TIMES_LARGER;
        self.start(&large, large_bytes)?;
        let dirty_mib = (large_bytes >> 20) / DIRTY_PART;
        self.exec_in(
            &large,
            &format!(
                "mkdir -p /dev/shm && mount -t tmpfs -o size=90% bench /dev/shm && cd /dev/shm && \
                 dd if=/dev/urandom of=piece bs=1M count=8 2>/dev/null && i=0 && \
                 while [ $i -lt {} ]; do cat piece; i=$((i+1)); done >load && rm piece && sync",
                dirty_mib / 8
            ),
        )?;
        let [mut pause, mut stop, mut copied_large, mut handed_large] = [const { Samples::new() }; 4];
        for _ in 0..self.rounds {
            self.step("hand over");
            self.guest(WRITE_AGAIN)?;
            self.exec_in(&large, WRITE_AGAIN)?;
            self.wait_for_pool()?;
            let copied = self.save(&large, "copy")?;
            let own = self.save(&self.machine.clone(), "handover")?;
            self.wait_for_pool()?;
            let handed = self.save(&large, "handover")?;
            let stock = theirs.save(state, true).map_err(failed)?;
            pause.add(own.pause_ms, stock);
            stop.add(own.stop_ms, stock);
            copied_large.add(copied.pause_ms, stock);
            handed_large.add(handed.pause_ms, own.pause_ms);
        }
        self.remove_made();
        self.keep(&pause, "checkpoint_pause_handover", "ms", STOCK);
        self.keep(&stop, "checkpoint_stop_handover", "ms", STOCK);
        const LARGE: &str = "the same with a quarter of the memory";
        self.keep(&handed_large, "checkpoint_pause_handover_2g", "ms", LARGE);
        const SMALL_STOCK: &str = "QEMU: stop, save a quarter of that, go on";
        self.keep(&copied_large, "checkpoint_pause_copy_2g", "ms", SMALL_STOCK);
        Ok(())
    }

    /// A checkpoint by this method.
    pub(super) fn save(&self, machine: &str, method: &str) -> Outcome<CheckpointReport> {
        understood(self.act(
            &format!("/v1/machines/{machine}/checkpoint"),
            &json!({ "method": method }),
        )?)
    }
}
