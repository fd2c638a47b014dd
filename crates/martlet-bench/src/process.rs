//! What a process uses: memory and processor time, from `/proc` (proc_pid_status(5), proc_pid_stat(5)).

use crate::BenchError;
use std::time::Instant;

/// Clock ticks per second in `/proc/PID/stat`; the same on every Linux this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process that is looked at.
pub struct ProcessUse {
    pid: u32,
    since: Instant,
    ticks: u64,
}

impl ProcessUse {
    /// Begins to look.
    pub fn begin(pid: u32) -> Result<Self, BenchError> {
        Ok(Self {
            pid,
            since: Instant::now(),
            ticks: ticks(pid)?,
        })
    }

    /// Percent of one processor since the begin.
    pub fn cpu_percent(&self) -> Result<f64, BenchError> {
        let seconds = (ticks(self.pid)? - self.ticks) as f64 / TICKS_PER_SECOND;
        Ok(100.0 * seconds / self.since.elapsed().as_secs_f64())
    }

    /// Resident memory.
    pub fn memory_bytes(&self) -> Result<f64, BenchError> {
        let status = read(self.pid, "status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<f64>().ok())
            .map(|kib| kib * 1024.0)
            .ok_or_else(|| BenchError::Other(format!("process {} has no memory", self.pid)))
    }
}

fn read(pid: u32, file: &str) -> Result<String, BenchError> {
    std::fs::read_to_string(format!("/proc/{pid}/{file}"))
        .map_err(BenchError::io(format!("look at process {pid}")))
}

/// Ticks used, in user and kernel mode.
fn ticks(pid: u32) -> Result<u64, BenchError> {
    let stat = read(pid, "stat")?;
    // The second field is the name, in parentheses, and may hold anything.
    let fields = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_ascii_whitespace());
    let used = fields.map(|fields| {
        fields
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum()
    });
    used.ok_or_else(|| BenchError::Other(format!("process {pid} says nothing about its time")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_is_seen_to() {
        let used = ProcessUse::begin(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while used.since.elapsed().as_millis() < 200 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(used.cpu_percent().unwrap() > 1.0);
        assert!(used.memory_bytes().unwrap() > 65536.0);
    }
}
