//! More clones than memory: what fits runs, what does not is refused with the figures, and nobody dies for it.

use crate::{Daemon, Fixture};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const LIMIT_BYTES: u64 = 800 << 20;
/// More than fit.
const CLONES: usize = 24;

/// A control group with little memory; gone with its processes.
struct Group {
    dir: PathBuf,
    is_v2: bool,
}

impl Group {
    fn new() -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let is_v2 = root.join("cgroup.controllers").exists();
        let name = format!("martlet-test-{}", std::process::id());
        let dir = match is_v2 {
            true => root.join(name),
            false => root.join("memory").join(name),
        };
        if is_v2 {
            fs::write(root.join("cgroup.subtree_control"), "+memory").expect("a memory controller");
        }
        fs::create_dir(&dir).expect("a control group of our own");
        let group = Self { dir, is_v2 };
        let limit = if is_v2 {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        fs::write(group.dir.join(limit), LIMIT_BYTES.to_string()).unwrap();
        group
    }

    /// The command, as one that starts in the group.
    fn within(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside
            .args(["-c", "echo $$ >\"$0\" && exec \"$@\""])
            .arg(self.dir.join("cgroup.procs"))
            .arg(command.get_program())
            .args(command.get_args())
            .envs(
                command
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            );
        inside
    }

    /// Processes that the kernel killed because the group had no memory left.
    fn killed(&self) -> u64 {
        let file = if self.is_v2 {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = fs::read_to_string(self.dir.join(file)).unwrap();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.expect("the kernel counts them").parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for pid in fs::read_to_string(self.dir.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
        {
            let root = self
                .dir
                .parent()
                .expect("it is below the root")
                .join("cgroup.procs");
            let _ = fs::write(root, pid); // one that has just ended
        }
        let _ = fs::remove_dir(&self.dir); // in use by what a failed test left
    }
}

#[test]
fn more_clones_than_memory_are_refused_and_harm_nobody() {
    let daemon = Daemon::new(Fixture::Tiny);
    let group = Group::new();
    let run = daemon.command(&["run", "tiny0:booted", "--name", "a"]);
    let ran = group.within(&run).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let pid = daemon.pid();
    let sum = daemon.exec(
        "a",
        "mkdir -p /dev/shm; head -c 20M /dev/urandom >/dev/shm/kept; sha256sum </dev/shm/kept",
    );

    let fork = daemon.call(&["--json", "fork", "a", "-n", &CLONES.to_string()]);
    let report: serde_json::Value = serde_json::from_slice(&fork.stdout).unwrap();
    let (started, refused): (Vec<_>, Vec<_>) = report["clones"]
        .as_array()
        .unwrap()
        .iter()
        .partition(|clone| clone["problem"].is_null());
    assert!(started.len() >= 3 && refused.len() >= 3, "{report}");
    for clone in &refused {
        assert_eq!(clone["problem"]["code"], "no_space", "{clone}");
        let words = clone["problem"]["message"].as_str().unwrap();
        assert!(
            words.contains("not enough memory") && words.contains("800 MiB"),
            "{words}"
        );
    }

    // Their clean pages were evicted for others, and come back right.
    for clone in &started {
        let name = clone["name"].as_str().unwrap();
        assert_eq!(daemon.exec(name, "sha256sum </dev/shm/kept"), sum, "{name}");
    }
    assert_eq!(daemon.exec("a", "sha256sum </dev/shm/kept"), sum);
    assert_eq!((group.killed(), daemon.pid()), (0, pid));

    // Room that is made is there for others.
    let names: Vec<_> = started
        .iter()
        .map(|clone| clone["name"].as_str().unwrap())
        .collect();
    daemon.ok(&[&["rm", "--force"], &names[..3]].concat());
    daemon.ok(&["run", "tiny0:booted", "--name", "b"]);
    daemon.exec("b", "true");
    daemon.ok(&[&["rm", "--force", "a", "b"], &names[3..]].concat());
}
