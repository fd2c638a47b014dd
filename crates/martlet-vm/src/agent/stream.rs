//! Streams: commands, and files as tar.
//!
//! ```text
//! open ── data, credit ──► open ── Finished ──► ended
//!   └───── handle dropped: Cancel ─────────────► ended
//! ```

use super::AgentError;
use super::link::Link;
use martlet_agent_api::frame::{FLAG_END, FLAG_STDERR, Frame, Kind, MAX_PAYLOAD_BYTES};
use martlet_agent_api::window::{ReceiveWindow, SendWindow};
use martlet_agent_api::{Control, ExecSpec, Finished, Reply, Request, TtySize, from_payload, to_payload};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Writing waits this long for the guest to take what it already has.
const CREDIT_TIMEOUT: Duration = Duration::from_secs(600);

/// After a command has said nothing for so long its agent is asked whether it is there.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What has arrived for one stream; holds at most a window of data.
pub(super) struct Inbox {
    state: Mutex<InboxState>,
    changed: Condvar,
}

struct InboxState {
    reply: Option<SyncSender<Reply>>,
    events: VecDeque<ExecEvent>,
    receive: ReceiveWindow,
    send: SendWindow,
    /// Its last frame has come: the guest has forgotten the stream.
    finished: bool,
    disconnected: bool,
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// Bytes of its standard output (of its terminal, if it has one).
    Stdout(Vec<u8>),
    /// Bytes of its standard error.
    Stderr(Vec<u8>),
    /// Its end; nothing follows.
    Exit(Finished),
}

impl Inbox {
    pub(super) fn new(reply: SyncSender<Reply>) -> Self {
        let state = InboxState {
            reply: Some(reply),
            events: VecDeque::new(),
            receive: ReceiveWindow::default(),
            send: SendWindow::default(),
            finished: false,
            disconnected: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn reply(&self, reply: Reply) {
        if let Some(sender) = self.lock().reply.take() {
            let _ = sender.try_send(reply); // the caller may have given up
        }
    }

    /// Takes a frame from the guest; says how the guest broke the protocol, if it did.
    pub(super) fn accept(&self, frame: Frame) -> Result<(), String> {
        let mut state = self.lock();
        if state.finished {
            return Err("a frame came after the end of its stream".into());
        }
        match frame.kind {
            Kind::Data => {
                state
                    .receive
                    .receive(frame.payload.len())
                    .map_err(|e| e.to_string())?;
                if frame.payload.is_empty() {
                    return Ok(());
                }
                // Small pieces are joined, so that a window of single bytes does not cost a window of events.
                match (state.events.back_mut(), frame.flags & FLAG_STDERR) {
                    (Some(ExecEvent::Stdout(last)), 0) | (Some(ExecEvent::Stderr(last)), FLAG_STDERR)
                        if last.len() + frame.payload.len() <= MAX_PAYLOAD_BYTES =>
                    {
                        last.extend_from_slice(&frame.payload);
                    }
                    (_, 0) => state.events.push_back(ExecEvent::Stdout(frame.payload)),
                    (_, _) => state.events.push_back(ExecEvent::Stderr(frame.payload)),
                }
            }
            Kind::Credit => {
                let bytes = frame.payload.try_into().map_err(|_| "credit is not a number")?;
                state
                    .send
                    .grant(u32::from_le_bytes(bytes))
                    .map_err(|e| e.to_string())?;
            }
            _ => {
                let finished = from_payload(&frame.payload, "Finished").map_err(|e| e.to_string())?;
                state.events.push_back(ExecEvent::Exit(finished));
                state.finished = true;
            }
        }
        self.changed.notify_all();
        Ok(())
    }

    pub(super) fn disconnect(&self) {
        let mut state = self.lock();
        state.disconnected = true;
        state.reply = None;
        self.changed.notify_all();
    }

    /// Waits until `ready` makes something of the state.
    fn wait<T>(
        &self,
        timeout: Duration,
        mut ready: impl FnMut(&mut InboxState) -> Option<T>,
    ) -> Result<Option<T>, Gone> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(found) = ready(&mut state) {
                return Ok(Some(found));
            }
            if state.disconnected {
                return Err(Gone);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// The connection ended.
struct Gone;

/// Both directions of an open stream.
struct Stream {
    link: Arc<Link>,
    id: u32,
    inbox: Arc<Inbox>,
}

impl Stream {
    fn open(link: &Arc<Link>, request: &Request, timeout: Duration) -> Result<Arc<Self>, AgentError> {
        let (id, inbox) = link.open(request, timeout)?;
        Ok(Arc::new(Self {
            link: Arc::clone(link),
            id,
            inbox,
        }))
    }

    /// Sends bytes as credit allows. `Ok(false)`: the stream has ended and the rest was not wanted.
    fn write_all(&self, mut bytes: &[u8]) -> Result<bool, AgentError> {
        while !bytes.is_empty() {
            let wanted = bytes.len().min(MAX_PAYLOAD_BYTES);
            let taken = self.inbox.wait(CREDIT_TIMEOUT, |state| {
                if state.finished {
                    return Some(0);
                }
                Some(state.send.take(wanted)).filter(|taken| *taken > 0)
            });
            let taken = match taken {
                Ok(Some(0)) => return Ok(false),
                Ok(Some(taken)) => taken,
                Ok(None) => {
                    return Err(AgentError::Timeout {
                        what: "by reading its input",
                    });
                }
                Err(Gone) => return Err(self.link.ended()),
            };
            self.link.send(Kind::Data, 0, self.id, &bytes[..taken])?;
            bytes = &bytes[taken..];
        }
        Ok(true)
    }

    fn end_input(&self) -> Result<(), AgentError> {
        self.link.send(Kind::Data, FLAG_END, self.id, &[])
    }

    fn control(&self, control: Control) -> Result<(), AgentError> {
        self.link.send(Kind::Control, 0, self.id, &to_payload(&control))
    }

    /// The next event within `timeout`; `None` when there was none.
    fn next(&self, timeout: Duration) -> Result<Option<ExecEvent>, AgentError> {
        let taken = self.inbox.wait(timeout, |state| {
            let event = state.events.pop_front()?;
            let length = match &event {
                ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => bytes.len(),
                ExecEvent::Exit(_) => 0,
            };
            let credit = state.receive.consume(length).filter(|_| !state.finished);
            Some((event, credit))
        });
        match taken {
            Ok(Some((event, credit))) => {
                if let Some(credit) = credit {
                    self.link.send(Kind::Credit, 0, self.id, &credit.to_le_bytes())?;
                }
                Ok(Some(event))
            }
            Ok(None) => Ok(None),
            Err(Gone) => Err(self.link.ended()),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let running = {
            let state = self.inbox.lock();
            !state.finished && !state.disconnected
        };
        if running {
            let _ = self.control(Control::Cancel); // a broken connection ends it too
        }
        self.link.forget(self.id);
    }
}

/// A running command. Dropping all its handles hangs up on it.
pub struct AgentExec {
    /// Towards the command.
    pub input: ExecInput,
    /// From the command.
    pub output: ExecOutput,
}

/// Input, terminal size and signals of a running command.
#[derive(Clone)]
pub struct ExecInput {
    stream: Arc<Stream>,
}

/// Output and end of a running command.
pub struct ExecOutput {
    stream: Arc<Stream>,
}

/// How a command went that was waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutcome {
    /// Its end.
    pub status: Finished,
    /// Beginning of its standard output.
    pub stdout: Vec<u8>,
    /// Beginning of its standard error.
    pub stderr: Vec<u8>,
    /// Was output cut off?
    pub truncated: bool,
}

impl ExecOutcome {
    /// Did it exit with code 0?
    pub fn is_success(&self) -> bool {
        self.status == Finished::Exited(0)
    }
}

impl AgentExec {
    pub(super) fn start(link: &Arc<Link>, spec: ExecSpec, timeout: Duration) -> Result<Self, AgentError> {
        let stream = Stream::open(link, &Request::Exec(spec), timeout)?;
        Ok(Self {
            input: ExecInput {
                stream: Arc::clone(&stream),
            },
            output: ExecOutput { stream },
        })
    }

    /// Feeds the command and gathers its output until it ends. When `timeout` is over it is killed.
    pub fn wait(
        self,
        input: &[u8],
        limit_bytes: usize,
        timeout: Duration,
    ) -> Result<ExecOutcome, AgentError> {
        let deadline = Instant::now() + timeout;
        let Self {
            input: writer,
            output,
        } = self;
        std::thread::scope(|scope| {
            let killer = writer.clone();
            if !input.is_empty() {
                scope.spawn(move || writer.write_all(input).and_then(|()| writer.close()));
            }
            let mut outcome = ExecOutcome {
                status: Finished::Copied,
                stdout: Vec::new(),
                stderr: Vec::new(),
                truncated: false,
            };
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let (bytes, kept) = match output.next(left) {
                    Ok(Some(ExecEvent::Stdout(bytes))) => (bytes, &mut outcome.stdout),
                    Ok(Some(ExecEvent::Stderr(bytes))) => (bytes, &mut outcome.stderr),
                    Ok(Some(ExecEvent::Exit(Finished::Failed(error)))) => {
                        return Err(AgentError::Remote(error));
                    }
                    Ok(Some(ExecEvent::Exit(status))) => return Ok(ExecOutcome { status, ..outcome }),
                    Ok(None) => {
                        let _ = killer.signal(9); // the timeout is what is reported
                        killer.abandon();
                        return Err(AgentError::Timeout {
                            what: "by ending a command",
                        });
                    }
                    Err(error) => return Err(error),
                };
                let room = limit_bytes.saturating_sub(kept.len()).min(bytes.len());
                kept.extend_from_slice(&bytes[..room]);
                outcome.truncated |= room < bytes.len();
            }
        })
    }
}

impl ExecInput {
    /// Sends input; waits while the command does not read. Input after the command's end is dropped.
    pub fn write_all(&self, bytes: &[u8]) -> Result<(), AgentError> {
        self.stream.write_all(bytes).map(|_| ())
    }

    /// No more input follows.
    pub fn close(&self) -> Result<(), AgentError> {
        self.stream.end_input()
    }

    /// The terminal has a new size.
    pub fn resize(&self, size: TtySize) -> Result<(), AgentError> {
        self.stream.control(Control::Resize(size))
    }

    /// Sends a signal to the command's process group.
    pub fn signal(&self, signal: i32) -> Result<(), AgentError> {
        self.stream.control(Control::Signal(signal))
    }

    /// Wakes a writer that waits for credit.
    fn abandon(&self) {
        self.stream.inbox.disconnect();
    }
}

impl ExecOutput {
    /// The next event within `timeout`; `None` when there was none. Nothing follows [`ExecEvent::Exit`].
    ///
    /// A command may say nothing for as long as it likes. Whether its agent still lives is asked meanwhile: one that was
    /// killed and started again knows nothing of the command, whose end nobody would hear of.
    pub fn next(&self, timeout: Duration) -> Result<Option<ExecEvent>, AgentError> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.stream.next(left.min(SILENCE_MAX))? {
                None if left > SILENCE_MAX => self.stream.link.look_for_agent(),
                event => return Ok(event),
            }
        }
    }
}

/// A tar stream out of the guest. Reading fails when the guest could not read all of it, and at its end only when it
/// was complete.
pub struct TarReader {
    stream: Arc<Stream>,
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
}

impl TarReader {
    pub(super) fn start(link: &Arc<Link>, path: &str, timeout: Duration) -> Result<Self, AgentError> {
        let stream = Stream::open(link, &Request::ReadPath { path: path.into() }, timeout)?;
        Ok(Self {
            stream,
            chunk: Vec::new(),
            at: 0,
            ended: false,
        })
    }
}

impl Read for TarReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            if self.ended || buffer.is_empty() {
                return Ok(0);
            }
            match self.stream.next(CREDIT_TIMEOUT).map_err(io::Error::other)? {
                Some(ExecEvent::Stdout(bytes)) => (self.chunk, self.at) = (bytes, 0),
                Some(ExecEvent::Stderr(_)) => {}
                Some(ExecEvent::Exit(Finished::Copied)) => self.ended = true,
                Some(ExecEvent::Exit(finished)) => return Err(copy_failed(finished)),
                None => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        let count = buffer.len().min(self.chunk.len() - self.at);
        buffer[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

fn copy_failed(finished: Finished) -> io::Error {
    match finished {
        Finished::Failed(error) => io::Error::other(AgentError::Remote(error)),
        other => io::Error::other(AgentError::protocol(format!("a copy ended with {other:?}"))),
    }
}

/// A tar stream into the guest.
pub struct TarWriter {
    stream: Arc<Stream>,
}

impl TarWriter {
    pub(super) fn start(link: &Arc<Link>, path: &str, timeout: Duration) -> Result<Self, AgentError> {
        let stream = Stream::open(link, &Request::WritePath { path: path.into() }, timeout)?;
        Ok(Self { stream })
    }

    /// Ends the stream and waits until the guest has written everything.
    pub fn finish(self, timeout: Duration) -> Result<(), AgentError> {
        if !self.stream.inbox.lock().finished {
            self.stream.end_input()?;
        }
        match self.stream.next(timeout)? {
            Some(ExecEvent::Exit(Finished::Copied)) => Ok(()),
            Some(ExecEvent::Exit(Finished::Failed(error))) => Err(AgentError::Remote(error)),
            Some(other) => Err(AgentError::protocol(format!("a copy answered with {other:?}"))),
            None => Err(AgentError::Timeout {
                what: "the end of a copy",
            }),
        }
    }
}

impl Write for TarWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.stream.write_all(bytes).map_err(io::Error::other)? {
            true => Ok(bytes.len()),
            false => Err(match self.stream.next(Duration::ZERO) {
                Ok(Some(ExecEvent::Exit(finished))) => copy_failed(finished),
                _ => io::ErrorKind::BrokenPipe.into(),
            }),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
