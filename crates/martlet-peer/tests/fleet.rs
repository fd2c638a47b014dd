//! Who is let in, who is not, and what each is told.

mod support;

use martlet_peer::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;
use support::*;

fn entry(name: &str) -> HostEntry {
    HostEntry {
        name: name.into(),
        address: "192.0.2.1:7443".into(),
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, PeerError>) -> Code {
    match result.unwrap_err() {
        PeerError::Refused { code, .. } => code,
        other => panic!("{other}"),
    }
}

#[test]
fn a_host_joins_by_a_line_that_is_good_once() {
    let fleet = new_fleet();
    let (attic, book) = (host(&fleet, "attic"), Book::new(&fleet));
    let served = Served::new(&attic, who().merge(join_router(book.clone())), Limits::default());
    let invitation = book.invite(&served.address);
    let line = invitation.to_string();

    // Another fleet's host is not told the token.
    let mut elsewhere = invitation.clone();
    elsewhere.ca_fingerprint[0] ^= 1;
    let error = join(&elsewhere.to_string(), &entry("cellar"), hasty()).unwrap_err();
    assert!(matches!(error, PeerError::WrongCertificate { .. }), "{error}");
    let error = join(&line[1..], &entry("cellar"), hasty()).unwrap_err();
    assert!(matches!(error, PeerError::BadInvitation(_)), "{error}");

    let joined = join(&line, &entry("cellar"), hasty()).unwrap();
    assert_eq!(
        (joined.inviter.name.as_str(), joined.hosts),
        ("attic", vec![entry("cellar")])
    );
    assert_eq!(joined.extra, "martlet-realm:…");
    let calls = client(&joined.identity, "attic", &served.address);
    assert_eq!(calls.get::<String>("/who").unwrap(), "Host(\"cellar\")");
    let renewed = renew(&joined.identity, &calls).unwrap();
    assert_ne!(renewed.cert_pem, joined.identity.cert_pem);
    let calls = client(&renewed, "attic", &served.address);
    assert_eq!(calls.get::<String>("/who").unwrap(), "Host(\"cellar\")");

    assert_eq!(code(join(&line, &entry("barn"), hasty())), Code::InvitationUsed);
    let another = book.invite(&served.address).to_string();
    assert_eq!(code(join(&another, &entry("cellar"), hasty())), Code::NameTaken);
    *book.later.lock().unwrap() = TokenBook::LASTS;
    assert_eq!(
        code(join(&another, &entry("barn"), hasty())),
        Code::InvitationExpired
    );
    *book.later.lock().unwrap() = ms(0);
    join(&another, &entry("barn"), hasty()).unwrap();
    let mut unknown = invitation;
    unknown.token = Token::random();
    let unknown = unknown.to_string();
    assert_eq!(
        code(join(&unknown, &entry("shed"), hasty())),
        Code::InvitationUnknown
    );
}

#[test]
fn only_hosts_of_the_fleet_are_served_as_such() {
    let (fleet, other) = (new_fleet(), new_fleet());
    let (attic, cellar) = (host(&fleet, "attic"), host(&fleet, "cellar"));
    let served = Served::new(&attic, who(), Limits::default());
    let ask = |identity: &HostIdentity, peer: &str, address: &str| {
        client(identity, peer, address).get::<String>("/who")
    };
    assert_eq!(
        ask(&cellar, "attic", &served.address).unwrap(),
        "Host(\"cellar\")"
    );

    // Whom this host does not believe.
    let error = ask(&host(&other, "cellar"), "attic", &served.address).unwrap_err();
    assert!(matches!(error, PeerError::WrongCertificate { .. }), "{error}");
    let error = ask(&cellar, "barn", &served.address).unwrap_err();
    assert!(matches!(error, PeerError::WrongCertificate { .. }), "{error}");
    let old = Served::new(&expired(&fleet, "attic"), who(), Limits::default());
    let error = ask(&cellar, "attic", &old.address).unwrap_err();
    assert!(
        matches!(&error, PeerError::Expired { whose } if whose.contains("attic")),
        "{error}"
    );

    // Who does not believe this host.
    let mut stranger = host(&other, "cellar");
    stranger.ca_pem = fleet.ca_pem.clone();
    let error = ask(&stranger, "attic", &served.address).unwrap_err();
    assert!(matches!(error, PeerError::Stranger { .. }), "{error}");
    let error = ask(&expired(&fleet, "cellar"), "attic", &served.address).unwrap_err();
    assert!(
        matches!(&error, PeerError::Expired { whose } if whose == "this host"),
        "{error}"
    );
    // Even the fleet's own certificate makes nobody a host.
    let mut authority = cellar.clone();
    (authority.cert_pem, authority.key_pem) = (fleet.ca_pem.clone(), fleet.ca_key_pem.clone());
    let error = ask(&authority, "attic", &served.address).unwrap_err();
    assert!(matches!(error, PeerError::Stranger { .. }), "{error}");

    // Who is nobody.
    let mut tls = raw(&fleet, None, "attic", &served.address);
    tls.write_all(b"GET /who HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    let _ = tls.read_to_string(&mut answer);
    assert!(answer.ends_with("\"Anonymous\""), "{answer}");
}

#[test]
fn a_host_that_is_removed_is_cut_off_and_told() {
    let fleet = new_fleet();
    let (attic, cellar) = (host(&fleet, "attic"), host(&fleet, "cellar"));
    let served = Served::new(&attic, who(), Limits::default());
    let calls = client(&cellar, "attic", &served.address);
    calls.get::<String>("/who").unwrap();
    let mut open = raw(&fleet, Some(&cellar), "attic", &served.address);
    open.write_all(b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert!(open.read(&mut [0; 1000]).unwrap() > 0);

    let begun = Instant::now();
    served.removed.add("cellar");
    while let Ok(1..) = open.read(&mut [0; 1000]) {}
    assert!(begun.elapsed() < ms(10_000), "its open connection ends");
    let mut error = calls.get::<String>("/who").unwrap_err();
    if matches!(error, PeerError::Broken { .. }) {
        // Its own connection was cut just then: who asks again is told.
        error = calls.get::<String>("/who").unwrap_err();
    }
    assert!(matches!(error, PeerError::Removed { .. }), "{error}");
    let others = client(&host(&fleet, "barn"), "attic", &served.address);
    others.get::<String>("/who").unwrap();
}

#[test]
fn strangers_neither_take_the_places_of_hosts_nor_stay() {
    let fleet = new_fleet();
    let (attic, cellar) = (host(&fleet, "attic"), host(&fleet, "cellar"));
    let limits = Limits {
        hosts: 1,
        strangers: 2,
        handshakes: 4,
        handshake: ms(2000), // who is honest, and slow, makes it
        header: ms(2000),
        ..Limits::default()
    };
    let mut served = Served::new(&attic, who(), limits);
    let calls = client(&cellar, "attic", &served.address);

    // Garbage, silence, and more connections than there are places.
    let mut garbage = TcpStream::connect(&served.address).unwrap();
    garbage.write_all(&[0xa5; 10_000]).unwrap();
    while let Ok(1..) = garbage.read(&mut [0; 1000]) {} // it is closed
    let silent: Vec<_> = (0..20)
        .map(|_| TcpStream::connect(&served.address).unwrap())
        .collect();
    let error = calls.get::<String>("/who").unwrap_err();
    assert!(
        matches!(error, PeerError::Unreachable { .. }) && error.is_retryable(),
        "{error}"
    );
    std::thread::sleep(ms(2500)); // they are gone
    // Strangers that have shaken hands and say their headers slowly.
    let mut slow: Vec<_> = (0..3)
        .map(|_| raw(&fleet, None, "attic", &served.address))
        .collect();
    for tls in &mut slow {
        let _ = tls
            .write_all(b"GET /who HTTP/1.1\r\nx: ")
            .and_then(|()| tls.flush());
    }
    assert_eq!(calls.get::<String>("/who").unwrap(), "Host(\"cellar\")");
    let begun = Instant::now();
    for tls in &mut slow {
        let _ = tls.read(&mut [0; 1000]);
    }
    assert!(begun.elapsed() < ms(10_000), "{:?}", begun.elapsed());
    drop(silent);

    // The only place for hosts is kept by the connection that is kept.
    let error = client(&cellar, "attic", &served.address)
        .get::<String>("/who")
        .unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(calls.get::<String>("/who").unwrap(), "Host(\"cellar\")");

    let _pending = TcpStream::connect(&served.address).unwrap();
    let begun = Instant::now();
    served.stop();
    assert!(begun.elapsed() < ms(10_000), "{:?}", begun.elapsed());
    let error = calls.get::<String>("/who").unwrap_err();
    assert!(matches!(error, PeerError::Unreachable { .. }), "{error}");
}
