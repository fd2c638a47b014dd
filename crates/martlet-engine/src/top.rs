//! How the hosts of the fleet are: each tells it of itself, all at the same time.

use crate::engine::Engine;
use crate::host_memory::room;
use crate::problem::Told;
use martlet_api::{HostTop, HostUsage, Problem};
use martlet_peer::{HostEntry, PeerClient};

impl Engine {
    /// How this host is.
    pub fn host_usage(&self) -> Result<HostUsage, Problem> {
        let room = room();
        let machines = self.all();
        Ok(HostUsage {
            memory_total_bytes: room.map_or(0, |room| room.total_bytes),
            memory_available_bytes: room.map_or(0, |room| room.available_bytes),
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
            load: load(&std::fs::read_to_string("/proc/loadavg").unwrap_or_default()),
            store_bytes: self.store.pack_bytes().told()?,
            clones_left: self.clones_left_to(machines.iter()),
            clones_each: self.options.clones_each,
            clones_by_user: self.clones_by_user(machines.iter()),
            machines: machines.iter().map(|machine| self.usage_of(machine)).collect(),
        })
    }

    /// How each host of the fleet is, or why it does not say.
    pub fn host_top(&self) -> Result<Vec<HostTop>, Problem> {
        let ask = |client: PeerClient| client.get("/peer/top").map_err(|error| error.to_string());
        let mut tops = Vec::new();
        for (HostEntry { name, .. }, asked) in self.ask_hosts(ask)? {
            let is_this = asked.is_none();
            let usage = asked.unwrap_or_else(|| self.host_usage().map_err(|problem| problem.message));
            let (usage, problem) = match usage {
                Ok(usage) => (Some(usage), None),
                Err(problem) => (None, Some(problem)),
            };
            tops.push(HostTop {
                name,
                is_this,
                usage,
                problem,
            });
        }
        Ok(tops)
    }
}

/// The one-minute load average, first in `/proc/loadavg`.
fn load(loadavg: &str) -> f64 {
    let first = loadavg.split_ascii_whitespace().next();
    first.and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_of_one_minute() {
        assert_eq!(load("0.52 1.00 2.00 3/700 12345\n"), 0.52);
        assert_eq!(load(""), 0.0);
    }
}
