//! Is there memory for another machine? A start that would not fit is refused, with the figures: the kernel would choose
//! whom to kill instead, and it chooses late.
//!
//! Memory that can be had without killing anybody is free memory, clean file pages (those of images come back from the
//! store by themselves), and free swap. A control group's limit counts like the host's (cgroups(7), version 1 and 2).

use crate::engine::{Engine, lock};
use crate::launch::{From, Launch};
use martlet_api::{Problem, ProblemCode};
use martlet_vm::usage::kib_field;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// What a QEMU takes for itself and for the first pages of its guest's own.
const START_BYTES: u64 = 64 << 20;
/// Of a guest that boots this part of its memory is touched soon.
const BOOT_PART: u64 = 4;
/// This part of all memory, and no less than that, is left for others.
const KEPT_PART: u64 = 20;
const KEPT_MIN_BYTES: u64 = 64 << 20;

/// Memory of the host, or of the control group that limits us most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub total_bytes: u64,
    pub available_bytes: u64,
}

impl Room {
    fn kept_bytes(self) -> u64 {
        (self.total_bytes / KEPT_PART).max(KEPT_MIN_BYTES)
    }

    fn has(self, bytes: u64) -> bool {
        self.available_bytes >= bytes.saturating_add(self.kept_bytes())
    }
}

/// What starts that are under way have been promised, and may not have taken yet: several that look at the same time must not all
/// see the same room.
pub(crate) type Promised = Mutex<u64>;

/// Memory for a start, until it has taken what it takes.
#[derive(Debug)]
pub(crate) struct Reserved<'a> {
    promised: &'a Promised,
    bytes: u64,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        *lock(self.promised) -= self.bytes;
    }
}

impl Engine {
    /// Reserves memory for a start, or refuses it. What is started ahead makes room first.
    pub(crate) fn reserve_memory(&self, launch: &Launch<'_>) -> Result<Reserved<'_>, Problem> {
        let needed_bytes = match &launch.from {
            From::Snapshot(..) => START_BYTES,
            From::Boot(_) | From::Firmware => START_BYTES + launch.record.config.memory_bytes / BOOT_PART,
        };
        let mut promised = lock(&self.promised_memory);
        let all_bytes = *promised + needed_bytes;
        if let Some(mut room) = room() {
            if !room.has(all_bytes) {
                self.pool.empty();
                room = self::room().unwrap_or(room);
            }
            if !room.has(all_bytes) {
                return Err(no_room(room, needed_bytes));
            }
        }
        *promised = all_bytes;
        Ok(Reserved {
            promised: &self.promised_memory,
            bytes: needed_bytes,
        })
    }
}

/// Is there memory for a QEMU that nobody has asked for yet?
pub(crate) fn has_room_ahead() -> bool {
    room().is_none_or(|room| room.has(2 * START_BYTES))
}

fn no_room(room: Room, needed_bytes: u64) -> Problem {
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    Problem::new(
        ProblemCode::NoSpace,
        format!(
            "there is not enough memory for another machine: it takes {}, and of {} there are {} to be had, of which {} are \
             left for others",
            mib(needed_bytes),
            mib(room.total_bytes),
            mib(room.available_bytes),
            mib(room.kept_bytes()),
        ),
    )
    .remediation("suspend or stop machines (`martlet top` tells what they take), or add swap")
}

/// The least of the host's room and of each control group's that we are in; none if nothing can be read.
pub(crate) fn room() -> Option<Room> {
    let host = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| of_host(&text));
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups
        .lines()
        .flat_map(|line| of_groups(line, Path::new("/sys/fs/cgroup")))
        .chain(host)
        .min_by_key(|room| room.available_bytes)
}

fn of_host(meminfo: &str) -> Option<Room> {
    Some(Room {
        total_bytes: kib_field(meminfo, "MemTotal:")?,
        available_bytes: kib_field(meminfo, "MemAvailable:")?
            + kib_field(meminfo, "SwapFree:").unwrap_or_default(),
    })
}

/// Rooms of a group, by its line in `/proc/self/cgroup`, and of those above it.
fn of_groups(line: &str, root: &Path) -> Vec<Room> {
    let mut fields = line.splitn(3, ':');
    let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
        return Vec::new();
    };
    let (top, limit, usage) = match controllers {
        "" => (root.to_owned(), "memory.max", "memory.current"),
        list if list.split(',').any(|one| one == "memory") => (
            root.join("memory"),
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
        ),
        _ => return Vec::new(),
    };
    let dir: PathBuf = top.join(path.trim_start_matches('/'));
    dir.ancestors()
        .take_while(|dir| dir.starts_with(&top))
        .filter_map(|dir| of_group(dir, limit, usage))
        .collect()
}

fn of_group(dir: &Path, limit: &str, usage: &str) -> Option<Room> {
    let number = |file: &str| {
        std::fs::read_to_string(dir.join(file))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let stat = std::fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let files = |name: &str| {
        let line = stat
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse::<u64>().ok())
    };
    // Version 1 counts those of the groups below under another name.
    let clean_bytes = ["inactive_file", "active_file"].map(|name| {
        files(&format!("total_{name}"))
            .or_else(|| files(name))
            .unwrap_or_default()
    });
    // "max" is no number: no limit. Version 1 says so by one that no machine has.
    let total_bytes = number(limit).filter(|bytes| *bytes < 1 << 60)?;
    let used_bytes = number(usage)?.saturating_sub(clean_bytes.iter().sum());
    Some(Room {
        total_bytes,
        available_bytes: total_bytes.saturating_sub(used_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_what_can_be_had_without_killing() {
        let text =
            "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\nSwapFree:        50 kB\n";
        let room = of_host(text).unwrap();
        assert_eq!((room.total_bytes, room.available_bytes), (1000 << 10, 450 << 10));
        assert_eq!(of_host("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn limits_of_groups_count_in_both_versions() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "1000000\n");
        write("a/memory.current", "700000\n");
        write(
            "a/memory.stat",
            "anon 5\ninactive_file 100000\nactive_file 50000\n",
        );
        let rooms = of_groups("0::/a/b", root.path());
        assert_eq!(rooms.len(), 1, "the inner one has no limit: {rooms:?}");
        assert_eq!(
            (rooms[0].total_bytes, rooms[0].available_bytes),
            (1_000_000, 450_000)
        );

        write("memory/c/memory.limit_in_bytes", "2000000\n");
        write("memory/c/memory.usage_in_bytes", "1500000\n");
        write(
            "memory/c/memory.stat",
            "inactive_file 1\ntotal_inactive_file 200000\ntotal_active_file 0\n",
        );
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let rooms = of_groups("4:cpu,memory:/c", root.path());
        assert_eq!(rooms.len(), 1, "{rooms:?}");
        assert_eq!(rooms[0].available_bytes, 700_000);
        assert!(of_groups("3:cpuset:/", root.path()).is_empty());
        assert!(of_groups("nonsense", root.path()).is_empty());
    }

    #[test]
    fn a_start_that_does_not_fit_is_told_why() {
        let room = Room {
            total_bytes: 500 << 20,
            available_bytes: 100 << 20,
        };
        assert!(!room.has(START_BYTES) && room.has(36 << 20));
        let problem = no_room(room, START_BYTES);
        for figure in ["64 MiB", "500 MiB", "100 MiB"] {
            assert!(problem.message.contains(figure), "{}", problem.message);
        }
    }
}
