//! A web server that answers wrongly.

use crate::suite::key;
use martlet_source::{Objects, Patience, SourceError};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use url::Url;

/// With those that answer wrongly.
pub const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(5),
    stall: Duration::from_millis(300),
    retries: 3,
    total: Duration::from_secs(10),
};

#[derive(Debug, Clone, Copy)]
pub enum Lie {
    Status(u16),
    HalfABody,
    Never,
    MoreThanAsked,
    FailsTwice,
    WholeForAPart,
}

pub struct Liar(TcpListener);

impl Liar {
    pub fn start(lie: Lie) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (accepting, asked) = (listener.try_clone().unwrap(), Arc::new(AtomicUsize::new(0)));
        // Ends with the test.
        std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let asked = asked.clone();
                std::thread::spawn(move || answer(stream, lie, &asked));
            }
        });
        Self(listener)
    }

    pub fn address(&self) -> Url {
        address(self.0.local_addr().unwrap().port())
    }
}

/// What a remote at a port makes of each answer that is none.
pub fn lies_are_told_apart<R: Objects>(remote: impl Fn(u16) -> R) {
    let wrong = |error: &SourceError| matches!(error, SourceError::Wrong { .. });
    let refused = |error: &SourceError| matches!(error, SourceError::Refused { .. });
    let missing = |error: &SourceError| matches!(error, SourceError::NotFound { .. });
    let retryable = |error: &SourceError| error.is_retryable();
    type Expected<'a> = &'a dyn Fn(&SourceError) -> bool;
    let cases: [(Lie, Expected<'_>); 9] = [
        (Lie::Status(403), &refused),
        (Lie::Status(401), &refused),
        (Lie::Status(404), &missing),
        (Lie::Status(409), &retryable),
        (Lie::Status(429), &retryable),
        (Lie::Status(500), &retryable),
        (Lie::HalfABody, &retryable),
        (Lie::Never, &retryable),
        (Lie::MoreThanAsked, &wrong),
    ];
    for (lie, is_expected) in cases {
        let liar = Liar::start(lie);
        let error = remote(liar.address().port().unwrap())
            .get(&key("pack"), 100)
            .unwrap_err();
        assert!(is_expected(&error), "{lie:?}: {error:?}");
    }
}

/// Where nobody listens.
pub fn nobody() -> Url {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    address(listener.local_addr().unwrap().port())
}

pub fn address(port: u16) -> Url {
    Url::parse(&format!("http://127.0.0.1:{port}/")).unwrap()
}

/// Answers all requests of a connection.
fn answer(stream: TcpStream, lie: Lie, asked: &AtomicUsize) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let mut out = stream;
    loop {
        while !lines.next()?.ok()?.is_empty() {}
        let before = asked.fetch_add(1, Ordering::Relaxed);
        let (status, promised, body) = match lie {
            Lie::Status(status) => (status, 0, Vec::new()),
            Lie::HalfABody => (200, 80, vec![1; 40]),
            Lie::Never => {
                std::thread::sleep(Duration::from_secs(3));
                return None;
            }
            Lie::MoreThanAsked | Lie::WholeForAPart => (200, 1000, vec![1; 1000]),
            Lie::FailsTwice if before < 2 => (503, 0, Vec::new()),
            Lie::FailsTwice => (200, 7, b"at last".to_vec()),
        };
        write!(out, "HTTP/1.1 {status} X\r\nContent-Length: {promised}\r\n\r\n").ok()?;
        out.write_all(&body).ok()?;
        if body.len() != promised {
            return None;
        }
    }
}
