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

    /// Does it know a host of this name that answers?
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

#[test]
fn a_person_uses_a_host_from_afar_as_far_as_a_token_goes() {
    let here = Daemon::new(Fixture::Tiny);
    let [first, second] = [(); 2].map(|()| free_address());
    here.ok(&["host", "init", "desk", &first]);
    let mut there = here.another();
    let line = here.ok(&["host", "invite"]);
    wait_for("the first host to listen", || {
        let joined = there.call_with_input(&["host", "join", "couch", &second], line.as_bytes());
        joined.status.success() || !there.names_of_hosts().is_empty()
    });
    wait_for("both to answer", || {
        here.answers("couch") && there.answers("desk")
    });
    here.ok(&["run", "tiny0:booted", "--name", "a"]);

    // Each host tells how it is; one that is gone shows why not.
    let tops = there.json(&["host", "top"]);
    let of = |name: &str| {
        let found = tops.as_array().unwrap().iter().find(|host| host["name"] == name);
        found.unwrap_or_else(|| panic!("{tops}"))["usage"].clone()
    };
    assert_eq!(of("desk")["machines"][0]["name"], "a", "{tops}");
    assert!(of("desk")["store_bytes"].as_u64() > Some(1 << 20), "{tops}");
    assert!(
        of("couch")["memory_total_bytes"].as_u64() > Some(64 << 20),
        "{tops}"
    );
    let watched = there.ok(&["host", "top"]);
    assert!(watched.lines().all(|line| line.len() <= 80), "{watched}");
    there.ok(&["daemon", "stop"]);
    let tops = here.json(&["host", "top"]);
    assert!(
        tops[1]["problem"]
            .as_str()
            .is_some_and(|why| why.contains("cannot be reached")),
        "{tops}"
    );

    // A person elsewhere, whose own daemon is not asked.
    let config = tempfile::tempdir().unwrap();
    there.set_env("XDG_CONFIG_HOME", &config.path().to_string_lossy());
    for role in ["read", "run", "admin"] {
        let line = here.ok(&["token", "create", role, "--role", role]);
        assert!(line.starts_with("martlet-token:desk:"), "{line}");
        there.ok_with_input(&["login", "--name", role], &line);
    }
    let asked = |role: &str, args: &[&str]| there.call(&[&["--host", role, "--json"], args].concat());
    let denied = |role: &str, args: &[&str]| {
        let output = asked(role, args);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && words.contains("permission_denied"),
            "{args:?}: {words}"
        );
    };
    assert!(there.ok(&["--host", "read", "ps"]).contains("running"));
    denied("read", &["kill", "a"]);
    denied("read", &["cp", "a:/etc/passwd", "-"]);
    denied("run", &["token", "ls"]);
    denied("run", &["host", "invite"]);
    assert_eq!(
        there.ok(&["--host", "run", "exec", "a", "--", "echo", "from afar"]),
        "from afar"
    );
    let noise: Vec<u8> = (0..3_000_000u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let (sent, back) = (config.path().join("noise"), config.path().join("back"));
    std::fs::write(&sent, &noise).unwrap();
    there.ok(&["--host", "run", "cp", &sent.to_string_lossy(), "a:/noise"]);
    there.ok(&["--host", "run", "cp", "a:/noise", &back.to_string_lossy()]);
    assert!(
        std::fs::read(&back).unwrap() == noise,
        "more than strangers may send, and whole"
    );
    let counted = there.call_with_input(&["--host", "run", "exec", "-i", "a", "--", "wc", "-c"], &noise);
    assert_eq!(
        String::from_utf8_lossy(&counted.stdout).trim(),
        "3000000",
        "{counted:?}"
    );
    there.ok(&["--host", "run", "checkpoint", "a", "--tag", "afar"]);
    assert!(here.ok(&["images"]).contains("a:afar"));
    assert!(there.pid().is_none(), "no daemon was started for it");

    // What goes on ends with its token.
    let begun = std::time::Instant::now();
    let mut command = there.command(&["--host", "run", "exec", "a", "--", "sleep", "600"]);
    let mut sleeping = command.spawn().unwrap();
    wait_for("the command to run", || {
        here.call(&["exec", "a", "--", "sh", "-c", "ps | grep -q 'sleep 60[0]'"])
            .status
            .success()
    });
    there.ok(&["--host", "admin", "token", "rm", "run"]);
    assert!(!sleeping.wait().unwrap().success());
    assert!(begun.elapsed().as_secs() < 300);
    denied("run", &["ps"]);
    let tokens = here.json(&["token", "ls"]);
    assert!(
        tokens[0]["name"] == "admin" && tokens[0]["used_unix_ms"].is_u64(),
        "{tokens}"
    );
    there.ok(&["logout", "run"]);
    let audit = std::fs::read_to_string(here.state_dir().join("audit.log")).unwrap();
    for noted in [
        "token run",
        "/v1/machines/{name}/exec",
        "refused: needs admin",
        "no good token",
    ] {
        assert!(audit.contains(noted), "{noted}: {audit}");
    }
    let database = std::fs::read(here.state_dir().join("engine.redb")).unwrap();
    let kept = std::fs::read_to_string(config.path().join("martlet/hosts.json")).unwrap();
    let secret = kept.split(':').find(|part| part.len() == 64).unwrap().as_bytes();
    assert!(
        !database.windows(64).any(|window| window == secret),
        "only its hash is kept"
    );
}
