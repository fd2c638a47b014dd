//! Cycles of checkpoint, fork, suspend and resume of a guest that works.

use crate::Daemon;
use serde_json::{Value, json};
use std::fmt;

/// Between two collections of what earlier cycles left.
const COLLECTED_EACH: u64 = 10;

/// One cycle that is over, and right.
#[derive(Debug)]
pub struct Cycle {
    /// From 1.
    pub number: u64,
    /// How long the guest stood still for its checkpoint.
    pub pause_ms: f64,
    /// How long it took until the clone's first command was done.
    pub fork_ms: f64,
}

impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            number,
            pause_ms,
            fork_ms,
        } = self;
        write!(
            f,
            "cycle {number:3}: pause {pause_ms:5.0} ms, fork {fork_ms:5.0} ms"
        )
    }
}

/// Starts a line of shell that goes on by itself; what it says goes to `/work/NAME.log`.
pub fn start(daemon: &Daemon, machine: &str, name: &str, line: &str) {
    let script = format!("mkdir -p /work; cat > /work/{name}.sh; chmod +x /work/{name}.sh");
    let written = daemon.call_with_input(
        &["exec", "-i", machine, "--", "sh", "-c", &script],
        line.as_bytes(),
    );
    assert!(written.status.success(), "{written:?}");
    daemon.exec(
        machine,
        &format!("setsid sh /work/{name}.sh </dev/null >/work/{name}.log 2>&1 & echo $! > /work/{name}.pid"),
    );
}

/// So many cycles over a guest that works; `verify` fails when anything in a machine is wrong, `done` hears of each.
pub fn run(daemon: &Daemon, machine: &str, count: u64, verify: impl Fn(&str), mut done: impl FnMut(&Cycle)) {
    verify(machine);
    for number in 1..=count {
        let tag = format!("cycle-{number}");
        let method = ["auto", "handover"][(number % 2) as usize];
        let checkpoint = daemon.json(&["checkpoint", machine, "--tag", &tag, "--method", method]);
        let fork = daemon.json(&["fork", machine, "-n", "1", "--prefix", "clone"]);
        assert_eq!(
            fork["clones"][0]["problem"],
            json!(null),
            "cycle {number}: {fork}"
        );
        daemon.ok(&["suspend", machine]);
        // The clone is what the machine was, and works on.
        verify("clone-1");
        daemon.ok(&["rm", "--force", "clone-1"]);
        daemon.ok(&["resume", machine]);
        remove_snapshots(daemon, machine);
        if number % COLLECTED_EACH == 0 {
            daemon.ok(&["gc"]);
        }
        done(&Cycle {
            number,
            pause_ms: checkpoint["pause_ms"].as_f64().unwrap(),
            fork_ms: fork["total_ms"].as_f64().unwrap(),
        });
    }
    verify(machine);
    let console = daemon.ok(&["logs", machine]);
    for word in ["I/O error", "EXT4-fs error", "BUG:", "Oops", "segfault"] {
        assert!(!console.contains(word), "{console}");
    }
    let kernel = daemon.exec(
        machine,
        "dmesg | grep -E 'I/O error|EXT4-fs error|BUG:|segfault' || true",
    );
    assert_eq!(kernel, "");
    daemon.ok(&["rollback", machine, &format!("{machine}:cycle-1")]);
    verify(machine);
    assert_eq!(daemon.json(&["verify"])["damaged"], json!([]));
}

/// All of a machine's snapshots that nobody uses, but the first.
fn remove_snapshots(daemon: &Daemon, machine: &str) {
    let all = daemon.json(&["images"]);
    let own = all
        .as_array()
        .unwrap()
        .iter()
        .filter(|snapshot| snapshot["machine"] == machine);
    let unused = own.filter(|snapshot| snapshot["used_by"] == json!([]));
    let names = unused.flat_map(|snapshot| snapshot["references"].as_array().unwrap());
    for name in names
        .filter_map(Value::as_str)
        .filter(|name| !name.ends_with(":cycle-1"))
    {
        daemon.ok(&["images", "rm", name]);
    }
}
