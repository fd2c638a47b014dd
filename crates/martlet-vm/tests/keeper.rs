//! The keeper as a real process: it outlives its client, remembers its children and gives descriptors back.

use martlet_vm::process::{ChildState, ExitStatus, SpawnRequest};
use martlet_vm::{KeeperClient, KeeperProgram, SpawnError, Spawner};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, recv, send, socket,
};
use proptest::prelude::*;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);

/// The keeper's process is this very test program, told to run this one function; the socket is its last argument.
#[test]
#[ignore = "the body of the keeper's process"]
fn keeper_process() {
    let socket = std::env::args()
        .next_back()
        .filter(|last| last.ends_with("keeper.sock"));
    martlet_vm::keeper::run(Path::new(&socket.expect("started by the tests below"))).unwrap();
}

/// A keeper that ends with the test, and its children with it.
struct Kept {
    dir: tempfile::TempDir,
}

impl Kept {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("keeper.sock")
    }

    fn program(&self) -> KeeperProgram {
        let socket = self.socket().display().to_string();
        KeeperProgram {
            program: std::env::current_exe().unwrap(),
            args: ["keeper_process", "--exact", "--ignored", "--nocapture", &socket]
                .map(String::from)
                .to_vec(),
            socket: self.socket(),
            log: self.dir.path().join("keeper.log"),
        }
    }

    fn client(&self) -> KeeperClient {
        KeeperClient::connect_or_start(&self.program()).unwrap()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Ok(keeper) = KeeperClient::connect(&self.socket()) else {
            return;
        };
        for child in keeper.children().unwrap_or_default() {
            keeper.signal(child.pid, libc::SIGKILL).ok();
        }
        keeper.exit().ok();
    }
}

fn shell(script: &str) -> SpawnRequest {
    SpawnRequest {
        argv: ["/bin/sh", "-c", script].map(String::from).to_vec(),
        ..SpawnRequest::default()
    }
}

#[test]
fn children_and_descriptors_outlive_the_client() {
    let kept = Kept::new();
    let first = kept.client();
    let log = kept.dir.path().join("child.log");
    let sleeping = first
        .spawn(
            &SpawnRequest {
                tag: "sleeper".into(),
                ..shell("exec sleep 1000")
            },
            vec![],
        )
        .unwrap();
    let dying = first
        .spawn(
            &SpawnRequest {
                log: Some(log),
                ..shell("sleep 0.2; echo last words >&2; exit 7")
            },
            vec![],
        )
        .unwrap();
    let mut held = tempfile::tempfile().unwrap();
    held.write_all(b"held").unwrap();
    first.put_fd("fuse", held.as_fd()).unwrap();
    drop((first, held));

    let second = kept.client();
    let ended = second.wait(dying, SOON).unwrap();
    assert_eq!(
        ended,
        ChildState::Ended {
            status: ExitStatus::Code(7),
            last_words: "last words".into()
        }
    );
    assert_eq!(second.state(sleeping).unwrap(), ChildState::Running);
    let children = second.children().unwrap();
    assert_eq!(children.len(), 2);
    assert!(
        children
            .iter()
            .any(|c| c.pid == sleeping && c.tag == "sleeper" && c.state == ChildState::Running)
    );
    second.forget(dying).unwrap();
    assert!(matches!(second.state(dying), Err(SpawnError::NoSuchChild(_))));
    second.forget(sleeping).unwrap();
    second.signal(sleeping, libc::SIGTERM).unwrap();
    let ended = second.wait(sleeping, SOON).unwrap();
    assert!(
        matches!(
            ended,
            ChildState::Ended {
                status: ExitStatus::Signal(libc::SIGTERM),
                ..
            }
        ),
        "{ended:?}"
    );
    // Signalling what has ended harms nobody, even when the system has given its id to another.
    second.signal(sleeping, libc::SIGKILL).unwrap();
    assert!(
        second.signal(1, libc::SIGKILL).is_err(),
        "not a child of the keeper"
    );

    let mut text = String::new();
    let mut file = File::from(second.get_fd("fuse").unwrap().expect("it was put there"));
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "held");
    second.remove_fd("fuse").unwrap();
    assert!(second.get_fd("fuse").unwrap().is_none());
}

#[test]
fn a_keeper_that_was_killed_is_replaced_by_one_that_keeps_the_same() {
    let kept = Kept::new();
    let client = kept.client();
    let parent = kept.dir.path().join("parent");
    let script = format!(
        "echo $PPID >{0}.new; mv {0}.new {0}; exec sleep 1000",
        parent.display()
    );
    let asleep = client.spawn(&shell(&script), vec![]).unwrap();
    let over = client.spawn(&shell("exit 0"), vec![]).unwrap();
    client.wait(over, SOON).unwrap();
    client.forget(over).unwrap();
    let deadline = Instant::now() + SOON;
    while !parent.exists() {
        assert!(Instant::now() < deadline, "the child does not run");
        std::thread::sleep(Duration::from_millis(1));
    }
    let keeper: i32 = std::fs::read_to_string(&parent).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(keeper),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    client.wait_until_lost().unwrap();
    client.replace(&kept.program()).unwrap();
    let pids: Vec<u32> = client.children().unwrap().iter().map(|child| child.pid).collect();
    assert_eq!(pids, [asleep]);
    // What it has already it goes on to have.
    client.adopt(asleep, "again", Path::new("")).unwrap();
    assert_eq!(client.state(asleep).unwrap(), ChildState::Running);
    client.signal(asleep, libc::SIGKILL).unwrap();
    assert!(matches!(
        client.wait(asleep, SOON).unwrap(),
        ChildState::Ended { .. }
    ));
}

#[test]
fn a_keeper_that_still_listens_while_it_dies_is_not_taken_for_another() {
    let kept = Kept::new();
    let dying = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    bind(dying.as_raw_fd(), &UnixAddr::new(&kept.socket()).unwrap()).unwrap();
    listen(&dying, Backlog::new(16).unwrap()).unwrap();
    let end = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(dying);
    });
    let client = kept.client();
    end.join().unwrap();
    assert_eq!(client.children().unwrap(), []);
}

#[test]
fn a_process_gets_what_was_asked_for_and_nothing_else() {
    let kept = Kept::new();
    let keeper = kept.client();
    let log = kept.dir.path().join("child.log");
    let mut sent = tempfile::tempfile().unwrap();
    sent.write_all(b"through a descriptor\n").unwrap();
    sent.seek(SeekFrom::Start(0)).unwrap();
    let script = "cat <&5; echo $A; pwd; ulimit -n; ulimit -c; cat /proc/self/oom_score_adj; \
        grep -E 'NoNewPrivs|^Uid|^Groups' /proc/self/status | tr -s '\\t ' ' '; ls /proc/self/fd | wc -l";
    let request = SpawnRequest {
        env: vec![
            ("A".into(), "environment".into()),
            ("PATH".into(), "/bin:/usr/bin".into()),
        ],
        user: Some(martlet_vm::process::User {
            uid: 200_001,
            gid: 200_002,
            groups: vec![200_003],
        }),
        limits: martlet_vm::process::Limits {
            open_files: Some(99),
            core_bytes: Some(0),
            ..Default::default()
        },
        cwd: Some("/tmp".into()),
        log: Some(log.clone()),
        oom_score_adj: Some(321),
        fd_numbers: vec![5],
        ..shell(script)
    };
    let pid = keeper.spawn(&request, vec![sent.into()]).unwrap();
    keeper.wait(pid, SOON).unwrap();
    let said = std::fs::read_to_string(log).unwrap();
    // Its descriptors: 0, 1, 2, 5, and the one that lists them.
    let expected = "through a descriptor\nenvironment\n/tmp\n99\n0\n321\n\
        Uid: 200001 200001 200001 200001\nGroups: 200003 \nNoNewPrivs: 1\n5\n";
    assert_eq!(said, expected);
}

#[test]
fn bad_requests_are_refused_and_the_keeper_goes_on() {
    let kept = Kept::new();
    let keeper = kept.client();
    let refused = |request: &SpawnRequest| keeper.spawn(request, vec![]).unwrap_err();
    let missing = SpawnRequest {
        argv: vec!["/nonexistent".into()],
        ..SpawnRequest::default()
    };
    assert!(matches!(refused(&missing), SpawnError::Refused { .. }));
    assert!(matches!(
        refused(&SpawnRequest::default()),
        SpawnError::BadRequest { .. }
    ));
    let relative = SpawnRequest {
        argv: vec!["sh".into()],
        ..SpawnRequest::default()
    };
    assert!(matches!(refused(&relative), SpawnError::BadRequest { .. }));
    let without_fd = SpawnRequest {
        fd_numbers: vec![5],
        ..shell("true")
    };
    assert!(matches!(refused(&without_fd), SpawnError::BadRequest { .. }));
    let huge = SpawnRequest {
        argv: vec!["/bin/true".into(), "x".repeat(1 << 20)],
        ..SpawnRequest::default()
    };
    assert!(matches!(refused(&huge), SpawnError::BadRequest { .. }));
    assert!(
        martlet_vm::keeper::run(&kept.socket()).is_err(),
        "a second keeper in the first one's place"
    );
    assert_eq!(keeper.children().unwrap(), []);
}

#[test]
fn it_ends_when_nobody_could_want_it_any_more() {
    let kept = Kept::new();
    let keeper = kept.client();
    let script = "echo $PPID > keeper.pid; exec sleep 1000";
    let request = SpawnRequest {
        cwd: Some(kept.dir.path().into()),
        ..shell(script)
    };
    let pid = keeper.spawn(&request, vec![]).unwrap();
    let deadline = Instant::now() + SOON;
    let keeper_pid = loop {
        let text = std::fs::read_to_string(kept.dir.path().join("keeper.pid")).unwrap_or_default();
        if let Ok(pid) = text.trim().parse::<u32>() {
            break pid;
        }
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    };
    std::fs::remove_file(kept.socket()).unwrap();
    keeper.signal(pid, libc::SIGKILL).unwrap();
    keeper.wait(pid, SOON).unwrap();
    assert!(
        Path::new(&format!("/proc/{keeper_pid}")).exists(),
        "it has a client still"
    );
    drop(keeper);
    while Path::new(&format!("/proc/{keeper_pid}")).exists() {
        assert!(Instant::now() < deadline + SOON, "the keeper stays for nothing");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the keeper is asked, and what is not that: bytes changed, cut off, or never such a thing.
fn packets() -> impl Strategy<Value = Vec<u8>> {
    const REQUESTS: [&str; 7] = [
        r#"{"state":{"pid":4000000}}"#,
        r#"{"signal":{"pid":4000000,"signal":0}}"#,
        r#"{"forget":{"pid":4000000}}"#,
        r#""children""#,
        r#"{"put_fd":{"name":"nothing"}}"#,
        r#"{"get_fd":{"name":"nothing"}}"#,
        r#"{"adopt":{"pid":4000000,"tag":"t","log":"/nowhere/log"}}"#,
    ];
    let request = prop::sample::select(&REQUESTS[..]).prop_map(|text| text.as_bytes().to_vec());
    let changed = (
        request,
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        any::<bool>(),
    );
    let changed = changed.prop_map(|(mut bytes, changes, is_cut)| {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if is_cut && at > 0 {
                bytes.truncate(at);
            }
        }
        bytes
    });
    prop_oneof![changed, prop::collection::vec(any::<u8>(), 1..2000)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn packets_of_any_bytes_are_answered_and_harm_no_child(packets in prop::collection::vec(packets(), 1..20)) {
        let kept = Kept::new();
        let client = kept.client();
        let child = client.spawn(&shell("exec sleep 1000"), vec![]).unwrap();
        let stranger = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(stranger.as_raw_fd(), &UnixAddr::new(&kept.socket()).unwrap()).unwrap();
        for packet in &packets {
            send(stranger.as_raw_fd(), packet, MsgFlags::empty()).unwrap();
            let mut answer = vec![0; 64 << 10];
            let length = recv(stranger.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
            prop_assert!(length > 0, "the keeper hung up");
        }
        prop_assert_eq!(client.state(child).unwrap(), ChildState::Running);
    }
}
