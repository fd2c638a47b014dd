//! QMP: QEMU's control protocol, JSON objects on lines.
//!
//! A small client of our own rather than a generated one: we need a dozen commands, and must bound what a QEMU taken
//! over by its guest can send us. Lines have a greatest length, unknown fields and events are ignored, an answer
//! that nobody asked for is dropped, and every command has a deadline.
//!
//! ```text
//!  ask() ──► writer ──► socket ──► reader thread ─┬─ {"return"|"error", "id"} ─► who waits for that answer()
//!                                                 ├─ {"event"} ─► on_message(Event)
//!                                                 └─ end, garbage ─► every waiter fails; on_message(Closed)
//! ```

use crate::fd_passing;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Longest line believed.
pub const LINE_MAX: usize = 1 << 20;

/// A QMP exchange failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum QmpError {
    /// QEMU refused the command.
    #[error("QEMU refuses {command}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// Error class.
        class: String,
        /// In QEMU's words.
        description: String,
    },
    /// No answer in time.
    #[error("QEMU did not answer {command} within {after_ms} ms")]
    Timeout {
        /// The command.
        command: String,
        /// How long was waited.
        after_ms: u64,
    },
    /// The connection is closed.
    #[error("the connection to QEMU is closed: {0}")]
    Closed(String),
    /// What arrives is not QMP.
    #[error("QEMU talks nonsense: {0}")]
    Protocol(String),
    /// The socket fails.
    #[error("QMP socket: {0}")]
    Socket(String),
}

impl QmpError {
    /// Could the same call succeed if it is made again?
    pub fn is_retryable(&self) -> bool {
        matches!(self, QmpError::Timeout { .. })
    }

    /// Is there no QEMU at the other end any more (or none that makes sense)?
    pub fn is_lost(&self) -> bool {
        matches!(
            self,
            QmpError::Closed(_) | QmpError::Protocol(_) | QmpError::Socket(_)
        )
    }
}

impl From<io::Error> for QmpError {
    fn from(e: io::Error) -> Self {
        QmpError::Socket(e.to_string())
    }
}

/// What arrives unasked.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// An event.
    Event {
        /// Its name.
        name: String,
        /// Its data; null when it has none.
        data: Value,
    },
    /// The connection is at its end; nothing follows.
    Closed,
}

type Answer = Result<Value, QmpError>;

/// A connection to QEMU's control socket. QEMU serves one client at a time; drop one before making the next.
#[derive(Debug)]
pub struct QmpClient {
    stream: UnixStream,
    write: Mutex<()>,
    /// Held by whose command's descriptors QEMU has: it keeps those of one command, and reads on before it has executed that.
    descriptors: Mutex<()>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    next_id: u64,
    waiting: HashMap<u64, SyncSender<Answer>>,
    closed: Option<QmpError>,
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(|e| e.into_inner())
}

impl QmpClient {
    /// Connects to a socket, once.
    pub fn connect(
        path: &Path,
        timeout: Duration,
        on_message: impl FnMut(Message) + Send + 'static,
    ) -> Result<Self, QmpError> {
        Self::start(UnixStream::connect(path)?, timeout, on_message)
    }

    /// Greets and starts listening on a connected socket. `on_message` runs on the reader's thread and must not
    /// block, nor execute commands.
    pub fn start(
        stream: UnixStream,
        timeout: Duration,
        mut on_message: impl FnMut(Message) + Send + 'static,
    ) -> Result<Self, QmpError> {
        stream.set_write_timeout(Some(timeout))?;
        let mut lines = Lines::new(stream.try_clone()?);
        let deadline = Instant::now() + timeout;
        let greeting = lines.next_before(deadline, "greeting")?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Protocol("no greeting".into()));
        }
        // Nothing is executed out of turn, but only who may do that is read while a command is executed.
        let offered = greeting["QMP"]["capabilities"].as_array();
        let enable: Vec<&Value> = offered
            .into_iter()
            .flatten()
            .filter(|what| *what == "oob")
            .collect();
        let hello = json!({ "execute": "qmp_capabilities", "arguments": { "enable": enable }, "id": 0 });
        (&stream).write_all(format!("{hello}\n").as_bytes())?;
        loop {
            let reply = lines.next_before(deadline, "qmp_capabilities")?;
            if reply.get("return").is_some() {
                break;
            }
            if reply.get("error").is_some() {
                return Err(refusal("qmp_capabilities", &reply));
            }
            if let Some(event) = as_event(&reply) {
                on_message(event);
            }
        }
        stream.set_read_timeout(None)?;
        let shared = Arc::new(Mutex::new(Shared {
            next_id: 1,
            ..Shared::default()
        }));
        let reader_shared = shared.clone();
        std::thread::Builder::new()
            .name("qmp".into())
            .spawn(move || {
                read_all(lines, &reader_shared, &mut on_message);
                on_message(Message::Closed);
            })
            .map_err(QmpError::from)?;
        Ok(Self {
            stream,
            write: Mutex::default(),
            descriptors: Mutex::default(),
            shared,
        })
    }

    /// Executes a command and waits for its answer.
    pub fn execute(&self, command: &str, arguments: Value, timeout: Duration) -> Answer {
        self.execute_with_fds(command, arguments, &[], timeout)
    }

    /// Executes a command with descriptors attached (`getfd`, `add-fd`).
    pub fn execute_with_fds(
        &self,
        command: &str,
        arguments: Value,
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Answer {
        self.ask(command, arguments, fds)?.answer(timeout)
    }

    /// Sends a command whose answer is waited for later: QEMU takes commands in order, and reads them byte by byte. One with
    /// descriptors waits for the answer to the one before that had some; so the same thread must not ask for both.
    pub fn ask(
        &self,
        command: &str,
        arguments: Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Asked<'_>, QmpError> {
        let descriptors = (!fds.is_empty()).then(|| lock(&self.descriptors));
        let (sender, receiver) = sync_channel(1);
        let id = {
            let mut shared = lock(&self.shared);
            if let Some(error) = &shared.closed {
                return Err(error.clone());
            }
            let id = shared.next_id;
            shared.next_id += 1;
            shared.waiting.insert(id, sender);
            id
        };
        let asked = Asked {
            client: self,
            id,
            command: command.into(),
            receiver,
            _descriptors: descriptors,
        };
        let mut line = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            line["arguments"] = arguments;
        }
        self.send(format!("{line}\n").as_bytes(), fds)?;
        Ok(asked)
    }

    fn send(&self, mut bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), QmpError> {
        let _one_at_a_time = lock(&self.write);
        let sent = fd_passing::send(self.stream.as_fd(), bytes, fds)?;
        bytes = &bytes[sent..];
        Ok((&self.stream).write_all(bytes)?)
    }
}

/// A command that was sent.
pub struct Asked<'a> {
    client: &'a QmpClient,
    id: u64,
    command: String,
    receiver: Receiver<Answer>,
    _descriptors: Option<MutexGuard<'a, ()>>,
}

impl Asked<'_> {
    /// Waits for its answer.
    pub fn answer(self, timeout: Duration) -> Answer {
        let answer = match self.receiver.recv_timeout(timeout) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(QmpError::Timeout {
                command: self.command.clone(),
                after_ms: timeout.as_millis() as u64,
            }),
            Err(RecvTimeoutError::Disconnected) => Err(QmpError::Closed("no answer came".into())),
        };
        answer.map_err(|e| match e {
            QmpError::Refused {
                class, description, ..
            } => QmpError::Refused {
                command: self.command.clone(),
                class,
                description,
            },
            other => other,
        })
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        lock(&self.client.shared).waiting.remove(&self.id);
    }
}

impl Drop for QmpClient {
    fn drop(&mut self) {
        // Wakes the reader, which holds the other copy of the socket. It may be closed already.
        self.stream.shutdown(std::net::Shutdown::Both).ok();
    }
}

fn read_all(mut lines: Lines, shared: &Mutex<Shared>, on_message: &mut impl FnMut(Message)) {
    let end = loop {
        let value = match lines.next() {
            Ok(value) => value,
            Err(e) => break e,
        };
        if let Some(event) = as_event(&value) {
            on_message(event);
            continue;
        }
        let answer = match value.get("return") {
            Some(result) => Ok(result.clone()),
            None if value.get("error").is_some() => Err(refusal("", &value)),
            None => continue,
        };
        let waiter = value
            .get("id")
            .and_then(Value::as_u64)
            .and_then(|id| lock(shared).waiting.remove(&id));
        if let Some(waiter) = waiter {
            // Whoever waited may have given up meanwhile.
            waiter.send(answer).ok();
        }
    };
    let mut shared = lock(shared);
    for (_, waiter) in shared.waiting.drain() {
        waiter.send(Err(end.clone())).ok();
    }
    shared.closed = Some(end);
}

fn as_event(value: &Value) -> Option<Message> {
    let name = value.get("event")?.as_str()?.to_string();
    Some(Message::Event {
        name,
        data: value.get("data").cloned().unwrap_or(Value::Null),
    })
}

fn refusal(command: &str, reply: &Value) -> QmpError {
    let text = |key: &str| {
        reply["error"][key]
            .as_str()
            .unwrap_or("no reason given")
            .to_string()
    };
    QmpError::Refused {
        command: command.into(),
        class: text("class"),
        description: text("desc"),
    }
}

/// JSON objects from a socket, one on each line.
struct Lines {
    stream: UnixStream,
    buffer: Vec<u8>,
    searched: usize,
}

impl Lines {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            searched: 0,
        }
    }

    fn next_before(&mut self, deadline: Instant, what: &str) -> Result<Value, QmpError> {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(left))?;
        self.next().map_err(|e| match e {
            QmpError::Timeout { .. } => QmpError::Timeout {
                command: what.into(),
                after_ms: left.as_millis() as u64,
            },
            other => other,
        })
    }

    fn next(&mut self) -> Result<Value, QmpError> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=self.searched + at).collect();
                self.searched = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return serde_json::from_slice(&line).map_err(|e| QmpError::Protocol(e.to_string()));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_MAX {
                return Err(QmpError::Protocol(format!(
                    "a line of more than {LINE_MAX} bytes"
                )));
            }
            let mut chunk = [0; 8192];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(QmpError::Closed("QEMU closed it".into())),
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(QmpError::Timeout {
                        command: String::new(),
                        after_ms: 0,
                    });
                }
                Err(e) => return Err(QmpError::Closed(e.to_string())),
            }
        }
    }
}

#[cfg(test)]
#[path = "qmp_tests.rs"]
mod tests;
