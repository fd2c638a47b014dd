//! A snapshot goes to a remote and is started on another host: two daemons, each with a store of its own.

use crate::deadline::wait_for;
use crate::{Daemon, Fixture};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const MAKE_NOISE: &str =
    "mkdir -p /dev/shm && head -c 3000000 /dev/urandom >/dev/shm/noise && cp /dev/shm/noise /noise && sync";
const SUMS: &str = "sha256sum /dev/shm/noise /noise";

#[test]
fn what_was_saved_here_runs_there() {
    let remote = tempfile::tempdir().unwrap();
    let address = remote.path().join("snapshots").to_string_lossy().into_owned();
    let here = Daemon::new(Fixture::Tiny);
    let added = here.json(&["remote", "add", "disk", &address]);
    assert_eq!(added["writable"], true);
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    here.exec(
        "a",
        "mkdir -p /dev/shm && head -c 3000000 /dev/urandom >/dev/shm/noise && cp /dev/shm/noise /noise && sync",
    );
    let sums = here.exec("a", "sha256sum /dev/shm/noise /noise");
    here.ok(&["suspend", "a", "--tag", "travels"]);

    let would = here.json(&["push", "--dry-run", "a:travels", "disk"]);
    assert!(
        would["dry_run"] == true && would["moved_bytes"].as_u64().unwrap() > 6_000_000,
        "{would}"
    );
    assert_eq!(here.json(&["remote", "ls", "disk"]), serde_json::json!([]));
    let sent = here.json(&["push", "a:travels", "disk"]);
    assert_eq!(sent["moved_bytes"], would["moved_bytes"]);
    assert_eq!(here.json(&["push", "a:travels", "disk"])["objects"], 0);
    let listed = here.json(&["remote", "ls", "disk"]);
    assert_eq!(
        (&listed[0]["reference"], &listed[0]["here"]),
        (&"a:travels".into(), &true.into())
    );

    // Who is not of the realm finds nothing, and who has the line finds all.
    let there = here.another();
    there.ok(&["remote", "add", "disk", &address]);
    assert_eq!(there.json(&["remote", "ls", "disk"]), serde_json::json!([]));
    there.ok(&["remote", "rm", "disk"]);
    let line = here.ok(&["realm", "share"]);
    assert_eq!(
        there.fails_with_input(&["realm", "join"], &line),
        "already_exists"
    );
    there.ok_with_input(&["realm", "join", "--as", "home"], &line);
    there.ok(&["remote", "add", "disk", &address, "--realm", "home"]);
    let listed = there.json(&["remote", "ls", "disk"]);
    assert_eq!(
        (&listed[0]["reference"], &listed[0]["here"]),
        (&"a:travels".into(), &false.into())
    );
    let got = there.json(&["pull", "disk", "a:travels"]);
    assert!(
        got["moved_bytes"].as_u64().unwrap() >= sent["moved_bytes"].as_u64().unwrap() / 2,
        "{got}"
    );
    assert_eq!(there.json(&["pull", "disk", "a:travels"])["objects"], 0);
    there.ok(&["run", "a:travels", "--name", "b"]);
    assert_eq!(there.exec("b", "sha256sum /dev/shm/noise /noise"), sums);

    // What is new there goes back, sealed by a secret that is new to both.
    let ids = |daemon: &Daemon, realm: &str| {
        let realms = daemon.json(&["realm", "ls"]);
        let found = realms
            .as_array()
            .unwrap()
            .iter()
            .find(|found| found["name"] == realm);
        found.unwrap()["id"].clone()
    };
    assert_eq!(ids(&here, "default"), ids(&there, "home"));
    there.ok(&["realm", "rotate", "home"]);
    let line = there.ok(&["realm", "share", "home"]);
    here.ok_with_input(&["realm", "join", "--as", "default"], &line);
    assert_eq!(ids(&here, "default"), ids(&there, "home"));
    there.exec("b", "echo back > /back; sync");
    there.ok(&["suspend", "b", "--tag", "back"]);
    there.ok(&["push", "b:back", "disk"]);
    let listed = here.json(&["remote", "ls", "disk"]);
    let names: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|found| &found["reference"])
        .collect();
    assert_eq!(names, ["a:travels", "b:back"], "the old secret is not forgotten");
    here.ok(&["pull", "disk", "b:back"]);
    here.ok(&["run", "b:back", "--name", "c"]);
    assert_eq!(
        here.exec("c", "cat /back; sha256sum /dev/shm/noise /noise"),
        format!("back\n{sums}")
    );
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let remote = tempfile::tempdir().unwrap();
    let address = remote.path().to_string_lossy().into_owned();
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["remote", "add", "disk", &address]);
    for (args, code) in [
        (&["push", "a:nothing", "disk"][..], "not_found"),
        (&["push", "tiny0:booted", "nowhere"], "not_found"),
        (&["pull", "disk", "b:nothing"], "not_found"),
        (&["remote", "add", "disk", &address], "already_exists"),
        (&["remote", "add", "odd", "ftp://host/path"], "invalid_argument"),
        (
            &["remote", "add", "odd", &address, "--realm", "none"],
            "not_found",
        ),
        (&["remote", "rm", "odd"], "not_found"),
        (&["realm", "share", "none"], "not_found"),
        (&["realm", "rotate", "none"], "not_found"),
        (&["realm", "create", "default"], "already_exists"),
    ] {
        assert_eq!(daemon.fails_with_input(args, ""), code, "{args:?}");
    }
    let line = daemon.ok(&["realm", "share"]);
    let cut = &line[..line.len() - 3];
    assert_eq!(
        daemon.fails_with_input(&["realm", "join", "--as", "cut"], cut),
        "invalid_argument"
    );
}

#[test]
fn a_machine_runs_before_its_state_has_come() {
    let remote = tempfile::tempdir().unwrap();
    let address = remote.path().join("snapshots").to_string_lossy().into_owned();
    let here = Daemon::new(Fixture::Tiny);
    here.ok(&["remote", "add", "disk", &address]);
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    here.exec("a", MAKE_NOISE);
    let sums = here.exec("a", SUMS);
    here.start_counter("a");
    here.ok(&["suspend", "a", "--tag", "travels"]);
    let sent = here.json(&["push", "a:travels", "disk"])["moved_bytes"]
        .as_u64()
        .unwrap();

    let there = here.another();
    let line = here.ok(&["realm", "share"]);
    there.ok_with_input(&["realm", "join"], &line);
    there.ok(&["remote", "add", "disk", &address]);
    let would = there.json(&["pull", "--dry-run", "disk", "a:travels"]);
    assert!(would["moved_bytes"].as_u64().unwrap() > 6_000_000, "{would}");
    there.ok(&["clone", "--policy", "demand", "--name", "b", "disk", "a:travels"]);
    let count = there.assert_counting("b", 0);
    let away = there.json(&["away"]);
    let (missing, read) = (&away[0]["missing_objects"], &away[0]["read_bytes"]);
    assert!(
        missing.as_u64().unwrap() > 0 && read.as_u64().unwrap() < sent / 2,
        "{away}"
    );
    let verified = there.json(&["verify"]);
    assert_eq!(
        verified["damaged"],
        serde_json::json!([]),
        "what is away is not damaged"
    );
    assert!(verified["away"].as_u64().unwrap() > 0, "{verified}");

    assert_explained(&there, "b", "remote disk");

    // The place goes away: what needs it waits, and goes on when it is back, also when the daemon dies meanwhile.
    let hidden = remote.path().join("elsewhere");
    std::fs::rename(&address, &hidden).unwrap();
    let waiting = there
        .command(&["exec", "b", "--", "sh", "-c", SUMS])
        .stdout(Stdio::piped())
        .spawn();
    std::thread::sleep(Duration::from_secs(4));
    std::fs::rename(&hidden, &address).unwrap();
    let waited = waiting.unwrap().wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&waited.stdout).trim(), sums);
    let explained = there.json(&["explain", "--top", "1", "b"]);
    let late_ms = explained["longest"][0]["late_ms"].as_f64().unwrap();
    assert!(late_ms > 200.0, "the place was gone for longer: {explained}");
    std::thread::sleep(Duration::from_secs(3)); // so that it is kept
    // Also when the name stands for something else there by now.
    here.ok(&["push", "--as", "a:travels", "tiny0:booted", "disk"]);
    there.kill_daemon();
    there.assert_counting("b", count);

    // Work goes on, and what is new of it goes back though not all of the old ever came.
    there.exec("b", "echo more > /more; sync");
    there.ok(&["suspend", "b", "--tag", "more"]);
    assert_eq!(there.fails_with_input(&["rmi", "a:travels"], ""), "in_use");
    let away = there.json(&["away"]);
    assert!(away[0]["missing_objects"].as_u64().unwrap() > 0, "{away}");
    // It is asleep, and what it waited for is still known, also by the snapshot that it came from.
    let by_machine = there.json(&["explain", "b"]);
    assert!(by_machine["longest"][0]["late_ms"].as_f64().unwrap() > late_ms - 1.0);
    assert_eq!(by_machine["began_unix_ms"], explained["began_unix_ms"]);
    assert_eq!(there.json(&["explain", "a:travels"]), by_machine);
    let new = there.json(&["push", "b:more", "disk"])["moved_bytes"]
        .as_u64()
        .unwrap();
    assert!(new < sent / 2, "{new} of {sent}");
    // Whatever was made of it needs what is still to come, from where it is to come.
    there.ok(&["resume", "b"]);
    there.ok(&["suspend", "b", "--tag", "again"]);
    there.ok(&["rmi", "b:more"]);
    there.ok(&["gc"]);
    assert_eq!(there.fails_with_input(&["rmi", "a:travels"], ""), "in_use");
    assert_eq!(there.fails_with_input(&["remote", "rm", "disk"], ""), "in_use");
    here.ok(&["push", "a:travels", "disk"]);
    there.ok(&["pull", "disk", "a:travels"]);
    assert_eq!(there.json(&["away"]), serde_json::json!([]));
    std::fs::rename(&address, &hidden).unwrap();
    there.ok(&["resume", "b"]);
    assert_eq!(
        there.exec("b", &format!("{SUMS}; cat /more")),
        format!("{sums}\nmore")
    );

    // Here the rest comes by itself.
    std::fs::rename(&hidden, &address).unwrap();
    here.ok(&["clone", "--name", "c", "disk", "b:more"]);
    here.assert_counting("c", count);
    wait_for("the rest", || here.json(&["away"]) == serde_json::json!([]));
    std::fs::rename(&address, &hidden).unwrap();
    assert_eq!(
        here.exec("c", &format!("{SUMS}; cat /more")),
        format!("{sums}\nmore")
    );
}

/// What a machine waited for is listed, and adds up; it is some of what came because it was read.
fn assert_explained(daemon: &Daemon, machine: &str, source: &str) {
    let explained = daemon.json(&["explain", "--top", "5000", machine]);
    let sum = |of: &str, field: &str| -> f64 {
        let list = explained[of].as_array().unwrap();
        list.iter().map(|one| one[field].as_f64().unwrap()).sum()
    };
    let total = |field: &str| explained[field].as_f64().unwrap();
    for field in ["reads", "read_bytes", "stalls"] {
        assert_eq!(sum("sources", field), total(field), "{explained}");
    }
    for of in ["timeline", "waited_for", "longest"] {
        let field = if of == "longest" { "late_ms" } else { "waited_ms" };
        assert!(
            (sum(of, field) - total("waited_ms")).abs() < 1.0,
            "{of}: {explained}"
        );
    }
    let sources = explained["sources"].as_array().unwrap();
    let far = sources.iter().find(|far| far["source"] == source);
    let came_bytes = far.unwrap_or_else(|| panic!("{explained}"))["came_bytes"]
        .as_u64()
        .unwrap();
    let away = daemon.json(&["away"]);
    assert!(
        came_bytes > 0 && came_bytes <= away[0]["read_bytes"].as_u64().unwrap(),
        "{explained} of {away}"
    );
    let longest = explained["longest"].as_array().unwrap();
    let listed = longest.iter().filter(|stall| stall["source"] == source).count() as u64;
    assert_eq!(far.unwrap()["stalls"], listed);
    let ordered = longest
        .windows(2)
        .all(|pair| pair[0]["late_ms"].as_f64() >= pair[1]["late_ms"].as_f64());
    assert!(ordered, "{explained}");
    assert!(
        longest.iter().any(|stall| stall["region"]
            .as_str()
            .is_some_and(|region| region.starts_with("Kernel "))),
        "{explained}"
    );
}

#[test]
fn an_older_ref_is_found_out() {
    let remote = tempfile::tempdir().unwrap();
    let [address, copy] = ["remote", "copy"].map(|name| remote.path().join(name));
    let address_text = address.to_string_lossy().into_owned();
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["remote", "add", "disk", &address_text]);
    daemon.ok(&["push", "tiny0:booted", "disk"]);
    let copied = |from: &Path, to: &Path| {
        let status = Command::new("cp").arg("-a").args([from, to]).status();
        assert!(status.unwrap().success());
    };
    copied(&address, &copy);
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    daemon.ok(&["checkpoint", "a", "--tag", "new"]);
    daemon.ok(&["push", "--as", "tiny0:booted", "a:new", "disk"]);
    let versions = daemon.json(&["remote", "log", "disk", "tiny0:booted"]);
    assert_eq!(
        (&versions[0]["version"], &versions[1]["version"]),
        (&2.into(), &1.into())
    );
    assert_ne!(versions[0]["snapshot"], versions[1]["snapshot"]);

    std::fs::remove_dir_all(&address).unwrap();
    copied(&copy, &address);
    for args in [
        &["pull", "--as", "b:old", "disk", "tiny0:booted"][..],
        &["fetch", "--as", "b:old", "disk", "tiny0:booted"],
        &["push", "tiny0:booted", "disk"],
    ] {
        assert_eq!(daemon.fails_with_input(args, ""), "damaged", "{args:?}");
    }
    // Whoever knows better says so.
    daemon.ok(&["remote", "rm", "disk"]);
    daemon.ok(&["remote", "add", "disk", &address_text]);
    daemon.ok(&["pull", "--as", "b:old", "disk", "tiny0:booted"]);
}

#[test]
fn what_nobody_needs_goes_from_a_remote() {
    let remote = tempfile::tempdir().unwrap();
    let address = remote.path().join("remote").to_string_lossy().into_owned();
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["remote", "add", "disk", &address]);
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    daemon.exec("a", MAKE_NOISE);
    daemon.ok(&["checkpoint", "a", "--tag", "noise"]);
    daemon.ok(&["push", "tiny0:booted", "disk"]);
    let sent = daemon.json(&["push", "a:noise", "disk"]);
    assert!(sent["moved_bytes"].as_u64().unwrap() > 3_000_000, "{sent}");
    assert_eq!(daemon.json(&["remote", "gc", "disk"])["freed_bytes"], 0);
    daemon.ok(&["remote", "forget", "disk", "a:noise"]);
    assert_eq!(
        daemon.fails_with_input(&["pull", "disk", "a:noise"], ""),
        "not_found"
    );
    let would = daemon.json(&["remote", "gc", "--dry-run", "disk"]);
    let freed = daemon.json(&["remote", "gc", "disk"]);
    assert!(freed["freed_bytes"].as_u64().unwrap() > 3_000_000, "{freed}");
    assert_eq!(freed["freed_bytes"], would["freed_bytes"]);
    // The rest is whole, and what went can come again.
    let other = daemon.another();
    let line = daemon.ok(&["realm", "share"]);
    other.ok_with_input(&["realm", "join"], &line);
    other.ok(&["remote", "add", "disk", &address]);
    other.ok(&["pull", "disk", "tiny0:booted"]);
    daemon.ok(&["push", "a:noise", "disk"]);
    other.ok(&["pull", "disk", "a:noise"]);
    assert_eq!(other.json(&["verify"])["damaged"], serde_json::json!([]));
}

#[test]
fn what_is_carried_is_asked_first() {
    let places = tempfile::tempdir().unwrap();
    let [far, usb] = ["far", "usb"].map(|name| places.path().join(name).to_string_lossy().into_owned());
    let here = Daemon::new(Fixture::Tiny);
    here.ok(&["remote", "add", "far", &far]);
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    here.exec("a", MAKE_NOISE);
    let sums = here.exec("a", SUMS);
    let old = here.json(&["checkpoint", "a", "--tag", "old"])["snapshot"].clone();
    // A carrier has what there is room for, and an old one what has not changed since.
    let few = &here.json(&["carry", "--size", "1M", &usb, "a:old"])[0];
    assert!(few["moved_bytes"].as_u64() <= Some(1 << 20), "{few}");
    assert!(few["left_bytes"].as_u64() > Some(5 << 20), "{few}");
    let rest = &here.json(&["carry", &usb, "a"])[0];
    assert_eq!(
        (&rest["snapshot"], &rest["left_bytes"]),
        (&old, &0.into()),
        "{rest}"
    );
    assert_eq!(rest["moved_bytes"], few["left_bytes"]);
    here.exec("a", "echo new > /new; sync");
    here.ok(&["suspend", "a", "--tag", "travels"]);
    here.ok(&["push", "a:travels", "far"]);

    let there = here.another();
    let line = here.ok(&["realm", "share"]);
    there.ok_with_input(&["realm", "join"], &line);
    there.ok(&["remote", "add", "far", &far]);
    there.ok(&["remote", "add", "usb", &usb]);
    there.ok(&["clone", "--policy", "demand", "--name", "b", "far", "a:travels"]);
    assert_eq!(there.exec("b", "cat /new"), "new");
    // What was carried needs nobody else.
    std::fs::rename(&far, places.path().join("gone")).unwrap();
    assert_eq!(there.exec("b", SUMS), sums);
    let explained = there.json(&["explain", "b"]);
    let sources = explained["sources"].as_array().unwrap();
    let came = |name: &str| {
        let source = sources.iter().find(|source| source["source"] == name);
        source.map_or(0, |source| source["came_bytes"].as_u64().unwrap())
    };
    assert!(came("remote usb") > 6_000_000, "{explained}");
    assert!(came("remote far") < came("remote usb") / 2, "{explained}");
    // Without it, all comes from where it was published.
    std::fs::rename(places.path().join("gone"), &far).unwrap();
    std::fs::rename(&usb, places.path().join("lost")).unwrap();
    there.ok(&["pull", "far", "a:travels"]);
    assert_eq!(there.json(&["away"]), serde_json::json!([]));
}
