//! What a machine of ours may meet: damage, a full disk, bad names and sizes, a wrong QEMU, a guest that hangs, two commands at
//! once. Each gets a clear error with a way out, and the old state stays whole.

use crate::deadline::wait_for;
use crate::{Daemon, Fixture};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Exit codes of `martlet`, as its help documents them.
const INVALID: i32 = 2;
const NOT_FOUND: i32 = 3;
const CONFLICT: i32 = 4;
const MISSING: i32 = 5;
const DAMAGED: i32 = 6;
/// No space or memory is left.
pub const FULL: i32 = 7;
const FAILED: i32 = 8;
const EXEC_FAILED: i32 = 125;

impl Daemon {
    /// Refused with this exit code, in words that name `what`, with a way out.
    #[track_caller]
    pub fn refused_for(&self, args: &[&str], exit_code: i32, what: &str) -> String {
        let (code, words) = self.refused(args);
        assert_eq!(code, exit_code, "{args:?}: {words}");
        assert!(words.contains(what), "{args:?} does not name {what}: {words}");
        words
    }

    fn assert_no_damage(&self) {
        assert_eq!(self.json(&["verify"])["damaged"], json!([]));
    }

    /// Gives an empty one a file system of its own, and the tiny fixture on it.
    pub fn on_small_disk(&self) {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=260M,mode=711", "full"])
            .arg(self.state_dir())
            .status();
        assert!(mounted.unwrap().success());
        Fixture::Tiny.copy_to(self.state_dir());
    }

    /// Has a guest write nothing to its disk of itself: on a full one it would stand still for that.
    pub fn quiet_disk(&self, name: &str) {
        self.exec(name, "mount -o remount,noatime /; sync");
    }

    /// Fills the file system of the state directory up, but for so much. Room is made by removing this file.
    pub fn fill_up(&self, left_mib: u64) -> PathBuf {
        let ballast = self.state_dir().join("ballast");
        let free = free_bytes(self.state_dir());
        let filled = Command::new("fallocate")
            .args(["-l", &(free - (left_mib << 20)).to_string()])
            .arg(&ballast)
            .status();
        assert!(filled.unwrap().success());
        ballast
    }
}

#[test]
fn bad_names_and_sizes_change_nothing() {
    let daemon = Daemon::new(Fixture::Tiny);
    let long = "x".repeat(300);
    for name in ["a/b", "a b", "../a", "ä", "", "A\u{202e}", ".", &long] {
        daemon.refused_for(&["run", "tiny0:booted", "--name", name], INVALID, "name");
        daemon.refused_for(&["base", "build", name, "--tiny"], INVALID, "name");
    }
    for size in ["0", "-1", "1M", "900T", "99999999999999999999G", "12x", ""] {
        daemon.refused(&["run", "tiny", "--name", "a", "--memory", size]);
    }
    for args in [
        ["--cpus", "0"],
        ["--cpus", "-1"],
        ["--cpus", "1000"],
        ["--disk", "1"],
        ["--disk", "900P"],
        ["-p", "0:0"],
        ["-p", "70000:1"],
    ] {
        let (code, words) = daemon.refused(&[&["run", "tiny", "--name", "a"], &args[..]].concat());
        assert_eq!(code, INVALID, "{args:?}: {words}");
    }
    daemon.refused_for(&["run", "nothing:here"], NOT_FOUND, "nothing:here");
    assert_eq!(daemon.json(&["ps"]), json!([]));
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    for count in ["0", "-1", "1001", "x"] {
        assert_eq!(daemon.refused(&["fork", "a", "-n", count]).0, INVALID, "{count}");
    }
    for tag in ["a/b", "a b", "ü", &long] {
        assert_eq!(
            daemon.refused(&["checkpoint", "a", "--tag", tag]).0,
            INVALID,
            "{tag}"
        );
    }
    daemon.ok(&["checkpoint", "a", "--tag", "one"]);
    daemon.refused_for(&["checkpoint", "a", "--tag", "one"], CONFLICT, "a:one");
    daemon.refused_for(&["run", "tiny0:booted", "--name", "a"], CONFLICT, "martlet rm");
    daemon.refused_for(
        &["run", "tiny0:booted", "--name", "b", "--memory", "64M"],
        INVALID,
        "memory",
    );

    // One clone of three finds its name taken: the others start, and it is said which did not, and why.
    daemon.ok(&["run", "tiny0:booted", "--name", "a-2"]);
    let fork = daemon.call(&["--json", "fork", "a", "-n", "3"]);
    assert_eq!(fork.status.code(), Some(FAILED));
    let report: serde_json::Value = serde_json::from_slice(&fork.stdout).unwrap();
    let problems: Vec<_> = report["clones"]
        .as_array()
        .unwrap()
        .iter()
        .map(|clone| clone["problem"]["code"].as_str())
        .collect();
    assert_eq!(problems, [None, Some("already_exists"), None]);
    assert_eq!(
        daemon.exec("a-1", "hostname") + &daemon.exec("a-3", "hostname"),
        "a-1a-3"
    );
    // The base, the fixture's checkpoint, a:one and the fork's.
    assert_eq!(daemon.json(&["images"]).as_array().unwrap().len(), 4);
}

/// The store's only pack.
fn pack(store: &Path) -> PathBuf {
    let mut packs: Vec<_> = fs::read_dir(store.join("packs")).unwrap().flatten().collect();
    assert_eq!(packs.len(), 1, "{packs:?}");
    packs.remove(0).path()
}

#[test]
fn damage_is_found_named_and_repaired() {
    let daemon = Daemon::new(Fixture::Tiny);
    let store = daemon.state_dir().join("store");
    let pack = pack(&store);
    // Damage befalls only what is new: other snapshots must not suffer from it.
    let old = fs::metadata(&pack).unwrap().len() as usize;
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    daemon.exec(
        "a",
        "mkdir -p /dev/shm; head -c 3000000 /dev/urandom > /dev/shm/x; sha256sum /dev/shm/x > /dev/shm/sum",
    );
    daemon.ok(&["suspend", "a", "--tag", "good"]);
    daemon.ok(&["daemon", "stop"]);
    let whole = fs::read(&pack).unwrap();
    let copy = tempfile::Builder::new().prefix("mt-").tempdir().unwrap();
    let parts = [&store, &daemon.state_dir().join("engine.redb")];
    let copied = Command::new("cp").arg("-a").args(parts).arg(copy.path()).status();
    assert!(copied.unwrap().success());

    let flip = |bytes: &mut Vec<u8>| {
        let new = old + 100..bytes.len();
        new.step_by(5000).for_each(|at| bytes[at] ^= 0x10);
    };
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(old + (whole.len() - old) / 3);
    let lose = |bytes: &mut Vec<u8>| bytes.truncate(old);
    type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);
    let damages: [(&str, Damage<'_>); 3] = [("flipped", &flip), ("cut", &cut), ("lost", &lose)];
    for (name, damage) in damages {
        for part in parts {
            let back = Command::new("cp")
                .args(["-a", "-T"])
                .arg(copy.path().join(part.file_name().unwrap()))
                .arg(part)
                .status();
            assert!(back.unwrap().success());
        }
        // What the round before has started is not known to the state of before.
        fs::remove_dir_all(daemon.state_dir().join("machines")).unwrap();
        let mut bytes = whole.clone();
        damage(&mut bytes);
        fs::write(&pack, &bytes).unwrap();
        let verify = daemon.call(&["--json", "verify"]);
        assert_eq!(verify.status.code(), Some(DAMAGED), "{name}: {verify:?}");
        let report: serde_json::Value = serde_json::from_slice(&verify.stdout).unwrap();
        let damaged = report["damaged"].as_array().unwrap();
        assert!(!damaged.is_empty(), "{name}");
        // Some hurt nobody: what an unfinished or removed snapshot left. No other snapshot is named.
        assert!(
            damaged.iter().any(|frame| frame["hurts"] == json!(["a:good"])),
            "{name}: {report}"
        );
        for frame in damaged {
            assert!(
                [json!(["a:good"]), json!([])].contains(&frame["hurts"]),
                "{name}: {frame}"
            );
            assert!(
                frame["reason"].as_str().is_some_and(|reason| !reason.is_empty()),
                "{name}"
            );
        }
        // Nothing starts from it, the machine stays suspended, and other snapshots are as good as before.
        let (_, words) = daemon.refused(&["resume", "a"]);
        assert!(words.contains("try: "), "{name}: {words}");
        assert_eq!(daemon.json(&["inspect", "a"])["state"], "suspended", "{name}");
        daemon.ok(&["run", "tiny0:booted", "--name", "other"]);
        daemon.ok(&["rm", "--force", "other"]);
        // Another copy mends it: a state directory, or the store in it.
        let from =
            [copy.path().to_owned(), copy.path().join("store")][usize::from(name == "flipped")].clone();
        let mended = daemon.json(&["verify", "--repair-from", from.to_str().unwrap()]);
        assert_eq!(
            mended["repaired"].as_u64().unwrap() as usize,
            damaged.len(),
            "{name}: {mended}"
        );
        daemon.assert_no_damage();
        daemon.ok(&["resume", "a"]);
        daemon.exec("a", "sha256sum -c /dev/shm/sum");
        daemon.ok(&["kill", "a"]);
        daemon.ok(&["daemon", "stop"]);
    }
}

#[test]
fn a_full_disk_leaves_the_old_state_whole() {
    let daemon = Daemon::empty();
    daemon.on_small_disk();
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    daemon.quiet_disk("a");
    daemon.ok(&["checkpoint", "a", "--tag", "before"]);
    daemon.exec(
        "a",
        "mkdir -p /dev/shm; head -c 12000000 /dev/urandom > /dev/shm/x; sha256sum /dev/shm/x > /dev/shm/sum",
    );
    // Ballast leaves room for 0, 1, 2, … MiB: it fills up at another point of the checkpoint each time.
    for left_mib in [0u64, 1, 3, 6, 9] {
        let ballast = daemon.fill_up(left_mib);
        daemon.refused_for(&["checkpoint", "a", "--tag", "full"], FULL, "space");
        daemon.refused_for(&["suspend", "a", "--tag", "full"], FULL, "space");
        daemon.exec("a", "sha256sum -c /dev/shm/sum");
        fs::remove_file(&ballast).unwrap();
        daemon.ok(&["log", "a:before"]);
        daemon.refused_for(&["log", "a:full"], NOT_FOUND, "a:full");
    }
    daemon.assert_no_damage();
    daemon.ok(&["suspend", "a", "--tag", "full"]);
    daemon.ok(&["resume", "a"]);
    daemon.exec("a", "sha256sum -c /dev/shm/sum");

    // A guest that writes to its disk stands still until there is space again, and its write is done then.
    let ballast = daemon.fill_up(0);
    let mut writing = daemon.command(&["exec", "a", "--", "sh", "-c", "cat /dev/shm/x > /x; sync"]);
    let writing = writing.spawn().unwrap();
    wait_for("the guest to stand still", || {
        let output = daemon.call(&["exec", "a", "--", "true"]);
        output.status.code() == Some(EXEC_FAILED)
            && String::from_utf8_lossy(&output.stderr).contains("stands still")
    });
    daemon.refused_for(&["checkpoint", "a"], FULL, "stands still");
    fs::remove_file(&ballast).unwrap();
    assert!(writing.wait_with_output().unwrap().status.success());
    wait_for("its going on to be noticed", || {
        daemon.call(&["exec", "a", "--", "true"]).status.success()
    });
    daemon.exec("a", "echo 3 > /proc/sys/vm/drop_caches; cmp /x /dev/shm/x");
    daemon.assert_no_damage();

    // Nor does the daemon need space to end, though it would make its index smaller then.
    daemon.ok(&["kill", "a"]);
    let ballast = daemon.fill_up(0);
    daemon.ok(&["daemon", "stop"]);
    fs::remove_file(&ballast).unwrap();
    daemon.ok(&["log", "a:before"]);
    daemon.assert_no_damage();
}

#[test]
fn a_log_that_cannot_be_written_stops_nobody() {
    let daemon = Daemon::new(Fixture::Tiny);
    let program = Path::new(env!("CARGO_BIN_EXE_martlet")).with_file_name("martletd");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut serving = Command::new(program)
        .arg("--socket")
        .arg(daemon.socket())
        .arg("--state-dir")
        .arg(daemon.state_dir())
        .stderr(full)
        .spawn()
        .unwrap();
    wait_for("the daemon", || daemon.socket().exists());
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    assert_eq!(daemon.pid(), Some(serving.id()));
    daemon.ok(&["suspend", "a"]);
    daemon.ok(&["daemon", "stop"]);
    assert!(serving.wait().unwrap().success());
}

fn free_bytes(dir: &Path) -> u64 {
    let output = Command::new("df")
        .args(["-B1", "--output=avail"])
        .arg(dir)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().nth(1).unwrap().trim().parse().unwrap()
}

#[test]
fn a_wrong_qemu_is_explained() {
    let mut daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    daemon.ok(&["suspend", "a"]);
    daemon.ok(&["daemon", "stop"]);
    let fake = daemon.state_dir().join("qemu");
    let wrong = [
        ("#!/bin/sh\necho 'QEMU emulator version 5.2.0 (Debian)'\n", "5.2"),
        ("#!/bin/sh\nhead -c 100000 /dev/urandom\n", "qemu"),
        ("#!/bin/sh\nexit 1\n", "qemu"),
        ("", "qemu"),
    ];
    for (script, named) in wrong {
        fs::write(&fake, script).unwrap();
        let mode = if script.is_empty() { 0o644 } else { 0o755 };
        fs::set_permissions(&fake, fs::Permissions::from_mode(mode)).unwrap();
        daemon.set_env("MARTLET_QEMU", fake.to_str().unwrap());
        let words = daemon.refused_for(&["resume", "a"], MISSING, named);
        assert!(words.contains("try: "), "{words}");
        daemon.refused_for(&["run", "tiny", "--name", "b"], MISSING, named);
        assert_eq!(daemon.json(&["inspect", "a"])["state"], "suspended");
        daemon.ok(&["images"]);
        daemon.ok(&["daemon", "stop"]);
    }
    daemon.set_env("MARTLET_QEMU", "/nonexistent/qemu");
    daemon.refused_for(&["resume", "a"], MISSING, "/nonexistent/qemu");
    daemon.ok(&["daemon", "stop"]);
    daemon.set_env("MARTLET_QEMU", "/usr/bin/qemu-system-x86_64");
    daemon.ok(&["resume", "a"]);
}

#[test]
fn a_guest_that_hangs_keeps_nobody_waiting_for_ever() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    let pid = daemon.json(&["inspect", "a"])["pid"]
        .as_u64()
        .unwrap()
        .to_string();
    let signal = |signal: &str| {
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        )
    };
    signal("-STOP");
    let mut checkpoint = daemon.command(&["checkpoint", "a"]);
    let checkpoint = checkpoint
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while daemon.json(&["inspect", "a"])["state"] != "pausing" {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // While one command works on a machine others are refused, and told by whom.
    daemon.refused_for(&["suspend", "a"], CONFLICT, "`checkpoint` is at work");
    let output = checkpoint.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(FAILED), "{words}");
    assert!(words.contains("nothing was saved"), "{words}");
    signal("-CONT");
    // It was only slow: it goes on, and nothing is held.
    assert_eq!(daemon.exec("a", "echo here"), "here");
    daemon.ok(&["checkpoint", "a"]);
}

/// Something else talks where the agent should: bytes without end and without sense.
#[test]
fn a_guest_that_talks_nonsense_harms_nobody_else() {
    let daemon = Daemon::new(Fixture::Tiny);
    for name in ["mad", "sane"] {
        daemon.ok(&["run", "tiny0:booted", "--name", name]);
    }
    // Process 1 starts the agent again, which finds its port taken until the babble is over.
    daemon.exec(
        "mad",
        "agent=$PPID; (sleep 1; kill -9 $agent; timeout 10 cat /dev/urandom > $(ls /dev/vport*p*); touch /said) \
         > /dev/null 2>&1 < /dev/null &",
    );
    let begun = std::time::Instant::now();
    let words = loop {
        let output = daemon.call(&["exec", "mad", "--", "true"]);
        if !output.status.success() {
            assert_eq!(output.status.code(), Some(125));
            break String::from_utf8_lossy(&output.stderr).into_owned();
        }
        assert!(begun.elapsed().as_secs() < 60, "it went on to answer");
    };
    assert!(words.contains("agent") || words.contains("guest"), "{words}");
    assert_eq!(daemon.exec("sane", "echo well"), "well");
    daemon.ok(&["checkpoint", "sane"]);
    let resident = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid().unwrap())).unwrap();
    let resident = resident
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 512 << 10, "the daemon has {kib} KiB");

    // It is over: the agent that process 1 started is heard.
    loop {
        let output = daemon.call(&["exec", "mad", "--", "ls", "/said"]);
        if output.status.success() {
            break;
        }
        assert!(begun.elapsed().as_secs() < 300, "{output:?}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    daemon.ok(&["checkpoint", "mad"]);
    daemon.assert_no_damage();
}
