//! Forks that programs in a guest ask for.

use crate::deadline::wait_for;
use crate::hosts::fleet;
use crate::{Daemon, Fixture};
use serde_json::{Value, json};

/// Every line of shell below has the command, as every guest has.
const PATH: &str = "export PATH=$PATH:/run/martlet; set -e; ";

impl Daemon {
    fn inside(&self, name: &str, line: &str) -> String {
        self.exec(name, &format!("{PATH}{line}"))
    }

    /// Fails in the guest; what it says.
    fn refused_inside(&self, name: &str, line: &str) -> String {
        let line = format!("{PATH}{line}");
        let output = self.call(&["exec", name, "--", "sh", "-c", &line]);
        assert!(!output.status.success(), "{line} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Nothing is left of the forks of `parent`.
    fn assert_only(&self, parent: &str) {
        wait_for("the end of all clones", || self.names() == [parent]);
        let images = self.json(&["images"]);
        let is_of_fork = |name: &Value| name.as_str().is_some_and(|name| name.contains(":fork-"));
        let of_fork = |image: &Value| image["references"].as_array().unwrap().iter().any(is_of_fork);
        assert!(!images.as_array().unwrap().iter().any(of_fork), "{images}");
    }
}

fn sorted(lines: &str) -> Vec<&str> {
    let mut lines: Vec<_> = lines.lines().collect();
    lines.sort_unstable();
    lines
}

fn told_in_json(lines: &str) -> Vec<Value> {
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Forks into the processes of a ticket; each hands over who it is and what it found in its memory.
const FORK: &str = "mkdir -p /dev/shm; echo secret > /dev/shm/x; id=$(martlet-guest clone $t); \
    if [ $id != 0 ]; then martlet-guest exit 0 \"$(hostname | cut -d- -f1) $(cat /dev/shm/x)\"; fi; \
    martlet-guest join $t";

#[test]
fn a_shell_script_forks_its_machine_and_joins_the_clones() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&[
        "run",
        "tiny0:booted",
        "--name",
        "w",
        "--fork-by",
        "root",
        "--fork-most",
        "3",
    ]);
    assert_eq!(
        daemon.inside("w", "martlet-guest me | cut -d' ' -f1,3,4"),
        "0 0 w"
    );
    let joined = daemon.inside(
        "w",
        &format!("set -- $(martlet-guest ticket 5); echo $2; t=$1; {FORK}"),
    );
    assert_eq!(
        sorted(&joined),
        ["1 0 w secret", "2 0 w secret", "3", "3 0 w secret"]
    );
    daemon.assert_only("w");
    // A ticket is used once, and goes with its join.
    let again = "t=$(martlet-guest ticket 1 | cut -d' ' -f1); martlet-guest join $t";
    assert!(daemon.refused_inside("w", again).contains("was not used"));
    assert!(
        daemon
            .refused_inside("w", "martlet-guest clone nonsense")
            .contains("no ticket")
    );
    // Quota: the ticket above is still there.
    let two = daemon.inside("w", "martlet-guest ticket 3 | cut -d' ' -f2");
    assert_eq!(two, "2");
    let none = daemon.refused_inside("w", "martlet-guest ticket 1");
    assert!(none.contains("in use"), "{none}");
}

#[test]
fn only_whom_the_machine_lets_may_fork_it_and_clones_may_not() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "w"]);
    let refused = daemon.refused_inside("w", "martlet-guest ticket 1");
    assert!(refused.contains("--fork-by 0"), "{refused}");
    daemon.ok(&["run", "tiny0:booted", "--name", "x", "--fork-by", "1000"]);
    assert!(
        daemon
            .refused_inside("x", "martlet-guest ticket 1")
            .contains("may not")
    );
    daemon.ok(&["rm", "--force", "x"]);
    let bad = daemon.fails_with_input(&["run", "tiny0:booted", "--fork-by", "some body"], "");
    assert_eq!(bad, "invalid_argument");

    daemon.ok(&["rm", "--force", "w"]);
    daemon.ok(&["run", "tiny0:booted", "--name", "w", "--fork-by", "any"]);
    let nested = "martlet-guest fork 1 -- sh -c 'martlet-guest ticket 1 2>&1 || true'";
    assert!(daemon.inside("w", nested).contains("clones do not fork"));
    assert!(
        daemon
            .refused_inside("w", "martlet-guest exit 0")
            .contains("nobody's clone")
    );
    daemon.assert_only("w");
}

#[test]
fn children_that_do_not_exit_are_told_of() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "w", "--fork-by", "root"]);
    // One exits badly, one is shut down from inside, the third has no time left.
    let work = "case {id} in 1) exit 7;; 2) echo o > /proc/sysrq-trigger; sleep 1000;; *) sleep 1000;; esac";
    let line = format!("martlet-guest fork 3 --timeout 30 --json -- sh -c '{work}' || true");
    let told = told_in_json(&daemon.inside("w", &line));
    let of = |id: u64| {
        let told = told.iter().find(|one| one["id"] == id);
        told.unwrap_or_else(|| panic!("nothing of {id} in {told:?}"))
    };
    assert_eq!(of(1)["status"], 7);
    assert_eq!(of(2)["status"], Value::Null);
    assert_eq!(of(3)["status"], Value::Null);
    let why = of(3)["problem"].as_str().unwrap();
    assert!(why.contains("its time was up"), "{why}");
    daemon.assert_only("w");

    // One that the host removes; and all that are left, by kill.
    let line = "t=$(martlet-guest ticket 3 | cut -d' ' -f1); echo $t > /tmp/t; \
                id=$(martlet-guest clone $t); [ $id = 0 ] || sleep 1000";
    daemon.inside("w", line);
    let clones: Vec<_> = daemon.names().into_iter().filter(|name| name != "w").collect();
    assert_eq!(clones.len(), 3, "{clones:?}");
    daemon.ok(&["rm", "--force", &clones[0]]);
    assert_eq!(daemon.inside("w", "martlet-guest kill $(cat /tmp/t)"), "2");
    daemon.assert_only("w");
}

#[test]
fn a_fork_that_is_ended_ends_its_clones() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "w", "--fork-by", "root"]);
    let fork = "echo $$ > /run/fork; exec martlet-guest fork 2 -- sleep 1000";
    let line = format!("(sh -c '{fork}' || echo $? > /run/ended) > /run/log 2>&1 < /dev/null &");
    daemon.inside("w", &line);
    wait_for("the clones", || daemon.names().len() == 3);
    daemon.inside("w", "kill -TERM $(cat /run/fork)");
    daemon.assert_only("w");
    wait_for("its end", || {
        daemon.inside("w", "cat /run/ended 2>&1 || true").trim() == "143"
    });
}

#[test]
fn two_programs_may_fork_at_the_same_time() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "w", "--fork-by", "root"]);
    let one = "martlet-guest fork 2 -- echo of {id} 2>&1";
    let joined = daemon.inside(
        "w",
        &format!("({one} > /tmp/1) & ({one} > /tmp/2) & wait; cat /tmp/1 /tmp/2"),
    );
    assert_eq!(
        sorted(&joined.replace("\\n", "")),
        ["1 0 of 1", "1 0 of 1", "2 0 of 2", "2 0 of 2"]
    );
    daemon.assert_only("w");
}

#[test]
fn clones_of_a_checkpoint_return_from_it() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "w", "--fork-by", "root"]);
    let line = "n=before; set -- $(martlet-guest checkpoint); \
                if [ $1 != 0 ]; then martlet-guest exit 0 $n; fi; \
                n=after; t=$(martlet-guest ticket 2 | cut -d' ' -f1); martlet-guest create-clones $2 $t >/dev/null; \
                martlet-guest join $t";
    assert_eq!(sorted(&daemon.inside("w", line)), ["1 0 before", "2 0 before"]);
    wait_for("the end of all clones", || daemon.names() == ["w"]);
}

#[test]
fn a_join_goes_on_when_its_machine_was_suspended() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "w", "--fork-by", "root"]);
    let wait = "until [ -e /tmp/go ]; do sleep 0.2; done; echo done";
    let line = format!(
        "(martlet-guest fork 1 -- sh -c '{wait}' > /tmp/joined 2>&1; echo $? >> /tmp/joined) \
                        </dev/null >/dev/null 2>&1 &"
    );
    daemon.inside("w", &line);
    let clone = || daemon.names().into_iter().find(|name| name != "w");
    wait_for("the clone", || {
        clone().is_some_and(|name| daemon.state(&name) == "running")
    });
    daemon.ok(&["suspend", "w"]);
    daemon.ok(&["resume", "w"]);
    daemon.exec(&clone().unwrap(), "touch /tmp/go");
    let joined = || daemon.inside("w", "cat /tmp/joined");
    wait_for("the join", || joined().lines().count() == 2);
    assert_eq!(joined().replace("\\n", ""), "1 0 done\n0");
    daemon.assert_only("w");
}

#[test]
fn clones_may_start_at_other_hosts_with_several_processes_each() {
    let here = Daemon::new(Fixture::Tiny);
    let couch = here.another();
    fleet(&[(&here, "desk"), (&couch, "couch")]);
    here.ok(&[
        "run",
        "tiny",
        "--name",
        "w",
        "--cpus",
        "2",
        "--fork-by",
        "root",
        "--fork-on",
        "desk,couch",
    ]);
    let line = "martlet-guest fork 5 --hierarchical --json -- sh -c 'hostname; sleep 1; exit {id}' || true";
    let told = told_in_json(&here.inside("w", line));
    let mut told: Vec<_> = told
        .iter()
        .map(|one| (one["id"].clone(), one["status"].clone()))
        .collect();
    told.sort_by_key(|(id, _)| id.as_u64());
    let right: Vec<_> = (1..=5).map(|id| (json!(id), json!(id))).collect();
    assert_eq!(told, right);
    here.assert_only("w");
    wait_for("the end of all clones", || couch.names().is_empty());
}
