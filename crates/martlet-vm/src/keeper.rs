//! The keeper: a small process that holds what must outlive the daemon.
//!
//! ```text
//!   martletd ──seqpacket socket──► keeper ──parent of──► qemu, qemu, …
//!      ▲                             │ holds named descriptors (the FUSE connection)
//!      └── restarts, connects again ─┘ remembers how each child ended, and its last words
//! ```
//!
//! It does nothing by itself, so it has no reason to die. If it is killed all the same, its client starts another and
//! gives it everything again: the processes that it was the parent of, which it can signal and see the end of as well, only
//! not how they ended ([`KeeperClient::replace`]), and descriptors. One thread waits for the listening socket, its clients and
//! its children (a pidfd each; no signal handlers). A request is one packet of JSON with descriptors attached, the reply
//! is another. It ends when it is told to, or when nobody could ever want anything from it again: no living child, no
//! client, and its socket gone from the file system.

use crate::fd_passing;
use crate::process::{ChildState, SpawnError, SpawnRequest, Spawner, start_detached};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

mod server;

/// Largest request or reply.
const PACKET_MAX: usize = 128 << 10;
/// How long the keeper may take to answer.
const ANSWER_TIMEOUT_S: i64 = 10;
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// A process that was forked executes its program within this time.
const EXEC_TIME: Duration = Duration::from_millis(100);

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
    match connect_to_living(socket_path) {
        // One that is stopped is there as well.
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => {}
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "a keeper serves this socket already",
            ));
        }
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

/// A connection to a keeper that answers. One that is being killed may have lost its connections and still listen.
fn connect_to_living(path: &Path) -> io::Result<OwnedFd> {
    let connection = connect_to(path)?;
    fd_passing::send(connection.as_fd(), &serde_json::to_vec(&Request::Children)?, &[])?;
    match fd_passing::receive(connection.as_fd(), &mut vec![0; PACKET_MAX])?.0 {
        0 => Err(io::ErrorKind::ConnectionReset.into()),
        _ => Ok(connection),
    }
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
            match connect_to_living(&self.socket) {
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                other => return other.map_err(lost),
            }
        }
    }
}

/// A connection to the keeper.
#[derive(Debug)]
pub struct KeeperClient {
    connection: Mutex<Connection>,
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    /// What another keeper would be given: every process from the instant of its start until it is forgotten.
    kept: BTreeMap<u32, Kept>,
}

#[derive(Debug)]
struct Kept {
    tag: String,
    log: PathBuf,
}

impl KeeperClient {
    /// Connects to a keeper that runs.
    pub fn connect(socket_path: &Path) -> Result<Self, SpawnError> {
        Ok(Self::over(connect_to(socket_path).map_err(lost)?))
    }

    fn over(socket: OwnedFd) -> Self {
        let kept = BTreeMap::new();
        Self {
            connection: Mutex::new(Connection { socket, kept }),
        }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects to the keeper, after starting it if there is none.
    pub fn connect_or_start(program: &KeeperProgram) -> Result<Self, SpawnError> {
        Ok(Self::over(
            connect_to_living(&program.socket).or_else(|_| program.start())?,
        ))
    }

    /// Waits for the keeper's end.
    pub fn wait_until_lost(&self) -> Result<(), SpawnError> {
        let socket = self.connection().socket.try_clone().map_err(lost)?;
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

    /// Starts another keeper in place of one that has ended, and gives it every process that was started or adopted over
    /// this connection and not forgotten. It has no descriptors yet: see [`KeeperClient::put_fd`].
    pub fn replace(&self, program: &KeeperProgram) -> Result<(), SpawnError> {
        let new = program.start()?;
        let mut connection = self.connection();
        connection.socket = new;
        let Connection { socket, kept } = &mut *connection;
        let mut ended = Vec::new();
        for (&pid, Kept { tag, log }) in kept.iter() {
            let (tag, log) = (tag.clone(), log.clone());
            // Without an answer this keeper has died as well, and the next is given all of them.
            let (reply, _) = ask(socket, &Request::Adopt { pid, tag, log }, &[])?;
            if let Err(error) = done(reply) {
                tracing::info!(%error, pid, "a process has ended together with its keeper");
                ended.push(pid);
            }
        }
        kept.retain(|pid, _| !ended.contains(pid));
        Ok(())
    }

    /// Gives it a process that another keeper was the parent of, unless it has it. The caller knows that it is still the
    /// same process.
    pub fn adopt(&self, pid: u32, tag: &str, log: &Path) -> Result<(), SpawnError> {
        let mut connection = self.connection();
        let kept = Kept {
            tag: tag.into(),
            log: log.into(),
        };
        let (tag, log) = (tag.into(), log.into());
        done(ask(&connection.socket, &Request::Adopt { pid, tag, log }, &[])?.0)?;
        connection.kept.insert(pid, kept);
        Ok(())
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
        ask(&self.connection().socket, request, fds)
    }
}

fn ask(
    socket: &OwnedFd,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> Result<(Reply, Vec<OwnedFd>), SpawnError> {
    let bytes = serde_json::to_vec(request).map_err(|e| SpawnError::Keeper(e.to_string()))?;
    if bytes.len() > PACKET_MAX {
        let program = "the program".into();
        return Err(SpawnError::BadRequest {
            program,
            reason: format!("{} bytes of arguments", bytes.len()),
        });
    }
    fd_passing::send(socket.as_fd(), &bytes, fds).map_err(lost)?;
    let mut buffer = vec![0; PACKET_MAX];
    let (size, fds) = fd_passing::receive(socket.as_fd(), &mut buffer).map_err(lost)?;
    if size == 0 {
        return Err(SpawnError::Keeper("it has closed the connection".into()));
    }
    let reply = serde_json::from_slice(&buffer[..size]).map_err(|e| SpawnError::Keeper(e.to_string()))?;
    Ok((reply, fds))
}

impl Spawner for KeeperClient {
    fn spawn(&self, request: &SpawnRequest, fds: Vec<OwnedFd>) -> Result<u32, SpawnError> {
        let program = request.argv.first().cloned().unwrap_or_default();
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let mut connection = self.connection();
        let asked = Request::Spawn(Box::new(request.clone()));
        let answer = ask(&connection.socket, &asked, &borrowed);
        if let Err(SpawnError::Keeper(_)) = answer {
            // It may have been started, and its keeper killed before it could tell. Nobody would ever end it.
            std::thread::sleep(EXEC_TIME);
            running(&request.argv).for_each(end);
        }
        match answer?.0 {
            Reply::Pid(pid) => {
                let kept = Kept {
                    tag: request.tag.clone(),
                    log: request.log.clone().unwrap_or_default(),
                };
                connection.kept.insert(pid, kept);
                Ok(pid)
            }
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
        let mut connection = self.connection();
        connection.kept.remove(&pid);
        done(ask(&connection.socket, &Request::Forget { pid }, &[])?.0)
    }
}

/// Processes that were started with exactly these arguments, which name sockets of their own.
fn running(argv: &[String]) -> impl Iterator<Item = i32> {
    let wanted: Vec<u8> = argv.iter().flat_map(|arg| arg.bytes().chain([0])).collect();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(move |pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == wanted))
}

fn end(pid: i32) {
    tracing::warn!(
        pid,
        "its keeper was killed before it could tell of it; it is ended"
    );
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL); // gone is as well
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_arguments_and_no_other_is() {
        let argv = ["sleep", "1000.0078125"].map(String::from);
        let mut one = std::process::Command::new(&argv[0])
            .arg(&argv[1])
            .spawn()
            .unwrap();
        let mut other = std::process::Command::new("sleep")
            .arg("1000.00781250")
            .spawn()
            .unwrap();
        // Whose program was just replaced has no arguments for a moment (begin_new_exec in the kernel).
        for child in [&one, &other] {
            let arguments = format!("/proc/{}/cmdline", child.id());
            while std::fs::read(&arguments).unwrap().is_empty() {
                std::thread::yield_now();
            }
        }
        let found: Vec<i32> = running(&argv).collect();
        for child in [&mut one, &mut other] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(found, [one.id() as i32]);
        assert_eq!(running(&argv).count(), 0);
    }
}
