//! Losing a process loses nothing that it need not lose.

use crate::deadline::wait_for;
use crate::{Daemon, Fixture};
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Sends a signal to a process that must be there.
pub fn kill(pid: u64, signal: &str) {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "process {pid} is not there"
    );
}

impl Daemon {
    /// Kills the daemon; the next command starts another.
    pub fn kill_daemon(&self) {
        let pid = self.pid().expect("a daemon runs");
        kill(pid.into(), "-9");
        // Of this one: a command that was waiting for it may have started the next already.
        wait_for("the daemon's end", || !exists(pid.into()));
    }

    /// Keepers that run for it.
    pub fn keepers(&self) -> Vec<u64> {
        self.processes("keeper --socket")
    }

    /// Kills the keeper and waits until another keeps all QEMUs: those of so many machines, and those started ahead.
    pub fn replace_keeper(&self, machines: u64) {
        let [old] = self.keepers()[..] else {
            panic!("one keeper runs")
        };
        kill(old, "-9");
        wait_for("another keeper that keeps QEMUs", || {
            // It fails for as long as there is no keeper.
            let checks = self.call(&["--json", "doctor"]).stdout;
            let checks: Vec<serde_json::Value> = serde_json::from_slice(&checks).unwrap();
            let keeper = checks.iter().find(|c| c["name"] == "keeper");
            let ahead = self.json(&["df"])["pool"]["ready"].as_u64().unwrap();
            let kept = format!("keeps {} processes", machines + ahead);
            self.keepers().iter().any(|new| *new != old) && keeper.unwrap()["found"] == kept
        });
    }

    /// Process id of a machine's QEMU.
    pub fn qemu(&self, name: &str) -> u64 {
        self.json(&["inspect", name])["pid"].as_u64().expect("QEMU runs")
    }

    /// A machine's state.
    pub fn state(&self, name: &str) -> String {
        self.json(&["inspect", name])["state"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Why a machine has failed.
    pub fn last_error(&self, name: &str) -> String {
        self.json(&["inspect", name])["last_error"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Starts a program in the guest that counts in its memory, without pause; how far it is.
    pub fn start_counter(&self, name: &str) -> u64 {
        let count = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count.new; mv /dev/shm/count.new /dev/shm/count; done";
        self.exec(
            name,
            &format!("mkdir -p /dev/shm; ({count}) </dev/null >/dev/null 2>&1 &"),
        );
        self.assert_counting(name, 0)
    }

    /// The program counts, and has gone on from `before`; how far it is.
    pub fn assert_counting(&self, name: &str, before: u64) -> u64 {
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

/// Is there a process of this number?
pub fn exists(pid: u64) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok()
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
    let why = daemon.last_error("a");
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

    // A guest whose kernel panics has failed too, and its console says why.
    daemon.call(&["exec", "a", "--", "sh", "-c", "echo c > /proc/sysrq-trigger"]);
    wait_for("the panicked machine to have failed", || {
        daemon.state("a") == "failed"
    });
    let why = daemon.last_error("a");
    assert!(why.contains("panicked"), "{why}");
    // That is over once it has been started again.
    daemon.ok(&["start", "a"]);
    kill(daemon.qemu("a"), "-9");
    wait_for("the machine to have failed", || daemon.state("a") == "failed");
    let why = daemon.last_error("a");
    assert!(why.contains("signal 9"), "{why}");
}

#[test]
fn a_guest_may_reboot_but_not_in_a_loop() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    daemon.exec("a", "echo kept > /file; sync");
    for _ in 0..2 {
        let before = daemon.qemu("a");
        daemon.call(&["exec", "a", "--", "reboot", "-f"]);
        wait_for("the reboot", || {
            let a = daemon.json(&["inspect", "a"]);
            a["state"] == "running" && a["pid"].as_u64() != Some(before)
        });
        assert_eq!(daemon.exec("a", "cat /file; hostname"), "kept\na");
    }
    daemon.call(&["exec", "a", "--", "reboot", "-f"]);
    wait_for("the end of the loop", || daemon.state("a") == "failed");
    let why = daemon.last_error("a");
    assert!(why.contains("reboots in a loop"), "{why}");
}

#[test]
fn a_guest_that_hangs_is_told_of_and_can_be_killed() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    let before = daemon.start_counter("a");
    daemon.ok(&["run", "tiny0:booted", "--name", "c"]);
    kill(daemon.qemu("a"), "-STOP");
    kill(daemon.qemu("c"), "-STOP");
    std::thread::scope(|scope| {
        let exec = scope.spawn(|| daemon.refused(&["exec", "c", "--", "true"]));
        let checkpoint = scope.spawn(|| daemon.refused(&["checkpoint", "a"]));
        for refused in [exec, checkpoint] {
            let (_, why) = refused.join().unwrap();
            assert!(
                why.contains("did not answer") && why.contains("martlet kill"),
                "{why}"
            );
        }
    });
    daemon.ok(&["kill", "c"]);
    // A new daemon serves all the same, and waits for QEMU without ending it.
    daemon.kill_daemon();
    let (_, why) = daemon.refused(&["exec", "a", "--", "true"]);
    assert!(why.contains("has not answered yet"), "{why}");
    let (_, why) = daemon.refused(&["checkpoint", "a"]);
    assert!(why.contains("recovery"), "{why}");
    // When it comes to itself nothing was lost, and the checkpoint that failed holds nothing.
    kill(daemon.qemu("a"), "-CONT");
    wait_for("the guest to answer", || {
        daemon.call(&["exec", "a", "--", "true"]).status.success()
    });
    daemon.assert_counting("a", before);
    wait_for("a checkpoint", || {
        daemon.call(&["checkpoint", "a"]).status.success()
    });

    // It can be killed while another command waits for it, which then ends.
    kill(daemon.qemu("a"), "-STOP");
    let checkpoint = daemon
        .command(&["checkpoint", "a"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the checkpoint to have begun", || daemon.state("a") == "pausing");
    daemon.ok(&["kill", "a"]);
    assert!(!checkpoint.wait_with_output().unwrap().status.success());
    assert_eq!(daemon.state("a"), "stopped");

    // Also by a daemon that has not had an answer of it.
    daemon.ok(&["run", "tiny0:booted", "--name", "b"]);
    let hung = daemon.qemu("b");
    kill(hung, "-STOP");
    daemon.kill_daemon();
    daemon.ok(&["kill", "b"]);
    wait_for("QEMU's end", || !exists(hung));
    assert_eq!(daemon.state("b"), "stopped");
    daemon.ok(&["start", "b"]);
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
    for pid in daemon.processes("") {
        kill(pid, "-9");
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

    // A start can be ended.
    daemon.ok(&["run", "tiny", "--name", "ended", "--memory", "128M", "--detach"]);
    wait_for("its end", || {
        daemon.call(&["kill", "ended"]);
        daemon.state("ended") == "stopped"
    });

    // One that the daemon's death cut short has failed and says why; nothing of it is left, and it can be made again.
    daemon.ok(&["run", "tiny", "--name", "short", "--memory", "128M", "--detach"]);
    wait_for("its QEMU", || !daemon.processes("martlet:short").is_empty());
    daemon.kill_daemon();
    assert_eq!(daemon.state("short"), "failed");
    assert!(
        daemon
            .last_error("short")
            .contains("while the machine was starting")
    );
    wait_for("the end of its QEMU", || {
        daemon.processes("martlet:short").is_empty()
    });
    daemon.ok(&["start", "short"]);
    assert_eq!(daemon.exec("short", "hostname"), "short");
}

#[test]
fn a_resume_cut_short_at_any_time_can_be_made_again() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    let mut before = daemon.start_counter("a");
    for after_ms in [0, 60, 150, 400] {
        daemon.ok(&["suspend", "a"]);
        let mut resume = daemon.command(&["resume", "a"]);
        let mut resume = resume
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(after_ms));
        daemon.kill_daemon();
        resume.wait().unwrap();
        match daemon.state("a").as_str() {
            "suspended" => drop(daemon.ok(&["resume", "a"])),
            state => assert_eq!(state, "running"),
        }
        before = daemon.assert_counting("a", before);
    }
}

#[test]
fn a_keeper_that_is_killed_is_replaced() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    let before = daemon.start_counter("a");
    let qemu = daemon.qemu("a");
    daemon.replace_keeper(1);
    // It has all that the old one had: the next daemon finds the machine by it.
    daemon.kill_daemon();
    daemon.assert_counting("a", before);
    assert_eq!(daemon.qemu("a"), qemu);
    daemon.ok(&["checkpoint", "a"]);
    kill(qemu, "-9");
    wait_for("the machine to have failed", || daemon.state("a") == "failed");
    daemon.ok(&["rollback", "a", "a:1"]);
    daemon.assert_counting("a", before);
}

#[test]
fn a_daemon_started_on_demand_ends_when_idle_and_keeps_no_pipe_open() {
    let mut daemon = Daemon::new(Fixture::Tiny);
    // Longer than a client may stand still on a busy host between the daemon's start and its request.
    daemon.set_env("MARTLET_IDLE_EXIT", "4");
    // Its caller's pipes, also one of a number that it knows nothing of, are nobody's but its own.
    let run = daemon.command(&["run", "tiny0:booted", "--name", "a"]);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "exec 9>&1; exec \"$@\"", "sh"])
        .arg(run.get_program())
        .args(run.get_args())
        .stdin(Stdio::null());
    shell.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{output:?}");

    // A machine that runs keeps the daemon.
    let pid = daemon.pid();
    std::thread::sleep(Duration::from_millis(9000));
    assert!(pid.is_some(), "the daemon has ended before its machine");
    assert_eq!(daemon.pid(), pid);
    daemon.ok(&["suspend", "a"]);
    wait_for("the end of daemon and keeper", || daemon.processes("").is_empty());
    daemon.ok(&["resume", "a"]);
}
