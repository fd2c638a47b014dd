//! No user instruction of a clone runs before its clock, entropy and identity are its own, and one that cannot be given them does
//! not run at all: seen by a witness that looks as often as it can.

use crate::{Daemon, Fixture};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

/// What the witness saw at one instant.
#[derive(Debug, Clone, PartialEq)]
struct Sight {
    unix_s: f64,
    random: String,
    host: String,
    hook_ran: bool,
}

/// All that a machine's witness saw.
fn sights(daemon: &Daemon, machine: &str) -> Vec<Sight> {
    let text = daemon.exec(machine, "cat /witness.log");
    let sight = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        Sight {
            unix_s: words[0].parse().unwrap(),
            random: words[1].into(),
            host: words[2].into(),
            hook_ran: words[3] == "1",
        }
    };
    // The last line may still be being written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(sight).collect()
}

fn now_unix_s() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
}

fn start_witness(daemon: &Daemon, machine: &str) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("witness");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real/witness.c");
    let compiled = Command::new("gcc")
        .args(["-static", "-O1", "-o"])
        .arg(&program)
        .arg(source)
        .status();
    assert!(compiled.unwrap().success());
    daemon.ok(&["cp", program.to_str().unwrap(), &format!("{machine}:/witness")]);
    daemon.exec(
        machine,
        "chmod +x /witness; : > /witness.log; /witness /witness.log </dev/null >/dev/null 2>&1 &",
    );
    wait_for_more(daemon, machine, 0);
}

/// Waits until the witness has seen a good deal more.
fn wait_for_more(daemon: &Daemon, machine: &str, than: usize) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while sights(daemon, machine).len() < than + 50 {
        assert!(Instant::now() < deadline, "the witness in {machine} sees nothing");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn no_user_instruction_runs_before_the_identity() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "w"]);
    // A hook marks the clone before any of its user code runs; a required one refuses the second clone.
    daemon.exec(
        "w",
        "mkdir -p /etc/martlet/hooks.d /run && cd /etc/martlet/hooks.d && \
         printf '#!/bin/sh\\ntouch /run/hook-ran\\n' > 10-mark && \
         printf '#!/bin/sh\\n[ \"$(hostname)\" != w-2 ]\\n' > 20-refuse.required && chmod +x *",
    );
    start_witness(&daemon, "w");
    let before = now_unix_s();
    let fork = daemon.call(&["--json", "fork", "w", "-n", "4"]);
    let fork: serde_json::Value = serde_json::from_slice(&fork.stdout).unwrap();
    let problems: Vec<_> = fork["clones"]
        .as_array()
        .unwrap()
        .iter()
        .map(|clone| !clone["problem"].is_null())
        .collect();
    assert_eq!(problems, [false, true, false, false], "{fork}");
    assert!(
        fork["clones"][1]["problem"]
            .to_string()
            .contains("20-refuse.required"),
        "{fork}"
    );
    // Nothing is left of the clone that was refused.
    let names: BTreeSet<_> = daemon
        .json(&["ps"])
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["name"].to_string())
        .collect();
    assert_eq!(
        names.into_iter().collect::<Vec<_>>(),
        ["\"w\"", "\"w-1\"", "\"w-3\"", "\"w-4\""]
    );

    let machines = ["w", "w-1", "w-3", "w-4"];
    let common = sights(&daemon, "w")
        .iter()
        .position(|sight| sight.unix_s > before)
        .unwrap();
    for machine in machines {
        wait_for_more(&daemon, machine, common);
    }
    let all = machines.map(|machine| sights(&daemon, machine));
    // Up to the hold the copies are one.
    let held_at = (0..)
        .find(|&line| all.iter().any(|seen| seen.get(line) != all[0].get(line)))
        .unwrap();
    assert!(held_at > 0);
    let mut randoms = BTreeSet::new();
    for (machine, seen) in machines.iter().zip(&all) {
        // The first line may be torn: looked up before the hold, written after it.
        for sight in &seen[held_at + 1..] {
            assert_eq!(&sight.host, machine, "{sight:?}");
            assert!(
                sight.unix_s > before && sight.unix_s < now_unix_s() + 1.0,
                "{machine}: {sight:?}, forked after {before}"
            );
            assert_eq!(sight.hook_ran, *machine != "w", "{machine}: {sight:?}");
            assert!(
                randoms.insert(sight.random.clone()),
                "{machine} repeats {sight:?}"
            );
        }
    }
    for line in &all[0][..held_at] {
        assert!(randoms.insert(line.random.clone()));
    }
    // Each is told who it is, and none has another's identity.
    let identity = "cat /run/martlet/clone; cat /etc/machine-id /proc/sys/kernel/random/boot_id /sys/class/net/eth0/address; od -An -tu8 /run/martlet/generation";
    let told = machines.map(|machine| daemon.exec(machine, identity));
    assert_eq!(told.iter().collect::<BTreeSet<_>>().len(), 4, "{told:?}");
    for (machine, told) in machines.iter().zip(&told).skip(1) {
        let id = daemon.json(&["inspect", machine])["id"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(told.contains(&id), "{machine} is not told its id {id}: {told}");
    }

    // A resumed machine is itself, with the right time before anything of it runs.
    daemon.ok(&["suspend", "w"]);
    let asleep = now_unix_s();
    daemon.ok(&["resume", "w"]);
    let seen = sights(&daemon, "w").len();
    wait_for_more(&daemon, "w", seen);
    let seen = sights(&daemon, "w");
    let woken = seen.iter().position(|sight| sight.unix_s > asleep).unwrap();
    assert!(
        seen[woken..]
            .iter()
            .all(|sight| sight.unix_s > asleep && sight.host == "w")
    );
    let gap = seen[woken].unix_s - seen[woken - 1].unix_s;
    assert!(gap > 0.0, "time went back: {gap}");
}
