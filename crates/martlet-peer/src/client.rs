//! Calling another host. Requests block; several at once go over several connections, which are kept for the next.
//!
//! Who asks drives the connection: no other thread has to be woken on the way there or back. An object that somebody waits for
//! comes by a [channel](crate::channel).

use crate::channel::{self, Answered, Channel};
use crate::kept::Kept;
use crate::stall::Writes;
use crate::tls::{client_config, handshake_error};
use crate::{Code, HostIdentity, PeerError, Refusal, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use martlet_store::{Key, Stored};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Answers to a question are no longer, those apart that are read in pieces.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// What is sent is given time as if no link were slower.
const SLOWEST_BYTES_PER_S: u64 = 256 << 10;

/// How long another host is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A connection is there after this time, or it never will be.
    pub connect: Duration,
    /// An answer has begun after this time.
    pub answer: Duration,
    /// An answer that does not go on for so long never will.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(60),
            stall: Duration::from_secs(30),
        }
    }
}

const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";

/// A connection, and what drives it: nothing happens on it while nobody waits for something.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    runtime: Driver,
}

/// A runtime that may be dropped anywhere.
struct Driver(Option<Runtime>);

impl Driver {
    fn new() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.0
            .as_ref()
            .expect("it is there until it is dropped")
            .block_on(work)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Connection {
    /// Finds out what has happened to it meanwhile: the first turn is the system's to tell, the second the connection's to hear.
    async fn look() {
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
    }
}

/// Another host of the fleet.
pub struct PeerClient {
    peer: String,
    address: String,
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    patience: Patience,
    connections: Kept<Connection>,
    channels: Kept<Channel>,
}

impl fmt::Debug for PeerClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerClient({} at {})", self.peer, self.address)
    }
}

impl PeerClient {
    /// The host of this name, which is to be found at `ADDRESS:PORT`. Nothing is asked yet.
    pub fn new(identity: &HostIdentity, peer: &str, address: &str, patience: Patience) -> Result<Self> {
        Ok(Self::with(
            client_config(identity, peer)?,
            peer,
            address,
            patience,
        ))
    }

    pub(crate) fn with(
        (config, server_name): (Arc<ClientConfig>, ServerName<'static>),
        peer: &str,
        address: &str,
        patience: Patience,
    ) -> Self {
        Self {
            peer: peer.to_owned(),
            address: address.to_owned(),
            config,
            server_name,
            patience,
            connections: Kept::default(),
            channels: Kept::default(),
        }
    }

    /// What the other host is called.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Gets a JSON answer.
    pub fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A> {
        self.json(path, self.ask_as(Method::GET, path, JSON, Bytes::new())?)
    }

    /// Posts JSON, and gets a JSON answer.
    pub fn post<Q: Serialize, A: DeserializeOwned>(&self, path: &str, question: &Q) -> Result<A> {
        let body =
            serde_json::to_vec(question).map_err(|error| PeerError::wrong("this host", path, error))?;
        self.json(path, self.ask_as(Method::POST, path, JSON, body.into())?)
    }

    fn json<A: DeserializeOwned>(&self, path: &str, answer: Answer<'_>) -> Result<A> {
        serde_json::from_slice(&answer.all(ANSWER_BYTES_MAX)?)
            .map_err(|error| PeerError::wrong(&self.peer, path, error))
    }

    /// Posts bytes, and has an answer that says yes.
    pub(crate) fn ask(&self, path: &str, body: impl Into<Bytes>) -> Result<Answer<'_>> {
        self.ask_as(Method::POST, path, BYTES, body.into())
    }

    /// Asks, and has an answer that says yes. The question is sent once: whether it is asked again after a connection broke is
    /// for the caller to say.
    fn ask_as(&self, method: Method, path: &str, kind: &str, body: Bytes) -> Result<Answer<'_>> {
        let upload = Duration::from_secs(body.len() as u64 / SLOWEST_BYTES_PER_S);
        let patience = self.patience.answer + upload;
        let request = Request::builder()
            .method(&method)
            .uri(path)
            .header("host", "martlet")
            .header("content-type", kind)
            .body(Full::new(body))
            .map_err(|error| PeerError::wrong("this host", path, error))?;
        let action = format!("answer {method} {path}");
        let (response, connection) = self.send(request, &action, patience)?;
        let status = response.status();
        let answer = self.answer(action, response.into_body(), connection);
        match status {
            StatusCode::OK => Ok(answer),
            status => Err(answer.refusal(path, status)),
        }
    }

    /// An object that somebody waits for, not verified; none if it is not there.
    pub fn object(&self, key: &Key) -> Result<Option<Stored>> {
        let action = || format!("give {key}");
        loop {
            let kept = self.channels.take(|_| true);
            let is_new = kept.is_none();
            let mut channel = kept.map_or_else(|| self.open_channel(), Ok)?;
            let answer = match channel.ask(key, self.patience) {
                Ok(Answered::Object(object)) => Ok(object),
                Ok(Answered::Busy) => {
                    let refusal = Refusal::new(Code::Busy, "it cannot read it now");
                    Err(PeerError::refused(&self.peer, refusal))
                }
                Ok(Answered::Wrong(reason)) => return Err(PeerError::wrong(&self.peer, key, reason)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    self.channels.clear();
                    return Err(self.stalled(&action(), channel.waits()));
                }
                // What was kept may have ended meanwhile.
                Err(_) if !is_new => continue,
                Err(error) => {
                    return Err(PeerError::Broken {
                        peer: self.named(),
                        action: action(),
                        reason: error.to_string(),
                    });
                }
            };
            self.channels.keep(channel);
            return answer;
        }
    }

    fn open_channel(&self) -> Result<Channel> {
        let request = Request::get(channel::PATH)
            .header("host", "martlet")
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, channel::PROTOCOL)
            .body(Full::default())
            .map_err(|error| PeerError::wrong("this host", channel::PATH, error))?;
        let action = "open a channel";
        let (response, connection) = self.send(request, action, self.patience.answer)?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let body = response.into_body();
            let answer = self.answer(action.to_owned(), body, connection);
            return Err(answer.refusal(channel::PATH, status));
        }
        connection.runtime.run(async {
            let upgraded = hyper::upgrade::on(response).await;
            let upgraded = upgraded.map_err(|error| self.broken(action, &error))?;
            Channel::new(upgraded).map_err(|error| self.unreachable(error))
        })
    }

    fn answer(&self, action: String, body: Incoming, connection: Connection) -> Answer<'_> {
        Answer {
            client: self,
            action,
            body,
            connection: Some(connection),
        }
    }

    fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        action: &str,
        patience: Duration,
    ) -> Result<(Response<Incoming>, Connection)> {
        loop {
            let kept = self.connections.take(|kept| !kept.sender.is_closed());
            let is_new = kept.is_none();
            let mut connection = kept.map_or_else(|| self.connect(), Ok)?;
            let sender = &mut connection.sender;
            let sent = connection.runtime.run(async {
                let sent = async {
                    Connection::look().await;
                    // If it has ended meanwhile, sending says so and gives the question back.
                    let _ = sender.ready().await;
                    sender.try_send_request(request).await
                };
                timeout(patience, sent).await
            });
            let Ok(sent) = sent else {
                self.connections.clear();
                return Err(self.stalled(action, patience));
            };
            match sent {
                Ok(response) => return Ok((response, connection)),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) if !is_new => request = unsent,
                    _ => return Err(self.broken(action, failed.error())),
                },
            }
        }
    }

    fn connect(&self) -> Result<Connection> {
        let runtime = Driver::new().map_err(|error| self.unreachable(error))?;
        let late = || self.unreachable(format!("not within {} ms", self.patience.connect.as_millis()));
        let sender = runtime.run(async {
            let connected = timeout(self.patience.connect, self.shake_hands()).await;
            connected.unwrap_or_else(|_| Err(late()))
        })?;
        Ok(Connection { sender, runtime })
    }

    async fn shake_hands(&self) -> Result<SendRequest<Full<Bytes>>> {
        let socket = TcpStream::connect(&self.address).await;
        let socket = socket.map_err(|error| self.unreachable(error))?;
        let _ = socket.set_nodelay(true);
        let connector = TlsConnector::from(self.config.clone());
        let tls = connector.connect(self.server_name.clone(), socket).await;
        let tls = tls.map_err(|error| handshake_error(&self.named(), error))?;
        let io = TokioIo::new(Writes::new(tls, self.patience.stall));
        let (sender, work) = http1::handshake(io)
            .await
            .map_err(|error| self.unreachable(error))?;
        tokio::spawn(work.with_upgrades());
        Ok(sender)
    }

    fn named(&self) -> String {
        format!("{} ({})", self.peer, self.address)
    }

    fn unreachable(&self, reason: impl ToString) -> PeerError {
        PeerError::Unreachable {
            peer: self.named(),
            reason: reason.to_string(),
        }
    }

    fn stalled(&self, action: &str, after: Duration) -> PeerError {
        PeerError::Stalled {
            peer: self.named(),
            action: action.to_owned(),
            milliseconds: after.as_millis() as u64,
        }
    }

    fn broken(&self, action: &str, error: &hyper::Error) -> PeerError {
        if error.is_parse() {
            return PeerError::NotAPeer {
                peer: self.named(),
                reason: error.to_string(),
            };
        }
        PeerError::Broken {
            peer: self.named(),
            action: action.to_owned(),
            reason: innermost(error),
        }
    }
}

/// An error's last cause, which says most.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// An answer as it comes. Once it has come wholly its connection is kept.
pub(crate) struct Answer<'a> {
    client: &'a PeerClient,
    action: String,
    body: Incoming,
    connection: Option<Connection>,
}

impl Answer<'_> {
    /// What comes next of it; none at its end.
    pub(crate) fn chunk(&mut self) -> Result<Option<Bytes>> {
        let (client, patience) = (self.client, self.client.patience.stall);
        loop {
            let Some(connection) = &self.connection else {
                return Ok(None);
            };
            let body = &mut self.body;
            let frame = connection
                .runtime
                .run(async { timeout(patience, body.frame()).await });
            let Ok(frame) = frame else {
                return Err(client.stalled(&self.action, patience));
            };
            match frame {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => return Err(client.broken(&self.action, &error)),
                None => {
                    if let Some(connection) = self.connection.take() {
                        client.connections.keep(connection);
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// It says no, or something that is no answer to this.
    fn refusal(self, path: &str, status: StatusCode) -> PeerError {
        let peer = &self.client.peer;
        match self.all(ANSWER_BYTES_MAX) {
            Ok(said) => match serde_json::from_slice::<Refusal>(&said) {
                Ok(refusal) => PeerError::refused(peer, refusal),
                Err(_) => PeerError::wrong(peer, path, format!("it answered {status}")),
            },
            Err(error) => error,
        }
    }

    /// All of it.
    pub(crate) fn all(mut self, bytes_max: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(chunk) = self.chunk()? {
            if all.len() + chunk.len() > bytes_max {
                let reason = format!("more than {bytes_max} bytes");
                return Err(PeerError::wrong(&self.client.peer, &self.action, reason));
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }
}
