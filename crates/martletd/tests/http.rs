//! The server as any HTTP client meets it, over a real socket, in front of an engine in memory.

mod fake;

use fake::{Fake, GATED, Served, TROUBLES};
use martlet_api::{MachineState, Problem, ProblemCode};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;

struct Answer {
    status: u16,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
    fn problem(&self) -> Problem {
        serde_json::from_value(self.json()).unwrap()
    }
}

/// Sends a request and reads the answer to the end of the connection.
fn ask(served: &Served, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let mut stream = UnixStream::connect(served.socket()).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A server that refuses a long body may close before it has read it all.
    let _ = stream.write_all(body.as_bytes());
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer to {path}: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Answer {
        status,
        body: if chunked { unchunked(body) } else { body.into() },
    }
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        whole += &rest[..length];
        body = &rest[length + 2..];
    }
    whole
}

fn get(served: &Served, path: &str) -> Answer {
    ask(served, "GET", path, "", "")
}

fn post(served: &Served, path: &str, body: &Value) -> Answer {
    ask(served, "POST", path, "", &body.to_string())
}

#[test]
fn the_document_is_the_one_that_is_checked_in() {
    let served = Served::new(Fake::with(&[]));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let written: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let answered = get(&served, "/v1/openapi.json").json();
    assert!(
        written == answered,
        "docs/openapi.json is out of date: martletd openapi > docs/openapi.json"
    );
    // Every reference leads somewhere.
    let text = answered.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(
            answered["components"]["schemas"].get(name).is_some(),
            "no schema {name}"
        );
    }
}

#[test]
fn the_daemon_tells_of_itself() {
    let served = Served::new(Fake::with(&["web"]));
    assert_eq!(get(&served, "/healthz").body, "ok\n");
    assert_eq!(get(&served, "/version").json()["api"], "v1");
    get(&served, "/v1/machines/none");
    let metrics = get(&served, "/metrics").body;
    assert!(metrics.contains("\nmartlet_machines 1\n"), "{metrics}");
    let counted = r#"martlet_http_requests_total{method="GET",route="/v1/machines/{name}",status="404"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
}

#[test]
fn problems_have_their_status() {
    let names: Vec<_> = TROUBLES.iter().map(|(name, _)| *name).collect();
    let served = Served::new(Fake::with(&names));
    for ((name, code), status) in TROUBLES.iter().zip([409, 422, 422, 507, 504, 500]) {
        let answer = post(&served, &format!("/v1/machines/{name}/checkpoint"), &json!({}));
        assert_eq!((answer.status, answer.problem().code), (status, *code), "{name}");
    }
    assert!(
        post(&served, "/v1/machines/busy/checkpoint", &json!({}))
            .problem()
            .retry
    );
    assert_eq!(
        get(&served, "/v1/machines/none").problem().code,
        ProblemCode::NotFound
    );
    assert_eq!(get(&served, "/nothing").status, 404);
    assert_eq!(get(&served, "/nothing").problem().code, ProblemCode::NotFound);
    assert_eq!(
        ask(&served, "PUT", "/v1/machines", "", "").problem().code,
        ProblemCode::InvalidArgument
    );
    // The bug has not hurt the server.
    assert_eq!(get(&served, "/v1/machines/mute").status, 200);
}

#[test]
fn bad_input_is_refused_with_words() {
    let served = Served::new(Fake::with(&["web"]));
    let long = "a".repeat(300);
    for name in ["A", "a%2Fb", "a%20b", "n%C3%A4", "..%2Fx", "%FF", &long] {
        let answer = get(&served, &format!("/v1/machines/{name}"));
        assert_eq!(answer.status, 400, "{name}");
        assert_eq!(answer.problem().code, ProblemCode::InvalidArgument, "{name}");
    }
    let requests = [
        json!({}),
        json!({ "from": "debian", "memory_bytes": -1 }),
        json!({ "from": "debian", "memory_bytes": 0 }),
        json!({ "from": "debian", "memory_bytes": u64::MAX }),
        json!({ "from": "debian", "disk_bytes": 1e30 }),
        json!({ "from": "debian", "cpus": 0 }),
        json!({ "from": "debian", "name": "a/b" }),
        json!({ "from": "debian", "name": long }),
        json!({ "from": "debian", "ports": [{ "host_port": 99999, "guest_port": 1 }] }),
        json!([1]),
    ];
    for request in requests {
        let answer = post(&served, "/v1/machines", &request);
        assert_eq!(
            (answer.status, answer.problem().code),
            (400, ProblemCode::InvalidArgument),
            "{request}"
        );
    }
    for count in [
        json!(0),
        json!(-1),
        json!(4_000_000_000_u64),
        json!("many"),
        json!(1.5),
    ] {
        assert_eq!(
            post(&served, "/v1/machines/web/fork", &json!({ "count": count })).status,
            400,
            "{count}"
        );
    }
    assert_eq!(ask(&served, "POST", "/v1/machines", "", "{ half").status, 400);
    assert_eq!(
        ask(&served, "POST", "/v1/machines", "", &" ".repeat(2 << 20)).status,
        400
    );
    assert_eq!(get(&served, "/v1/machines/web/files?path=relative").status, 400);
    assert_eq!(get(&served, "/v1/machines/web/files").status, 400);
    assert_eq!(
        post(&served, "/v1/machines/web/exec", &json!({ "argv": ["true"] })).status,
        400,
        "no upgrade"
    );
    assert_eq!(served.fake.machines.lock().unwrap().len(), 1, "nothing was made");
}

#[test]
fn long_operations_tell_of_progress_when_asked_to() {
    let served = Served::new(Fake::with(&["web"]));
    let events = |path: &str| ask(&served, "POST", path, "Accept: text/event-stream\r\n", "{}").body;
    let told = events("/v1/machines/web/checkpoint");
    let kinds: Vec<_> = told
        .lines()
        .filter_map(|line| line.strip_prefix("event: "))
        .collect();
    assert_eq!(kinds, ["progress", "progress", "result"], "{told}");
    let result = told.lines().last_with("data: ");
    assert_eq!(result["reference"], "web:1");
    let told = events("/v1/machines/none/checkpoint");
    assert!(
        told.starts_with("event: error\ndata: {\"code\":\"not_found\""),
        "{told}"
    );
    let plain = post(&served, "/v1/machines/web/checkpoint", &json!({ "tag": "x" }));
    assert_eq!(plain.json()["reference"], "web:x");
}

trait LastWith {
    fn last_with(self, prefix: &str) -> Value;
}

impl<'a, I: Iterator<Item = &'a str>> LastWith for I {
    fn last_with(self, prefix: &str) -> Value {
        serde_json::from_str(self.filter_map(|line| line.strip_prefix(prefix)).last().unwrap()).unwrap()
    }
}

#[test]
fn a_client_that_goes_away_does_not_cut_a_checkpoint_short() {
    for accept in ["", "Accept: text/event-stream\r\n"] {
        let served = Served::new(Fake::with(&[GATED]));
        let ((open, gate), (begun, begins)) = (channel(), channel());
        *served.fake.gate.lock().unwrap() = Some(gate);
        *served.fake.begun.lock().unwrap() = Some(begun);
        let mut stream = UnixStream::connect(served.socket()).unwrap();
        let path = format!("/v1/machines/{GATED}/checkpoint");
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: x\r\n{accept}Content-Length: 2\r\n\r\n{{}}"
        )
        .unwrap();
        begins.recv().unwrap();
        drop(stream);
        // The server has noticed by the time it has answered somebody else.
        assert_eq!(get(&served, "/healthz").status, 200);
        open.send(()).unwrap();
        while served.fake.checkpoints.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_followed_log_ends_with_its_machine_and_has_its_last_words() {
    let served = Served::new(Fake::with(&["web"]));
    let path = served.dir.path().join("console.log");
    std::fs::write(&path, "booting\n").unwrap();
    *served.fake.log.lock().unwrap() = path.clone();
    let mut stream = UnixStream::connect(served.socket()).unwrap();
    write!(stream, "GET /v1/machines/web/logs?follow=true HTTP/1.0\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "booting"));
    std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(b"last words\n")
        .unwrap();
    served.fake.machines.lock().unwrap().get_mut("web").unwrap().state = MachineState::Stopped;
    assert_eq!(lines.next().as_deref(), Some("last words"));
    assert_eq!(lines.next(), None);
}

#[test]
fn requests_of_any_bytes_leave_the_server_as_it_was() {
    let served = Served::new(Fake::with(&["web"]));
    let whole = [
        "GET /v1/machines/web HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /v1/machines HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n\r\n{\"from\":\"debian\"}",
        "POST /v1/machines/web/exec HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n0\r\n\r\n",
    ];
    let mut random = 1u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize % below
    };
    for round in 0..400 {
        let mut bytes = whole[round % whole.len()].as_bytes().to_vec();
        for _ in 0..1 + next(4) {
            let at = next(bytes.len());
            match next(4) {
                0 => bytes[at] = next(256) as u8,
                1 => bytes.truncate(at.max(1)),
                2 => bytes.insert(at, next(256) as u8),
                _ => bytes.extend_from_within(at..),
            }
        }
        let mut stream = UnixStream::connect(served.socket()).unwrap();
        let _ = stream.write_all(&bytes); // it may have had enough
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(get(&served, "/v1/machines/web").status, 200);
}
