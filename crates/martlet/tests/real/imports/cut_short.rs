//! The daemon is killed at every step of an import: there is a base, whole, or there is none.

use super::disk::file_system;
use super::oci::write_layout;
use crate::{Daemon, Fixture};
use serde_json::json;
use std::fs;

fn import_cut_short_at_every_step(daemon: &Daemon, image: &str) {
    let import = ["base", "import", "--name", "cut", image];
    daemon.ok(&["base", "import", "--name", "whole", image]);
    let used = |name: &str| daemon.json(&["base", "inspect", name])["used_bytes"].clone();
    daemon.cut_short_at_every_step("import", &import, |cut| {
        let is_there = daemon.call(&["base", "inspect", "cut"]).status.success();
        assert!(cut || is_there);
        if is_there {
            assert_eq!(used("cut"), used("whole"));
            daemon.ok(&["base", "rm", "cut"]);
        }
        let work: Vec<_> = fs::read_dir(daemon.state_dir().join("work")).unwrap().collect();
        assert!(work.is_empty(), "{work:?}");
        assert_eq!(daemon.json(&["verify"])["damaged"], json!([]));
    });
    daemon.ok(&import);
    daemon.ok(&["run", "cut", "--name", "box", "--memory", "128M"]);
    daemon.ok(&["exec", "box", "--", "/bin/busybox", "true"]);
    daemon.ok(&["rm", "--force", "box"]);
    for base in ["cut", "whole"] {
        daemon.ok(&["base", "rm", base]);
    }
    daemon.ok(&["gc"]);
}

#[test]
fn a_base_is_whole_or_there_is_none() {
    let mut daemon = Daemon::new(Fixture::Tiny);
    daemon.set_env("MARTLET_POOL", "0");
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    write_layout(&layout);
    import_cut_short_at_every_step(&daemon, layout.to_str().unwrap());
    let disk = file_system(dir.path());
    import_cut_short_at_every_step(&daemon, disk.to_str().unwrap());
}
