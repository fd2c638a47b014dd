//! Hosts that know each other: machines go from one to the other directly.

use crate::deadline::wait_for;
use crate::{Daemon, Fixture};
use std::net::{Ipv4Addr, TcpListener};

/// An address of this machine that nobody listens at.
fn free_address() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Makes these hosts a fleet, the first one letting the others in.
pub fn fleet(hosts: &[(&Daemon, &str)]) {
    let [(first, name), others @ ..] = hosts else {
        return;
    };
    first.ok(&["host", "init", name, &free_address()]);
    for (other, name) in others {
        let line = first.ok(&["host", "invite"]);
        let address = free_address();
        wait_for("the first host to listen", || {
            let joined = other.call_with_input(&["host", "join", name, &address], line.as_bytes());
            joined.status.success() || !other.names_of_hosts().is_empty()
        });
    }
    wait_for("all to answer", || {
        hosts
            .iter()
            .all(|(host, _)| hosts.iter().all(|(_, name)| host.answers(name)))
    });
}

impl Daemon {
    fn names_of_hosts(&self) -> Vec<String> {
        let hosts = self.json(&["host", "ls"]);
        let hosts = hosts.as_array().unwrap().iter();
        hosts
            .filter_map(|host| Some(host["name"].as_str()?.to_owned()))
            .collect()
    }

    pub fn answers(&self, name: &str) -> bool {
        let hosts = self.json(&["host", "ls"]);
        let found = hosts
            .as_array()
            .unwrap()
            .iter()
            .find(|host| host["name"] == name)
            .cloned();
        found.is_some_and(|host| host["answers"] == true)
    }
}

#[test]
fn a_machine_goes_from_host_to_host() {
    let here = Daemon::new(Fixture::Tiny);
    let [first, second, third] = [(); 3].map(|()| free_address());
    assert_eq!(here.fails_with_input(&["host", "invite"], ""), "wrong_state");
    here.ok(&["host", "init", "desk", &first]);
    assert_eq!(
        here.fails_with_input(&["host", "init", "desk", &first], ""),
        "already_exists"
    );
    let line = here.ok(&["host", "invite"]);

    let there = here.another();
    assert_eq!(
        there.fails_with_input(&["host", "join", "couch", &second], &line[..line.len() - 2]),
        "invalid_argument"
    );
    wait_for("the first host to listen", || {
        there
            .call_with_input(&["host", "join", "couch", &second], line.as_bytes())
            .status
            .success()
            || !there.names_of_hosts().is_empty()
    });
    // An invitation is good once.
    let other = here.another();
    assert_eq!(
        other.fails_with_input(&["host", "join", "third", &third], &line),
        "permission_denied"
    );
    let line = here.ok(&["host", "invite"]);
    assert_eq!(
        other.fails_with_input(&["host", "join", "couch", &third], &line),
        "already_exists"
    );
    other.ok_with_input(&["host", "join", "third", &third], &line);
    wait_for("all to answer", || {
        here.answers("couch") && there.answers("desk") && there.answers("third")
    });
    assert_eq!(
        there.names_of_hosts(),
        ["desk", "couch", "third"],
        "told by the first"
    );
    // The realm of the first is that of all.
    let id = |daemon: &Daemon| daemon.json(&["realm", "ls"])[0]["id"].clone();
    assert_eq!((id(&there), id(&other)), (id(&here), id(&here)));

    // A machine is suspended on one, and runs on the other before it has all come; the rest comes behind.
    here.ok(&["run", "tiny0:booted", "--name", "a"]);
    here.start_counter("a");
    here.exec("a", "head -c 3000000 /dev/urandom >/noise && sync");
    let sum = here.exec("a", "sha256sum /noise");
    here.ok(&["suspend", "a", "--tag", "travels"]);
    let listed = there.json(&["remote", "ls", "desk"]);
    assert!(
        listed
            .as_array()
            .unwrap()
            .iter()
            .any(|found| found["reference"] == "a:travels"),
        "{listed}"
    );
    there.ok(&["clone", "--policy", "demand", "--name", "b", "desk", "a:travels"]);
    let count = there.assert_counting("b", 0);
    assert!(there.json(&["away"])[0]["missing_objects"].as_u64().unwrap() > 0);
    assert_eq!(there.exec("b", "sha256sum /noise"), sum);
    there.ok(&["pull", "desk", "a:travels"]);
    assert_eq!(there.json(&["away"]), serde_json::json!([]));

    // What a remote has comes from a host that is nearer, also when the remote is gone.
    let places = tempfile::tempdir().unwrap();
    let far = places.path().join("far");
    for daemon in [&here, &other] {
        daemon.ok(&["remote", "add", "far", &far.to_string_lossy()]);
    }
    here.ok(&["push", "a:travels", "far"]);
    other.ok(&["clone", "--policy", "demand", "--name", "d", "far", "a:travels"]);
    std::fs::rename(&far, places.path().join("gone")).unwrap();
    assert_eq!(other.exec("d", "sha256sum /noise"), sum);
    let explained = other.json(&["explain", "d"]);
    let sources = explained["sources"].as_array().unwrap().iter();
    let of_hosts = sources.filter(|source| source["source"].as_str().unwrap().starts_with("host "));
    let came: u64 = of_hosts
        .map(|source| source["came_bytes"].as_u64().unwrap())
        .sum();
    assert!(came > 3_000_000, "{explained}");

    // It goes back by a push, and on to the third from either.
    there.ok(&["suspend", "b", "--tag", "back"]);
    let sent = there.json(&["push", "b:back", "desk"])["moved_bytes"]
        .as_u64()
        .unwrap();
    assert!(sent < 6_000_000, "{sent}");
    here.ok(&["run", "b:back", "--name", "c"]);
    here.assert_counting("c", count);
    other.ok(&["pull", "couch", "b:back"]);
    assert_eq!(
        there.fails_with_input(&["push", "--as", "tiny0:booted", "b:back", "desk"], ""),
        "already_exists"
    );

    // One that was removed is served no more, by whoever has heard of it.
    here.ok(&["host", "rm", "third"]);
    wait_for("the third to be refused", || {
        other.call(&["remote", "ls", "desk"]).status.code() != Some(0)
    });
    assert_eq!(there.names_of_hosts(), ["desk", "couch"]);
    assert_eq!(
        other.fails_with_input(&["pull", "couch", "a:travels"], ""),
        "permission_denied"
    );
    // A daemon that is killed serves again.
    here.kill_daemon();
    here.ok(&["ps"]);
    wait_for("the first host to be back", || there.answers("desk"));
    // Keys and secrets are nobody else's to read.
    let database = std::fs::metadata(here.state_dir().join("engine.redb")).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&database.permissions()) & 0o777,
        0o600
    );
    let audit = std::fs::read_to_string(here.state_dir().join("audit.log")).unwrap();
    assert!(audit.lines().count() > 3 && audit.contains("couch"), "{audit}");
}
