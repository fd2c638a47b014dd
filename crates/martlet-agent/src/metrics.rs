//! How the guest is.

use crate::syscalls;
use martlet_agent_api::Metrics;
use std::fs;
use std::path::Path;

/// Looks; what cannot be read is 0.
pub fn collect() -> Metrics {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let memory = read("/proc/meminfo");
    let space = syscalls::space(Path::new("/")).ok();
    let processes = fs::read_dir("/proc").map_or(0, |entries| {
        let is_process = |name: std::ffi::OsString| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        entries
            .flatten()
            .filter(|entry| is_process(entry.file_name()))
            .count()
    });
    Metrics {
        load: first_number(&read("/proc/loadavg")),
        memory_total_bytes: memory_field(&memory, "MemTotal:"),
        memory_available_bytes: memory_field(&memory, "MemAvailable:"),
        disk_total_bytes: space.map_or(0, |space| space.total_bytes),
        disk_free_bytes: space.map_or(0, |space| space.free_bytes),
        processes: processes as u64,
        uptime_s: first_number(&read("/proc/uptime")),
    }
}

fn first_number(text: &str) -> f64 {
    text.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0.0)
}

fn memory_field(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.map_or(0, |kilobytes| kilobytes.saturating_mul(1024))
}
