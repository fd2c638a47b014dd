//! One machine's life.

use crate::{Daemon, Fixture};

const FACTS: &str = "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id /sys/class/net/eth0/address; \
                     head -c 16 /dev/urandom | od -An -tx1; ip -4 -o addr show dev eth0 | tr -s ' ' | cut -d' ' -f4";

#[test]
fn a_machine_is_checkpointed_forked_suspended_resumed_and_rolled_back() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny", "--name", "web", "--memory", "128M"]);
    daemon.exec(
        "web",
        "echo first > /root-file; mkdir -p /dev/shm; echo kept > /dev/shm/memory-file; sync",
    );
    let report = daemon.json(&["checkpoint", "web", "--tag", "one"]);
    assert_eq!(report["reference"], "web:one");
    daemon.exec("web", "echo second > /root-file");

    // Clones have the parent's state, and nothing else of it.
    let fork = daemon.json(&["fork", "web", "-n", "2"]);
    let clones = fork["clones"].as_array().unwrap();
    assert!(clones.iter().all(|clone| clone["problem"].is_null()), "{fork}");
    let all: Vec<Vec<String>> = ["web", "web-1", "web-2"]
        .iter()
        .map(|name| {
            assert_eq!(
                daemon.exec(name, "cat /root-file /dev/shm/memory-file"),
                "second\nkept",
                "{name}"
            );
            daemon.exec(name, FACTS).lines().map(str::to_owned).collect()
        })
        .collect();
    for fact in 0..6 {
        let different: std::collections::BTreeSet<_> = all.iter().map(|facts| &facts[fact]).collect();
        assert_eq!(different.len(), 3, "fact {fact} is shared: {different:?}");
    }
    daemon.exec("web-1", "echo mine > /root-file");
    assert_eq!(daemon.exec("web-2", "cat /root-file"), "second");

    // A snapshot in use is not removed, and the refusal names its users.
    let snapshot = fork["snapshot"].as_str().unwrap();
    let refused = daemon.call(&["images", "rm", snapshot]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("machine web-1"));

    // Suspended, nothing runs; resumed, everything is there.
    daemon.ok(&["suspend", "web"]);
    assert!(daemon.json(&["inspect", "web"])["pid"].is_null());
    // 125: the command did not run; its own exit codes are passed through.
    assert_eq!(
        daemon.call(&["exec", "web", "--", "true"]).status.code(),
        Some(125)
    );
    daemon.ok(&["resume", "web"]);
    assert_eq!(
        daemon.exec("web", "cat /root-file /dev/shm/memory-file"),
        "second\nkept"
    );

    daemon.ok(&["rollback", "web", "web:one"]);
    assert_eq!(daemon.exec("web", "cat /root-file"), "first");
    assert_eq!(daemon.json(&["verify"])["damaged"], serde_json::json!([]));
}
