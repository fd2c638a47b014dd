//! A snapshot goes to a remote and is started on another host: two daemons, each with a store of its own.

use crate::{Daemon, Fixture};

#[test]
fn what_was_saved_here_runs_there() {
    let remote = tempfile::tempdir().unwrap();
    let address = remote.path().join("snapshots").to_string_lossy().into_owned();
    let here = Daemon::new(Fixture::Tiny);
    let added = here.json(&["remote", "add", "disk", &address]);
    assert_eq!(added["writable"], true);
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    here.exec("a", "head -c 3000000 /dev/urandom >/dev/shm/noise; cp /dev/shm/noise /noise; sync");
    let sums = here.exec("a", "sha256sum /dev/shm/noise /noise");
    here.ok(&["suspend", "a", "--tag", "travels"]);

    let would = here.json(&["push", "--dry-run", "a:travels", "disk"]);
    assert!(would["dry_run"] == true && would["moved_bytes"].as_u64().unwrap() > 6_000_000, "{would}");
    assert_eq!(here.json(&["remote", "ls", "disk"]), serde_json::json!([]));
    let sent = here.json(&["push", "a:travels", "disk"]);
    assert_eq!(sent["moved_bytes"], would["moved_bytes"]);
    assert_eq!(here.json(&["push", "a:travels", "disk"])["objects"], 0);
    let listed = here.json(&["remote", "ls", "disk"]);
    assert_eq!((&listed[0]["reference"], &listed[0]["here"]), (&"a:travels".into(), &true.into()));
    drop(sums);
    for (args, code) in [
        (&["push", "a:nothing", "disk"][..], "not_found"),
        (&["push", "a:travels", "nowhere"], "not_found"),
        (&["pull", "disk", "b:nothing"], "not_found"),
        (&["remote", "add", "disk", &address], "already_exists"),
        (&["remote", "add", "odd", "ftp://host/path"], "invalid_argument"),
    ] {
        let refused = here.call(&[&["--json"], args].concat());
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(words.contains(code), "{args:?}: {words}");
    }
}
