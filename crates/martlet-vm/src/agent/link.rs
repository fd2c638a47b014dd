//! The socket: one reader thread, many writers, and the table of who waits for which stream.

use super::stream::Inbox;
use super::{AgentClient, AgentError};
use martlet_agent_api::frame::{self, Frame, Kind, PREAMBLE_BYTES};
use martlet_agent_api::guest::Ask;
use martlet_agent_api::{
    Control, Decoder, FEATURE_ASKS, Hello, HelloReply, PROTOCOL, PROTOCOL_OLDEST, Reply, Request, Response,
    Start, from_payload, to_payload,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Read at once from a guest: each machine has a buffer of its own, and QEMU passes on no more than a few pages.
const READ_BYTES: usize = 16 << 10;

/// A guest that has not taken a frame for this long is not going to.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// A clone's stream begins with the rest of one frame that its parent was sending, so a few are normal.
const DAMAGED_FRAMES_MAX: u64 = 256;

/// Calls that may come before somebody takes them: an agent has fewer at the same time.
const EARLY_CALLS_MAX: usize = 64;

/// An agent that lives says so within this time, or is slow.
const LIFE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for an answer to Hello before it is sent again.
const HELLO_RETRY_MAX: Duration = Duration::from_secs(2);

/// What is known of the agent that is greeted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    /// Its guest boots: it is not there yet and hears nothing, so it is greeted again soon.
    Booting,
    /// It is there, perhaps slow: another greeting would be more work for it.
    There,
}

enum Waiter {
    Reply(SyncSender<Reply>),
    Stream(Arc<Inbox>),
}

struct Table {
    waiters: HashMap<u32, Waiter>,
    hello: Option<SyncSender<HelloReply>>,
    next_stream: u32,
    closed: Option<String>,
}

/// Who takes the calls of a guest's programs: their numbers, and what they ask. It must not wait.
pub type CallTaker = Box<dyn Fn(AgentClient, u32, Ask) + Send + Sync>;

#[derive(Default)]
struct Calls {
    taker: Option<Arc<CallTaker>>,
    /// Those that came before there was one.
    early: Vec<(u32, Ask)>,
}

/// The connection that the handles of one client share.
pub(super) struct Link {
    epoch: u64,
    socket: Arc<UnixStream>,
    /// Held by who writes.
    writing: Mutex<()>,
    table: Mutex<Table>,
    /// Calls of the guest's programs.
    calls: Mutex<Calls>,
    /// A request was not answered in time, and nothing has been heard since: the guest is slow, or its agent is a new
    /// one that does not know this epoch.
    silent: AtomicBool,
    /// Who greets an agent again.
    greeting: Mutex<()>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Link(epoch {:016x})", self.epoch)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    pub(super) fn start(socket: UnixStream, epoch: u64) -> Result<Arc<Self>, AgentError> {
        let socket = Arc::new(socket);
        set_write_timeout(&socket)?;
        let table = Table {
            waiters: HashMap::new(),
            hello: None,
            next_stream: 1,
            closed: None,
        };
        let link = Arc::new(Self {
            epoch,
            socket: socket.clone(),
            writing: Mutex::new(()),
            table: Mutex::new(table),
            calls: Mutex::default(),
            silent: AtomicBool::new(false),
            greeting: Mutex::new(()),
        });
        start_reader(socket, Arc::downgrade(&link))?;
        Ok(link)
    }

    /// Sends Hello until it is answered.
    pub(super) fn hello(
        &self,
        start: Start,
        awaited: Awaited,
        timeout: Duration,
    ) -> Result<HelloReply, AgentError> {
        let hello = to_payload(&Hello {
            protocol: PROTOCOL,
            protocol_oldest: PROTOCOL_OLDEST,
            start,
            features: vec![FEATURE_ASKS.to_owned()],
        });
        let (sender, receiver) = sync_channel(1);
        lock(&self.table).hello = Some(sender);
        let deadline = Instant::now() + timeout;
        let mut patience = match awaited {
            Awaited::Booting => Duration::from_millis(50),
            Awaited::There => Duration::from_millis(300),
        };
        self.send(Kind::Hello, 0, 0, &hello)?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(patience.min(left)) {
                Ok(reply) => return Ok(reply),
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
                Err(RecvTimeoutError::Timeout) if left <= patience => {
                    return Err(AgentError::Timeout { what: "the greeting" });
                }
                Err(RecvTimeoutError::Timeout) => patience = (patience * 2).min(HELLO_RETRY_MAX),
            }
            if !self.is_read() {
                continue; // it boots yet and finds the greeting later; more of them would fill the socket
            }
            // Perhaps the guest still waits for the rest of a frame of its former life.
            self.write(&vec![0; PREAMBLE_BYTES])?;
            self.send(Kind::Hello, 0, 0, &hello)?;
        }
    }

    /// Makes sure that a silent agent knows this epoch. One that is only slow takes it for what it is, a repetition;
    /// a new one has none of what was begun before.
    fn greet_again_if_silent(&self, timeout: Duration) -> Result<(), AgentError> {
        let _one_at_a_time = lock(&self.greeting);
        if !self.silent.load(Ordering::SeqCst) {
            return Ok(());
        }
        if self.hello(Start::Same, Awaited::There, timeout)?.new_epoch {
            let lost = std::mem::take(&mut lock(&self.table).waiters);
            disconnect(lost);
        }
        Ok(())
    }

    /// Asks for a sign of life. What is not answered is noted, and the agent greeted again the next time: if it is another
    /// one then, everything that was begun with its predecessor is at its end.
    pub(super) fn look_for_agent(&self) {
        let _ = self.request(&Request::Ping, LIFE_TIMEOUT); // noted by itself
    }

    pub(super) fn request(&self, request: &Request, timeout: Duration) -> Result<Response, AgentError> {
        self.greet_again_if_silent(timeout)?;
        self.request_unchecked(request, timeout)
    }

    /// The same, also when nobody may be there to hear it.
    pub(super) fn request_unchecked(
        &self,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, AgentError> {
        let (sender, receiver) = sync_channel(1);
        let stream = self.register(Waiter::Reply(sender))?;
        let sent = self.send_request(stream, request);
        let answer = sent.and_then(|()| self.await_reply(&receiver, timeout));
        self.forget(stream);
        answer
    }

    /// Opens a stream: the request that starts it, and the inbox that its frames go to from then on.
    pub(super) fn open(&self, request: &Request, timeout: Duration) -> Result<(u32, Arc<Inbox>), AgentError> {
        self.greet_again_if_silent(timeout)?;
        let (sender, receiver) = sync_channel(1);
        let inbox = Arc::new(Inbox::new(sender));
        let stream = self.register(Waiter::Stream(Arc::clone(&inbox)))?;
        let sent = self.send_request(stream, request);
        match sent.and_then(|()| self.await_reply(&receiver, timeout)) {
            Ok(Response::Started) => Ok((stream, inbox)),
            Ok(_) => {
                self.forget(stream);
                Err(AgentError::protocol("a stream was not answered by Started"))
            }
            Err(error) => {
                self.forget(stream);
                if matches!(error, AgentError::Timeout { .. }) {
                    // It may start yet, and nobody will attend to it.
                    let _ = self.send(Kind::Control, 0, stream, &to_payload(&Control::Cancel));
                }
                Err(error)
            }
        }
    }

    fn send_request(&self, stream: u32, request: &Request) -> Result<(), AgentError> {
        let payload = to_payload(request);
        if payload.len() > frame::MAX_PAYLOAD_BYTES {
            return Err(AgentError::Remote(martlet_agent_api::RemoteError {
                kind: martlet_agent_api::RemoteErrorKind::Invalid,
                message: format!(
                    "arguments and environment of {} bytes are too long",
                    payload.len()
                ),
            }));
        }
        self.send(Kind::Request, 0, stream, &payload)
    }

    fn await_reply(&self, receiver: &Receiver<Reply>, timeout: Duration) -> Result<Response, AgentError> {
        match receiver.recv_timeout(timeout) {
            Ok(reply) => Ok(reply?),
            Err(RecvTimeoutError::Timeout) => {
                self.silent.store(true, Ordering::SeqCst);
                Err(AgentError::Timeout { what: "a request" })
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.ended()),
        }
    }

    fn register(&self, waiter: Waiter) -> Result<u32, AgentError> {
        let mut table = lock(&self.table);
        if table.closed.is_some() {
            drop(table);
            return Err(self.ended());
        }
        let mut stream = table.next_stream;
        while stream == 0 || table.waiters.contains_key(&stream) {
            stream = stream.wrapping_add(1);
        }
        table.next_stream = stream.wrapping_add(1);
        table.waiters.insert(stream, waiter);
        Ok(stream)
    }

    pub(super) fn forget(&self, stream: u32) {
        lock(&self.table).waiters.remove(&stream);
    }

    pub(super) fn send(&self, kind: Kind, flags: u8, stream: u32, payload: &[u8]) -> Result<(), AgentError> {
        let mut bytes = Vec::with_capacity(frame::HEADER_BYTES + payload.len());
        frame::encode(kind, flags, stream, self.epoch, payload, &mut bytes);
        self.write(&bytes)
    }

    fn write(&self, bytes: &[u8]) -> Result<(), AgentError> {
        let _one_at_a_time = lock(&self.writing);
        (&*self.socket).write_all(bytes).map_err(|error| {
            // Half a frame may have gone out: this connection is of no more use.
            self.close(None);
            match error.kind() {
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => AgentError::Timeout {
                    what: "by reading its port",
                },
                _ => self.ended(),
            }
        })
    }

    /// The other side takes what it is sent: Linux calls a unix socket writable while most of its buffer is free.
    fn is_read(&self) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    pub(super) fn take_calls(self: &Arc<Self>, taker: CallTaker) {
        let taker = Arc::new(taker);
        let early = {
            let mut calls = lock(&self.calls);
            calls.taker = Some(taker.clone());
            std::mem::take(&mut calls.early)
        };
        for (number, ask) in early {
            taker(AgentClient { link: self.clone() }, number, ask);
        }
    }

    fn called(self: &Arc<Self>, number: u32, ask: Ask) -> Result<(), String> {
        let taker = {
            let mut calls = lock(&self.calls);
            match calls.taker.clone() {
                Some(taker) => taker,
                None if calls.early.len() < EARLY_CALLS_MAX => {
                    calls.early.push((number, ask));
                    return Ok(());
                }
                None => return Err("the guest calls too often".into()),
            }
        };
        taker(AgentClient { link: self.clone() }, number, ask);
        Ok(())
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.table).closed.is_some()
    }

    /// Why nothing can be had any more.
    pub(super) fn ended(&self) -> AgentError {
        match &lock(&self.table).closed {
            Some(reason) if !reason.is_empty() => AgentError::protocol(reason.clone()),
            _ => AgentError::Disconnected,
        }
    }

    /// Ends the connection; with a reason when it is the guest's fault.
    pub(super) fn close(&self, reason: Option<String>) {
        let waiters = {
            let mut table = lock(&self.table);
            table.closed.get_or_insert(reason.unwrap_or_default());
            table.hello = None;
            std::mem::take(&mut table.waiters)
        };
        disconnect(waiters);
        // Already closed by the other side is just as well.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn dispatch(self: &Arc<Self>, frame: Frame) -> Result<(), String> {
        if frame.epoch != self.epoch {
            return Ok(()); // late output of a former life
        }
        self.silent.store(false, Ordering::SeqCst);
        match frame.kind {
            Kind::HelloReply => {
                let reply: HelloReply =
                    from_payload(&frame.payload, "HelloReply").map_err(|e| e.to_string())?;
                if let Some(sender) = lock(&self.table).hello.take() {
                    let _ = sender.try_send(reply); // the caller may have given up
                }
                Ok(())
            }
            Kind::Reply => {
                let reply: Reply = from_payload(&frame.payload, "Reply").map_err(|e| e.to_string())?;
                match lock(&self.table).waiters.get(&frame.stream) {
                    Some(Waiter::Reply(sender)) => drop(sender.try_send(reply)),
                    Some(Waiter::Stream(inbox)) => inbox.reply(reply),
                    None => {} // nobody waits any more
                }
                Ok(())
            }
            Kind::Data | Kind::Credit | Kind::Finished => {
                let inbox = match lock(&self.table).waiters.get(&frame.stream) {
                    Some(Waiter::Stream(inbox)) => Arc::clone(inbox),
                    _ => return Ok(()),
                };
                inbox.accept(frame)
            }
            Kind::Ask => {
                let ask: Ask = from_payload(&frame.payload, "Ask").map_err(|e| e.to_string())?;
                self.called(frame.stream, ask)
            }
            Kind::Hello | Kind::Request | Kind::Control => Err(format!("the guest sent a {:?}", frame.kind)),
        }
    }
}

fn disconnect(waiters: HashMap<u32, Waiter>) {
    for waiter in waiters.into_values() {
        if let Waiter::Stream(inbox) = waiter {
            inbox.disconnect();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both); // wakes the reader
    }
}

fn set_write_timeout(socket: &UnixStream) -> Result<(), AgentError> {
    socket
        .set_write_timeout(Some(WRITE_TIMEOUT))
        .map_err(AgentError::Connect)
}

fn start_reader(socket: Arc<UnixStream>, link: Weak<Link>) -> Result<(), AgentError> {
    std::thread::Builder::new()
        .name("agent-reader".into())
        .spawn(move || read_frames(&socket, &link))
        .map_err(AgentError::Connect)
        .map(drop)
}

fn read_frames(mut socket: &UnixStream, link: &Weak<Link>) {
    let mut decoder = Decoder::new();
    let mut buffer = vec![0; READ_BYTES];
    let reason = loop {
        let count = match socket.read(&mut buffer) {
            Ok(0) => break None,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break None,
        };
        let Some(link) = link.upgrade() else { return };
        decoder.push(&buffer[..count]);
        let mut fault = None;
        while let Some(frame) = decoder.next_frame() {
            if let Err(reason) = link.dispatch(frame) {
                fault = Some(reason);
                break;
            }
        }
        if fault.is_none() && decoder.damaged() > DAMAGED_FRAMES_MAX {
            fault = Some("too many damaged frames".into());
        }
        if fault.is_some() {
            break fault;
        }
    };
    if let Some(link) = link.upgrade() {
        link.close(reason);
    }
}
