use super::*;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

const SOON: Duration = Duration::from_secs(5);
const GREETING: &str = r#"{"QMP":{"version":{"qemu":{"major":7}},"capabilities":["oob"]}}"#;

/// A QEMU that follows a script, at the other end of a socket pair.
struct Fake {
    stream: UnixStream,
    lines: Lines,
}

impl Fake {
    fn say(&mut self, line: &str) {
        self.stream.write_all(line.as_bytes()).unwrap();
        self.stream.write_all(b"\r\n").unwrap();
    }

    /// Reads a command; its id.
    fn hear(&mut self, command: &str) -> u64 {
        let value = self.lines.next().unwrap();
        assert_eq!(value["execute"], command);
        value["id"].as_u64().unwrap()
    }

    fn greet(&mut self) {
        self.say(GREETING);
        let id = self.hear("qmp_capabilities");
        self.say(r#"{"event":"EARLY"}"#);
        self.say(&format!(r#"{{"return":{{}},"id":{id}}}"#));
    }
}

fn scripted(script: impl FnOnce(Fake) + Send + 'static) -> (UnixStream, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let fake = Fake {
        lines: Lines::new(theirs.try_clone().unwrap()),
        stream: theirs,
    };
    (ours, std::thread::spawn(move || script(fake)))
}

fn client(script: impl FnOnce(Fake) + Send + 'static) -> (QmpClient, Receiver<Message>, JoinHandle<()>) {
    let (stream, fake) = scripted(script);
    let (sender, messages) = channel();
    let client = QmpClient::start(stream, SOON, move |m| sender.send(m).unwrap_or_default()).unwrap();
    (client, messages, fake)
}

fn event(name: &str) -> Message {
    Message::Event {
        name: name.into(),
        data: Value::Null,
    }
}

#[test]
fn only_what_is_offered_is_enabled() {
    for (offered, enabled) in [
        (r#"["oob"]"#, json!(["oob"])),
        (r#"["other"]"#, json!([])),
        ("null", json!([])),
    ] {
        let (stream, fake) = scripted(move |mut fake| {
            fake.say(&format!(
                r#"{{"QMP":{{"version":{{}},"capabilities":{offered}}}}}"#
            ));
            let hello = fake.lines.next().unwrap();
            assert_eq!(hello["arguments"]["enable"], enabled);
            fake.say(&format!(r#"{{"return":{{}},"id":{}}}"#, hello["id"]));
        });
        QmpClient::start(stream, SOON, drop).unwrap();
        fake.join().unwrap();
    }
}

#[test]
fn descriptors_of_one_command_are_taken_before_those_of_another_are_sent() {
    let (client, _messages, fake) = client(|mut fake| {
        fake.greet();
        let ids = ["getfd", "next"].map(|command| fake.hear(command));
        for id in ids {
            fake.say(&format!(r#"{{"return":{{}},"id":{id}}}"#));
        }
        let id = fake.hear("add-fd");
        fake.say(&format!(r#"{{"return":{{}},"id":{id}}}"#));
    });
    let file = std::fs::File::open("/dev/null").unwrap();
    std::thread::scope(|scope| {
        let first = client.ask("getfd", Value::Null, &[file.as_fd()]).unwrap();
        let second = scope.spawn(|| client.execute_with_fds("add-fd", Value::Null, &[file.as_fd()], SOON));
        std::thread::sleep(Duration::from_millis(20));
        let next = client.ask("next", Value::Null, &[]).unwrap();
        first.answer(SOON).unwrap();
        next.answer(SOON).unwrap();
        second.join().unwrap().unwrap();
    });
    fake.join().unwrap();
}

#[test]
fn several_are_asked_before_the_first_answer_and_one_may_be_given_up() {
    let (client, _messages, fake) = client(|mut fake| {
        fake.greet();
        let ids = ["a", "b", "c"].map(|command| fake.hear(command));
        for id in ids {
            fake.say(&format!(r#"{{"return":{id},"id":{id}}}"#));
        }
        fake.hear("quit");
    });
    let [a, b, c] = ["a", "b", "c"].map(|command| client.ask(command, Value::Null, &[]).unwrap());
    drop(b);
    let (a, c) = (a.answer(SOON).unwrap(), c.answer(SOON).unwrap());
    assert_eq!(c.as_u64().unwrap() - a.as_u64().unwrap(), 2);
    assert!(lock(&client.shared).waiting.is_empty());
    client.execute("quit", Value::Null, SOON).unwrap_err();
    fake.join().unwrap();
}

#[test]
fn answers_find_whoever_asked_and_events_come_in_order() {
    let (client, messages, fake) = client(|mut fake| {
        fake.greet();
        let first = fake.hear("query-status");
        fake.say(r#"{"event":"STOP","data":{"a":1}}"#);
        // Answers to nobody: an id never given out, no id at all, an id that is no number.
        fake.say(r#"{"return":{"status":"wrong"},"id":999}"#);
        fake.say(r#"{"return":{"status":"wrong"}}"#);
        fake.say(r#"{"return":{"status":"wrong"},"id":"x"}"#);
        fake.say(r#"{"surprise":1}"#);
        fake.say("");
        fake.say(&format!(r#"{{"return":{{"status":"paused"}},"id":{first}}}"#));
        let second = fake.hear("cont");
        fake.say(&format!(
            r#"{{"error":{{"class":"GenericError","desc":"no"}},"id":{second}}}"#
        ));
        fake.hear("quit");
    });
    assert_eq!(
        client.execute("query-status", Value::Null, SOON).unwrap()["status"],
        "paused"
    );
    let refused = QmpError::Refused {
        command: "cont".into(),
        class: "GenericError".into(),
        description: "no".into(),
    };
    assert_eq!(client.execute("cont", Value::Null, SOON), Err(refused));
    let quit = client
        .execute("quit", json!({ "force": true }), SOON)
        .unwrap_err();
    assert!(quit.is_lost(), "{quit}");
    assert!(client.execute("cont", Value::Null, SOON).unwrap_err().is_lost());
    fake.join().unwrap();
    let stop = Message::Event {
        name: "STOP".into(),
        data: json!({ "a": 1 }),
    };
    assert_eq!(
        messages.iter().collect::<Vec<_>>(),
        [event("EARLY"), stop, Message::Closed]
    );
}

#[test]
fn concurrent_commands_may_be_answered_in_any_order() {
    let (client, _messages, fake) = client(|mut fake| {
        fake.greet();
        let mut asked = Vec::new();
        for _ in 0..8 {
            let value = fake.lines.next().unwrap();
            asked.push((value["id"].clone(), value["arguments"]["n"].clone()));
        }
        for (id, n) in asked.iter().rev() {
            fake.say(&json!({ "return": n, "id": id }).to_string());
        }
    });
    std::thread::scope(|scope| {
        for n in 0..8 {
            let client = &client;
            scope.spawn(move || assert_eq!(client.execute("echo", json!({ "n": n }), SOON), Ok(json!(n))));
        }
    });
    fake.join().unwrap();
}

#[test]
fn garbage_and_endless_lines_end_the_connection() {
    for line in [
        "{\"return\":".to_string(),
        "\u{1}\u{2}".into(),
        "x".repeat(LINE_MAX + 10_000),
    ] {
        let (client, messages, fake) = client(move |mut fake| {
            fake.greet();
            fake.hear("stop");
            fake.stream.write_all(line.as_bytes()).unwrap_or_default();
            fake.stream.write_all(b"\n").unwrap_or_default();
            // Stays, so that it is the garbage and not the end that is noticed.
            fake.lines.next().unwrap_err();
        });
        let error = client.execute("stop", Value::Null, SOON).unwrap_err();
        assert!(matches!(error, QmpError::Protocol(_)), "{error}");
        drop(client);
        fake.join().unwrap();
        assert_eq!(messages.iter().last(), Some(Message::Closed));
    }
}

#[test]
fn silence_is_a_timeout_and_a_late_answer_is_dropped() {
    let (client, _messages, fake) = client(|mut fake| {
        fake.greet();
        let late = fake.hear("slow");
        let next = fake.hear("fast");
        fake.say(&format!(r#"{{"return":"late","id":{late}}}"#));
        fake.say(&format!(r#"{{"return":"fast","id":{next}}}"#));
    });
    let error = client
        .execute("slow", Value::Null, Duration::from_millis(20))
        .unwrap_err();
    assert!(
        error.is_retryable() && matches!(error, QmpError::Timeout { .. }),
        "{error}"
    );
    assert_eq!(client.execute("fast", Value::Null, SOON), Ok(json!("fast")));
    fake.join().unwrap();
}

#[test]
fn whoever_does_not_greet_is_not_qemu() {
    let start = |script: fn(Fake), timeout| {
        let (stream, fake) = scripted(script);
        let result = QmpClient::start(stream, timeout, |_| {}).map(drop);
        fake.join().unwrap();
        result.unwrap_err()
    };
    let silent = start(
        |mut fake| assert!(fake.lines.next().is_err()),
        Duration::from_millis(20),
    );
    assert!(matches!(silent, QmpError::Timeout { .. }), "{silent}");
    let rude = start(|mut fake| fake.say(r#"{"hello":1}"#), SOON);
    assert!(matches!(rude, QmpError::Protocol(_)), "{rude}");
    let refusing = start(
        |mut fake| {
            fake.say(GREETING);
            fake.hear("qmp_capabilities");
            fake.say(r#"{"error":{"class":"X","desc":"busy"}}"#);
        },
        SOON,
    );
    assert!(matches!(refusing, QmpError::Refused { .. }), "{refusing}");
    assert!(start(|_| {}, SOON).is_lost());
}

#[test]
fn descriptors_travel_with_their_command() {
    let (client, _messages, fake) = client(|mut fake| {
        fake.greet();
        let mut buffer = [0; 4096];
        let (size, fds) = fd_passing::receive(fake.stream.as_fd(), &mut buffer).unwrap();
        let command: Value = serde_json::from_slice(&buffer[..size]).unwrap();
        let mut text = String::new();
        std::fs::File::from(fds.into_iter().next().unwrap())
            .read_to_string(&mut text)
            .unwrap();
        fake.say(&json!({ "return": text, "id": command["id"] }).to_string());
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "content").unwrap();
    let file = std::fs::File::open(dir.path().join("f")).unwrap();
    let answer = client.execute_with_fds("getfd", Value::Null, &[file.as_fd()], SOON);
    assert_eq!(answer, Ok(json!("content")));
    fake.join().unwrap();
}
