//! A guest at a tap interface: its connections go on through every checkpoint.

use crate::{Daemon, Fixture};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

/// A daemon whose host has a network of its own, this thread being in it too, with tap interfaces that are free.
fn daemon_with(taps: &[&str]) -> Daemon {
    let daemon = Daemon::new(Fixture::Tiny);
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for tap in taps {
        ip(&["tuntap", "add", tap, "mode", "tap"]);
        ip(&["link", "set", tap, "up"]);
    }
    daemon
}

fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().unwrap();
    assert!(status.success(), "ip {args:?}: {status}");
}

/// A connection to the guest, at whose other end each line comes back.
struct Echo(BufReader<TcpStream>);

impl Echo {
    fn to(machine: &Value) -> Self {
        let address = machine["address"].as_str().unwrap();
        let stream = TcpStream::connect((address, 7777)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(BufReader::new(stream))
    }

    #[track_caller]
    fn ask(&mut self, word: &str) {
        writeln!(self.0.get_mut(), "{word}").unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word);
    }
}

/// Machine a answers one connection.
fn serve(daemon: &Daemon) {
    daemon.exec(
        "a",
        "(nc -l -p 7777 -e cat) </dev/null >/dev/null 2>&1 &
         until netstat -ltn | grep -q :7777; do sleep 0.05; done",
    );
}

#[test]
fn connections_through_a_tap_go_on() {
    let daemon = daemon_with(&["mt-a", "mt-b"]);
    for (tap, host) in [("mt-a", "10.77.0.2/16"), ("mt-b", "10.77.0.4/32")] {
        ip(&["address", "add", host, "dev", tap]);
    }
    let run = |name: &str, tap: &str| daemon.call(&["run", "tiny0:booted", "--name", name, "--tap", tap]);
    let a = daemon.json(&["run", "tiny0:booted", "--name", "a", "--tap", "mt-a"]);
    assert_eq!(a["tap"], "mt-a");
    serve(&daemon);
    let mut echo = Echo::to(&a);
    echo.ask("before");

    // The guest's outside is the host that has its gateway's address, and the other way round.
    assert!(
        daemon
            .exec("a", "ping -c 1 -W 30 10.77.0.2")
            .contains("1 packets received")
    );

    for (tag, method) in [("one", "handover"), ("two", "copy"), ("three", "handover")] {
        let report = daemon.json(&["checkpoint", "a", "--method", method, "--tag", tag]);
        assert_eq!(report["method"], method, "{report}");
        echo.ask(tag);
    }

    // What is in use, missing, or no tap is refused in words, and leaves no machine.
    for (tap, word) in [
        ("mt-a", "in use"),
        ("mt-none", "no tap interface"),
        ("lo", "lo"),
        ("a/b", "cannot be the name"),
    ] {
        let refused = run("refused", tap);
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && words.contains(word),
            "{tap}: {words}"
        );
    }
    let machines = daemon.json(&["ps"]);
    assert_eq!(machines.as_array().unwrap().len(), 1, "{machines}");

    // The interface stays with the parent; a clone has a network all the same, and another interface if it is told.
    let clones = daemon.json(&["fork", "a", "--prefix", "clone"]);
    assert_eq!(clones["clones"][0]["machine"]["tap"], Value::Null, "{clones}");
    daemon.exec("clone-1", "ip address | grep 10.77.");
    assert!(run("b", "mt-b").status.success());
    echo.ask("still");

    // It sleeps, and wakes up at its interface.
    drop(echo);
    daemon.ok(&["suspend", "a"]);
    let a = daemon.json(&["resume", "a"]);
    serve(&daemon);
    Echo::to(&a).ask("awake");
}
