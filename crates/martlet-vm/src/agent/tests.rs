//! The client against guests that do not mean well.

use super::*;
use martlet_agent_api::frame::{FLAG_STDERR, Frame, Kind, MAX_PAYLOAD_BYTES};
use martlet_agent_api::{Decoder, Finished, Reply, to_payload};
use std::io::{Read, Write};

const TIMEOUT: Duration = Duration::from_secs(10);
const EPOCH: u64 = 0x5eed;

/// The guest's end of a channel.
struct Guest {
    socket: UnixStream,
    decoder: Decoder,
}

impl Guest {
    fn receive(&mut self) -> Option<Frame> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame() {
                return Some(frame);
            }
            match self.socket.read(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.decoder.push(&buffer[..count]),
            }
        }
    }

    fn send(&mut self, kind: Kind, flags: u8, stream: u32, payload: &[u8]) {
        let frame = Frame {
            kind,
            flags,
            stream,
            epoch: EPOCH,
            payload: payload.to_vec(),
        };
        let _ = self.socket.write_all(&frame.to_bytes()); // the host may have hung up: that is what is tested
    }

    fn reply(&mut self, stream: u32, reply: &Reply) {
        self.send(Kind::Reply, 0, stream, &to_payload(reply));
    }
}

/// A client, and a guest that does `script` with every frame it gets.
fn against(mut script: impl FnMut(&mut Guest, Frame) + Send + 'static) -> AgentClient {
    let (host, socket) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let mut guest = Guest {
            socket,
            decoder: Decoder::new(),
        };
        while let Some(frame) = guest.receive() {
            script(&mut guest, frame);
        }
    });
    AgentClient::over(host, EPOCH).unwrap()
}

fn exec(client: &AgentClient) -> Result<ExecOutcome, AgentError> {
    client.exec_wait(
        Command {
            argv: vec!["x".into()],
            ..Command::default()
        },
        &[],
        1000,
        TIMEOUT,
    )
}

/// A guest that opens every stream and then does `script` on it.
fn opens(mut script: impl FnMut(&mut Guest, u32) + Send + 'static) -> AgentClient {
    against(move |guest, frame| {
        if frame.kind == Kind::Request {
            guest.reply(frame.stream, &Ok(Response::Started));
            script(guest, frame.stream);
        }
    })
}

#[test]
fn a_silent_guest_times_out() {
    let client = against(|_, _| ());
    let short = Duration::from_millis(80);
    assert!(matches!(client.ping(short), Err(AgentError::Timeout { .. })));
    assert!(matches!(
        client.hello(Start::Same, short),
        Err(AgentError::Timeout { .. })
    ));
}

#[test]
fn a_guest_that_reads_nothing_yet_may_still_be_booting() {
    let (host, socket) = UnixStream::pair().unwrap();
    let client = AgentClient::over(host, EPOCH).unwrap();
    let greeted = client.hello(Start::Same, Duration::from_secs(2));
    assert!(
        matches!(greeted, Err(AgentError::Timeout { what: "the greeting" })),
        "greetings that nobody reads fill the socket: {greeted:?}"
    );
    let mut guest = Guest {
        socket,
        decoder: Decoder::new(),
    };
    assert_eq!(
        guest.receive().unwrap().kind,
        Kind::Hello,
        "the first of them waits for it"
    );
}

#[test]
fn an_agent_that_was_started_again_is_greeted_again() {
    // It knows no epoch, and answers nothing, until it is greeted.
    let (mut knows, mut began) = (true, false);
    let client = against(move |guest, frame| match frame.kind {
        Kind::Hello => {
            let reply = HelloReply {
                protocol: PROTOCOL,
                agent_version: "9".into(),
                features: vec![],
                held: false,
                boot_id: String::new(),
                new_epoch: !knows,
            };
            knows = true;
            guest.send(Kind::HelloReply, 0, 0, &to_payload(&reply));
        }
        Kind::Request if !began => {
            began = true;
            knows = false; // dies once the first command runs
            guest.reply(frame.stream, &Ok(Response::Started));
        }
        Kind::Request if knows => guest.reply(frame.stream, &Ok(Response::Done)),
        _ => {}
    });
    let spec = ExecSpec {
        command: Command::default(),
        tty: None,
        stdin: false,
    };
    let command = client.exec(spec).unwrap();
    assert!(client.ping(Duration::from_millis(80)).is_err());
    client.ping(TIMEOUT).unwrap();
    assert!(
        matches!(command.output.next(TIMEOUT), Err(AgentError::Disconnected)),
        "a command of the agent that died is told to be lost"
    );
}

#[test]
fn a_guest_that_goes_away_is_disconnected() {
    let client = opens(|guest, _| guest.socket.shutdown(std::net::Shutdown::Both).unwrap());
    assert!(matches!(exec(&client), Err(AgentError::Disconnected)));
    assert!(matches!(client.ping(TIMEOUT), Err(AgentError::Disconnected)));
}

#[test]
fn hello_is_repeated_past_a_half_read_frame() {
    // The guest swallows the first words, as if they belonged to a frame of its former life.
    let mut deaf = 1;
    let client = against(move |guest, frame| {
        if deaf > 0 {
            deaf -= 1;
            return;
        }
        assert_eq!(frame.kind, Kind::Hello);
        let reply = HelloReply {
            protocol: PROTOCOL,
            agent_version: "9".into(),
            features: vec![],
            held: true,
            boot_id: String::new(),
            new_epoch: true,
        };
        guest.send(Kind::HelloReply, 0, 0, &to_payload(&reply));
    });
    assert!(client.hello(Start::Clone, TIMEOUT).unwrap().held);
}

#[test]
fn an_agent_of_another_age_is_refused() {
    let client = against(|guest, _| {
        guest.send(
            Kind::HelloReply,
            0,
            0,
            br#"{"protocol":0,"agent_version":"77.0","held":false}"#,
        );
    });
    let error = client.hello(Start::Same, TIMEOUT).unwrap_err();
    assert!(error.to_string().contains("77.0") && !error.is_retryable());
}

#[test]
fn whoever_overdraws_a_window_is_cut_off() {
    let client = opens(|guest, stream| {
        for _ in 0..6 {
            guest.send(Kind::Data, FLAG_STDERR, stream, &[0; MAX_PAYLOAD_BYTES]);
        }
    });
    let exec = client.exec(ExecSpec::default()).unwrap();
    let error = loop {
        // Not reading: taking output would give credit back.
        std::thread::yield_now();
        match client.ping(Duration::from_millis(50)) {
            Ok(()) | Err(AgentError::Timeout { .. }) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AgentError::Protocol { .. }), "{error}");
    drop(exec);
}

#[test]
fn nonsense_ends_the_connection_and_not_the_host() {
    let nonsense: [fn(&mut Guest, u32); 8] = [
        |guest, stream| guest.send(Kind::Finished, 0, stream, b"{\"exited\":"),
        |guest, stream| guest.send(Kind::Credit, 0, stream, &1u32.to_le_bytes()),
        |guest, stream| guest.send(Kind::Credit, 0, stream, b"12345"),
        |guest, stream| guest.send(Kind::Reply, 0, stream, &[b'['; 60_000]),
        |guest, _| guest.send(Kind::HelloReply, 0, 0, b"{}"),
        |guest, _| guest.send(Kind::Request, 0, 1, b"{\"request\":\"ping\"}"),
        |guest, stream| {
            guest.send(Kind::Finished, 0, stream, &to_payload(&Finished::Exited(0)));
            guest.send(Kind::Data, 0, stream, b"after the end");
            // Ended above, unless the host was faster than its guest.
            guest.send(Kind::Credit, 0, stream + 1, b"");
            guest.send(Kind::Hello, 0, 0, b"");
        },
        |guest, _| {
            let mut damaged = Frame {
                kind: Kind::Data,
                flags: 0,
                stream: 1,
                epoch: EPOCH,
                payload: vec![1; 50],
            }
            .to_bytes();
            damaged[40] ^= 1;
            let _ = guest.socket.write_all(&damaged.repeat(1000));
        },
    ];
    for (number, script) in nonsense.into_iter().enumerate() {
        let client = opens(script);
        let _ = exec(&client); // may end well before the nonsense is read
        let error = loop {
            match client.ping(Duration::from_millis(20)) {
                Err(AgentError::Timeout { .. }) => {}
                Err(error) => break error,
                Ok(()) => panic!("this guest answers no ping"),
            }
        };
        assert!(matches!(error, AgentError::Protocol { .. }), "{number}: {error}");
    }
}

#[test]
fn wrong_answers_are_errors() {
    let client = against(|guest, frame| {
        guest.reply(frame.stream, &Ok(Response::Trimmed { bytes: 1 }));
    });
    assert!(matches!(client.metrics(), Err(AgentError::Protocol { .. })));
    assert!(matches!(
        client.prepare(TIMEOUT),
        Err(AgentError::Protocol { .. })
    ));
    assert!(matches!(exec(&client), Err(AgentError::Protocol { .. })));
    assert_eq!(client.fstrim(TIMEOUT).unwrap(), 1, "and the connection goes on");
}

#[test]
fn words_for_another_epoch_or_nobody_are_ignored() {
    let client = against(|guest, frame| {
        let late = Frame {
            kind: Kind::Reply,
            flags: 0,
            stream: frame.stream,
            epoch: 1,
            payload: b"nonsense".to_vec(),
        };
        let _ = guest.socket.write_all(&late.to_bytes());
        let _ = guest.socket.write_all(b"junk \xf7MLT junk");
        guest.send(Kind::Data, 0, 4_000_000, b"for nobody");
        guest.reply(frame.stream, &Ok(Response::Done));
    });
    client.ping(TIMEOUT).unwrap();
}
