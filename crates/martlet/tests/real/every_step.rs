//! The daemon is killed at every step of a fork, a checkpoint, a suspend, a resume, a removal, a collection and an import
//! (`MARTLET_CRASH_AT`, docs/faults.md). Afterwards the parent runs on with every byte as it was, each clone is whole or
//! wholly gone, what was half done can be done again, and nothing is left that nobody knows of.

use crate::deadline::wait_for;
use crate::{Daemon, Fixture};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;

/// A file in memory and one on the disk, and what they must hold; the one on the disk is read from there.
const FILL: &str = "mkdir -p /dev/shm; for dir in /dev/shm /; do cd $dir; head -c 2000000 /dev/urandom > random; \
                    sha256sum random > sum; done; sync";
const RIGHT: &str = "echo 3 > /proc/sys/vm/drop_caches; \
                     for dir in /dev/shm /; do cd $dir && sha256sum -c sum >/dev/null || exit 1; done; hostname";

/// Steps of an operation at least, lest a test that finds none passes.
const STEPS_LEAST: u64 = 3;

/// The first step to be cut short at and the distance to the next: `script/faults` takes every one, a test run some,
/// others each time.
pub fn steps() -> (u64, usize) {
    const STRIDE: usize = 5;
    match std::env::var("MARTLET_TEST_STEPS").as_deref() {
        Ok("all") => (1, 1),
        _ => (1 + u64::from(std::process::id()) % STRIDE as u64, STRIDE),
    }
}

impl Daemon {
    /// Does a command with a daemon that kills itself at a step of an operation; did it come to that step?
    fn is_cut_short_at(&self, operation: &str, step: u64, args: &[&str]) -> bool {
        if self.pid().is_some() {
            self.kill_daemon();
        }
        let dying = |args: &[&str]| {
            let mut command = self.command(args);
            command.env("MARTLET_CRASH_AT", format!("{operation}:{step}"));
            command.output().unwrap()
        };
        if (operation, args[0]) == ("start", "fork") {
            // With a QEMU ready, as a daemon has that has been there for a while.
            wait_for("a QEMU started ahead", || {
                let usage: Value = serde_json::from_slice(&dying(&["--json", "df"]).stdout).unwrap();
                usage["pool"]["ready"] == usage["pool"]["size"]
            });
        }
        let output = dying(args);
        let is_cut = self.pid().is_none();
        if !is_cut {
            self.kill_daemon(); // it would die of a later command
            assert!(
                output.status.success(),
                "{args:?} at {operation}:{step}: {output:?}"
            );
        }
        is_cut
    }

    /// Does a command, cut short at one step after the other, and `check`s after each, until it is cut short no more.
    pub fn cut_short_at_every_step(&self, operation: &str, args: &[&str], mut check: impl FnMut(bool)) {
        let (first, stride) = steps();
        for step in (first..).step_by(stride) {
            let cut = self.is_cut_short_at(operation, step, args);
            check(cut);
            if !cut {
                eprintln!(
                    "{args:?}: cut short at steps of {operation} from {first} to {step}, each {stride}"
                );
                assert!(
                    stride > 1 || step > STEPS_LEAST,
                    "{args:?} has {step} steps of {operation}"
                );
                return;
            }
        }
    }

    /// The machines that there are, each of which runs and holds what it must; no other has a process or a directory.
    fn assert_whole(&self, running: &[&str]) -> Vec<String> {
        let machines = self.json(&["ps"]);
        let machines: Vec<&Value> = machines.as_array().unwrap().iter().collect();
        let text = |machine: &Value, key: &str| machine[key].as_str().unwrap().to_owned();
        let names: Vec<String> = machines.iter().map(|machine| text(machine, "name")).collect();
        for name in running {
            assert!(
                names.iter().any(|there| there == name),
                "{name} is gone: {names:?}"
            );
        }
        for name in &names {
            assert_eq!(self.exec(name, RIGHT), *name);
        }
        let known: BTreeSet<String> = machines.iter().map(|machine| text(machine, "id")).collect();
        let dirs = fs::read_dir(self.state_dir().join("machines"))
            .into_iter()
            .flatten()
            .flatten();
        let dirs: BTreeSet<String> = dirs
            .map(|dir| dir.file_name().into_string().unwrap())
            .filter(|name| !name.starts_with("ahead-"))
            .collect();
        assert_eq!(dirs, known);
        wait_for("the end of every QEMU that is nobody's", || {
            let ahead = self.json(&["df"])["pool"]["ready"].as_u64().unwrap();
            self.processes("qemu-system-").len() as u64 == machines.len() as u64 + ahead
        });
        assert_eq!(self.mounts().len(), 1);
        names
    }

    /// The store is whole.
    fn assert_verified(&self) {
        assert_eq!(self.json(&["verify"])["damaged"], serde_json::json!([]));
    }

    /// Nothing of the store is garbage after a collection, but what lies between what is not.
    fn assert_collected(&self) {
        self.ok(&["gc"]);
        let usage = self.json(&["df"]);
        let [garbage, packs] = ["garbage_bytes", "pack_bytes"].map(|key| usage[key].as_u64().unwrap());
        assert!(garbage * 3 <= packs, "{usage}");
        self.assert_verified();
    }
}

/// A daemon with one QEMU started ahead, and machine `a`, which holds something.
fn with_machine() -> Daemon {
    let mut daemon = Daemon::new(Fixture::Tiny);
    daemon.set_env("MARTLET_POOL", "1");
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    daemon.exec("a", FILL);
    daemon
}

#[test]
fn a_fork_is_whole_or_nothing() {
    let daemon = with_machine();
    let mut before = daemon.start_counter("a");
    for operation in ["fork", "start", "checkpoint"] {
        daemon.cut_short_at_every_step(operation, &["fork", "a", "-n", "1"], |cut| {
            let names = daemon.assert_whole(&["a"]);
            before = daemon.assert_counting("a", before);
            if names.len() > 1 {
                // Not only restored: it is another machine, and goes on like one.
                daemon.assert_counting("a-1", 0);
                daemon.ok(&["rm", "--force", "a-1"]);
            }
            assert!(cut || names.len() == 2, "{names:?}");
        });
        daemon.assert_verified();
    }
    // Every snapshot that exists can be started from.
    let snapshots = daemon.json(&["images"]);
    let newest = snapshots[0]["id"].as_str().unwrap();
    daemon.ok(&["run", newest, "--name", "b"]);
    daemon.assert_whole(&["a", "b"]);
    for snapshot in snapshots.as_array().unwrap() {
        daemon.call(&["images", "rm", snapshot["id"].as_str().unwrap()]); // those in use stay
    }
    daemon.assert_collected();
    daemon.assert_whole(&["a", "b"]);
}

#[test]
fn a_machine_sleeps_and_wakes_whole() {
    let daemon = with_machine();
    let mut before = daemon.start_counter("a");
    let state = || {
        daemon.json(&["inspect", "a"])["state"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    daemon.cut_short_at_every_step("checkpoint", &["suspend", "a"], |cut| {
        if state() == "suspended" {
            daemon.ok(&["resume", "a"]);
        } else {
            assert!(cut, "{}", state());
        }
        daemon.assert_whole(&["a"]);
        before = daemon.assert_counting("a", before);
    });
    daemon.ok(&["suspend", "a"]);
    daemon.cut_short_at_every_step("start", &["resume", "a"], |cut| {
        if state() == "suspended" {
            assert!(cut);
            daemon.ok(&["resume", "a"]);
        }
        daemon.assert_whole(&["a"]);
        before = daemon.assert_counting("a", before);
        daemon.ok(&["suspend", "a"]);
    });
    daemon.ok(&["resume", "a"]);
    daemon.assert_collected();
    daemon.assert_whole(&["a"]);
}

#[test]
fn a_copied_checkpoint_is_whole_or_taken_back() {
    let daemon = with_machine();
    let mut before = daemon.start_counter("a");
    let copy = ["checkpoint", "a", "--method", "copy"];
    daemon.cut_short_at_every_step("checkpoint", &copy, |_| {
        assert_eq!(daemon.exec("a", RIGHT), "a");
        before = daemon.assert_counting("a", before);
        daemon.ok(&["checkpoint", "a"]);
        daemon.assert_whole(&["a"]);
        before = daemon.assert_counting("a", before);
    });
    daemon.assert_verified();
    daemon.ok(&["suspend", "a"]);
    daemon.ok(&["resume", "a"]);
    daemon.assert_whole(&["a"]);
}

#[test]
fn what_is_removed_is_gone_or_there() {
    let daemon = with_machine();
    daemon.ok(&["checkpoint", "a", "--tag", "kept"]);
    daemon.ok(&["run", "a:kept", "--name", "b"]);
    daemon.cut_short_at_every_step("end", &["rm", "--force", "b"], |_| {
        let machines = daemon.json(&["ps"]);
        if machines.as_array().unwrap().len() > 1 {
            daemon.ok(&["rm", "--force", "b"]);
        }
        daemon.assert_whole(&["a"]);
        daemon.ok(&["run", "a:kept", "--name", "b"]);
    });
    daemon.ok(&["rm", "--force", "b"]);
    // Each collection has something to do: a snapshot that nobody uses any more.
    let mut round = 0;
    let mut make_garbage = || {
        round += 1;
        daemon.exec("a", "head -c 4000000 /dev/urandom > /dev/shm/garbage");
        daemon.ok(&["checkpoint", "a", "--tag", &format!("round-{round}")]);
        daemon.call(&["images", "rm", &format!("a:round-{}", round - 1)]); // there is none at first
    };
    make_garbage();
    make_garbage();
    daemon.cut_short_at_every_step("gc", &["gc"], |_| {
        daemon.assert_whole(&["a"]);
        daemon.assert_verified();
        make_garbage();
    });
    daemon.ok(&["run", "a:kept", "--name", "b"]);
    daemon.assert_whole(&["a", "b"]);
    daemon.assert_collected();
}
