//! The daemon's API over its socket, or that of another host over TLS: one connection for each request.

use crate::failure::{Failure, Outcome};
use crate::progress::Reporter;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use martlet_api::{Problem, ProblemCode, Progress};
use martlet_peer::{AccessLine, PeerError};
use serde::Serialize;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::Receiver;

type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// Longest event of an operation: a fork's report with a thousand clones fits many times.
const EVENT_MAX_BYTES: usize = 16 << 20;

/// Another host answers within this time, or it cannot be reached.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a daemon is asked.
enum Way {
    Socket(PathBuf),
    Host(AccessLine),
}

/// A connection.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Way {
    async fn connect(&self) -> Outcome<Box<dyn Stream>> {
        match self {
            Self::Socket(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => {
                    let words = format!("cannot reach the daemon on {}", path.display());
                    Err(Failure::io(words, error).exit_with(1))
                }
            },
            Self::Host(access) => match access.connect(CONNECT_TIMEOUT).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(unreachable(&error)),
            },
        }
    }
}

fn unreachable(error: &PeerError) -> Failure {
    let problem = match error {
        PeerError::WrongCertificate { .. } | PeerError::Expired { .. } | PeerError::NotAPeer { .. } => {
            Problem::new(ProblemCode::PermissionDenied, "what answers is not the host that the token is for")
                .remediation("find out who answers there; a token for what the host is now comes from `martlet token create`")
        }
        _ => Problem::new(ProblemCode::Internal, "the host cannot be reached")
            .remediation("see whether its daemon runs, and whether this network leads there"),
    };
    problem.cause(error).into()
}

/// A daemon.
pub struct Client {
    way: Way,
    /// Where its calls run; what is asynchronous elsewhere runs here too.
    pub runtime: Runtime,
}

impl Client {
    /// Calls go to this socket.
    pub fn new(socket: &Path) -> Outcome<Self> {
        Self::by(Way::Socket(socket.to_path_buf()))
    }

    /// Calls go to another host, with a token.
    pub fn to_host(access: AccessLine) -> Outcome<Self> {
        Self::by(Way::Host(access))
    }

    fn by(way: Way) -> Outcome<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::io("cannot set up input and output", error))?;
        Ok(Self { way, runtime })
    }

    /// Reads.
    pub fn get(&self, path: &str) -> Outcome<Value> {
        self.call(Method::GET, path, empty())
    }

    /// Acts.
    pub fn post(&self, path: &str, body: &impl Serialize) -> Outcome<Value> {
        self.call(Method::POST, path, json(body))
    }

    /// Removes.
    pub fn delete(&self, path: &str) -> Outcome<Value> {
        self.call(Method::DELETE, path, empty())
    }

    fn call(&self, method: Method, path: &str, body: RequestBody) -> Outcome<Value> {
        self.runtime.block_on(async {
            let response = self.send(self.request(method, path), body).await?;
            let bytes = response
                .into_body()
                .collect()
                .await
                .map_err(|error| lost(&error))?
                .to_bytes();
            if bytes.is_empty() {
                Ok(Value::Null)
            } else {
                parse(&bytes)
            }
        })
    }

    /// Acts, and shows the progress of it.
    pub fn operation(&self, path: &str, body: &impl Serialize, reporter: &Reporter) -> Outcome<Value> {
        self.runtime.block_on(async {
            let request = self
                .request(Method::POST, path)
                .header(ACCEPT, "text/event-stream");
            let mut body = self.send(request, json(body)).await?.into_body();
            let mut events = Events::default();
            while let Some(frame) = body.frame().await {
                let Ok(chunk) = frame.map_err(|error| lost(&error))?.into_data() else {
                    continue;
                };
                for (kind, data) in events.feed(&chunk)? {
                    match kind.as_str() {
                        "progress" => reporter.show(&parse::<Progress>(data.as_bytes())?),
                        "result" => return parse(data.as_bytes()),
                        "error" => return Err(parse::<Problem>(data.as_bytes())?.into()),
                        _ => (), // a newer daemon may have more to say
                    }
                }
            }
            Err(lost(&"the daemon ended the connection before the result"))
        })
    }

    /// Receives bytes until they end, or `sink` answers `false`.
    pub fn download(&self, path: &str, mut sink: impl FnMut(Bytes) -> io::Result<bool>) -> Outcome {
        self.runtime.block_on(async {
            let mut body = self
                .send(self.request(Method::GET, path), empty())
                .await?
                .into_body();
            while let Some(frame) = body.frame().await {
                let Ok(chunk) = frame.map_err(|error| lost(&error))?.into_data() else {
                    continue;
                };
                if !sink(chunk).map_err(|error| Failure::io("cannot write what was received", error))? {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Sends the chunks of a channel; an error among them cuts the request short.
    pub fn upload(&self, path: &str, chunks: Receiver<io::Result<Bytes>>) -> Outcome {
        self.runtime.block_on(async {
            let body = Chunks(chunks).boxed_unsync();
            let request = self
                .request(Method::PUT, path)
                .header(CONTENT_TYPE, "application/x-tar");
            self.send(request, body).await.map(drop)
        })
    }

    /// Switches to another protocol; what comes back is the connection.
    pub async fn upgrade(
        &self,
        path: &str,
        protocol: &str,
        body: &impl Serialize,
    ) -> Outcome<TokioIo<Upgraded>> {
        let request = self
            .request(Method::POST, path)
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, protocol);
        let response = self.send(request, json(body)).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(lost(&format!("the daemon did not switch to {protocol}")));
        }
        Ok(TokioIo::new(
            hyper::upgrade::on(response).await.map_err(|error| lost(&error))?,
        ))
    }

    fn request(&self, method: Method, path: &str) -> hyper::http::request::Builder {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "martlet")
            .header(CONTENT_TYPE, "application/json");
        match &self.way {
            Way::Socket(_) => request,
            Way::Host(access) => request.header(AUTHORIZATION, format!("Bearer {}", access.secret)),
        }
    }

    /// Sends a request; an answer that tells of a problem is a failure.
    async fn send(
        &self,
        request: hyper::http::request::Builder,
        body: RequestBody,
    ) -> Outcome<Response<Incoming>> {
        let request = request.body(body).expect("paths are made of checked names");
        let stream = self.way.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| lost(&error))?;
        tokio::spawn(connection.with_upgrades());
        let response = sender.send_request(request).await.map_err(|error| lost(&error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let bytes = response
            .into_body()
            .collect()
            .await
            .map_err(|error| lost(&error))?
            .to_bytes();
        let problem = serde_json::from_slice::<Problem>(&bytes).unwrap_or_else(|_| {
            Problem::new(ProblemCode::Internal, format!("the daemon answered {status}"))
                .cause(String::from_utf8_lossy(&bytes))
        });
        Err(problem.into())
    }
}

fn empty() -> RequestBody {
    Full::default().map_err(|never| match never {}).boxed_unsync()
}

fn json(body: &impl Serialize) -> RequestBody {
    let bytes = serde_json::to_vec(body).expect("API types are plain data");
    Full::from(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Outcome<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let problem = Problem::new(
            ProblemCode::Internal,
            "the daemon's answer is not what this program understands",
        );
        problem
            .cause(error)
            .remediation("see `martlet version`: both should be of one version")
            .into()
    })
}

fn lost(why: &dyn std::fmt::Display) -> Failure {
    Problem::new(ProblemCode::Internal, "the connection to the daemon was lost")
        .cause(why)
        .remediation("machines go on; see `martlet ps` for what became of this command, and martletd.log in the state directory")
        .into()
}

/// A request's body that comes from a channel.
struct Chunks(Receiver<io::Result<Bytes>>);

impl Body for Chunks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0
            .poll_recv(context)
            .map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}

/// Server-sent events out of a stream of chunks, as little of the format as the daemon uses.
#[derive(Default)]
struct Events {
    pending: Vec<u8>,
}

impl Events {
    /// Kind and data of each event that is complete now.
    fn feed(&mut self, chunk: &[u8]) -> Outcome<Vec<(String, String)>> {
        self.pending.extend_from_slice(chunk);
        let mut events = Vec::new();
        while let Some(end) = self.pending.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.pending.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&event);
            let field = |name| {
                text.lines()
                    .find_map(|line| line.strip_prefix(name))
                    .map(|value| value.trim_start())
            };
            if let (Some(kind), Some(data)) = (field("event:"), field("data:")) {
                events.push((kind.to_string(), data.to_string()));
            }
        }
        if self.pending.len() > EVENT_MAX_BYTES {
            return Err(lost(&"an event that does not end"));
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_they_are_cut() {
        let stream = b"event: progress\ndata: {\"stage\":\"a\"}\n\n: comment\n\nevent: result\ndata: 1\n\n";
        for cut in 0..stream.len() {
            let mut events = Events::default();
            let mut all = events.feed(&stream[..cut]).unwrap();
            all.extend(events.feed(&stream[cut..]).unwrap());
            let all: Vec<_> = all
                .iter()
                .map(|(kind, data)| (kind.as_str(), data.as_str()))
                .collect();
            assert_eq!(
                all,
                [("progress", "{\"stage\":\"a\"}"), ("result", "1")],
                "cut at {cut}"
            );
        }
    }
}
