//! One machine, on one host at a time: closed here, opened there, asked back, taken away, and nothing of it lost.

use crate::deadline::wait_for;
use crate::recovery::kill;
use crate::{Daemon, Fixture};
use serde_json::Value;
use std::time::Duration;
use tempfile::TempDir;

/// Two hosts of one realm that know one disk.
fn hosts() -> (TempDir, Daemon, Daemon) {
    let remote = tempfile::tempdir().unwrap();
    let address = remote.path().join("lines").to_string_lossy().into_owned();
    let mut here = Daemon::new(Fixture::Tiny);
    here.set_env("MARTLET_LEASE", "4");
    here.ok(&["remote", "add", "disk", &address]);
    let mut there = here.another();
    there.set_env("MARTLET_LEASE", "4");
    let line = here.ok(&["realm", "share"]);
    there.ok_with_input(&["realm", "join", "--as", "home"], &line);
    there.ok(&["remote", "add", "disk", &address, "--realm", "home"]);
    (remote, here, there)
}

fn held_here(daemon: &Daemon) -> Option<bool> {
    let lease = daemon.json(&["lease", "show", "disk", "a"]);
    lease["held"].as_object().map(|held| held["here"] == true)
}

fn line(daemon: &Daemon) -> Value {
    daemon.json(&["inspect", "a"])["line"].clone()
}

#[test]
fn a_machine_is_closed_here_and_opened_there() {
    let (_remote, here, there) = hosts();
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    here.exec("a", "echo here > /work; sync");
    let id = here.exec("a", "cat /etc/machine-id; hostname");
    let closed = here.json(&["suspend", "a", "--to", "disk"]);
    let published = &closed["published"];
    assert_eq!(
        (&published["version"], &published["released"]),
        (&1.into(), &true.into())
    );
    assert_eq!(held_here(&here), None);

    there.ok(&["resume", "--from", "disk", "a"]);
    assert_eq!(there.exec("a", "cat /work"), "here");
    assert_eq!(
        there.exec("a", "cat /etc/machine-id; hostname"),
        id,
        "it is the same machine"
    );
    assert_eq!((held_here(&there), held_here(&here)), (Some(true), Some(false)));
    assert_eq!(
        (&line(&here)["state"], &line(&there)["state"]),
        (&"free".into(), &"held".into())
    );
    for (args, code) in [
        (&["resume", "a"][..], "in_use"),
        (&["resume", "--from", "disk", "a"], "in_use"),
        (&["rollback", "a", "a:1"], "wrong_state"),
        (&["remote", "rollback", "disk", "a:latest", "1"], "in_use"),
        (&["remote", "forget", "disk", "a:latest"], "in_use"),
        (&["push", "a:1", "disk", "--as", "a:latest"], "in_use"),
        (&["resume", "--from", "disk", "none"], "not_found"),
        (&["lease", "show", "disk", "none"], "not_found"),
    ] {
        assert_eq!(here.fails_with_input(args, ""), code, "{args:?}");
    }

    // It goes on there, is published meanwhile, and comes back when it is asked for.
    there.exec("a", "echo there >> /work; sync");
    let published = there.json(&["publish", "a"]);
    assert_eq!(
        (&published["version"], &published["released"]),
        (&3.into(), &false.into())
    );
    there.exec("a", "echo later >> /work; sync");
    here.ok(&["resume", "--from", "disk", "a", "--ask=120"]);
    assert_eq!(here.exec("a", "cat /work"), "here\nthere\nlater");
    assert_eq!(there.json(&["inspect", "a"])["state"], "suspended");
    assert_eq!((held_here(&here), held_here(&there)), (Some(true), Some(false)));
}

#[test]
fn who_loses_a_lease_loses_no_work() {
    let (_remote, here, there) = hosts();
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    assert_eq!(here.fails_with_input(&["publish", "a"], ""), "wrong_state");
    here.exec("a", "echo first > /work; sync");
    here.ok(&["publish", "a", "--to", "disk"]);
    here.exec("a", "echo unpublished >> /work; sync");
    // A daemon that is killed goes on holding it.
    here.kill_daemon();
    assert_eq!(held_here(&here), Some(true));
    assert_eq!(line(&here)["state"], "held");

    there.ok(&["lease", "break", "disk", "a"]);
    assert_eq!(
        there.fails_with_input(&["lease", "break", "disk", "a"], ""),
        "wrong_state"
    );
    there.ok(&["resume", "--from", "disk", "a", "--policy", "baseline"]);
    assert_eq!(there.exec("a", "cat /work"), "first");
    let side = here.json(&["suspend", "a"])["published"].clone();
    assert_eq!(side["side"], true, "{side}");
    there.exec("a", "echo second >> /work; sync");
    there.ok(&["suspend", "a"]);

    // All of it is there: the line, and what went beside it.
    let side = side["reference"].as_str().unwrap();
    there.ok(&["clone", "--name", "side", "disk", side]);
    assert_eq!(there.exec("side", "cat /work"), "first\nunpublished");
    here.ok(&["resume", "a"]);
    assert_eq!(here.exec("a", "cat /work"), "first\nsecond");
    here.ok(&["suspend", "a"]);

    // The line goes back, and another one begins, by what is added to their histories.
    let versions = |name: &str| {
        here.json(&["remote", "log", "disk", name])
            .as_array()
            .unwrap()
            .len()
    };
    let before = versions("a:latest");
    here.ok(&["remote", "rollback", "disk", "a:latest", "1"]);
    assert_eq!(versions("a:latest"), before + 1);
    here.ok(&["remote", "branch", "disk", "a:latest", "b:latest"]);
    assert_eq!(versions("b:latest"), 1);
    there.ok(&["resume", "a"]);
    assert_eq!(there.exec("a", "cat /work"), "first");

    // Another machine does not take its name.
    here.ok(&["run", "tiny0:booted", "--name", "other"]);
    let taken = ["suspend", "other", "--to", "disk", "--as", "b:latest"];
    assert_eq!(here.fails_with_input(&taken, ""), "already_exists");
    there.ok(&["rm", "-f", "a"]);
    assert_eq!(held_here(&there), None, "who is forgotten holds nothing");
}

#[test]
fn of_two_hosts_one_goes_on() {
    let (_remote, here, there) = hosts();
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    here.ok(&["suspend", "a", "--to", "disk"]);
    there.ok(&[
        "resume",
        "--from",
        "disk",
        "a",
        "--policy",
        "demand",
        "--check-out",
        "2",
    ]);
    let lease = here.json(&["lease", "show", "disk", "a"]);
    assert!(lease["held"]["until_unix_ms"].is_u64(), "{lease}");
    let refused = here.fails_with_input(&["resume", "--from", "disk", "a", "--ask=0"], "");
    assert_eq!(refused, "in_use");
    there.ok(&["suspend", "a"]);

    // At the same instant.
    let hosts = [&here, &there];
    let got = std::thread::scope(|scope| {
        hosts
            .map(|host| scope.spawn(|| host.call(&["resume", "--from", "disk", "a"]).status.success()))
            .map(|host| host.join().unwrap())
    });
    let winners: Vec<_> = std::iter::zip(hosts, got).filter(|(_, got)| *got).collect();
    assert_eq!(winners.len(), 1, "{got:?}");
    let (holder, other) = match got[0] {
        true => (&here, &there),
        false => (&there, &here),
    };
    assert_eq!((held_here(holder), held_here(other)), (Some(true), Some(false)));

    // The holder is cut off: after a while, and not before, the other one goes on.
    holder.exec("a", "echo cut off > /work; sync");
    let pid = u64::from(holder.pid().unwrap());
    kill(pid, "-STOP");
    assert_eq!(other.fails_with_input(&["resume", "a"], ""), "in_use");
    let taken = (0..60).any(|_| {
        std::thread::sleep(Duration::from_millis(500));
        other.call(&["resume", "a"]).status.success()
    });
    kill(pid, "-CONT");
    assert!(taken);
    assert_eq!(held_here(other), Some(true));
    wait_for("the lease is known to be lost", || {
        line(holder)["state"] == "lost"
    });
    let kept = holder.json(&["publish", "a"])["reference"].clone();
    let lines = other.json(&["remote", "ls", "disk"]);
    let names: Vec<_> = lines
        .as_array()
        .unwrap()
        .iter()
        .map(|line| &line["reference"])
        .collect();
    assert!(names.contains(&&kept), "{names:?}");
}

#[test]
fn what_is_followed_is_here_before_it_is_asked_for() {
    let (remote, here, there) = hosts();
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    here.ok(&["publish", "a", "--to", "disk", "--every", "1"]);
    there.ok(&["follow", "add", "disk", "a"]);
    assert_eq!(
        there.fails_with_input(&["follow", "add", "disk", "none"], ""),
        "not_found"
    );
    here.exec("a", "echo published > /work; sync");
    let came = |version: u64| {
        wait_for("a newer version is here", || {
            let line = &there.json(&["follow", "ls"])[0];
            line["here"] == true && line["version"].as_u64() > Some(version)
        });
        there.json(&["follow", "ls"])[0].clone()
    };
    let second = came(1)["version"].as_u64().unwrap();
    came(second);
    // What was saved for that does not pile up.
    let saved = here.json(&["images"]).to_string().matches("\"a:").count();
    assert!((1..=4).contains(&saved), "{saved}");
    // A daemon that was killed follows on.
    there.kill_daemon();
    let published = here.json(&["suspend", "a"])["published"]["version"]
        .as_u64()
        .unwrap();
    let last = came(published - 1);
    assert!(last["moved_bytes"].as_u64() > Some(0), "{last}");
    there.ok(&["resume", "--from", "disk", "a"]);
    assert_eq!(there.json(&["away"]), serde_json::json!([]));
    assert_eq!(there.exec("a", "cat /work"), "published");
    let [lines, hidden] = ["lines", "hidden"].map(|name| remote.path().join(name));
    std::fs::rename(&lines, &hidden).unwrap();
    let gone = there.json(&["follow", "ls"]);
    assert!(gone[0]["problem"].is_string(), "{gone}");
    std::fs::rename(&hidden, &lines).unwrap();
    there.ok(&["follow", "rm", "disk", "a"]);
    assert_eq!(
        there.fails_with_input(&["follow", "rm", "disk", "a"], ""),
        "not_found"
    );
    assert_eq!(there.json(&["follow", "ls"]), serde_json::json!([]));
}

#[test]
fn what_cannot_be_published_now_is_published_later() {
    let (remote, here, there) = hosts();
    let [disk, hidden] = ["lines", "hidden"].map(|name| remote.path().join(name));
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    here.ok(&["publish", "a", "--to", "disk"]);
    std::fs::rename(&disk, &hidden).unwrap();
    here.exec("a", "echo offline > /work; sync");
    let suspended = here.json(&["suspend", "a"]);
    assert!(suspended["published"].is_null(), "{suspended}");
    assert_eq!(suspended["unpublished"]["retry"], true, "{suspended}");
    // It is held still, so it goes on here without asking anybody.
    here.ok(&["resume", "a"]);
    here.exec("a", "echo more >> /work; sync");
    here.ok(&["suspend", "a"]);
    assert_eq!(line(&here)["state"], "held");
    std::fs::rename(&hidden, &disk).unwrap();
    wait_for("what waited is published", || line(&here)["state"] == "free");
    assert_eq!(line(&here)["published"], true);
    there.ok(&["resume", "--from", "disk", "a"]);
    assert_eq!(there.exec("a", "cat /work"), "offline\nmore");
}

#[test]
fn a_daemon_that_dies_after_it_has_published_has_lost_nothing() {
    let (_remote, mut here, there) = hosts();
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    here.ok(&["publish", "a", "--to", "disk"]);
    here.exec("a", "echo last > /work; sync");
    here.kill_daemon();
    here.set_env("MARTLET_CRASH_AT", "publish:1");
    assert!(!here.call(&["suspend", "a"]).status.success());
    here.set_env("MARTLET_CRASH_AT", "");
    assert_eq!(held_here(&there), None, "it was let go of");
    // It is on its line, and so it does not go beside it.
    here.ok(&["resume", "a"]);
    assert_eq!(here.exec("a", "cat /work"), "last");
    assert_eq!(held_here(&here), Some(true));
    let lines = there.json(&["remote", "ls", "disk"]);
    assert_eq!(lines.as_array().unwrap().len(), 1, "{lines}");
}
