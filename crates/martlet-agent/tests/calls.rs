//! Calls of programs, by a real agent and the host's real end of its channel, over a socket pair.

use martlet_agent::identity::Places;
use martlet_agent::serve::{Agent, AgentOptions, Init};
use martlet_agent_api::guest::{
    Ask, GuestAnswer, GuestCall, GuestError, GuestErrorKind, GuestReply, LINE_BYTES,
};
use martlet_agent_api::{AskedFor, Identity, IdentityPolicy, Start};
use martlet_vm::agent::AgentClient;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A guest: its agent, and the socket for its programs.
struct Guest {
    agent: Arc<Agent>,
    dir: tempfile::TempDir,
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent::new(AgentOptions {
            cgroups: None,
            own_processes: Vec::new(),
            held: false,
            init: Init::Image,
            places: Places {
                etc: dir.path().join("etc"),
                run: dir.path().join("run"),
                var_lib: dir.path().join("lib"),
            },
        });
        let listener = UnixListener::bind(dir.path().join("calls")).unwrap();
        let calls = Arc::clone(agent.calls());
        std::thread::spawn(move || calls.serve(&listener));
        Self { agent, dir }
    }

    /// A host that has greeted, and what it is asked.
    fn host(&self, epoch: u64, start: Start) -> (AgentClient, Receiver<(u32, Ask)>) {
        let (host, guest) = UnixStream::pair().unwrap();
        let (agent, writer) = (Arc::clone(&self.agent), guest.try_clone().unwrap());
        std::thread::spawn(move || agent.serve(guest, Box::new(writer)));
        let client = AgentClient::over(host, epoch).unwrap();
        client.hello(start, TIMEOUT).unwrap();
        let (sender, receiver) = channel();
        client.take_calls(Box::new(move |_, number, ask| drop(sender.send((number, ask)))));
        (client, receiver)
    }

    fn program(&self) -> Program {
        let stream = UnixStream::connect(self.dir.path().join("calls")).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Program(BufReader::new(stream))
    }
}

struct Program(BufReader<UnixStream>);

impl Program {
    fn say(&mut self, line: &[u8]) {
        self.0.get_mut().write_all(line).unwrap();
    }

    fn call(&mut self, call: &GuestCall) {
        self.say(format!("{}\n", serde_json::to_string(call).unwrap()).as_bytes());
    }

    fn hear(&mut self) -> GuestReply {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("heard {line:?}"))
    }

    fn hear_error(&mut self) -> GuestErrorKind {
        match self.hear() {
            GuestReply::Error(GuestError { kind, .. }) => kind,
            GuestReply::Ok(answer) => panic!("{answer:?}"),
        }
    }
}

fn clone_of(ticket: &str) -> GuestCall {
    GuestCall::Clone {
        ticket: ticket.into(),
        wait: true,
    }
}

fn cloned(id: u32) -> GuestReply {
    GuestReply::Ok(GuestAnswer::Cloned {
        id,
        processes: 1,
        failed: Vec::new(),
    })
}

fn identity(asked: Option<AskedFor>) -> Identity {
    Identity {
        asked,
        family: None,
        clone_id: "c".into(),
        generation: 1,
        parent_id: Some("p".into()),
        index: 3,
        name: "n".into(),
        realtime_unix_ns: 0,
        entropy: vec![0; 64],
        hostname: None,
        machine_id: None,
        network: None,
        policy: IdentityPolicy {
            clock: false,
            entropy: false,
            hostname: false,
            machine_id: false,
            boot_id: false,
            network: false,
            random_seed: false,
            hooks: false,
            ..IdentityPolicy::default()
        },
    }
}

#[test]
fn a_call_goes_to_the_host_and_its_answer_to_who_called() {
    let guest = Guest::new();
    let (host, asked) = guest.host(7, Start::Same);
    let (mut one, mut other) = (guest.program(), guest.program());
    one.call(&clone_of("a"));
    let (first, ask) = asked.recv_timeout(TIMEOUT).unwrap();
    let own = std::os::unix::fs::MetadataExt::uid(&guest.dir.path().metadata().unwrap());
    assert_eq!((ask.uid, ask.call), (own, clone_of("a")));
    other.call(&GuestCall::Me);
    let (second, _) = asked.recv_timeout(TIMEOUT).unwrap();
    let denied = GuestReply::Error(GuestError::new(GuestErrorKind::Denied, "no"));
    host.answer(second, denied.clone()).unwrap();
    assert_eq!(other.hear(), denied);
    host.answer(second, cloned(9)).unwrap(); // nobody waits for it any more
    host.answer(first, cloned(0)).unwrap();
    assert_eq!(one.hear(), cloned(0));
}

#[test]
fn in_a_clone_the_call_that_it_was_made_for_returns_and_all_others_fail() {
    let guest = Guest::new();
    let (_parent, asked) = guest.host(7, Start::Same);
    let (mut caller, mut other) = (guest.program(), guest.program());
    caller.call(&clone_of("a"));
    let (call, _) = asked.recv_timeout(TIMEOUT).unwrap();
    other.call(&clone_of("b"));
    asked.recv_timeout(TIMEOUT).unwrap();
    // The same memory under another host: that is what a clone is.
    let (clone, asked) = guest.host(8, Start::Clone);
    let reply = cloned(3);
    clone
        .identify(&identity(Some(AskedFor { ask: call, reply })), TIMEOUT)
        .unwrap();
    assert_eq!(caller.hear(), cloned(3));
    assert_eq!(other.hear_error(), GuestErrorKind::State);
    // Later calls go to the clone's own host.
    caller.call(&GuestCall::Me);
    asked.recv_timeout(TIMEOUT).unwrap();
}

#[test]
fn calls_of_a_machine_that_was_resumed_are_interrupted() {
    let guest = Guest::new();
    let (_before, asked) = guest.host(7, Start::Same);
    let mut caller = guest.program();
    caller.call(&clone_of("a"));
    asked.recv_timeout(TIMEOUT).unwrap();
    let (_after, _asked) = guest.host(8, Start::Same);
    assert_eq!(caller.hear_error(), GuestErrorKind::Interrupted);
}

#[test]
fn what_is_no_call_is_refused_and_harms_nobody() {
    let guest = Guest::new();
    let mut early = guest.program();
    early.call(&GuestCall::Me);
    assert_eq!(early.hear_error(), GuestErrorKind::Failed, "no host answers yet");
    let (host, asked) = guest.host(7, Start::Same);
    let mut program = guest.program();
    for line in [
        &b"\n"[..],
        b"no json\n",
        b"{\"call\":\"clone\"}\n",
        b"{\"call\":\"ticket\",\"count\":-1}\n",
        b"\xff\xfe\n",
    ] {
        program.say(line);
        assert_eq!(program.hear_error(), GuestErrorKind::Invalid);
    }
    program.call(&GuestCall::Exit {
        id: 1,
        status: 0,
        data: "A".repeat(44_000),
    });
    assert_eq!(program.hear_error(), GuestErrorKind::Invalid, "too much data");
    program.say(&vec![b'a'; LINE_BYTES]);
    assert_eq!(program.hear_error(), GuestErrorKind::Invalid, "too long a line");
    // One that newer programs know is the host's to refuse.
    let mut newer = guest.program();
    newer.say(b"{\"call\":\"dance\"}\n");
    let (number, ask) = asked.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(ask.call, GuestCall::Unknown);
    host.answer(number, cloned(0)).unwrap();
    assert_eq!(newer.hear(), cloned(0));
}

#[test]
fn more_calls_than_the_host_bears_are_refused() {
    let guest = Guest::new();
    let (_host, asked) = guest.host(7, Start::Same);
    let programs: Vec<_> = (0..32)
        .map(|_| {
            let mut program = guest.program();
            program.call(&GuestCall::Me);
            asked.recv_timeout(TIMEOUT).unwrap();
            program
        })
        .collect();
    let mut one_more = guest.program();
    one_more.call(&GuestCall::Me);
    assert_eq!(one_more.hear_error(), GuestErrorKind::Busy);
    drop(programs);
}
