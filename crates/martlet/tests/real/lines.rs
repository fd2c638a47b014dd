//! One machine, on one host at a time: closed here, opened there, asked back, taken away, and nothing of it lost.

use crate::{Daemon, Fixture};
use serde_json::Value;
use tempfile::TempDir;

/// Two hosts of one realm that know one disk.
fn hosts() -> (TempDir, Daemon, Daemon) {
    let remote = tempfile::tempdir().unwrap();
    let address = remote.path().join("lines").to_string_lossy().into_owned();
    let here = Daemon::new(Fixture::Tiny);
    here.ok(&["remote", "add", "disk", &address]);
    let there = here.another();
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
    assert_eq!((&published["version"], &published["released"]), (&1.into(), &true.into()));
    assert_eq!(held_here(&here), None);

    there.ok(&["resume", "--from", "disk", "a"]);
    assert_eq!(there.exec("a", "cat /work"), "here\n");
    assert_eq!(there.exec("a", "cat /etc/machine-id; hostname"), id, "it is the same machine");
    assert_eq!((held_here(&there), held_here(&here)), (Some(true), Some(false)));
    assert_eq!((&line(&here)["state"], &line(&there)["state"]), (&"free".into(), &"held".into()));
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
    assert_eq!((&published["version"], &published["released"]), (&3.into(), &false.into()));
    there.exec("a", "echo later >> /work; sync");
    here.ok(&["resume", "--from", "disk", "a", "--ask=120"]);
    assert_eq!(here.exec("a", "cat /work"), "here\nthere\nlater\n");
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
    assert_eq!(there.fails_with_input(&["lease", "break", "disk", "a"], ""), "wrong_state");
    there.ok(&["resume", "--from", "disk", "a", "--policy", "baseline"]);
    assert_eq!(there.exec("a", "cat /work"), "first\n");
    let side = here.json(&["suspend", "a"])["published"].clone();
    assert_eq!(side["side"], true, "{side}");
    there.exec("a", "echo second >> /work; sync");
    there.ok(&["suspend", "a"]);

    // All of it is there: the line, and what went beside it.
    let side = side["reference"].as_str().unwrap();
    there.ok(&["clone", "--name", "side", "disk", side]);
    assert_eq!(there.exec("side", "cat /work"), "first\nunpublished\n");
    here.ok(&["resume", "a"]);
    assert_eq!(here.exec("a", "cat /work"), "first\nsecond\n");
    here.ok(&["suspend", "a"]);

    // The line goes back, and another one begins, by what is added to their histories.
    let versions = |name: &str| here.json(&["remote", "log", "disk", name]).as_array().unwrap().len();
    let before = versions("a:latest");
    here.ok(&["remote", "rollback", "disk", "a:latest", "1"]);
    assert_eq!(versions("a:latest"), before + 1);
    here.ok(&["remote", "branch", "disk", "a:latest", "b:latest"]);
    assert_eq!(versions("b:latest"), 1);
    there.ok(&["resume", "a"]);
    assert_eq!(there.exec("a", "cat /work"), "first\n");

    // Another machine does not take its name.
    here.ok(&["run", "tiny0:booted", "--name", "other"]);
    let taken = ["suspend", "other", "--to", "disk", "--as", "b:latest"];
    assert_eq!(here.fails_with_input(&taken, ""), "already_exists");
    there.ok(&["rm", "-f", "a"]);
    assert_eq!(held_here(&there), None, "who is forgotten holds nothing");
}
