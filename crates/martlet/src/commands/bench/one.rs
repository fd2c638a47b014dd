//! What one machine does: checkpoint, resume, start from a trace, boot.

use super::{Bench, Peer, failed};
use crate::commands::understood;
use crate::failure::Outcome;
use martlet_api::*;
use martlet_bench::{Recipe, Samples, Stock};
use serde_json::json;

const RESTORE: &str = "QEMU: restore from its file";
/// Written between two checkpoints, where the guest is large enough for it.
const CHANGED_MIB_MAX: u64 = 16;

impl Bench<'_> {
    /// Pauses, and what a checkpoint stores. The stock QEMU ends with its state saved.
    pub(super) fn checkpoints(&mut self, recipe: Recipe, theirs: Stock) -> Outcome<Peer> {
        let state = recipe.file("state");
        let (mut pause, mut stored) = (Samples::new(), Samples::new());
        for _ in 0..self.rounds {
            self.step("checkpoint");
            let report = self.save(&self.machine, "copy")?;
            let stock = theirs.save(&state, true).map_err(failed)?;
            pause.add(report.pause_ms, stock);
            stored.add(report.stored_bytes as f64, size_of(&state));
        }
        self.keep(
            &pause,
            "checkpoint_pause_copy",
            "ms",
            "QEMU: stop, save to a file, go on",
        );
        self.keep(&stored, "checkpoint_stored", "bytes", "QEMU's file");

        let mut again = Samples::new();
        let changed_mib = (self.touched_mib() / 4).min(CHANGED_MIB_MAX);
        for _ in 0..self.rounds {
            self.step("checkpoint again");
            self.guest(&format!(
                "dd if=/dev/urandom of=/dev/shm/load bs=64k count={} conv=notrunc 2>/dev/null",
                changed_mib * 16
            ))?;
            let report: CheckpointReport = understood(self.machine_verb("checkpoint", &json!({}))?)?;
            again.add(report.stored_bytes as f64, (changed_mib << 20) as f64);
        }
        self.keep(&again, "recheckpoint_stored", "bytes", "what was written since");

        self.handovers(&theirs, &state)?;
        theirs.save(&state, false).map_err(failed)?;
        let overlay = theirs.overlay().to_owned();
        Ok(Peer {
            recipe,
            overlay,
            state,
        })
    }

    pub(super) fn resumes(&mut self, peer: &Peer) -> Outcome {
        let mut resume = [const { Samples::new() }; 3];
        let (mut bare, mut guest) = (Samples::new(), Samples::new());
        for _ in 0..self.rounds {
            self.step("resume");
            self.machine_verb("suspend", &json!({}))?;
            self.wait_for_pool()?;
            let machine: MachineInfo = understood(self.machine_verb("resume", &json!({}))?)?;
            let below = peer.recipe.overlay(Some(&peer.overlay)).map_err(failed)?;
            let (stock, restored) = peer.recipe.restore(&below, &peer.state).map_err(failed)?;
            drop(stock);
            let idle = peer.recipe.boot(&below).map_err(failed)?;
            idle.cont().map_err(failed)?;
            let bare_ms = idle.age_ms();
            drop(idle);
            let ours = machine.timeline;
            let first_instruction_ms = ours.first_instruction_ms.unwrap_or(f64::NAN);
            resume[0].add(ours.load_ms.unwrap_or(f64::NAN), restored.load_ms);
            resume[1].add(ours.first_exec_ms.unwrap_or(f64::NAN), restored.first_exec_ms);
            bare.add(first_instruction_ms, bare_ms);
            guest.add(restored.guest_ms, restored.first_exec_ms);
        }
        self.keep(&resume[0], "resume_load", "ms", RESTORE);
        self.keep(
            &bare,
            "resume_first_instruction",
            "ms",
            "a bare QEMU's start, nothing restored",
        );
        self.keep(&resume[1], "resume_first_exec", "ms", RESTORE);
        self.keep(&guest, "guest_first_exec", "ms", RESTORE);
        Ok(())
    }

    /// Waits, not for long, until QEMUs are started ahead again: who resumes one machine at a time finds them ready.
    pub(super) fn wait_for_pool(&self) -> Outcome {
        for _ in 0..100 {
            let pool: PoolUsage = understood(self.client.get("/v1/pool")?)?;
            if pool.ready == pool.size {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Ok(())
    }

    /// A snapshot has no trace at its first start, and that of the first run at its second. In half of the rounds the first
    /// run reads all that was touched, which the second does not need: its trace is wrong.
    pub(super) fn prefetches(&mut self) -> Outcome {
        let (mut right, mut wrong) = (Samples::new(), Samples::new());
        for round in 0..2 * self.rounds {
            self.step("prefetch");
            let is_wrong = round % 2 == 1;
            let report: CheckpointReport = understood(self.machine_verb("checkpoint", &json!({}))?)?;
            let mut first_exec_ms = [f64::NAN; 2];
            for (start, took_ms) in first_exec_ms.iter_mut().enumerate() {
                let name = format!("{}-prefetch-{round}-{start}", self.machine);
                let request = json!({ "from": report.reference, "name": name });
                self.wait_for_pool()?;
                let machine: MachineInfo = understood(self.act("/v1/machines", &request)?)?;
                self.made.push(name.clone());
                *took_ms = machine.timeline.first_exec_ms.unwrap_or(f64::NAN);
                if is_wrong && start == 0 {
                    self.exec_in(&name, "cat /dev/shm/load >/dev/null")?;
                }
                self.remove_made();
            }
            let samples = if is_wrong { &mut wrong } else { &mut right };
            samples.add(first_exec_ms[1], first_exec_ms[0]);
        }
        const WITHOUT: &str = "the same snapshot before it had a trace";
        self.keep(&right, "prefetch_first_exec", "ms", WITHOUT);
        self.keep(&wrong, "prefetch_mispredicted_first_exec", "ms", WITHOUT);
        Ok(())
    }

    pub(super) fn boots(&mut self, peer: &Peer) -> Outcome {
        let mut boot = Samples::new();
        for _ in 0..self.rounds {
            self.step("boot");
            let machine = self.start(&format!("{}-boot", self.machine), 128 << 20)?;
            self.remove_made();
            let stock = self.boot_stock(&peer.recipe)?;
            boot.add(machine.timeline.first_exec_ms.unwrap_or(f64::NAN), stock.age_ms());
        }
        self.keep(&boot, "boot_first_exec", "ms", "QEMU: the same boot");
        Ok(())
    }
}

fn size_of(path: &std::path::Path) -> f64 {
    use std::os::unix::fs::MetadataExt;
    // What it takes on disk: mapped-ram leaves holes for zero pages.
    std::fs::metadata(path).map_or(f64::NAN, |meta| meta.blocks() as f64 * 512.0)
}
