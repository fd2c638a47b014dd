//! MPI programs whose ranks are in clones.
//!
//! ```text
//!   fork ──► each clone connects to the parent, and waits ──► mpiexec ─► launch clone-2 COMMAND ─► there
//!                                                                └── over: connections end, and with them the clones
//! ```
//!
//! mpich's process manager starts one proxy for each host by a program of ours in place of ssh (`-launcher-exec`); proxies and
//! ranks talk to each other through the family's network.

use super::arguments::{Arguments, Usage};
use super::family_card::{self, FamilyCard};
use super::{Failure, remote, tell_failed, ticket_options};
use crate::guest::{ClonedVm, Guest, Processes, Wait};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Clones that run find their parent within this time.
const CONNECT_WITHIN: Duration = Duration::from_secs(120);
const CONNECT_ONCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);
/// What mpich's is called, in the order of preference.
const MPIEXEC: [&str; 3] = ["mpiexec.hydra", "mpirun.mpich", "mpirun"];

/// A clone that waits for a command.
struct Rank {
    name: String,
    processes: u32,
    stream: TcpStream,
}

pub fn mpi(mut arguments: Arguments) -> Result<ExitCode, Failure> {
    let options = ticket_options(&mut arguments)?;
    let count: u32 = arguments.number("N, how many ranks")?;
    let command = arguments.command()?;
    let card = FamilyCard::find();
    let parent = family_card::address("parent");
    let (Some(card), Some(parent)) = (card, parent) else {
        let words = "this machine has no network with its clones: martlet run --family gives it one";
        return Err(Usage(words.into()).into());
    };
    let listener = TcpListener::bind((parent, 0))?;
    let port = listener.local_addr()?.port();
    let guest = Guest::connect()?;
    let ticket = guest.request_ticket(count, options)?;
    if ticket.granted < count {
        guest.kill(&ticket)?;
        let words = format!("there is room for {} of {count} ranks", ticket.granted);
        return Err(io::Error::new(ErrorKind::QuotaExceeded, words).into());
    }
    let run = || -> Result<ExitStatus, Failure> {
        match guest.clone_vm(&ticket, Wait::Running)? {
            ClonedVm::Child(processes) => be_rank(&guest, parent, port, &processes),
            ClonedVm::Parent { failed } if !failed.is_empty() => {
                tell_failed(&failed);
                Err(io::Error::other("the program was not started").into())
            }
            ClonedVm::Parent { .. } => {
                let ranks = gather(&listener, count)?;
                Ok(mpiexec(ranks, parent, &card, &command)?)
            }
        }
    };
    match run() {
        Ok(status) => {
            guest.join(&ticket)?;
            Ok(ExitCode::from(
                u8::try_from(status.code().unwrap_or(1)).unwrap_or(1),
            ))
        }
        Err(failure) => {
            let _ = guest.kill(&ticket); // the first failure is the one to tell of
            Err(failure)
        }
    }
}

/// In a clone: waits for a command, and ends the clone with it.
fn be_rank(guest: &Guest, parent: Ipv4Addr, port: u16, processes: &Processes) -> Result<ExitStatus, Failure> {
    let ids = processes.ids();
    let serve = || -> io::Result<i32> {
        let card = FamilyCard::find().ok_or(ErrorKind::NotFound)?;
        let mut stream = connect(parent, port)?;
        writeln!(stream, "{} {}", card.name, ids.len())?;
        remote::serve(stream)
    };
    let (status, words) = match serve() {
        Ok(status) => (status, String::new()),
        Err(error) => (1, error.to_string()),
    };
    for id in ids {
        guest.end_process(id, status, words.as_bytes())?;
    }
    // The last of them ends this machine.
    loop {
        std::thread::park();
    }
}

fn connect(parent: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
    let begun = Instant::now();
    loop {
        match TcpStream::connect_timeout(&(parent, port).into(), CONNECT_ONCE) {
            Err(_) if begun.elapsed() < CONNECT_WITHIN => std::thread::sleep(LOOK),
            connected => return connected,
        }
    }
}

/// Waits until clones for so many ranks have connected.
fn gather(listener: &TcpListener, count: u32) -> io::Result<Vec<Rank>> {
    listener.set_nonblocking(true)?;
    let (begun, mut ranks) = (Instant::now(), Vec::new());
    let mut room = 0;
    while room < count {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                let rank = greet(stream)?;
                room += rank.processes;
                ranks.push(rank);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && begun.elapsed() < CONNECT_WITHIN => {
                std::thread::sleep(LOOK);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let words = format!("clones for {room} of {count} ranks have come");
                return Err(io::Error::new(ErrorKind::TimedOut, words));
            }
            Err(error) => return Err(error),
        }
    }
    ranks.sort_by_key(|rank| (rank.name.len(), rank.name.clone()));
    Ok(ranks)
}

fn greet(stream: TcpStream) -> io::Result<Rank> {
    stream.set_read_timeout(Some(CONNECT_WITHIN))?;
    let mut line = String::new();
    // It says no more until it is asked: nothing is lost in the buffer.
    BufReader::new(&stream).read_line(&mut line)?;
    stream.set_read_timeout(None)?;
    let words = line.trim().split_once(' ');
    let rank = words.and_then(|(name, processes)| Some((name.to_owned(), processes.parse().ok()?)));
    let (name, processes) =
        rank.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "a clone says no name"))?;
    Ok(Rank {
        name,
        processes,
        stream,
    })
}

/// A directory that goes.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs mpich's mpiexec over those clones.
fn mpiexec(
    ranks: Vec<Rank>,
    parent: Ipv4Addr,
    card: &FamilyCard,
    command: &[OsString],
) -> io::Result<ExitStatus> {
    let scratch = Scratch(std::env::temp_dir().join(format!("martlet-mpi-{}", std::process::id())));
    fs::create_dir(&scratch.0)?;
    let launcher = scratch.0.join("launch");
    let program = std::env::current_exe()?;
    fs::write(
        &launcher,
        format!("#!/bin/sh\nexec {} launch \"$@\"\n", program.display()),
    )?;
    fs::set_permissions(&launcher, Permissions::from_mode(0o755))?;
    let hosts: Vec<String> = ranks
        .iter()
        .map(|rank| format!("{}:{}", rank.name, rank.processes))
        .collect();
    let count: u32 = ranks.iter().map(|rank| rank.processes).sum();
    let broker = scratch.0.join("broker");
    let streams = broker_for(ranks, &broker)?;
    let mut options: Vec<OsString> = ["-launcher", "ssh", "-launcher-exec"].map(OsString::from).into();
    options.push(launcher.into());
    for (option, value) in [
        ("-hosts", hosts.join(",")),
        ("-localhost", parent.to_string()),
        ("-n", count.to_string()),
    ] {
        options.extend([option.into(), value.into()]);
    }
    // What carries its messages would take the first card, which leads to no clone.
    for interface in ["FI_TCP_IFACE", "FI_SOCKETS_IFACE", "UCX_NET_DEVICES"] {
        options.extend(["-genv".into(), interface.into(), card.interface.clone().into()]);
    }
    let status = first_found(&options, command, &broker);
    for stream in lock(&streams).values() {
        let _ = stream.shutdown(Shutdown::Both);
    }
    status
}

fn first_found(options: &[OsString], command: &[OsString], broker: &Path) -> io::Result<ExitStatus> {
    for mpiexec in MPIEXEC {
        let mut run = Command::new(mpiexec);
        run.args(options).args(command).env(remote::BROKER, broker);
        match run.status() {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            ended => return ended,
        }
    }
    Err(io::Error::new(
        ErrorKind::NotFound,
        "there is no mpiexec of mpich here: install package mpich",
    ))
}

type Streams = Arc<Mutex<HashMap<String, TcpStream>>>;

fn lock(streams: &Streams) -> std::sync::MutexGuard<'_, HashMap<String, TcpStream>> {
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has launchers reach the clones by a socket, from now on: their connections.
fn broker_for(ranks: Vec<Rank>, socket: &Path) -> io::Result<Streams> {
    let streams = ranks.into_iter().map(|rank| (rank.name, rank.stream));
    let streams: Streams = Arc::new(Mutex::new(streams.collect()));
    let listener = UnixListener::bind(socket)?;
    let known = streams.clone();
    std::thread::spawn(move || {
        for launcher in listener.incoming().flatten() {
            let known = known.clone();
            std::thread::spawn(move || {
                if let Err(error) = carry(launcher, &known) {
                    eprintln!("martlet-guest: a command for a clone: {error}");
                }
            });
        }
    });
    Ok(streams)
}

fn carry(mut launcher: UnixStream, known: &Streams) -> io::Result<()> {
    let request = remote::read_request(&mut launcher)?.unwrap_or_default();
    let at = request
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(request.len());
    let (host, command) = request.split_at(at);
    let host = String::from_utf8_lossy(host).into_owned();
    let stream = lock(known).get(&host).map(TcpStream::try_clone);
    let mut stream =
        stream.ok_or_else(|| io::Error::new(ErrorKind::NotFound, format!("there is no {host}")))??;
    remote::write_request(&mut stream, command.get(1..).unwrap_or_default())?;
    io::copy(&mut stream, &mut launcher).map(drop)
}
