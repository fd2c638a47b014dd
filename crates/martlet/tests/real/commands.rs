//! Commands, files, ports and consoles of a real guest.

#[path = "../pty/mod.rs"]
pub mod pty;

use crate::deadline::wait_for;
use crate::{Daemon, Fixture};
use pty::Pty;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Sent and fetched back: more than any buffer on its way.
const STREAM_BYTES: usize = 8 << 20;

fn guest() -> Daemon {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "guest"]);
    daemon
}

/// Bytes that no codec and no terminal leaves alone by chance.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn a_command_has_its_streams_its_status_and_its_surroundings() {
    let daemon = guest();
    let exec = |args: &[&str]| daemon.call(&[&["exec"], args].concat());

    let both = exec(&["guest", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(
        (both.status.code(), &*both.stdout, &*both.stderr),
        (Some(7), &b"out\n"[..], &b"err\n"[..])
    );
    let killed = exec(&["guest", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(killed.status.code(), Some(128 + 9));
    assert_eq!(exec(&["guest", "--", "/no/such"]).status.code(), Some(127));
    assert_eq!(exec(&["guest", "--", "/etc/passwd"]).status.code(), Some(126));

    let sent = noise(STREAM_BYTES);
    let back = daemon.call_with_input(&["exec", "-i", "guest", "--", "cat"], &sent);
    assert!(back.status.success());
    assert!(
        back.stdout == sent,
        "{} bytes came back, not the same",
        back.stdout.len()
    );
    // Without -i the command reads the end of the file at once.
    assert_eq!(exec(&["guest", "--", "cat"]).stdout, b"");

    let surroundings = exec(&[
        "-e",
        "COLOUR=deep blue",
        "-w",
        "/tmp",
        "-u",
        "nobody",
        "guest",
        "--",
        "sh",
        "-c",
        "echo $COLOUR; pwd; id -un",
    ]);
    assert_eq!(
        String::from_utf8_lossy(&surroundings.stdout),
        "deep blue\n/tmp\nnobody\n",
        "{surroundings:?}"
    );
    // An argument is one argument.
    let words = exec(&["guest", "--", "printf", "[%s]", "a b", "", "ü"]);
    assert_eq!(String::from_utf8_lossy(&words.stdout), "[a b][][ü]");
}

#[test]
fn a_command_whose_agent_is_killed_ends() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&["run", "tiny0:booted", "--name", "a"]);
    let line = "agent=$PPID; (sleep 1; kill -9 $agent) & sleep 1000";
    let output = daemon.call(&["exec", "a", "--", "sh", "-c", line]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("agent"), "{words}");
    // Its successor is heard.
    assert_eq!(daemon.exec("a", "echo well"), "well");
}

#[test]
fn signals_reach_the_command_and_hanging_up_ends_it() {
    let daemon = guest();
    let line = "trap 'echo told; exit 3' USR1; trap 'echo asked; exit 4' TERM; echo ready; while :; do sleep 0.1; done";
    for (signal, words, status) in [("USR1", "told\n", 3), ("TERM", "asked\n", 4)] {
        let mut command = daemon.command(&["exec", "guest", "--", "sh", "-c", line]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut ready = [0; 6];
        stdout.read_exact(&mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        signal_process(child.id(), signal);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, words);
        assert_eq!(child.wait().unwrap().code(), Some(status));
    }

    // A client that is killed takes its command with it.
    let mut command = daemon.command(&["exec", "guest", "--", "sh", "-c", "echo ready; exec sleep 9876"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
    let sleeps = || daemon.exec("guest", "grep -lz 987[6] /proc/[0-9]*/cmdline || true");
    assert!(!sleeps().is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the command to end", || sleeps().is_empty());
}

fn signal_process(pid: u32, signal: &str) {
    let sent = Command::new("kill")
        .args(["-s", signal, &pid.to_string()])
        .status();
    assert!(sent.is_ok_and(|status| status.success()));
}

#[test]
fn a_terminal_in_the_guest_is_this_terminal() {
    let daemon = guest();
    let mut terminal = Pty::open(24, 80);
    let mut command = daemon.command(&["exec", "-it", "guest", "--", "sh"]);
    let mut child = terminal.spawn(&mut command);
    terminal.write(b"tty; stty size; echo $((6*7))\r");
    terminal.expect("/dev/pts/");
    terminal.expect("24 80");
    terminal.expect("42");
    terminal.resize(50, 132);
    signal_process(child.id(), "WINCH");
    terminal.write(b"until stty size | grep 132; do sleep 0.1; done\r");
    terminal.expect("50 132");
    // Ctrl-C is the guest's: it ends what runs there, not the session.
    terminal.write(b"sleep 1000\r");
    terminal.expect("sleep 1000");
    std::thread::sleep(Duration::from_secs(1));
    terminal.write(b"\x03");
    terminal.write(b"echo still $((2*50))\r");
    terminal.expect("still 100");
    terminal.write(b"exit 9\r");
    assert_eq!(child.wait().unwrap().code(), Some(9));
    assert!(terminal.echoes(), "the terminal was not put back");
}

#[test]
fn files_and_trees_go_in_and_come_out_whole() {
    let daemon = guest();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let content = noise(3 << 20);
    fs::create_dir_all(path("tree/empty")).unwrap();
    fs::write(path("tree/ä file"), &content).unwrap();
    fs::write(path("tree/run"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(path("tree/run"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("ä file", path("tree/link")).unwrap();

    daemon.exec("guest", "mkdir /srv");
    daemon.ok(&["cp", &path("tree"), "guest:/srv"]);
    assert_eq!(daemon.exec("guest", "/srv/tree/run"), "ran");
    assert_eq!(daemon.exec("guest", "readlink /srv/tree/link"), "ä file");
    assert_eq!(daemon.exec("guest", "ls -d /srv/tree/empty"), "/srv/tree/empty");
    daemon.exec("guest", "echo new > /srv/tree/empty/new");

    fs::create_dir(path("back")).unwrap();
    daemon.ok(&["cp", "guest:/srv/tree", &path("back")]);
    assert!(fs::read(path("back/tree/ä file")).unwrap() == content);
    assert!(fs::read(path("back/tree/link")).unwrap() == content);
    assert_eq!(fs::read(path("back/tree/empty/new")).unwrap(), b"new\n");
    let mode = fs::metadata(path("back/tree/run")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);

    // One file, to a name of its own; and tar streams.
    daemon.ok(&["cp", &path("tree/run"), "guest:/srv/one"]);
    assert_eq!(daemon.exec("guest", "cat /srv/one"), "#!/bin/sh\necho ran");
    let tar = daemon.call(&["cp", "guest:/srv/tree", "-"]).stdout;
    let entries: Vec<u8> = tar_list(&tar);
    assert!(String::from_utf8_lossy(&entries).contains("tree/empty/new"));

    let (_, missing) = daemon.refused(&["cp", "guest:/no/such", &path("back")]);
    assert!(missing.contains("/no/such"), "{missing}");
    let (_, missing) = daemon.refused(&["cp", &path("nothing"), "guest:/srv"]);
    assert!(missing.contains("nothing"), "{missing}");
}

fn tar_list(tar: &[u8]) -> Vec<u8> {
    let mut list = Command::new("tar");
    let mut child = list
        .arg("-t")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let tar = tar.to_vec();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&tar)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn ports_memory_disk_and_processors_are_as_asked_for() {
    let daemon = Daemon::new(Fixture::Tiny);
    daemon.ok(&[
        "run",
        "tiny",
        "--name",
        "guest",
        "--cpus",
        "2",
        "--memory",
        "160M",
        "--disk",
        "1G",
        "-e",
        "GREETING=hello",
        "-p",
        "7777",
        "--cmd",
        "while :; do echo $GREETING | nc -l -p 7777; done",
    ]);
    assert_eq!(daemon.exec("guest", "grep -c ^processor /proc/cpuinfo"), "2");
    let kib: u64 = daemon
        .exec("guest", "awk '/MemTotal/ {print $2}' /proc/meminfo")
        .parse()
        .unwrap();
    assert!((100 << 10..160 << 10).contains(&kib), "{kib} KiB");
    let blocks: u64 = daemon
        .exec("guest", "df -k / | awk 'END {print $2}'")
        .parse()
        .unwrap();
    assert!(blocks > 900 << 10, "the file system has {blocks} KiB");

    // The forward answers, also after suspend and resume, and a clone has one of its own.
    let answer = |name: &str| {
        let machine = daemon.json(&["inspect", name]);
        let port = machine["ports"][0]["host_port"].as_u64().expect("a port");
        let mut words = String::new();
        wait_for("the port to answer", || {
            words.clear();
            let stream = TcpStream::connect(("127.0.0.1", port as u16));
            stream.is_ok_and(|mut stream| {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
                stream.read_to_string(&mut words).is_ok() && !words.is_empty()
            })
        });
        (port, words)
    };
    let (port, words) = answer("guest");
    assert_eq!(words, "hello\n");
    daemon.ok(&["suspend", "guest"]);
    daemon.ok(&["resume", "guest"]);
    assert_eq!(answer("guest"), (port, words.clone()));
    daemon.ok(&["fork", "guest", "-n", "1"]);
    let (other, words) = answer("guest-1");
    assert_eq!(words, "hello\n");
    assert_ne!(other, port);

    // What it is called and what it uses.
    daemon.ok(&["rename", "guest-1", "second"]);
    assert_eq!(daemon.exec("second", "echo there"), "there");
    let top = daemon.json(&["top", "--once"]);
    assert_eq!(top.as_array().map(Vec::len), Some(2), "{top}");
    daemon.exec("guest", "echo a word to the console > /dev/console");
    wait_for("the word in the console's log", || {
        daemon.ok(&["logs", "guest"]).contains("a word to the console")
    });
    // Stopped, it has ended by itself; started, it is there again with its disk.
    daemon.exec("guest", "echo kept > /kept; sync");
    daemon.ok(&["stop", "guest"]);
    assert_eq!(daemon.json(&["inspect", "guest"])["state"], "stopped");
    daemon.ok(&["start", "guest"]);
    assert_eq!(daemon.exec("guest", "cat /kept"), "kept");
}

#[test]
fn a_console_is_typed_at_and_seen() {
    let daemon = guest();
    daemon.exec(
        "guest",
        "(read line; echo heard $line) < /dev/ttyS0 > /dev/ttyS0 2>&1 &",
    );
    let mut terminal = Pty::open(24, 80);
    let mut command = daemon.command(&["console", "guest"]);
    let mut child = terminal.spawn(&mut command);
    terminal.expect("Ctrl-] detaches");
    terminal.write(b"a word\r");
    terminal.expect("heard a word");
    terminal.write(b"\x1d");
    assert!(child.wait().unwrap().success());
    assert!(terminal.echoes(), "the terminal was not put back");
}

const MIB: u64 = 1 << 20;

#[test]
fn a_checkpoint_that_is_asked_to_has_the_guest_give_up_its_page_cache_and_deleted_files() {
    let daemon = guest();
    daemon.exec(
        "guest",
        "for file in kept deleted; do dd if=/dev/urandom of=/$file bs=1M count=16 2> /dev/null; done; sync",
    );
    let sum = daemon.exec("guest", "md5sum /kept");
    let cached = daemon.json(&["checkpoint", "guest"]);
    let private = |report: &serde_json::Value| report["private_bytes"].as_u64().unwrap();
    assert!(private(&cached) > 32 * MIB, "{cached}");
    assert_eq!(cached["give_up_ms"], 0.0);
    daemon.exec("guest", "rm /deleted");
    let given = daemon.json(&["checkpoint", "guest", "--trim", "--drop-caches", "--tag", "given"]);
    assert!(given["give_up_ms"].as_f64().unwrap() > 0.0, "{given}");
    assert!(private(&given) + 12 * MIB < private(&cached), "{given}");
    assert!(avoided(&given, "discard") > 12 * MIB, "{given}");
    assert_eq!(daemon.exec("guest", "md5sum /kept"), sum);
    daemon.ok(&["run", "guest:given", "--name", "clone"]);
    assert_eq!(daemon.exec("clone", "md5sum /kept"), sum);
}

#[test]
fn free_pages_between_used_ones_are_given_up_too() {
    let daemon = guest();
    // Two files that grow by turns; what one leaves lies between pages of the other.
    daemon.exec(
        "guest",
        r"dd if=/dev/urandom bs=1M count=12 2> /dev/null | tee /run/kept | tr '\000-\376' '\001-\377' > /run/freed",
    );
    let private = || {
        let usage = daemon.json(&["top", "--once"]);
        usage[0]["private_bytes"].as_u64().unwrap()
    };
    let before = private();
    daemon.exec("guest", "rm /run/freed");
    wait_for("most of 12 MiB to be reported", || private() + 9 * MIB < before);
}

#[test]
fn what_the_guest_gives_up_on_its_disk_is_not_stored_again() {
    let daemon = guest();
    daemon.exec(
        "guest",
        "dd if=/dev/urandom of=/big bs=1M count=24 2> /dev/null; sync",
    );
    let full = daemon.json(&["checkpoint", "guest"]);
    assert!(full["stored_bytes"].as_u64().unwrap() > 24 * MIB, "{full}");
    daemon.exec("guest", "rm /big; sync; fstrim /");
    let trimmed = daemon.json(&["checkpoint", "guest"]);
    assert!(avoided(&trimmed, "discard") > 20 * MIB, "{trimmed}");
}

/// What a checkpoint avoided by one means.
fn avoided(report: &serde_json::Value, means: &str) -> u64 {
    let avoided = report["avoided"].as_array().unwrap().iter();
    let of_these = avoided.filter(|avoided| avoided["means"] == means);
    of_these.map(|avoided| avoided["bytes"].as_u64().unwrap()).sum()
}
