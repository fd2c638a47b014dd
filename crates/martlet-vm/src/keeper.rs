//! The keeper: a small process that holds what must outlive the daemon.
//!
//! ```text
//!   martletd ──seqpacket socket──► keeper ──parent of──► qemu, qemu, …
//!      ▲                             │ holds named descriptors (the FUSE connection)
//!      └── restarts, connects again ─┘ remembers how each child ended, and its last words
//! ```
//!
//! It does nothing by itself, so it has no reason to die. If it is killed all the same, its client starts another and
//! gives it everything again: descriptors, and the processes that it was the parent of, which it can signal and see the
//! end of as well, only not how they ended ([`KeeperClient::adopt`]). One thread waits for the listening socket, its clients and
//! its children (a pidfd each; no signal handlers). A request is one packet of JSON with descriptors attached, the reply
//! is another. It ends when it is told to, or when nobody could ever want anything from it again: no living child, no
//! client, and its socket gone from the file system.

use crate::fd_passing;
use crate::process::{ChildState, SpawnError, SpawnRequest, Spawner, start_detached};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

mod server;

/// Largest request or reply.
const PACKET_MAX: usize = 128 << 10;
/// How long the keeper may take to answer.
const ANSWER_TIMEOUT_S: i64 = 10;
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A child of the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildInfo {
    /// Its process id.
    pub pid: u32,
    /// What it is for: [`SpawnRequest::tag`].
    pub tag: String,
    /// What has become of it.
    pub state: ChildState,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Request {
    Spawn(Box<SpawnRequest>),
    Adopt { pid: u32, tag: String, log: PathBuf },
    Signal { pid: u32, signal: i32 },
    State { pid: u32 },
    Forget { pid: u32 },
    Children,
    PutFd { name: String },
    GetFd { name: String },
    RemoveFd { name: String },
    Exit,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Done,
    Pid(u32),
    State(ChildState),
    Children(Vec<ChildInfo>),
    NoSuchChild(u32),
    NoSuchFd,
    BadRequest(String),
    Refused(String),
}

/// The body of the keeper's process: serves until there is nothing left to keep. Fails if another keeper serves this
/// socket already.
pub fn run(socket_path: &Path) -> io::Result<()> {
    if connect_to(socket_path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "a keeper serves this socket already",
        ));
    }
    // What a keeper that was killed has left behind.
    if let Err(e) = std::fs::remove_file(socket_path)
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(e);
    }
    let listener = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    bind(listener.as_raw_fd(), &UnixAddr::new(socket_path)?)?;
    std::fs::set_permissions(socket_path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    listen(&listener, Backlog::new(16)?)?;
    server::serve(listener, socket_path)
}

fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let stream = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
    let timeout = TimeVal::seconds(ANSWER_TIMEOUT_S);
    setsockopt(&stream, sockopt::ReceiveTimeout, &timeout)?;
    setsockopt(&stream, sockopt::SendTimeout, &timeout)?;
    Ok(stream)
}

/// How a keeper is started: `program args...`, as a process of nobody's. The program must call [`run`] with this
/// socket. What it says goes to `log`.
#[derive(Debug, Clone)]
pub struct KeeperProgram {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where it listens.
    pub socket: PathBuf,
    /// Where its output is appended.
    pub log: PathBuf,
}

impl KeeperProgram {
    fn start(&self) -> Result<OwnedFd, SpawnError> {
        start_detached(&self.program, &self.args, &self.log)?;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match connect_to(&self.socket) {
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                other => return other.map_err(lost),
            }
        }
    }
}

/// A connection to the keeper.
#[derive(Debug)]
pub struct KeeperClient {
    socket: Mutex<OwnedFd>,
}

impl KeeperClient {
    /// Connects to a keeper that runs.
    pub fn connect(socket_path: &Path) -> Result<Self, SpawnError> {
        let socket = connect_to(socket_path).map_err(lost)?;
        Ok(Self {
            socket: Mutex::new(socket),
        })
    }

    /// Connects to the keeper, after starting it if there is none.
    pub fn connect_or_start(program: &KeeperProgram) -> Result<Self, SpawnError> {
        let socket = connect_to(&program.socket).or_else(|_| program.start())?;
        Ok(Self {
            socket: Mutex::new(socket),
        })
    }

    /// Waits for the keeper's end.
    pub fn wait_until_lost(&self) -> Result<(), SpawnError> {
        let socket = self.socket.lock().unwrap_or_else(|e| e.into_inner()).try_clone();
        let socket = socket.map_err(lost)?;
        // The end of the other side is told without being asked for.
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(lost(e.into())),
            }
        }
    }

    /// Starts another keeper in place of one that has ended. It has nothing yet: see [`KeeperClient::put_fd`] and
    /// [`KeeperClient::adopt`].
    pub fn replace(&self, program: &KeeperProgram) -> Result<(), SpawnError> {
        let new = program.start()?;
        *self.socket.lock().unwrap_or_else(|e| e.into_inner()) = new;
        Ok(())
    }

    /// Gives it a process that another keeper was the parent of. The caller knows that it is still the same process.
    pub fn adopt(&self, pid: u32, tag: &str, log: &Path) -> Result<(), SpawnError> {
        let (tag, log) = (tag.into(), log.into());
        done(self.ask(&Request::Adopt { pid, tag, log }, &[])?.0)
    }

    /// All children that have not been forgotten.
    pub fn children(&self) -> Result<Vec<ChildInfo>, SpawnError> {
        match self.ask(&Request::Children, &[])?.0 {
            Reply::Children(children) => Ok(children),
            other => Err(unexpected(other)),
        }
    }

    /// Gives a descriptor to hold under a name, in place of any other of that name.
    pub fn put_fd(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), SpawnError> {
        done(self.ask(&Request::PutFd { name: name.into() }, &[fd])?.0)
    }

    /// A copy of the descriptor held under a name, if there is one.
    pub fn get_fd(&self, name: &str) -> Result<Option<OwnedFd>, SpawnError> {
        match self.ask(&Request::GetFd { name: name.into() }, &[])? {
            (Reply::Done, mut fds) if fds.len() == 1 => Ok(fds.pop()),
            (Reply::NoSuchFd, _) => Ok(None),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Lets go of the descriptor held under a name.
    pub fn remove_fd(&self, name: &str) -> Result<(), SpawnError> {
        done(self.ask(&Request::RemoveFd { name: name.into() }, &[])?.0)
    }

    /// Tells the keeper to end. Its children go on, as nobody's.
    pub fn exit(&self) -> Result<(), SpawnError> {
        done(self.ask(&Request::Exit, &[])?.0)
    }

    fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>), SpawnError> {
        let bytes = serde_json::to_vec(request).map_err(|e| SpawnError::Keeper(e.to_string()))?;
        if bytes.len() > PACKET_MAX {
            let program = "the program".into();
            return Err(SpawnError::BadRequest {
                program,
                reason: format!("{} bytes of arguments", bytes.len()),
            });
        }
        let socket = self.socket.lock().unwrap_or_else(|e| e.into_inner());
        fd_passing::send(socket.as_fd(), &bytes, fds).map_err(lost)?;
        let mut buffer = vec![0; PACKET_MAX];
        let (size, fds) = fd_passing::receive(socket.as_fd(), &mut buffer).map_err(lost)?;
        if size == 0 {
            return Err(SpawnError::Keeper("it has closed the connection".into()));
        }
        let reply = serde_json::from_slice(&buffer[..size]).map_err(|e| SpawnError::Keeper(e.to_string()))?;
        Ok((reply, fds))
    }
}

impl Spawner for KeeperClient {
    fn spawn(&self, request: &SpawnRequest, fds: Vec<OwnedFd>) -> Result<u32, SpawnError> {
        let program = request.argv.first().cloned().unwrap_or_default();
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        match self.ask(&Request::Spawn(Box::new(request.clone())), &borrowed)?.0 {
            Reply::Pid(pid) => Ok(pid),
            Reply::BadRequest(reason) => Err(SpawnError::BadRequest { program, reason }),
            Reply::Refused(reason) => Err(SpawnError::Refused { program, reason }),
            other => Err(unexpected(other)),
        }
    }

    fn signal(&self, pid: u32, signal: i32) -> Result<(), SpawnError> {
        done(self.ask(&Request::Signal { pid, signal }, &[])?.0)
    }

    fn state(&self, pid: u32) -> Result<ChildState, SpawnError> {
        match self.ask(&Request::State { pid }, &[])?.0 {
            Reply::State(state) => Ok(state),
            other => Err(unexpected(other)),
        }
    }

    fn forget(&self, pid: u32) -> Result<(), SpawnError> {
        done(self.ask(&Request::Forget { pid }, &[])?.0)
    }
}

fn done(reply: Reply) -> Result<(), SpawnError> {
    match reply {
        Reply::Done => Ok(()),
        other => Err(unexpected(other)),
    }
}

fn unexpected(reply: Reply) -> SpawnError {
    match reply {
        Reply::NoSuchChild(pid) => SpawnError::NoSuchChild(pid),
        other => SpawnError::Keeper(format!("it answers {other:?}")),
    }
}

fn lost(e: io::Error) -> SpawnError {
    SpawnError::Keeper(e.to_string())
}
