//! A machine whose pages are handed over to a twin of its process goes on with all that it had.

use crate::bad_input::FULL;
use crate::commands::pty::Pty;
use crate::deadline::wait_for;
use crate::recovery::kill;
use crate::{Daemon, Fixture};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

const HANDOVERS: usize = 3;

impl Daemon {
    fn hand_over(&self, name: &str, tag: &str) -> Value {
        let report = self.json(&["checkpoint", name, "--method", "handover", "--tag", tag]);
        assert_eq!(report["method"], "handover", "{report}");
        report
    }
}

#[test]
fn all_that_a_machine_does_goes_on() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "a", "-p", "7777", "-p", "7778"]);
    let ports = daemon.json(&["inspect", "a"])["ports"].clone();
    let [port, lasting] = [0, 1].map(|index| ports[index]["host_port"].as_u64().unwrap() as u16);
    let mut count = daemon.start_counter("a");
    daemon.exec(
        "a",
        "head -c 12000000 /dev/urandom >/dev/shm/noise; head -c 6000000 /dev/urandom >/noise; sync; \
         (while :; do echo hello | nc -l -p 7777; done) </dev/null >/dev/null 2>&1 &
         (nc -l -p 7778 -e cat) </dev/null >/dev/null 2>&1 &
         (while read line; do echo heard $line; done) </dev/ttyS0 >/dev/ttyS0 2>&1 &",
    );
    let sums = daemon.exec("a", "sha256sum /dev/shm/noise /noise");

    // A command that answers each line, and one that floods: neither loses a byte.
    let streaming = |line: &str| {
        let mut command = daemon.command(&["exec", "-i", "a", "--", "sh", "-c", line]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().unwrap()
    };
    let mut echo = streaming("while read n; do echo $n; done");
    let mut echo_in = echo.stdin.take().unwrap();
    let mut echo_out = BufReader::new(echo.stdout.take().unwrap());
    let mut ask = move |word: &str| {
        writeln!(echo_in, "{word}").unwrap();
        let mut line = String::new();
        echo_out.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word);
    };
    ask("before");
    let mut flood = streaming("i=0; while [ $i -lt 60000 ]; do echo $i; i=$((i+1)); done");
    let flood_out = flood.stdout.take().unwrap();
    let flooded = std::thread::spawn(move || {
        let lines = BufReader::new(flood_out).lines();
        for (expected, line) in lines.enumerate() {
            assert_eq!(line.unwrap(), expected.to_string());
            if expected + 1 == 60000 {
                return;
            }
        }
        panic!("the flood ended early");
    });
    let mut terminal = Pty::open(24, 80);
    let mut console = daemon.command(&["console", "a"]);
    let mut console = terminal.spawn(&mut console);
    terminal.expect("Ctrl-] detaches");
    let mut log = daemon.command(&["logs", "--follow", "a"]);
    let mut log = log.stdout(Stdio::piped()).spawn().unwrap();
    let mut log_out = BufReader::new(log.stdout.take().unwrap());
    let connection = TcpStream::connect(("127.0.0.1", lasting)).unwrap();
    connection
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut connection = BufReader::new(connection);
    let mut ask_the_guest = move |word: &str| {
        writeln!(connection.get_mut(), "{word}").unwrap();
        let mut line = String::new();
        connection.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word);
    };
    ask_the_guest("before");
    let qemu = daemon.qemu("a");

    for round in 0..HANDOVERS {
        daemon.hand_over("a", &format!("round-{round}"));
        assert_eq!(daemon.processes("-name a,"), [qemu]);
        daemon.assert_childless(qemu);
        ask_the_guest(&format!("round {round}"));
        count = daemon.assert_counting("a", count);
        ask(&format!("round {round}"));
        terminal.write(format!("word {round}\r").as_bytes());
        terminal.expect(&format!("heard word {round}"));
        assert_eq!(daemon.exec("a", "sha256sum /dev/shm/noise /noise"), sums);
        wait_for("the port to answer", || {
            let mut words = String::new();
            TcpStream::connect(("127.0.0.1", port)).is_ok_and(|mut stream| {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
                stream.read_to_string(&mut words).is_ok() && words == "hello\n"
            })
        });
    }
    flooded.join().unwrap();
    assert!(flood.wait().unwrap().success());
    drop(ask);
    assert!(echo.wait().unwrap().success());
    terminal.write(b"\x1d");
    assert!(console.wait().unwrap().success());
    daemon.exec("a", "echo the last word > /dev/console");
    let mut said = String::new();
    while !said.contains("the last word") {
        assert!(log_out.read_line(&mut said).unwrap() > 0, "the log ended: {said}");
    }
    for round in 0..HANDOVERS {
        let heard = format!("heard word {round}");
        assert_eq!(said.matches(&heard).count(), 1, "{heard} in {said}");
    }
    kill(log.id().into(), "-TERM");
    let _ = log.wait();

    // What was saved is a snapshot like any other, and the machine one like any other.
    let fork = daemon.json(&["fork", "a:round-1", "-n", "1", "--prefix", "clone"]);
    assert_eq!(fork["clones"][0]["problem"], Value::Null, "{fork}");
    assert_eq!(daemon.exec("clone-1", "sha256sum /dev/shm/noise /noise"), sums);
    let copied = daemon.json(&["checkpoint", "a", "--method", "copy"]);
    assert_eq!(copied["method"], "copy");
    daemon.replace_keeper(2);
    daemon.kill_daemon();
    daemon.assert_counting("a", count);
    daemon.hand_over("a", "again");
    daemon.ok(&["suspend", "a"]);
    daemon.ok(&["resume", "a"]);
    daemon.assert_counting("a", count);
    assert_eq!(daemon.exec("a", "sha256sum /dev/shm/noise /noise"), sums);
    daemon.ok(&["rollback", "a", "a:round-0"]);
    assert_eq!(daemon.exec("a", "sha256sum /dev/shm/noise /noise"), sums);
    assert_eq!(daemon.json(&["verify"])["damaged"], json!([]));
    daemon.ok(&["rm", "--force", "a", "clone-1"]);
    assert_eq!(daemon.processes("-name a,").len(), 0);
}

#[test]
fn a_handover_cut_short_at_any_time_harms_nothing() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "a", "-p", "7777"]);
    let mut count = daemon.start_counter("a");
    daemon.exec("a", "head -c 12000000 /dev/urandom >/dev/shm/noise");
    let sum = daemon.exec("a", "sha256sum /dev/shm/noise");
    for (round, after_ms) in [0, 30, 60, 90, 120, 160, 220, 300].into_iter().enumerate() {
        let tag = format!("cut-{round}");
        let mut checkpoint = daemon.command(&["checkpoint", "a", "--method", "handover", "--tag", &tag]);
        let checkpoint = checkpoint.stdout(Stdio::null()).stderr(Stdio::null());
        let mut checkpoint = checkpoint.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after_ms));
        daemon.kill_daemon();
        let done = checkpoint.wait().unwrap().success();
        count = daemon.assert_counting("a", count);
        assert_eq!(daemon.exec("a", "sha256sum /dev/shm/noise"), sum, "round {round}");
        if done {
            daemon.ok(&["log", &format!("a:{tag}")]);
        }
        assert_eq!(daemon.json(&["verify"])["damaged"], json!([]), "round {round}");
        if round % 3 == 2 {
            daemon.ok(&["checkpoint", "a", "--method", "copy"]);
        }
    }
    daemon.hand_over("a", "whole");
    let qemu = daemon.qemu("a");
    assert_eq!(daemon.processes("-name a,"), [qemu]);
    daemon.assert_childless(qemu);
    assert_eq!(daemon.exec("a", "sha256sum /dev/shm/noise"), sum);
    daemon.ok(&["run", "a:whole", "--name", "b"]);
    daemon.assert_counting("b", count);
}

#[test]
fn a_machine_that_is_killed_while_it_is_handed_over_is_gone() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    daemon.exec("a", "echo kept >/kept; sync");
    for after_ms in [20, 40, 60, 80, 110, 150, 250] {
        let mut checkpoint = daemon.command(&["checkpoint", "a", "--method", "handover"]);
        let checkpoint = checkpoint.stdout(Stdio::null()).stderr(Stdio::null());
        let mut checkpoint = checkpoint.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after_ms));
        daemon.ok(&["kill", "a"]);
        let _ = checkpoint.wait();
        assert_eq!(daemon.state("a"), "stopped", "after {after_ms} ms");
        wait_for("the end of its processes", || {
            daemon.processes("-name a,").is_empty()
        });
        daemon.ok(&["start", "a"]);
        assert_eq!(daemon.exec("a", "cat /kept"), "kept");
    }
}

impl Daemon {
    /// Nothing is left of the twins of a process, not even their numbers.
    #[track_caller]
    fn assert_childless(&self, pid: u64) {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        assert_eq!(children, "");
    }
}

#[test]
fn without_room_for_its_pages_a_machine_has_them_all_the_same() {
    let mut daemon = Daemon::empty();
    daemon.set_env("MARTLET_POOL", "0");
    daemon.on_small_disk();
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    daemon.quiet_disk("a");
    daemon.exec(
        "a",
        "mkdir -p /dev/shm; head -c 20000000 /dev/urandom >/dev/shm/x; sha256sum /dev/shm/x >/dev/shm/sum",
    );
    let ballast = daemon.fill_up(4);
    let qemu = daemon.qemu("a");
    for _ in 0..3 {
        let full = ["checkpoint", "a", "--method", "handover", "--tag", "full"];
        daemon.refused_for(&full, FULL, "space");
        assert_eq!(daemon.processes("-name a,"), [qemu]);
        daemon.assert_childless(qemu);
        daemon.exec("a", "sha256sum -c /dev/shm/sum");
    }
    daemon.kill_daemon();
    daemon.exec("a", "sha256sum -c /dev/shm/sum");

    std::fs::remove_file(&ballast).unwrap();
    daemon.hand_over("a", "room");
    daemon.ok(&["run", "a:room", "--name", "b"]);
    for name in ["a", "b"] {
        daemon.exec(name, "sha256sum -c /dev/shm/sum");
    }
    assert_eq!(daemon.json(&["verify"])["damaged"], json!([]));
}
