//! Machines that another host goes on with: while they run, and from where they were suspended.

use crate::deadline::wait_for;
use crate::every_step::steps;
use crate::hosts::fleet;
use crate::{Daemon, Fixture};
use serde_json::{Value, json};

/// Something on the disk and something in memory, and that both are right.
const FILL: &str = "mkdir -p /dev/shm; for dir in /dev/shm /; do cd $dir; head -c 3000000 /dev/urandom > random; \
                    sha256sum random > sum; done; sync";
const RIGHT: &str = "echo 3 > /proc/sys/vm/drop_caches; \
                     for dir in /dev/shm /; do cd $dir && sha256sum -c sum >/dev/null || exit 1; done; hostname";

impl Daemon {
    /// States of its machines by name.
    fn states(&self) -> Vec<(String, String)> {
        let machines = self.json(&["ps"]);
        let text = |machine: &Value, key: &str| machine[key].as_str().unwrap().to_owned();
        let machines = machines.as_array().unwrap().iter();
        machines
            .map(|machine| (text(machine, "name"), text(machine, "state")))
            .collect()
    }

    fn runs(&self, name: &str) -> bool {
        self.states().contains(&(name.into(), "running".into()))
    }

    /// Nothing is left of any machine: no record, no directory, no process, no snapshot of its own.
    fn assert_nothing_left(&self) {
        assert_eq!(self.states(), []);
        let dirs = std::fs::read_dir(self.state_dir().join("machines"))
            .unwrap()
            .flatten();
        let dirs: Vec<_> = dirs.map(|dir| dir.file_name().into_string().unwrap()).collect();
        assert!(dirs.iter().all(|dir| dir.starts_with("ahead-")), "{dirs:?}");
        let images = self.json(&["images"]);
        let named = |image: &Value| {
            image["reference"]
                .as_str()
                .is_some_and(|name| name.starts_with("a:"))
        };
        assert!(!images.as_array().unwrap().iter().any(named), "{images}");
        wait_for("the end of its QEMU", || {
            let ahead = self.json(&["df"])["pool"]["ready"].as_u64().unwrap();
            self.processes("qemu-system-").len() as u64 == ahead
        });
    }
}

#[test]
fn a_machine_moves_while_it_runs_and_comes_back() {
    let here = Daemon::new(Fixture::Tiny);
    let there = here.another();
    fleet(&[(&here, "desk"), (&there, "couch")]);
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    here.exec("a", FILL);
    let count = here.start_counter("a");
    let id = here.json(&["inspect", "a"])["id"].clone();

    let moved = here.json(&["move", "a", "couch"]);
    assert_eq!(
        (&moved["host"], &moved["left_objects"]),
        (&json!("couch"), &json!(0))
    );
    assert!(moved["pause_ms"].as_f64().unwrap() > moved["saved_ms"].as_f64().unwrap());
    assert!(moved["rounds"].as_array().unwrap().len() >= 2, "{moved}");
    here.assert_nothing_left();
    let count = there.assert_counting("a", count);
    assert_eq!(there.exec("a", RIGHT), "a");
    assert_eq!(there.json(&["inspect", "a"])["id"], id, "it is no clone");
    assert_eq!(there.json(&["away"]), json!([]), "it depends on nobody");

    // What it does not take along is what is there already.
    let back = there.json(&["move", "a", "desk"]);
    let sent = |moved: &Value| moved["sent_bytes"].as_u64().unwrap();
    assert!(sent(&back) * 2 < sent(&moved), "{back} after {moved}");
    let count = here.assert_counting("a", count);
    there.assert_nothing_left();

    // One that is suspended goes on there, one that runs is moved.
    assert_eq!(
        here.fails_with_input(&["resume", "a", "--on", "couch"], ""),
        "wrong_state"
    );
    here.ok(&["suspend", "a", "--tag", "evening"]);
    here.ok(&["resume", "a", "--on", "couch"]);
    let count = there.assert_counting("a", count);
    assert_eq!(there.exec("a", RIGHT), "a");
    wait_for("all of it to be there", || here.states().is_empty());
    here.ok(&["rmi", "a:evening"]); // what its user has saved stays

    // Whoever cannot have it refuses, and it goes on where it is.
    let fails = |args: &[&str]| there.fails_with_input(args, "");
    assert_eq!(fails(&["move", "a", "couch"]), "invalid_argument");
    assert_eq!(fails(&["move", "a", "attic"]), "not_found");
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    assert_eq!(fails(&["move", "a", "desk"]), "already_exists");
    here.ok(&["rm", "--force", "a"]);
    let count = there.assert_counting("a", count);
    here.kill_daemon();
    let _ = here.command(&["ps"]).env("MARTLET_TAKE", "no").output().unwrap();
    wait_for("the other host to refuse", || {
        fails(&["move", "a", "desk"]) == "permission_denied"
    });
    here.kill_daemon();
    assert_eq!(fails(&["move", "a", "desk"]), "busy");
    there.assert_counting("a", count);
    // A port that is forwarded here is taken on this machine, and both hosts are on it.
    here.ok(&["run", "tiny0:booted", "--name", "b", "-p", "0:80"]);
    wait_for("the other host to refuse", || {
        here.fails_with_input(&["move", "b", "couch"], "") == "in_use"
    });
    assert!(here.runs("b"));
}

/// Whichever daemon dies at whichever step: one host has the machine and goes on with it, without being asked to, and the other has
/// nothing of it.
fn dies_while_it_moves(operation: &str, of_giver: bool) {
    let here = Daemon::new(Fixture::Tiny);
    let there = here.another();
    fleet(&[(&here, "desk"), (&there, "couch")]);
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    here.exec("a", FILL);
    let mut count = here.start_counter("a");
    let dies = if of_giver { &here } else { &there };
    let (first, stride) = match of_giver {
        true => (1, 1),
        false => steps(), // there are many, each of which takes its time
    };
    for step in (first..).step_by(stride) {
        dies.kill_daemon();
        let dying = format!("{operation}:{step}");
        let started = dies
            .command(&["ps"])
            .env("MARTLET_CRASH_AT", &dying)
            .output()
            .unwrap();
        assert!(started.status.success(), "{started:?}");
        wait_for("the hosts to know each other", || {
            here.answers("couch") && there.answers("desk")
        });
        let (moved, died) = std::thread::scope(|scope| {
            let moving = scope.spawn(|| here.call(&["move", "a", "couch"]));
            wait_for("the end of the move, or of a daemon", || {
                moving.is_finished() || dies.pid().is_none()
            });
            let died = dies.pid().is_none();
            // Whoever has died is there again.
            dies.json(&["ps"]);
            (moving.join().unwrap(), died)
        });
        wait_for("one host to go on with it", || here.runs("a") || there.runs("a"));
        let (at, other) = if there.runs("a") {
            (&there, &here)
        } else {
            (&here, &there)
        };
        wait_for("the other to have nothing of it", || other.states().is_empty());
        if !died {
            assert!(moved.status.success(), "{moved:?}");
        }
        wait_for("its agent", || {
            at.call(&["exec", "a", "--", "true"]).status.success()
        });
        assert_eq!(at.exec("a", RIGHT), "a");
        count = at.assert_counting("a", count);
        other.assert_nothing_left();
        if std::ptr::eq(at, &there) {
            wait_for("the hosts to know each other", || there.answers("desk"));
            there.ok(&["move", "a", "desk"]);
            count = here.assert_counting("a", count);
        }
        if !died {
            assert!(stride > 1 || step > 3, "there are {step} steps of {operation}");
            return;
        }
    }
}

#[test]
fn a_daemon_that_dies_while_it_gives_a_machine() {
    dies_while_it_moves("move", true);
}

#[test]
fn a_daemon_that_dies_while_it_takes_a_machine() {
    dies_while_it_moves("start", false);
}

#[test]
fn a_line_is_held_by_whoever_goes_on_with_it() {
    let mut here = Daemon::new(Fixture::Tiny);
    here.set_env("MARTLET_LEASE", "4");
    let mut there = here.another();
    there.set_env("MARTLET_LEASE", "4");
    fleet(&[(&here, "desk"), (&there, "couch")]);
    let place = tempfile::tempdir().unwrap();
    let far = place.path().join("far").to_string_lossy().into_owned();
    here.ok(&["remote", "add", "far", &far]);
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    let count = here.start_counter("a");
    let before = here.json(&["publish", "a", "--to", "far"])["version"]
        .as_u64()
        .unwrap();

    // Who could not publish it may not go on with it.
    assert_eq!(here.fails_with_input(&["move", "a", "couch"], ""), "not_found");
    there.ok(&["remote", "add", "far", &far]);
    here.ok(&["move", "a", "couch"]);
    let count = there.assert_counting("a", count);
    assert_eq!(there.json(&["inspect", "a"])["line"]["state"], "held");
    let version = there.json(&["publish", "a"])["version"].as_u64().unwrap();
    assert_eq!(version, before + 1);
    // It is not taken for gone while nobody publishes.
    std::thread::sleep(std::time::Duration::from_secs(6));
    assert_eq!(
        here.fails_with_input(&["resume", "a", "--from", "far"], ""),
        "in_use",
        "the other host gives signs"
    );

    // One that is suspended and on no host is acquired for the one that is to have it.
    there.ok(&["suspend", "a"]);
    there.ok(&["resume", "a", "--on", "desk"]);
    here.assert_counting("a", count);
    assert_eq!(here.json(&["inspect", "a"])["line"]["state"], "held");
    wait_for("all of it to be here", || there.states().is_empty());
    here.ok(&["suspend", "a"]);
    assert_eq!(here.json(&["inspect", "a"])["line"]["state"], "free");
}

#[test]
fn a_host_whose_qemu_cannot_run_it_refuses_and_it_is_said_which_could() {
    let here = Daemon::new(Fixture::Tiny);
    let mut there = here.another();
    // One that does not know the machine type of others, as an older or newer one may not.
    let dir = tempfile::tempdir().unwrap();
    let other_qemu = dir.path().join("qemu-system-x86_64");
    let words = "#!/bin/sh\ncase \"$*\" in\n*-machine?help*) qemu-system-x86_64 \"$@\" | grep -v pc-q35 ;;\n\
                 *) exec qemu-system-x86_64 \"$@\" ;;\nesac\n";
    std::fs::write(&other_qemu, words).unwrap();
    let runs = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&other_qemu, runs).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    there.set_env("MARTLET_QEMU", &other_qemu.to_string_lossy());
    let third = here.another();
    fleet(&[(&here, "desk"), (&there, "couch"), (&third, "attic")]);
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    let count = here.start_counter("a");

    let refused = |daemon: &Daemon, args: &[&str]| {
        let output = daemon.call(&[&["--json"], args].concat());
        let problem: Value = serde_json::from_slice(&output.stderr).unwrap_or_else(|_| {
            let words = String::from_utf8_lossy(&output.stderr);
            serde_json::from_str(words.lines().last().unwrap_or_default()).unwrap()
        });
        assert_eq!(problem["code"], "incompatible", "{problem}");
        problem["remediation"].as_str().unwrap().to_owned()
    };
    let remedy = "resume it on a host (or with a QEMU, see MARTLET_QEMU) that has what it needs";
    let hosts = refused(&here, &["move", "a", "couch"]);
    assert_eq!(hosts, format!("{remedy}; hosts that could: attic"));
    let count = here.assert_counting("a", count);
    // The same of a snapshot that is to start there.
    here.ok(&["checkpoint", "a", "--tag", "now"]);
    let hosts = refused(&there, &["clone", "desk", "a:now"]);
    assert_eq!(hosts, format!("{remedy}; hosts that could: desk, attic"));
    here.ok(&["move", "a", "attic"]);
    third.assert_counting("a", count);
}

/// A host that has not heard that its machine was taken does not go on with it, also when it is not there any more.
#[test]
fn what_was_taken_stays_taken() {
    let here = Daemon::new(Fixture::Tiny);
    let there = here.another();
    fleet(&[(&here, "desk"), (&there, "couch")]);
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    let count = here.start_counter("a");
    here.kill_daemon();
    // It dies when the other host has said that it goes on, and before that is written down.
    let dying = here
        .command(&["ps"])
        .env("MARTLET_CRASH_AT", "move:3")
        .output()
        .unwrap();
    assert!(dying.status.success(), "{dying:?}");
    wait_for("the hosts to know each other", || here.answers("couch"));
    assert!(!here.call(&["move", "a", "couch"]).status.success());
    assert_eq!(here.pid(), None);
    there.assert_counting("a", count);
    there.ok(&["rm", "--force", "a"]);
    wait_for("it to be known", || {
        let states = here.states();
        assert!(!states.contains(&("a".into(), "running".into())), "{states:?}");
        states.is_empty()
    });
    here.assert_nothing_left();
}
