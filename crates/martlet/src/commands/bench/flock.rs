//! What many machines do: forks, and clones that do nothing.

use super::{Bench, Peer, failed};
use crate::commands::understood;
use crate::failure::Outcome;
use martlet_api::*;
use martlet_bench::{BenchError, Restored, Samples, Stock, usage};
use serde_json::json;
use std::sync::Mutex;
use std::time::Duration;

/// Clones of the small fork.
const FEW: u32 = 8;
/// Stock QEMUs restored at a time, as many as Martlet starts.
const AT_A_TIME: usize = 4;
/// Clones that do nothing are watched for this long, once they have come to rest.
const IDLE: Duration = Duration::from_secs(10);
const COMES_TO_REST: Duration = Duration::from_secs(3);

impl Bench<'_> {
    pub(super) fn forks(&mut self, peer: &Peer, many: u32) -> Outcome {
        let mut few = Samples::new();
        let (mut private, mut read) = (Samples::new(), Samples::new());
        for _ in 0..self.rounds {
            self.step("fork");
            self.wait_for_pool()?;
            let report = self.fork(FEW)?;
            let usage: Vec<MachineUsage> = understood(self.client.get("/v1/usage")?)?;
            for clone in usage.iter().filter(|usage| self.made.contains(&usage.name)) {
                private.add(clone.private_bytes as f64, self.memory_bytes as f64);
                read.add(clone.faulted_bytes as f64, self.memory_bytes as f64);
            }
            self.remove_made();
            few.add(report.total_ms, restore_many(peer, FEW)?.0);
        }
        self.keep(&few, "fork8_all_exec", "ms", "QEMU: 8 restores from its file");
        self.keep(&private, "clone_private", "bytes", "the guest's memory");
        self.keep(&read, "clone_state_read", "bytes", "the guest's memory");

        let (mut all, mut guests) = (Samples::new(), Samples::new());
        let mut growth = Samples::new();
        let (mut memory, mut cpu) = (Samples::new(), Samples::new());
        for _ in 0..self.rounds.min(3) {
            self.step("large fork");
            // So that the growth is that of the clones alone, and not of the snapshot they come from.
            self.machine_verb("checkpoint", &json!({}))?;
            self.wait_for_pool()?;
            let before = self.store_bytes()?;
            let report = self.fork(many)?;
            std::thread::sleep(COMES_TO_REST);
            growth.add((self.store_bytes()? - before) / f64::from(many), 100e3);
            let version: VersionInfo = understood(self.client.get("/version")?)?;
            let before = usage_of_daemon(version.pid)?;
            std::thread::sleep(IDLE);
            let now = usage_of_daemon(version.pid)?;
            let used = now.cpu.saturating_sub(before.cpu);
            cpu.add(100.0 * used.as_secs_f64() / IDLE.as_secs_f64(), 1.0);
            memory.add(now.resident_bytes as f64, (64 << 20) as f64);
            self.remove_made();
            let (restored_ms, guests_ms) = restore_many(peer, many)?;
            all.add(report.total_ms, restored_ms);
            guests.add(guests_ms, restored_ms);
        }
        let against = format!("QEMU: {many} restores from its file");
        self.keep(&all, &format!("fork{many}_all_exec"), "ms", &against);
        self.keep(&guests, &format!("guest{many}_all_exec"), "ms", &against);
        self.keep(&growth, "clone_store_growth", "bytes", "100 KB");
        self.keep(&memory, "daemon_idle_memory", "bytes", "64 MiB");
        self.keep(&cpu, "daemon_idle_cpu", "percent", "1 %");
        Ok(())
    }

    fn fork(&mut self, count: u32) -> Outcome<ForkReport> {
        let report: ForkReport = understood(self.machine_verb("fork", &json!({ "count": count }))?)?;
        self.made
            .extend(report.clones.iter().map(|clone| clone.name.clone()));
        match report.clones.iter().find_map(|clone| clone.problem.clone()) {
            Some(problem) => Err(problem.into()),
            None => Ok(report),
        }
    }

    /// What store and disks take.
    fn store_bytes(&self) -> Outcome<f64> {
        let usage: StoreUsage = understood(self.client.get("/v1/store/usage")?)?;
        Ok((usage.pack_bytes + usage.index_bytes + usage.layer_bytes) as f64)
    }
}

fn usage_of_daemon(pid: u32) -> Outcome<usage::Usage> {
    usage::of(pid).ok_or_else(|| failed(BenchError::Other("the daemon has ended".into())))
}

/// Milliseconds until each of `count` stock QEMUs has executed a command, and how many of them the guests' own code would have
/// taken by itself, with all processors at it.
fn restore_many(peer: &Peer, count: u32) -> Outcome<(f64, f64)> {
    let overlays: Result<Vec<_>, _> = (0..count)
        .map(|_| peer.recipe.overlay(Some(&peer.overlay)))
        .collect();
    let waiting = Mutex::new(overlays.map_err(failed)?);
    let begun = std::time::Instant::now();
    let work = || -> Result<Vec<(Stock, Restored)>, BenchError> {
        let mut restored = Vec::new();
        loop {
            let next = waiting.lock().unwrap_or_else(|error| error.into_inner()).pop();
            let Some(overlay) = next else { return Ok(restored) };
            restored.push(peer.recipe.restore(&overlay, &peer.state)?);
        }
    };
    let restored: Result<Vec<_>, _> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(BenchError::Other("a restore panicked".into())))
            })
            .collect()
    });
    let took_ms = begun.elapsed().as_secs_f64() * 1e3;
    let restored = restored.map_err(failed)?;
    let guests_ms: f64 = restored.iter().flatten().map(|(_, times)| times.guest_ms).sum();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Ok((took_ms, guests_ms / processors as f64))
}
