//! The keeper's one thread.
#![allow(unsafe_code)] // accept4 returns a number that must be claimed

use super::{ChildInfo, PACKET_MAX, Reply, Request};
use crate::fd_passing::{self, FDS_MAX};
use crate::process::{Child, ChildState, SpawnError, launch};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockFlag, accept4};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// How often to look whether anybody could still want us.
const IDLE_CHECK_MS: u16 = 2000;
/// Most descriptors held, and most clients served: there is one daemon, with a handful of names.
const HELD_MAX: usize = 64;
const CLIENTS_MAX: usize = 16;
/// Most children that have ended and are remembered.
const ENDED_MAX: usize = 1024;

struct Keeper {
    children: BTreeMap<u32, Child>,
    /// Order of their ends.
    ended: Vec<u32>,
    held: BTreeMap<String, OwnedFd>,
    clients: Vec<OwnedFd>,
    exit: bool,
}

pub fn serve(listener: OwnedFd, socket_path: &Path) -> io::Result<()> {
    let mut keeper = Keeper {
        children: BTreeMap::new(),
        ended: Vec::new(),
        held: BTreeMap::new(),
        clients: Vec::new(),
        exit: false,
    };
    let mut buffer = vec![0; PACKET_MAX];
    while !keeper.exit {
        let (connecting, talking) = keeper.wait(&listener)?;
        keeper.reap();
        // From the last to the first, so that removing one does not move those still to come.
        for index in talking.into_iter().rev() {
            if keeper.serve_one(index, &mut buffer).is_err() {
                keeper.clients.remove(index);
            }
        }
        if connecting {
            keeper.accept(&listener);
        }
        let idle = keeper.clients.is_empty() && keeper.children.len() == keeper.ended.len();
        if idle && !socket_path.exists() {
            return Ok(());
        }
    }
    // Nobody can connect from here on, and the name is free for the next keeper. It may have been removed already.
    std::fs::remove_file(socket_path).ok();
    Ok(())
}

impl Keeper {
    /// Waits for something to happen: is somebody connecting, and which clients have something to say?
    fn wait(&self, listener: &OwnedFd) -> io::Result<(bool, Vec<usize>)> {
        let mut fds = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.clients
                .iter()
                .map(|c| PollFd::new(c.as_fd(), PollFlags::POLLIN)),
        );
        let pidfds = self.children.values().filter_map(Child::pidfd);
        fds.extend(pidfds.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::from(IDLE_CHECK_MS)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready = |fd: &PollFd| fd.any().unwrap_or(false);
        let talking = (0..self.clients.len())
            .filter(|index| ready(&fds[1 + index]))
            .collect();
        Ok((ready(&fds[0]), talking))
    }

    fn reap(&mut self) {
        for (pid, child) in &mut self.children {
            if child.has_been_noticed() {
                continue;
            }
            if child.state() != ChildState::Running {
                self.ended.push(*pid);
            }
        }
        while self.ended.len() > ENDED_MAX {
            let oldest = self.ended.remove(0);
            self.children.remove(&oldest);
        }
    }

    fn accept(&mut self, listener: &OwnedFd) {
        // A client that has gone again, or too many descriptors: neither is a reason to stop keeping.
        let Ok(fd) = accept4(
            listener.as_raw_fd(),
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        ) else {
            return;
        };
        // SAFETY: the kernel has just given us this descriptor.
        let client = unsafe { OwnedFd::from_raw_fd(fd) };
        if self.clients.len() < CLIENTS_MAX {
            self.clients.push(client);
        }
    }

    /// Serves one request of a client; an error is the end of that client.
    fn serve_one(&mut self, index: usize, buffer: &mut [u8]) -> io::Result<()> {
        let (size, fds) = match fd_passing::receive(self.clients[index].as_fd(), buffer) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            other => other?,
        };
        if size == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (reply, fd) = match serde_json::from_slice(&buffer[..size]) {
            Ok(request) => self.answer(request, fds),
            Err(e) => (Reply::BadRequest(e.to_string()), None),
        };
        let bytes = serde_json::to_vec(&reply)?;
        let attached: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        fd_passing::send(self.clients[index].as_fd(), &bytes, &attached).map(drop)
    }

    fn answer(&mut self, request: Request, mut fds: Vec<OwnedFd>) -> (Reply, Option<OwnedFd>) {
        let reply = match request {
            Request::Spawn(request) => match launch(&request, fds) {
                Ok(child) => {
                    let pid = child.pid();
                    // The system gives an id again once its process has been reaped.
                    self.ended.retain(|ended| *ended != pid);
                    self.children.insert(pid, child);
                    Reply::Pid(pid)
                }
                Err(SpawnError::BadRequest { reason, .. }) => Reply::BadRequest(reason),
                Err(SpawnError::Refused { reason, .. }) => Reply::Refused(reason),
                Err(e) => Reply::Refused(e.to_string()),
            },
            Request::Adopt { pid, .. } if self.children.contains_key(&pid) && !self.ended.contains(&pid) => {
                Reply::Done
            }
            Request::Adopt { pid, tag, log } => match Child::adopt(pid, tag, log) {
                Ok(child) => {
                    self.ended.retain(|ended| *ended != pid);
                    self.children.insert(pid, child);
                    Reply::Done
                }
                Err(e) => Reply::Refused(e.to_string()),
            },
            Request::Signal { pid, signal } => self.with_child(pid, |child| {
                child.signal(signal);
                Reply::Done
            }),
            Request::State { pid } => self.with_child(pid, |child| Reply::State(child.last_state())),
            Request::Forget { pid } => match self.ended.iter().position(|ended| *ended == pid) {
                Some(index) => {
                    self.ended.remove(index);
                    self.children.remove(&pid);
                    Reply::Done
                }
                None => self.with_child(pid, |_| Reply::Done),
            },
            Request::Children => Reply::Children(self.children.values().map(info).collect()),
            Request::PutFd { name } => match fds.pop() {
                Some(fd)
                    if fds.is_empty() && (self.held.len() < HELD_MAX || self.held.contains_key(&name)) =>
                {
                    self.held.insert(name, fd);
                    Reply::Done
                }
                _ => Reply::BadRequest(format!(
                    "one descriptor is needed (up to {FDS_MAX} fit), {HELD_MAX} are held"
                )),
            },
            Request::GetFd { name } => match self.held.get(&name).map(OwnedFd::try_clone) {
                Some(Ok(fd)) => return (Reply::Done, Some(fd)),
                Some(Err(e)) => Reply::Refused(e.to_string()),
                None => Reply::NoSuchFd,
            },
            Request::RemoveFd { name } => {
                self.held.remove(&name);
                Reply::Done
            }
            Request::Exit => {
                self.exit = true;
                Reply::Done
            }
        };
        (reply, None)
    }

    fn with_child(&mut self, pid: u32, f: impl FnOnce(&mut Child) -> Reply) -> Reply {
        self.children
            .get_mut(&pid)
            .map(f)
            .unwrap_or(Reply::NoSuchChild(pid))
    }
}

fn info(child: &Child) -> ChildInfo {
    // Last words are asked for one by one: a thousand of them would not fit into a packet.
    let state = match child.last_state() {
        ChildState::Ended { status, .. } => ChildState::Ended {
            status,
            last_words: String::new(),
        },
        running => running,
    };
    ChildInfo {
        pid: child.pid(),
        tag: child.tag().to_string(),
        state,
    }
}
