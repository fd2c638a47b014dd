//! QEMUs that were started ahead are as good as any.

use crate::deadline::wait_for;
use crate::recovery::kill;
use crate::{Daemon, Fixture};

/// How the name of a QEMU that was started ahead reads in the list of processes.
const AHEAD: &str = "-name ahead,";

impl Daemon {
    fn started_ahead(&self) -> Vec<u64> {
        self.processes(AHEAD)
    }

    fn was_started_ahead(&self, name: &str) -> bool {
        self.started_ahead().contains(&self.qemu(name))
    }

    fn wait_for_pool(&self) {
        wait_for("a full pool", || {
            let pool = &self.json(&["df"])["pool"];
            pool["ready"] == pool["size"]
        });
    }
}

const KEPT: &str = "cat /kept /dev/shm/kept";

#[test]
fn a_machine_lives_on_in_a_qemu_that_was_started_ahead() {
    let mut daemon = Daemon::new(Fixture::Tiny);
    daemon.set_env("MARTLET_POOL", "2");
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    daemon.exec(
        "a",
        "mkdir -p /dev/shm; echo disk >/kept; echo memory >/dev/shm/kept; sync",
    );
    daemon.wait_for_pool();
    let usage = &daemon.json(&["df"])["pool"];
    assert!(usage["memory_bytes"].as_u64().unwrap() > 1 << 20, "{usage}");
    assert!(
        daemon
            .ok(&["top", "--once"])
            .contains("started ahead: 2 of 2 QEMUs")
    );

    // They were another keeper's: the one that takes over knows them, too.
    daemon.ok(&["suspend", "a"]);
    daemon.replace_keeper(0);
    assert_eq!(daemon.started_ahead().len(), 2);
    daemon.ok(&["resume", "a"]);
    assert!(daemon.was_started_ahead("a"));
    assert_eq!(daemon.exec("a", KEPT), "disk\nmemory");

    // The daemon's death takes those along that wait, and not the one that runs.
    daemon.wait_for_pool();
    let mut there = daemon.started_ahead();
    daemon.kill_daemon();
    assert_eq!(daemon.exec("a", KEPT), "disk\nmemory");
    let now = daemon.started_ahead();
    there.retain(|pid| now.contains(pid));
    assert_eq!(there, [daemon.qemu("a")]);

    // What it frees and changes from here on is stored right: free pages are reported to a file of zeros.
    daemon.exec(
        "a",
        "head -c 20M /dev/urandom >/dev/shm/freed; rm /dev/shm/freed; echo changed >/dev/shm/kept",
    );
    daemon.ok(&["checkpoint", "a", "--tag", "changed"]);
    daemon.wait_for_pool();
    daemon.ok(&["run", "a:changed", "--name", "b"]);
    assert!(daemon.was_started_ahead("b"));
    assert_eq!(daemon.exec("b", KEPT), "disk\nchanged");

    // It starts again in a QEMU of its own user: logs and disk are that one's now.
    daemon.ok(&["suspend", "a"]);
    daemon.set_env("MARTLET_POOL", "0");
    daemon.kill_daemon();
    daemon.ok(&["resume", "a"]);
    assert!(!daemon.was_started_ahead("a"));
    assert_eq!(daemon.exec("a", KEPT), "disk\nchanged");
    daemon.ok(&["rm", "--force", "a", "b"]);
}

#[test]
fn a_pool_whose_qemus_were_killed_does_no_harm() {
    let mut daemon = Daemon::new(Fixture::Tiny);
    daemon.set_env("MARTLET_POOL", "1");
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    daemon.wait_for_pool();
    for pid in daemon.started_ahead() {
        kill(pid, "-9");
    }
    daemon.ok(&["run", "tiny0:booted", "--name", "b"]);
    daemon.exec("b", "true");
    daemon.wait_for_pool();

    // One of another shape makes room for it.
    daemon.ok(&["run", "tiny", "--name", "c", "--memory", "96M"]);
    daemon.wait_for_pool();
    daemon.ok(&["fork", "c", "-n", "1"]);
    assert!(daemon.was_started_ahead("c-1"));

    // Nothing of it outlives the daemon.
    daemon.ok(&["rm", "--force", "a", "b", "c", "c-1"]);
    daemon.ok(&["daemon", "stop"]);
    wait_for("the end of those that waited", || {
        daemon.started_ahead().is_empty()
    });
}
