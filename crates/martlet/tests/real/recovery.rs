//! Losing a process loses nothing that it need not lose.

use crate::{Daemon, Fixture};
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// For what must come about, but in its own time.
const PATIENCE: Duration = Duration::from_secs(120);

fn kill(pid: u64, signal: &str) {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "process {pid} is not there"
    );
}

impl Daemon {
    fn kill_daemon(&self) {
        let pid = self.pid().expect("a daemon runs");
        kill(pid.into(), "-9");
        wait_for("the daemon's end", || self.pid().is_none());
    }

    fn qemu(&self, name: &str) -> u64 {
        self.json(&["inspect", name])["pid"].as_u64().expect("QEMU runs")
    }

    fn state(&self, name: &str) -> String {
        self.json(&["inspect", name])["state"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Starts a program in the guest that counts in its memory, without pause.
    fn start_counter(&self, name: &str) {
        let count = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count.new; mv /dev/shm/count.new /dev/shm/count; done";
        self.exec(
            name,
            &format!("mkdir -p /dev/shm; ({count}) </dev/null >/dev/null 2>&1 &"),
        );
        self.assert_counting(name, 0);
    }

    /// The program counts, and has gone on from `before`; how far it is.
    fn assert_counting(&self, name: &str, before: u64) -> u64 {
        let count = || {
            self.exec(name, "cat /dev/shm/count 2>/dev/null || echo 0")
                .parse::<u64>()
                .unwrap()
        };
        let first = count();
        assert!(first >= before, "the counter went back from {before} to {first}");
        wait_for("the counter to go on", || count() > first);
        first
    }
}

fn wait_for(what: &str, mut come: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !come() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn machines_go_on_when_the_daemon_is_killed() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    daemon.start_counter("a");
    daemon.exec("a", "echo kept > /file; sync");
    daemon.ok(&["fork", "a", "-n", "1"]);
    let before: Vec<_> = ["a", "a-1"].map(|name| daemon.assert_counting(name, 0)).into();
    let pids = ["a", "a-1"].map(|name| daemon.qemu(name));

    // A command whose output is followed loses its connection and says so; its guest does not notice.
    let mut follower = daemon.command(&[
        "exec",
        "a",
        "--",
        "sh",
        "-c",
        "while :; do echo x; sleep 0.05; done",
    ]);
    follower.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut follower = follower.spawn().unwrap();
    let mut output = follower.stdout.take().unwrap();
    output.read_exact(&mut [0]).unwrap();
    daemon.kill_daemon();
    output.read_to_end(&mut Vec::new()).unwrap();
    assert!(!follower.wait().unwrap().success());

    for (name, before) in ["a", "a-1"].iter().zip(before) {
        daemon.assert_counting(name, before);
        assert_eq!(daemon.exec(name, "cat /file"), "kept");
    }
    assert_eq!(
        ["a", "a-1"].map(|name| daemon.qemu(name)),
        pids,
        "they are the same processes"
    );
    // Found again, they can do all that they could.
    daemon.ok(&["checkpoint", "a", "--tag", "after"]);
    let fork = daemon.json(&["fork", "a-1", "-n", "1"]);
    assert!(fork["clones"][0]["problem"].is_null(), "{fork}");
    daemon.assert_counting("a-1-1", 0);
    daemon.exec("a", "echo changed > /file");
    daemon.ok(&["rollback", "a", "a:after"]);
    assert_eq!(daemon.exec("a", "cat /file"), "kept");

    // A suspended machine is nobody's process.
    daemon.ok(&["suspend", "a"]);
    daemon.kill_daemon();
    daemon.ok(&["resume", "a"]);
    daemon.assert_counting("a", 0);
    assert_eq!(daemon.json(&["verify"])["damaged"], serde_json::json!([]));
}

#[test]
fn a_checkpoint_cut_short_at_any_time_harms_nothing() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    daemon.start_counter("a");
    let mut before = 0;
    // From before the pause to after the commit, as far as luck has it.
    for (round, after_ms) in [0, 10, 25, 50, 80, 130].into_iter().enumerate() {
        let tag = format!("cut-{round}");
        let mut checkpoint = daemon.command(&["checkpoint", "a", "--tag", &tag]);
        let mut checkpoint = checkpoint
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(after_ms));
        daemon.kill_daemon();
        let done = checkpoint.wait().unwrap().success();
        before = daemon.assert_counting("a", before);
        assert_eq!(daemon.state("a"), "running");
        // What was told to exist exists, and what exists is whole.
        if done {
            daemon.ok(&["log", &format!("a:{tag}")]);
        }
        assert_eq!(
            daemon.json(&["verify"])["damaged"],
            serde_json::json!([]),
            "round {round}"
        );
    }
    daemon.ok(&["checkpoint", "a", "--tag", "whole"]);
    daemon.ok(&["run", "a:whole", "--name", "b"]);
    daemon.assert_counting("b", before);
}

#[test]
fn a_dead_qemu_is_reported_and_its_machine_starts_again() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    daemon.exec("a", "echo kept > /file; sync");
    kill(daemon.qemu("a"), "-9");
    wait_for("the machine to have failed", || daemon.state("a") == "failed");
    let why = daemon.json(&["inspect", "a"])["last_error"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(why.contains("signal 9"), "{why}");
    let (_, refusal) = daemon.refused(&["exec", "a", "--", "true"]);
    assert!(refusal.contains("martlet start a"), "{refusal}");
    daemon.ok(&["start", "a"]);
    assert_eq!(daemon.exec("a", "cat /file; hostname"), "kept\na");

    // One that is set to restart goes on from its last checkpoint.
    daemon.ok(&["run", "tiny0:booted", "--name", "b", "--restart"]);
    daemon.start_counter("b");
    daemon.ok(&["checkpoint", "b"]);
    let pid = daemon.qemu("b");
    kill(pid, "-9");
    wait_for("its restart", || {
        let b = daemon.json(&["inspect", "b"]);
        b["state"] == "running" && b["pid"].as_u64().is_some_and(|new| new != pid)
    });
    daemon.assert_counting("b", 0);

    // One whose guest panics, one that reboots, one that hangs.
    daemon.call(&["exec", "b", "--", "sh", "-c", "echo c > /proc/sysrq-trigger"]);
    // --restart again: panicked, it goes on from its checkpoint too.
    let pid = daemon.qemu("a");
    daemon.call(&["exec", "a", "--", "sh", "-c", "echo c > /proc/sysrq-trigger"]);
    wait_for("the panicked machine to have failed", || {
        daemon.state("a") == "failed"
    });
    let why = daemon.json(&["inspect", "a"])["last_error"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(why.contains("panicked"), "{why}");
    daemon.ok(&["start", "a"]);
    assert_ne!(daemon.qemu("a"), pid);
    let hung = daemon.qemu("a");
    kill(hung, "-STOP");
    daemon.ok(&["kill", "a"]);
    assert_eq!(daemon.state("a"), "stopped");
}

#[test]
fn after_the_host_has_died_what_was_durable_is_there() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    daemon.ok(&["run", "tiny0:booted", "--name", "asleep"]);
    daemon.start_counter("asleep");
    daemon.ok(&["suspend", "asleep"]);
    daemon.exec("a", "echo kept > /file; sync");
    daemon.ok(&["checkpoint", "a", "--tag", "one"]);
    let own = daemon.state_dir().to_string_lossy().into_owned();
    let pids = Command::new("pgrep").args(["-f", &own]).output().unwrap();
    for pid in String::from_utf8_lossy(&pids.stdout).lines() {
        let _ = Command::new("kill").args(["-9", pid]).status();
    }
    wait_for("the end of all", || daemon.pid().is_none());
    assert_eq!(daemon.state("a"), "failed");
    daemon.ok(&["resume", "asleep"]);
    daemon.assert_counting("asleep", 0);
    daemon.ok(&["start", "a"]);
    assert_eq!(daemon.exec("a", "cat /file"), "kept");
    daemon.ok(&["rollback", "a", "a:one"]);
    assert_eq!(daemon.exec("a", "cat /file"), "kept");
    assert_eq!(daemon.json(&["verify"])["damaged"], serde_json::json!([]));
}

#[test]
fn a_machine_started_in_the_background_becomes_itself() {
    let daemon = Daemon::new(Fixture::Tiny);
    let info = daemon.json(&["run", "tiny", "--name", "back", "--memory", "128M", "--detach"]);
    assert_eq!(info["state"], "starting");
    let (_, refusal) = daemon.refused(&["exec", "back", "--", "true"]);
    assert!(refusal.contains("starting"), "{refusal}");
    wait_for("its start", || daemon.state("back") != "starting");
    assert_eq!(daemon.exec("back", "hostname"), "back");
    assert!(daemon.json(&["inspect", "back"])["timeline"]["first_exec_ms"].is_number());

    // A start can be ended, and one that failed says why.
    daemon.ok(&["run", "tiny", "--name", "ended", "--memory", "128M", "--detach"]);
    wait_for("its end", || {
        daemon.call(&["kill", "ended"]);
        daemon.state("ended") != "starting"
    });
    assert_ne!(daemon.state("ended"), "running");
}
