//! One connection: the guest's, which ends here, and this host's, which goes on.
//!
//! ```text
//!   begins ──the host's is made──► accepted: the guest's is ──► bytes both ways ──each side ends──► over
//!      └──it cannot be───────────► refused                          └──either breaks──► broken off ───┘
//! ```

use crate::bucket::Bucket;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrV4, SocketFlags, SocketType, connect, socket_with, sockopt};
use smoltcp::socket::tcp;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddrV4 as Address, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// What waits in each direction.
pub(crate) const BUFFER_BYTES: usize = 64 << 10;
/// A connection that cannot be made in so long cannot be made.
const MADE_WITHIN: Duration = Duration::from_secs(30);
/// One of which nothing is heard is asked so often whether it is there, and broken off after so long.
const ASKED_AFTER: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(60);
const SILENT_MAX: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(300);

/// A connection of this host's that is being made.
pub(crate) struct Begun {
    stream: TcpStream,
    begun: Instant,
}

/// What has become of it.
pub(crate) enum Made {
    NotYet(Begun),
    Yes(TcpStream),
    No,
}

impl Begun {
    pub(crate) fn to(address: Address, now: Instant) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        match connect(&socket, &SocketAddrV4::new(*address.ip(), address.port())) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Self {
            stream: socket.into(),
            begun: now,
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Looks, when its socket can be written to or so much time has gone by.
    pub(crate) fn look(self, is_ready: bool, now: Instant) -> Made {
        match is_ready {
            true => match sockopt::socket_error(&self.stream) {
                Ok(Ok(())) => Made::Yes(self.stream),
                _ => Made::No,
            },
            false if now - self.begun > MADE_WITHIN => Made::No,
            false => Made::NotYet(self),
        }
    }
}

/// The guest's end, waiting for the frame that begins the connection.
pub(crate) fn guest_end(to: Address) -> Option<tcp::Socket<'static>> {
    let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
    let mut guest = tcp::Socket::new(buffer(), buffer());
    guest.set_keep_alive(Some(ASKED_AFTER));
    guest.set_timeout(Some(SILENT_MAX));
    guest.set_nagle_enabled(false); // what the other end has sent together goes on together
    guest.listen((*to.ip(), to.port())).ok()?;
    Some(guest)
}

/// Both ends of one.
pub(crate) struct Flow {
    host: TcpStream,
    /// The host's end says no more.
    has_come: bool,
    /// It was told that the guest says no more.
    has_gone: bool,
    is_broken: bool,
    /// What is to be waited for at the host's end.
    waits_for: PollFlags,
}

impl Flow {
    pub(crate) fn new(host: TcpStream) -> Self {
        let _ = host.set_nodelay(true);
        Self {
            host,
            has_come: false,
            has_gone: false,
            is_broken: false,
            waits_for: PollFlags::empty(),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.host.as_fd()
    }

    pub(crate) fn waits_for(&self) -> PollFlags {
        self.waits_for
    }

    /// Moves what can be moved, as far as the bucket lets it; how many bytes that were.
    pub(crate) fn pump(&mut self, guest: &mut tcp::Socket<'_>, bucket: &mut Bucket, now: Instant) -> u64 {
        let moved = self.send_on(guest, bucket, now).and_then(|out| {
            let came = self.hand_back(guest, bucket, now)?;
            Ok((out + came) as u64)
        });
        let moved = moved.unwrap_or_else(|_| {
            self.is_broken = true;
            0
        });
        let is_shut = guest.state() == tcp::State::Closed && !guest.can_recv();
        if self.is_broken || is_shut && !(self.has_come && self.has_gone) {
            guest.abort();
            self.is_broken = true;
        }
        self.waits_for = PollFlags::empty();
        let may_move = bucket.left(now) > 0;
        self.waits_for.set(PollFlags::OUT, guest.can_recv() && may_move);
        self.waits_for
            .set(PollFlags::IN, !self.has_come && guest.can_send() && may_move);
        moved
    }

    /// Does it need the bucket to fill to go on?
    pub(crate) fn is_held_up(&self, guest: &tcp::Socket<'_>) -> bool {
        self.waits_for.is_empty() && (guest.can_recv() || !self.has_come && guest.can_send())
    }

    pub(crate) fn is_over(&self, guest: &tcp::Socket<'_>) -> bool {
        let has_ended = matches!(guest.state(), tcp::State::Closed | tcp::State::TimeWait);
        self.is_broken && guest.state() == tcp::State::Closed
            || has_ended && self.has_come && self.has_gone && !guest.can_recv()
    }

    fn send_on(
        &mut self,
        guest: &mut tcp::Socket<'_>,
        bucket: &mut Bucket,
        now: Instant,
    ) -> io::Result<usize> {
        let mut moved = 0;
        while guest.can_recv() {
            let may = bucket.left(now);
            if may == 0 {
                return Ok(moved);
            }
            let host = &mut self.host;
            let sent = guest.recv(|bytes| {
                let sent = host.write(&bytes[..bytes.len().min(may)]);
                (*sent.as_ref().unwrap_or(&0), sent)
            });
            match sent.map_err(|_| ErrorKind::BrokenPipe)? {
                Ok(sent) => {
                    bucket.take(sent);
                    moved += sent;
                }
                Err(error) if is_later(&error) => return Ok(moved),
                Err(error) => return Err(error),
            }
        }
        let has_begun = !matches!(guest.state(), tcp::State::Listen | tcp::State::SynReceived);
        let says_no_more = has_begun && !guest.may_recv();
        if says_no_more && !self.has_gone {
            self.has_gone = true;
            self.host.shutdown(Shutdown::Write)?;
        }
        Ok(moved)
    }

    fn hand_back(
        &mut self,
        guest: &mut tcp::Socket<'_>,
        bucket: &mut Bucket,
        now: Instant,
    ) -> io::Result<usize> {
        let mut moved = 0;
        while !self.has_come && guest.can_send() {
            let may = bucket.left(now);
            if may == 0 {
                return Ok(moved);
            }
            let host = &mut self.host;
            let came = guest.send(|room| {
                let most = room.len().min(may);
                let came = host.read(&mut room[..most]);
                (*came.as_ref().unwrap_or(&0), came)
            });
            match came.map_err(|_| ErrorKind::BrokenPipe)? {
                Ok(0) => {
                    self.has_come = true;
                    guest.close();
                }
                Ok(came) => {
                    bucket.take(came);
                    moved += came;
                }
                Err(error) if is_later(&error) => return Ok(moved),
                Err(error) => return Err(error),
            }
        }
        Ok(moved)
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
