//! People: whom they believe, and what their connections may cost once they are admitted.

mod support;

use axum::Extension;
use axum::Router;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::{get, post};
use martlet_peer::*;
use std::io::{Read, Write};
use std::time::Instant;
use support::*;

/// Admits whoever says who it is, takes long requests, and ends connections.
fn rooms() -> Router {
    async fn admit(
        Extension(connection): Extension<Connection>,
        headers: HeaderMap,
    ) -> Result<String, Refusal> {
        let who = headers["x-who"].to_str().unwrap();
        connection.admit(who).map(|is_new| is_new.to_string())
    }
    async fn length(body: Bytes) -> String {
        body.len().to_string()
    }
    async fn cut(Extension(connection): Extension<Connection>) {
        assert!(connection.is_open());
        connection.cut();
    }
    Router::new()
        .route("/admit", get(admit))
        .route("/length", post(length))
        .route("/cut", get(cut))
}

/// Asks over a connection that stays open. Status and body; none when it has ended.
fn ask(tls: &mut (impl Read + Write), request: &str, body: &[u8]) -> Option<(u16, String)> {
    let head = format!(
        "{request} HTTP/1.1\r\nhost: x\r\nx-who: ann\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let _ = tls.write_all(head.as_bytes()).and_then(|()| tls.write_all(body));
    let _ = tls.flush();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))?;
            if body.len() >= length.parse().unwrap() {
                let status = head.split(' ').nth(1)?.parse().unwrap();
                return Some((status, body.to_owned()));
            }
        }
        match tls.read(&mut buffer) {
            Ok(count @ 1..) => answer.extend_from_slice(&buffer[..count]),
            _ => return None,
        }
    }
}

#[test]
fn a_person_knows_whom_it_talks_to() {
    let fleet = new_fleet();
    let attic = host(&fleet, "attic");
    let served = Served::new(&attic, who(), Limits::default());
    let (address, port) = served.address.rsplit_once(':').unwrap();
    let access = AccessLine::new(
        "attic",
        address,
        port.parse().unwrap(),
        Secret::random(),
        &fleet.ca_pem,
    )
    .unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let connect = |access: &AccessLine| runtime.block_on(access.connect(ms(5000))).map(drop);
    connect(&access).unwrap();

    let mut other = access.clone();
    other.host = "barn".into();
    let error = connect(&other).unwrap_err();
    assert!(
        matches!(error, PeerError::WrongCertificate { .. }),
        "another host of the fleet: {error}"
    );
    let mut other = access.clone();
    other.ca_fingerprint = AccessLine::new("attic", address, 1, Secret::random(), &new_fleet().ca_pem)
        .unwrap()
        .ca_fingerprint;
    let error = connect(&other).unwrap_err();
    assert!(
        matches!(error, PeerError::WrongCertificate { .. }),
        "another fleet: {error}"
    );
    let old = Served::new(&expired(&fleet, "attic"), who(), Limits::default());
    let mut late = access;
    late.port = old.address.rsplit_once(':').unwrap().1.parse().unwrap();
    let error = connect(&late).unwrap_err();
    assert!(matches!(error, PeerError::Expired { .. }), "{error}");
}

#[test]
fn who_is_admitted_is_no_stranger() {
    let fleet = new_fleet();
    let limits = Limits {
        strangers: 1,
        people: 1,
        stranger_body_bytes: 1000,
        ..Limits::default()
    };
    let served = Served::new(&host(&fleet, "attic"), rooms(), limits);
    let stranger = || raw(&fleet, None, "attic", &served.address);
    let long = [b'x'; 100_000];

    let mut ann = stranger();
    assert_eq!(
        ask(&mut ann, "POST /length", &long[..1000]),
        Some((200, "1000".into()))
    );
    let refused = ask(&mut ann, "POST /length", &long);
    assert!(
        refused.is_none_or(|(status, _)| status == 400),
        "too long for a stranger"
    );
    drop(ann);
    let mut ann = until_there_is_room(stranger);
    assert_eq!(
        ask(&mut ann, "GET /admit", b""),
        Some((200, "false".into())),
        "it is no news"
    );
    assert_eq!(ask(&mut ann, "POST /length", &long), Some((200, "100000".into())));

    // The place of strangers is free again, that of people is not.
    let mut other = stranger();
    let (status, words) = ask(&mut other, "GET /admit", b"").unwrap();
    assert!(status == 503 && words.contains("too many people"), "{words}");

    let begun = Instant::now();
    assert_eq!(ask(&mut ann, "GET /cut", b""), None);
    assert!(begun.elapsed() < ms(4000), "cut off at once");
    drop(other);
    until_there_is_room(stranger);
}

/// A stranger that is admitted: the place of one that has gone is free a moment later.
fn until_there_is_room<T: std::io::Read + std::io::Write>(stranger: impl Fn() -> T) -> T {
    let begun = Instant::now();
    loop {
        let mut one = stranger();
        match ask(&mut one, "GET /admit", b"") {
            Some((200, admitted)) => {
                assert_eq!(admitted, "true");
                return one;
            }
            refused => assert!(begun.elapsed() < ms(20_000), "{refused:?}"),
        }
        std::thread::sleep(ms(20));
    }
}
