//! A channel: objects that somebody waits for, asked for one at a time over a connection that does nothing else.
//!
//! ```text
//!   GET /peer/channel, Upgrade: martlet-objects ──► 101 ──► kind 1 | id 32          ──┐
//!                                                            ▲                        │ as often as is asked
//!                                                            └── found 1 | an object ◄┘
//! ```
//!
//! A page that a guest waits for is small, so that what it takes is who has to be woken on its way. Here each side is one thread that
//! reads and writes the connection itself: no runtime hands the work on, and HTTP is spoken once.
//!
//! What a host may do is looked up for each object, so that a channel lasts no longer than that it may; a host that is removed is cut
//! off, as on every connection ([`crate::serve`]).

use crate::Patience;
use crate::connection::Open;
use crate::stall::Writes;
use crate::wire::{FOUND, Head, KEY_BYTES, LACKS, decode_key, put_key};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use martlet_store::{Key, Stored};
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::{client, server};

/// What is asked for with the upgrade.
pub(crate) const PATH: &str = "/peer/channel";
pub(crate) const PROTOCOL: &str = "martlet-objects";

/// The object cannot be read now.
const BUSY: u8 = 2;
/// So much is made room for before it has come: the largest frame.
const ROOM_BYTES: usize = 64 << 10;

/// Out of a runtime's hands: reads and writes block.
fn into_blocking(socket: tokio::net::TcpStream, writes: Duration) -> io::Result<TcpStream> {
    let socket = socket.into_std()?;
    socket.set_nonblocking(false)?;
    socket.set_write_timeout(Some(writes))?;
    Ok(socket)
}

fn wrong(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason)
}

fn foreign<T>(_: T) -> io::Error {
    wrong("the connection is not of the kind that is served here")
}

/// What another host says to a key.
pub(crate) enum Answered {
    /// Not verified; none if it lacks it.
    Object(Option<Stored>),
    /// It cannot read it now.
    Busy,
    /// No host would say this.
    Wrong(&'static str),
}

/// The asking side.
pub(crate) struct Channel {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

impl Channel {
    /// Of a connection that has just been upgraded.
    pub(crate) fn new(upgraded: Upgraded) -> io::Result<Self> {
        type Upgrade = TokioIo<Writes<client::TlsStream<tokio::net::TcpStream>, Duration>>;
        let parts = upgraded.downcast::<Upgrade>().map_err(foreign)?;
        if !parts.read_buf.is_empty() {
            return Err(wrong("it answers before it is asked"));
        }
        let (tls, stall) = parts.io.into_inner().into_parts();
        let (socket, tls) = tls.into_inner();
        let socket = into_blocking(socket, stall)?;
        Ok(Self {
            stream: StreamOwned::new(tls, socket),
        })
    }

    /// For so long it waits for what comes next.
    pub(crate) fn waits(&self) -> Duration {
        let waits = self.stream.sock.read_timeout();
        waits.ok().flatten().unwrap_or_default()
    }

    /// Asks for an object. After an error, or something wrong, it is of no more use.
    pub(crate) fn ask(&mut self, key: &Key, patience: Patience) -> io::Result<Answered> {
        self.stream.sock.set_read_timeout(Some(patience.answer))?;
        let mut asked = Vec::with_capacity(KEY_BYTES);
        put_key(&mut asked, key);
        self.stream.write_all(&asked)?;
        let mut found = [0];
        self.stream.read_exact(&mut found)?;
        match found {
            [FOUND] => {}
            [LACKS] => return Ok(Answered::Object(None)),
            [BUSY] => return Ok(Answered::Busy),
            _ => return Ok(Answered::Wrong("it is neither there nor not")),
        }
        self.stream.sock.set_read_timeout(Some(patience.stall))?;
        let mut head = [0; Head::BYTES];
        self.stream.read_exact(&mut head)?;
        let head = match Head::decode(key, head) {
            Ok(head) => head,
            Err(reason) => return Ok(Answered::Wrong(reason)),
        };
        let stored_len = head.stored_len as usize;
        let mut bytes = Vec::with_capacity(stored_len.min(ROOM_BYTES));
        (&mut self.stream)
            .take(stored_len as u64)
            .read_to_end(&mut bytes)?;
        if bytes.len() < stored_len {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let rest = self.stream.conn.process_new_packets().map_err(wrong)?;
        Ok(match rest.plaintext_bytes_to_read() {
            0 => Answered::Object(Some(head.of(*key, bytes))),
            _ => Answered::Wrong("it gave more than was asked for"),
        })
    }
}

/// The answering side: `put` puts what is said to a key. Until the other side ends it, or asks nothing for too long.
pub(crate) async fn serve<P>(upgrade: OnUpgrade, put: P)
where
    P: FnMut(&Key, &mut Vec<u8>) -> io::Result<()> + Send + 'static,
{
    let upgraded = upgrade.await.map_err(io::Error::other);
    let started = upgraded.and_then(Answering::new).and_then(|mut answering| {
        let thread = std::thread::Builder::new().name("channel".into());
        thread.spawn(move || {
            if let Err(error) = answering.answer(put) {
                tracing::debug!(%error, "a channel ended");
            }
        })
    });
    if let Err(error) = started {
        tracing::warn!(%error, "a channel is not served");
    }
}

struct Answering {
    stream: StreamOwned<ServerConnection, TcpStream>,
    /// Has the connection's place as long as this lives.
    _open: Arc<Open>,
}

impl Answering {
    fn new(upgraded: Upgraded) -> io::Result<Self> {
        type Upgrade = TokioIo<Writes<server::TlsStream<tokio::net::TcpStream>, Arc<Open>>>;
        let parts = upgraded.downcast::<Upgrade>().map_err(foreign)?;
        if !parts.read_buf.is_empty() {
            return Err(wrong("it asks before it knows that it may"));
        }
        let (tls, open) = parts.io.into_inner().into_parts();
        let (socket, tls) = tls.into_inner();
        let bounds = open.bounds();
        let socket = into_blocking(socket, bounds.stall)?;
        socket.set_read_timeout(Some(bounds.idle))?;
        Ok(Self {
            stream: StreamOwned::new(tls, socket),
            _open: open,
        })
    }

    fn answer(&mut self, mut put: impl FnMut(&Key, &mut Vec<u8>) -> io::Result<()>) -> io::Result<()> {
        let (mut asked, mut out) = ([0; KEY_BYTES], Vec::new());
        loop {
            self.stream.read_exact(&mut asked)?;
            let key = decode_key(&asked).ok_or_else(|| wrong("there is no such kind of object"))?;
            out.clear();
            if let Err(error) = put(&key, &mut out) {
                if error.kind() == ErrorKind::PermissionDenied {
                    return Err(error); // why not is told when it opens the next
                }
                tracing::warn!(%error, "a host asks for what cannot be read here");
                out = vec![BUSY];
            }
            self.stream.write_all(&out)?;
        }
    }
}
