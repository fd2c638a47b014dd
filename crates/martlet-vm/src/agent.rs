//! The host's end of the agent channel.
//!
//! One thread reads the socket and hands frames to whoever waits for their stream; callers write frames themselves.
//! A guest is hostile: a reply is bounded by its frame, a stream by its credit window, and a guest that overdraws a
//! window, keeps sending damaged frames or answers with the wrong message ends the connection ([`AgentError::Protocol`]).
//! Everything waits at most as long as its caller said.
//!
//! ```text
//! connect ──hello──► ready ──────────────► closed   (socket ended, guest talked nonsense, a write stalled)
//! ```

mod error;
mod link;
mod stream;
#[cfg(test)]
mod tests;

pub use error::AgentError;
pub use stream::{AgentExec, ExecEvent, ExecInput, ExecOutcome, ExecOutput, TarReader, TarWriter};

pub use link::CallTaker;
use link::{Awaited, Link};
use martlet_agent_api::guest::GuestReply;
use martlet_agent_api::{
    Command, ExecSpec, HelloReply, Identified, Identity, Metrics, PROTOCOL, PROTOCOL_OLDEST, Prepared,
    Request, Response, Start,
};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Ordinary requests are answered within this time, or the guest is not well.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to the agent of one guest. Clones share it.
#[derive(Clone, Debug)]
pub struct AgentClient {
    link: Arc<Link>,
}

impl AgentClient {
    /// Connects to the socket of the guest's agent port, waiting for the socket to appear. `epoch` is a random number
    /// never used before: the guest drops what was meant for any other.
    pub fn connect(socket: &Path, epoch: u64, timeout: Duration) -> Result<Self, AgentError> {
        let deadline = Instant::now() + timeout;
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => return Self::over(stream, epoch),
                Err(error) if Instant::now() >= deadline => return Err(AgentError::Connect(error)),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// Takes a connected socket.
    pub fn over(stream: UnixStream, epoch: u64) -> Result<Self, AgentError> {
        Ok(Self {
            link: Link::start(stream, epoch)?,
        })
    }

    /// Introduces the host to an agent that is there, perhaps slow, and waits for its answer.
    pub fn hello(&self, start: Start, timeout: Duration) -> Result<HelloReply, AgentError> {
        self.greet(start, Awaited::There, timeout)
    }

    /// Introduces the host to the agent of a guest that boots, as soon as it is there.
    pub fn hello_booting(&self, timeout: Duration) -> Result<HelloReply, AgentError> {
        self.greet(Start::Same, Awaited::Booting, timeout)
    }

    fn greet(&self, start: Start, awaited: Awaited, timeout: Duration) -> Result<HelloReply, AgentError> {
        let reply = self.link.hello(start, awaited, timeout)?;
        if !(PROTOCOL_OLDEST..=PROTOCOL).contains(&reply.protocol) {
            return Err(AgentError::Version {
                agent_version: reply.agent_version,
            });
        }
        Ok(reply)
    }

    /// Round trip.
    pub fn ping(&self, timeout: Duration) -> Result<(), AgentError> {
        self.done(Request::Ping, timeout)
    }

    /// Holds user code. On failure nothing is held.
    pub fn prepare(&self, timeout: Duration) -> Result<Prepared, AgentError> {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let patience = timeout + Duration::from_secs(5);
        match self.link.request(&Request::Prepare { timeout_ms }, patience)? {
            Response::Prepared(prepared) => Ok(prepared),
            _ => Err(AgentError::protocol("Prepare was not answered by Prepared")),
        }
    }

    /// Lets user code go on, with the clock stepped first when a time is given. How long it was held, by the guest's clock,
    /// if the agent can tell.
    pub fn release(&self, realtime_unix_ns: Option<u64>) -> Result<Option<Duration>, AgentError> {
        let request = Request::Release {
            realtime_unix_ns,
            tell: true,
        };
        match self.link.request(&request, REPLY_TIMEOUT)? {
            Response::Released { held_ms } if (0.0..1e12).contains(&held_ms) => {
                Ok(Some(Duration::from_secs_f64(held_ms / 1e3)))
            }
            Response::Released { .. } | Response::Done => Ok(None),
            _ => Err(AgentError::protocol("Release was not answered by Released")),
        }
    }

    /// Tells user code to go on without waiting for the answer: a guest that does not answer now may hold it later.
    pub fn release_unheard(&self) {
        let unheard = self.link.request_unchecked(
            &Request::Release {
                realtime_unix_ns: None,
                tell: false,
            },
            Duration::ZERO,
        );
        if !matches!(unheard, Ok(_) | Err(AgentError::Timeout { .. })) {
            self.close();
        }
    }

    /// Gives the guest its identity; an error when a step failed that must not.
    pub fn identify(&self, identity: &Identity, timeout: Duration) -> Result<Identified, AgentError> {
        match self
            .link
            .request(&Request::Identify(Box::new(identity.clone())), timeout)?
        {
            Response::Identified(identified) if identified.complete => Ok(identified),
            Response::Identified(identified) => Err(AgentError::NotIdentified(Box::new(identified))),
            _ => Err(AgentError::protocol("Identify was not answered by Identified")),
        }
    }

    /// Starts a command.
    pub fn exec(&self, spec: ExecSpec) -> Result<AgentExec, AgentError> {
        AgentExec::start(&self.link, spec, REPLY_TIMEOUT)
    }

    /// Runs a command to its end with `input` on its standard input; each output is cut off after `limit_bytes`.
    pub fn exec_wait(
        &self,
        command: Command,
        input: &[u8],
        limit_bytes: usize,
        timeout: Duration,
    ) -> Result<ExecOutcome, AgentError> {
        let spec = ExecSpec {
            command,
            tty: None,
            stdin: !input.is_empty(),
        };
        self.exec(spec)?.wait(input, limit_bytes, timeout)
    }

    /// A file or directory of the guest as a tar stream. A directory's entries begin with its last path component.
    pub fn read_path(&self, path: &str) -> Result<TarReader, AgentError> {
        TarReader::start(&self.link, path, REPLY_TIMEOUT)
    }

    /// Takes a tar stream and unpacks it in a directory of the guest. Call [`TarWriter::finish`].
    pub fn write_path(&self, path: &str) -> Result<TarWriter, AgentError> {
        TarWriter::start(&self.link, path, REPLY_TIMEOUT)
    }

    /// How the guest is.
    pub fn metrics(&self) -> Result<Metrics, AgentError> {
        match self.link.request(&Request::Metrics, REPLY_TIMEOUT)? {
            Response::Metrics(metrics) => Ok(metrics),
            _ => Err(AgentError::protocol("Metrics was not answered by Metrics")),
        }
    }

    /// Discards unused blocks; the number of bytes discarded.
    pub fn fstrim(&self, timeout: Duration) -> Result<u64, AgentError> {
        match self.link.request(&Request::Fstrim, timeout)? {
            Response::Trimmed { bytes } => Ok(bytes),
            _ => Err(AgentError::protocol("Fstrim was not answered by Trimmed")),
        }
    }

    /// Writes dirty pages of all file systems to their disks.
    pub fn sync_fs(&self, timeout: Duration) -> Result<(), AgentError> {
        self.done(Request::SyncFs, timeout)
    }

    /// Has the guest forget what it keeps of files, dirty pages excepted.
    pub fn drop_caches(&self, timeout: Duration) -> Result<(), AgentError> {
        self.done(Request::DropCaches, timeout)
    }

    /// Freezes the file systems on disks; they thaw by themselves after `hold`. The number of file systems.
    pub fn freeze_fs(&self, hold: Duration) -> Result<u32, AgentError> {
        let timeout_ms = u32::try_from(hold.as_millis()).unwrap_or(u32::MAX);
        self.file_systems(Request::FreezeFs { timeout_ms })
    }

    /// Thaws them; the number that were still frozen.
    pub fn thaw_fs(&self) -> Result<u32, AgentError> {
        self.file_systems(Request::ThawFs)
    }

    /// Sets the machine's own command. It starts at once, or at the release when user code is held.
    pub fn start_command(&self, command: &Command) -> Result<(), AgentError> {
        self.done(Request::StartCommand(command.clone()), REPLY_TIMEOUT)
    }

    /// Asks for an orderly end of the guest. The answer comes before the end.
    pub fn shutdown(&self, reboot: bool) -> Result<(), AgentError> {
        self.done(Request::Shutdown { reboot }, REPLY_TIMEOUT)
    }

    /// Grows the root file system to its disk; its size in bytes.
    pub fn grow_root(&self, timeout: Duration) -> Result<u64, AgentError> {
        match self.link.request(&Request::GrowRoot, timeout)? {
            Response::Grown { size_bytes } => Ok(size_bytes),
            _ => Err(AgentError::protocol("GrowRoot was not answered by Grown")),
        }
    }

    /// From now on calls of the guest's programs go to `taker`; those that have come already too. Each is to be answered
    /// ([`AgentClient::answer`]), at some time.
    pub fn take_calls(&self, taker: CallTaker) {
        self.link.take_calls(taker);
    }

    /// Answers a call of a program in the guest.
    pub fn answer(&self, call: u32, reply: GuestReply) -> Result<(), AgentError> {
        self.done(Request::Answer { ask: call, reply }, REPLY_TIMEOUT)
    }

    /// Is the connection at its end?
    pub fn is_closed(&self) -> bool {
        self.link.is_closed()
    }

    /// Ends the connection; everything that waits on it fails.
    pub fn close(&self) {
        self.link.close(None);
    }

    fn done(&self, request: Request, timeout: Duration) -> Result<(), AgentError> {
        match self.link.request(&request, timeout)? {
            Response::Done => Ok(()),
            _ => Err(AgentError::protocol("a request was not answered by Done")),
        }
    }

    fn file_systems(&self, request: Request) -> Result<u32, AgentError> {
        match self.link.request(&request, REPLY_TIMEOUT)? {
            Response::FileSystems { count } => Ok(count),
            _ => Err(AgentError::protocol(
                "a file system request was not answered by FileSystems",
            )),
        }
    }
}
