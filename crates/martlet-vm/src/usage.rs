//! What a process uses, as `/proc` tells it.

use nix::time::ClockId;
use nix::unistd::Pid;
use std::time::Duration;

/// Use of resources so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all its threads.
    pub cpu: Duration,
    /// Memory that no other process shares.
    pub private_bytes: u64,
    /// Memory in its page tables, shared or not.
    pub resident_bytes: u64,
    /// When it was started, in clock ticks since the host was: with the process id, its identity.
    pub started_ticks: u64,
}

/// What a process uses. None when it is gone.
pub fn of(pid: u32) -> Option<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let started_ticks = started_ticks(&stat)?;
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |name| kib_field(&rollup, name).unwrap_or(0);
    Some(Usage {
        cpu: cpu_time(pid)?,
        private_bytes: field("Private_Clean:") + field("Private_Dirty:"),
        resident_bytes: field("Rss:"),
        started_ticks,
    })
}

/// By the process's own clock (clock_getcpuclockid(3)): `/proc` tells hundredths of a second, which an idle process does
/// not use in ten.
fn cpu_time(pid: u32) -> Option<Duration> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(i32::try_from(pid).ok()?)).ok()?;
    clock.now().ok().map(Duration::from)
}

/// Start time. The command's name may hold anything, so fields are counted from its end.
fn started_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    fields.nth(19)?.parse().ok()
}

/// A field of a file like `/proc/meminfo`, with its colon, in bytes.
pub fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_named_to_confuse_is_read_right() {
        let stat = "12 (a) b) 1 (c) S 1 12 12 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 777 0 0";
        assert_eq!(started_ticks(stat), Some(777));
        assert_eq!(started_ticks("12 (a"), None);
        assert_eq!(started_ticks("12 (a) S 1"), None);
    }

    #[test]
    fn our_own_use_is_plausible() {
        let usage = of(std::process::id()).unwrap();
        assert!(usage.private_bytes > 0 && usage.private_bytes <= usage.resident_bytes);
        assert!(usage.started_ticks > 0);
        let later = of(std::process::id()).unwrap();
        assert!(usage.cpu > Duration::ZERO && usage.cpu < later.cpu);
        assert_eq!(of(u32::MAX / 2), None);
    }
}
