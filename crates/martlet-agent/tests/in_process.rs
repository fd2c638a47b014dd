//! The real agent and the real client, on this machine, over a socket pair: no guest, nothing of the machine is changed.

use martlet_agent::identity::Places;
use martlet_agent::serve::{Agent, AgentOptions, Init};
use martlet_agent_api::frame::{self, FLAG_END, Frame, Kind};
use martlet_agent_api::{
    Command, Decoder, ExecSpec, Finished, Hello, Identity, IdentityPolicy, Outcome, PROTOCOL,
    RemoteErrorKind, Request, Start, to_payload,
};
use martlet_vm::agent::{AgentClient, AgentError, ExecEvent};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(20);

fn agent(dir: &Path, held: bool) -> Arc<Agent> {
    let places = Places {
        etc: dir.join("etc"),
        run: dir.join("run"),
        var_lib: dir.join("lib"),
    };
    fs::create_dir_all(dir.join("etc/martlet/hooks.d")).unwrap();
    Agent::new(AgentOptions {
        cgroups: None,
        own_processes: Vec::new(),
        held,
        init: Init::Image,
        places,
    })
}

fn serve(agent: &Arc<Agent>) -> UnixStream {
    let (host, guest) = UnixStream::pair().unwrap();
    let (agent, writer) = (Arc::clone(agent), guest.try_clone().unwrap());
    std::thread::spawn(move || agent.serve(guest, Box::new(writer)));
    host
}

fn connected(dir: &Path) -> AgentClient {
    let client = AgentClient::over(serve(&agent(dir, false)), 7).unwrap();
    client.hello(Start::Same, TIMEOUT).unwrap();
    client
}

fn command(argv: &[&str]) -> Command {
    Command {
        argv: argv.iter().map(|s| s.to_string()).collect(),
        ..Command::default()
    }
}

#[test]
fn commands_and_their_ends() {
    let dir = tempfile::tempdir().unwrap();
    let client = connected(dir.path());
    let run = |argv: &[&str], input: &[u8]| client.exec_wait(command(argv), input, 1 << 20, TIMEOUT);
    let outcome = run(&["sh", "-c", "echo out; echo err >&2; exit 3"], b"").unwrap();
    assert_eq!(
        (outcome.stdout.as_slice(), outcome.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(outcome.status, Finished::Exited(3));
    assert_eq!(
        run(&["sh", "-c", "kill -TERM $$"], b"").unwrap().status,
        Finished::Killed(15)
    );
    let missing = run(&["/no/such/program"], b"");
    assert!(matches!(missing, Err(AgentError::Remote(error)) if error.kind == RemoteErrorKind::NotFound));
    assert!(
        matches!(run(&[], b""), Err(AgentError::Remote(error)) if error.kind == RemoteErrorKind::Invalid)
    );
    // A child that keeps the pipe open does not keep the command from ending.
    let left_behind = run(&["sh", "-c", "sleep 5 & echo $!"], b"").unwrap();
    assert_eq!(left_behind.status, Finished::Exited(0));
    let pid = String::from_utf8(left_behind.stdout).unwrap();
    assert!(
        run(&["kill", pid.trim()], b"").unwrap().is_success(),
        "it was still there"
    );
    let spec = Command {
        env: [("A".into(), "b c".into())].into(),
        cwd: Some("/usr".into()),
        ..command(&["sh", "-c", "echo $A $PWD $HOME"])
    };
    assert_eq!(
        client.exec_wait(spec, b"", 100, TIMEOUT).unwrap().stdout,
        b"b c /usr /root\n"
    );
    let nobody = Command {
        user: Some("12345:678".into()),
        ..command(&["sh", "-c", "id -u; id -g"])
    };
    assert_eq!(
        client.exec_wait(nobody, b"", 100, TIMEOUT).unwrap().stdout,
        b"12345\n678\n"
    );
}

#[test]
fn programs_are_found_and_begin_as_after_a_fork() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let client = connected(dir.path());
    let file = |name: &str, mode: u32| {
        let path = dir.path().join(name);
        fs::write(&path, "echo $0 $1\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    };
    let (script, data) = (file("script", 0o755), file("data", 0o644));
    let found = Command {
        env: [(
            "PATH".into(),
            format!("/no/such/dir:{}:/bin", dir.path().display()),
        )]
        .into(),
        ..command(&["script", "word"])
    };
    let outcome = client.exec_wait(found, b"", 1000, TIMEOUT).unwrap();
    assert_eq!(outcome.stdout, format!("{script} word\n").as_bytes());
    let denied = client.exec_wait(command(&[&data]), b"", 0, TIMEOUT);
    assert!(matches!(denied, Err(AgentError::Remote(error)) if error.kind == RemoteErrorKind::Denied));
    // Many at once: each waits for its own, and all others go on.
    let status = || {
        let words = ["grep", "-E", "^(SigBlk|SigIgn):", "/proc/self/status"];
        client
            .exec_wait(command(&words), b"", 1000, TIMEOUT)
            .unwrap()
            .stdout
    };
    // What this process was started with, but for what Rust ignores.
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let ignored = own
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:\t"))
        .unwrap();
    let ignored = u64::from_str_radix(ignored, 16).unwrap() & !(1 << (libc::SIGPIPE - 1));
    let begin = format!("SigBlk:\t{:016x}\nSigIgn:\t{ignored:016x}\n", 0);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(status)).collect();
        for one in all {
            assert_eq!(String::from_utf8(one.join().unwrap()).unwrap(), begin);
        }
    });
}

#[test]
fn more_than_a_window_both_ways_and_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let client = connected(dir.path());
    let input: Vec<u8> = (0..3_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let outcome = client
        .exec_wait(command(&["cat"]), &input, 1 << 23, TIMEOUT)
        .unwrap();
    assert!(outcome.is_success() && outcome.stdout == input && !outcome.truncated);
    let outcome = client
        .exec_wait(command(&["cat"]), &input, 1000, TIMEOUT)
        .unwrap();
    assert!(outcome.truncated && outcome.stdout == input[..1000]);
}

#[test]
fn a_command_that_nobody_reads_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let client = connected(dir.path());
    let spec = || ExecSpec {
        command: command(&["cat", "/dev/zero"]),
        ..Default::default()
    };
    let floods: Vec<_> = (0..4).map(|_| client.exec(spec()).unwrap()).collect();
    let stuck = client
        .exec(ExecSpec {
            command: command(&["sleep", "100"]),
            stdin: true,
            tty: None,
        })
        .unwrap();
    stuck.input.write_all(&[0; 200_000]).unwrap();
    assert_eq!(
        client
            .exec_wait(command(&["echo", "ok"]), b"", 100, TIMEOUT)
            .unwrap()
            .stdout,
        b"ok\n"
    );
    client.ping(TIMEOUT).unwrap();
    for exec in floods.iter().chain([&stuck]) {
        exec.input.signal(9).unwrap();
    }
    let end = loop {
        match stuck.output.next(TIMEOUT).unwrap().unwrap() {
            ExecEvent::Exit(end) => break end,
            ExecEvent::Stdout(_) | ExecEvent::Stderr(_) => {}
        }
    };
    assert_eq!(end, Finished::Killed(9));
}

#[test]
fn a_late_command_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let client = connected(dir.path());
    let late = client.exec_wait(
        command(&["sleep", "100"]),
        &[1; 1_000_000],
        10,
        Duration::from_millis(100),
    );
    assert!(matches!(late, Err(AgentError::Timeout { .. })), "{late:?}");
    client.ping(TIMEOUT).unwrap();
}

#[test]
fn files_both_ways_and_no_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let client = connected(dir.path());
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("empty")).unwrap();
    fs::write(tree.join("big"), vec![7; 1_500_000]).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", tree.join("link")).unwrap();
    std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    let mut tar = Vec::new();
    client
        .read_path(tree.to_str().unwrap())
        .unwrap()
        .read_to_end(&mut tar)
        .unwrap();
    let back = dir.path().join("back");
    let put = |bytes: &[u8], to: &Path| {
        let mut writer = client.write_path(to.to_str().unwrap())?;
        writer.write_all(bytes).map_err(|_| AgentError::Disconnected)?;
        writer.finish(TIMEOUT)
    };
    put(&tar, &back).unwrap();
    assert_eq!(fs::read(back.join("tree/big")).unwrap(), vec![7; 1_500_000]);
    assert_eq!(
        fs::read_link(back.join("tree/link")).unwrap(),
        Path::new("/etc/passwd")
    );
    assert!(back.join("tree/empty").is_dir() && !back.join("tree/socket").exists());

    let mut proc = Vec::new();
    client
        .read_path("/proc/version")
        .unwrap()
        .read_to_end(&mut proc)
        .unwrap();
    assert!(
        proc[512..].starts_with(b"Linux"),
        "files that say they are empty are read"
    );

    assert!(
        matches!(client.read_path("/no/such"), Err(AgentError::Remote(e)) if e.kind == RemoteErrorKind::NotFound)
    );
    assert!(
        matches!(client.read_path("/etc/../etc"), Err(AgentError::Remote(e)) if e.kind == RemoteErrorKind::Invalid)
    );
    let trap = dir.path().join("trap");
    assert!(put(&archive(&[("link", Some("/")), ("link/escaped", None)]), &trap).is_err());
    assert!(put(&archive(&[("../escaped", None)]), &trap).is_err());
    assert!(!dir.path().join("escaped").exists() && !Path::new("/escaped").exists());
    assert!(put(b"this is no tar archive, but it is longer than nothing", &trap).is_err());
}

/// A tar archive of symbolic links and small files, with names that honest tools do not write.
fn archive(entries: &[(&str, Option<&str>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, link) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o644);
        header.set_size(0);
        if let Some(target) = link {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_link_name(target).unwrap();
        }
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn another_epoch_drops_what_the_old_one_started() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent(dir.path(), false);
    let mut host = serve(&agent);
    let marker = dir.path().join("still-running");
    let script = format!("cat > /dev/null; echo late; touch {}", marker.display());
    let spec = ExecSpec {
        command: command(&["sh", "-c", &script]),
        stdin: true,
        tty: None,
    };
    let hello = to_payload(&Hello {
        features: Vec::new(),
        protocol: PROTOCOL,
        protocol_oldest: 1,
        start: Start::Same,
    });
    let request = to_payload(&Request::Exec(spec));
    let send = |host: &mut UnixStream, kind, stream, epoch, payload: &[u8], flags| {
        let mut bytes = Vec::new();
        frame::encode(kind, flags, stream, epoch, payload, &mut bytes);
        host.write_all(&bytes).unwrap();
    };
    let mut decoder = Decoder::new();
    let mut receive = |host: &mut UnixStream| -> Frame {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = decoder.next_frame() {
                return frame;
            }
            let count = host.read(&mut buffer).unwrap();
            decoder.push(&buffer[..count]);
        }
    };
    send(&mut host, Kind::Request, 1, 0, &to_payload(&Request::Ping), 0); // nobody has greeted: dropped
    send(&mut host, Kind::Hello, 0, 10, &hello, 0);
    assert_eq!(receive(&mut host).kind, Kind::HelloReply);
    send(&mut host, Kind::Request, 1, 10, &request, 0);
    assert_eq!(
        (receive(&mut host).kind, fs::exists(&marker).unwrap()),
        (Kind::Reply, false)
    );

    // The parent's host was in the middle of a frame when the checkpoint came; then the clone's host speaks.
    let mut cut_off = Vec::new();
    frame::encode(Kind::Data, 0, 1, 10, &[b'x'; 5000], &mut cut_off);
    host.write_all(&cut_off[..700]).unwrap();
    host.write_all(&[0; frame::PREAMBLE_BYTES]).unwrap();
    send(&mut host, Kind::Hello, 0, 20, &hello, 0);
    let greeting = receive(&mut host);
    assert_eq!((greeting.kind, greeting.epoch), (Kind::HelloReply, 20));
    // Late words of the parent's host do nothing, and the command's end is not told to the new host.
    send(&mut host, Kind::Data, 1, 10, &[], FLAG_END);
    send(&mut host, Kind::Request, 9, 10, &to_payload(&Request::Ping), 0);
    while !fs::exists(&marker).unwrap() {
        std::thread::yield_now(); // its input has ended with its epoch, and it goes on
    }
    send(&mut host, Kind::Request, 5, 20, &to_payload(&Request::Ping), 0);
    let pong = receive(&mut host);
    assert_eq!((pong.kind, pong.stream, pong.epoch), (Kind::Reply, 5, 20));
}

#[test]
fn hooks_run_in_order_and_may_be_required() {
    let dir = tempfile::tempdir().unwrap();
    let client = AgentClient::over(serve(&agent(dir.path(), true)), 7).unwrap();
    assert!(client.hello(Start::Clone, TIMEOUT).unwrap().held);
    let log = dir.path().join("log");
    let hook = |name: &str, end: &str| {
        let path = dir.path().join("etc/martlet/hooks.d").join(name);
        fs::write(
            &path,
            format!("#!/bin/sh\necho $0 $MARTLET_INDEX >> {}\n{end}\n", log.display()),
        )
        .unwrap();
        must(std::process::Command::new("chmod").arg("755").arg(&path));
        path
    };
    hook("20-second", "exit 1");
    hook("10-first", "");
    fs::write(dir.path().join("etc/martlet/hooks.d/15-not-executable"), "").unwrap();
    let required = hook("30-third.required", "sleep 100");
    let identity = Identity {
        family: None,
        asked: None,
        clone_id: "c".into(),
        generation: 0x0102,
        parent_id: None,
        index: 4,
        name: "n".into(),
        realtime_unix_ns: 0,
        entropy: Vec::new(),
        hostname: None,
        machine_id: Some("0123456789abcdef0123456789abcdef".into()),
        network: None,
        policy: IdentityPolicy {
            clock: false,
            entropy: false,
            boot_id: false,
            hook_timeout_ms: 300,
            ..Default::default()
        },
    };
    let Err(AgentError::NotIdentified(identified)) = client.identify(&identity, TIMEOUT) else {
        panic!("it must fail")
    };
    let failed: Vec<_> = identified
        .steps
        .iter()
        .filter(|s| matches!(s.outcome, Outcome::Failed(_)))
        .map(|s| &s.name)
        .collect();
    assert_eq!(failed, ["hook 20-second", "hook 30-third.required"]);
    assert!(matches!(client.release(None), Err(AgentError::Remote(e)) if e.kind == RemoteErrorKind::State));
    fs::remove_file(required).unwrap();
    let identified = client.identify(&identity, TIMEOUT).unwrap();
    assert_eq!(identified.machine_id, "0123456789abcdef0123456789abcdef");
    let order: Vec<_> = fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| line.rsplit('/').next().unwrap().to_owned())
        .collect();
    assert_eq!(
        order,
        [
            "10-first 4",
            "20-second 4",
            "30-third.required 4",
            "10-first 4",
            "20-second 4"
        ]
    );
    assert_eq!(
        fs::read(dir.path().join("run/generation")).unwrap(),
        [2, 1, 0, 0, 0, 0, 0, 0]
    );
    client.release(None).unwrap();
    assert!(
        client
            .exec_wait(command(&["true"]), b"", 10, TIMEOUT)
            .unwrap()
            .is_success()
    );
}

fn must(command: &mut std::process::Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}
