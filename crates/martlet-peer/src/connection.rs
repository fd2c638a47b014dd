//! A connection as the server knows it: what it may cost, and how it is ended whoever has it now.
//!
//! That of a stranger costs little. Whoever answers its requests can admit who shows that they may be here: then its requests
//! may be as long as they are, and what waits for a person waits for a while.

use crate::{Code, Limits, Refusal};
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Somebody who has vanished without a word is missed after this time of silence, …
const SILENCE: Duration = Duration::from_secs(60);
/// … and so many questions, as far apart as this.
const QUESTIONS: u32 = 4;
const QUESTIONS_APART: Duration = Duration::from_secs(15);

/// The connection that a request came by: an extension of each. It keeps nothing open.
#[derive(Debug, Clone)]
pub struct Connection(Weak<Open>);

impl Connection {
    /// Who is at the other end has shown to be `who`, and may be here. Says whether that is new; a connection is one person's.
    pub fn admit(&self, who: &str) -> Result<bool, Refusal> {
        let gone = || Refusal::new(Code::Busy, "the connection has ended");
        self.0.upgrade().ok_or_else(gone)?.admit(who)
    }

    pub(crate) fn open(&self) -> Option<Arc<Open>> {
        self.0.upgrade()
    }

    /// Is it still there?
    pub fn is_open(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Ends it, whatever it is used for.
    pub fn cut(&self) {
        if let Some(open) = self.0.upgrade() {
            let _ = open.socket.shutdown(Shutdown::Both); // it has ended by itself, then
        }
    }
}

/// What a connection may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// The longest request.
    pub body_bytes: u64,
    /// A request that does not go on for so long, or an answer that is not taken, ends.
    pub stall: Duration,
    /// A connection on which nothing is asked for so long ends.
    pub idle: Duration,
}

/// An open connection; its place is taken while this lives.
#[derive(Debug)]
pub(crate) struct Open {
    /// A copy of the descriptor.
    socket: TcpStream,
    people: Arc<Semaphore>,
    admitted: Bounds,
    state: Mutex<State>,
    /// Closed when this is dropped.
    ended: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    bounds: Bounds,
    place: OwnedSemaphorePermit,
    who: Option<String>,
}

impl Open {
    /// A connection that has this place, and may cost so much until somebody is admitted.
    pub(crate) fn new(
        socket: &impl AsFd,
        place: OwnedSemaphorePermit,
        bounds: Bounds,
        people: Arc<Semaphore>,
        limits: &Limits,
    ) -> std::io::Result<Arc<Self>> {
        let admitted = Bounds {
            body_bytes: u64::MAX,
            stall: limits.people_stall,
            idle: limits.people_stall,
        };
        let (who, socket) = (None, socket.as_fd().try_clone_to_owned()?.into());
        Ok(Arc::new(Self {
            socket,
            people,
            admitted,
            state: Mutex::new(State { bounds, place, who }),
            ended: watch::Sender::new(()),
        }))
    }

    pub(crate) fn handle(self: &Arc<Self>) -> Connection {
        Connection(Arc::downgrade(self))
    }

    /// Resolves when it has ended, whoever had it last.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + use<> {
        let mut ended = self.ended.subscribe();
        async move { while ended.changed().await.is_ok() {} }
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).bounds
    }

    fn admit(&self, who: &str) -> Result<bool, Refusal> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &state.who {
            Some(there) if there == who => return Ok(false),
            Some(_) => return Err(Refusal::new(Code::BadRequest, "a connection is for one token")),
            None => {}
        }
        let place = self.people.clone().try_acquire_owned();
        state.place = place.map_err(|_| Refusal::new(Code::Busy, "too many people use this host"))?;
        state.bounds = self.admitted;
        state.who = Some(who.to_owned());
        keep_alive(&self.socket);
        Ok(true)
    }
}

/// Has the kernel find out whether the other side of a silent connection is still there. Where it cannot, silence is silence.
pub(crate) fn keep_alive(socket: &impl AsFd) {
    let _ = set_socket_keepalive(socket, true)
        .and_then(|()| set_tcp_keepidle(socket, SILENCE))
        .and_then(|()| set_tcp_keepintvl(socket, QUESTIONS_APART))
        .and_then(|()| set_tcp_keepcnt(socket, QUESTIONS));
}
