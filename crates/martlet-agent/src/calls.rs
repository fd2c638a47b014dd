//! Calls of programs in the guest: taken at a socket, passed on to the host, answered where the program is.
//!
//! ```text
//!                              ┌── Answer of the host
//!  line ──► pending ──Ask──► ◄─┼── in a clone: what its identity says was asked for; every other call fails there
//!                              └── a new connection of the host: interrupted
//! ```
//!
//! A call is pending in memory, which a clone has as well: so it is answered in the parent and in each clone.

use crate::log::log;
use crate::outgoing::{Outgoing, Speech};
use crate::syscalls;
use martlet_agent_api::guest::{
    Ask, DATA_BYTES, GuestCall, GuestError, GuestErrorKind, GuestReply, LINE_BYTES, SOCKET,
};
use martlet_agent_api::{AskedFor, Kind, to_payload};
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Programs that are connected at the same time.
const PROGRAMS_MAX: usize = 128;
/// Calls that wait for the host at the same time. It bears no more.
const PENDING_MAX: usize = 32;
/// How often a pending call looks whether its program is still there.
const LOOK: Duration = Duration::from_secs(2);

/// Calls that wait for their answers.
#[derive(Default)]
pub struct Calls(Mutex<State>);

#[derive(Default)]
struct State {
    last: u32,
    pending: HashMap<u32, SyncSender<GuestReply>>,
    /// The way to a host that answers.
    host: Option<Arc<Outgoing>>,
}

fn error(kind: GuestErrorKind, message: &str) -> GuestReply {
    GuestReply::Error(GuestError::new(kind, message))
}

impl Calls {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host has greeted, under an epoch of its own; none: one that does not answer calls.
    pub fn set_host(&self, host: Option<Arc<Outgoing>>) {
        self.state().host = host;
    }

    /// The host's answer.
    pub fn answer(&self, ask: u32, reply: GuestReply) {
        if let Some(waiting) = self.state().pending.remove(&ask) {
            let _ = waiting.try_send(reply); // its program may have gone
        }
    }

    /// The host does not know of any call that it was asked before.
    pub fn interrupt(&self) {
        let reply = error(
            GuestErrorKind::Interrupted,
            "the host's side of this call was lost: the VM was resumed, or the host's daemon started anew",
        );
        self.answer_all(&reply);
    }

    /// This is a clone: that one call returns here too, and those that only its parent's host knows of fail.
    pub fn become_clone(&self, asked: Option<&AskedFor>) {
        if let Some(AskedFor { ask, reply }) = asked {
            self.answer(*ask, reply.clone());
        }
        let reply = error(
            GuestErrorKind::State,
            "this VM is a clone now: the call was its parent's, and returns there",
        );
        self.answer_all(&reply);
    }

    fn answer_all(&self, reply: &GuestReply) {
        let pending = std::mem::take(&mut self.state().pending);
        for waiting in pending.into_values() {
            let _ = waiting.try_send(reply.clone()); // its program may have gone
        }
    }

    /// Asks the host and waits for its answer, for as long as the program is there; `None` when it is not.
    fn ask(&self, ask: &Ask, is_there: impl Fn() -> bool) -> Option<GuestReply> {
        let (sender, receiver) = sync_channel(1);
        let (number, host, epoch) = {
            let mut state = self.state();
            let Some(host) = state.host.clone() else {
                return Some(error(
                    GuestErrorKind::Failed,
                    "the host does not answer calls of its guest's programs",
                ));
            };
            if state.pending.len() >= PENDING_MAX {
                let words = format!("{PENDING_MAX} calls wait for the host already");
                return Some(error(GuestErrorKind::Busy, &words));
            }
            state.last = state.last.wrapping_add(1);
            let number = state.last;
            state.pending.insert(number, sender);
            // Read while it waits: whoever changes the epoch later finds it waiting.
            let epoch = host.epoch();
            (number, host, epoch)
        };
        if host
            .send(Speech::Report, epoch, Kind::Ask, 0, number, &to_payload(ask))
            .is_err()
        {
            // Unless it is answered already, in a clone.
            self.answer(
                number,
                error(GuestErrorKind::Interrupted, "the host is another one now"),
            );
        }
        loop {
            match receiver.recv_timeout(LOOK) {
                Ok(reply) => return Some(reply),
                Err(RecvTimeoutError::Timeout) if is_there() => {}
                Err(_) => {
                    self.state().pending.remove(&number);
                    return None;
                }
            }
        }
    }

    /// Takes calls at the socket where programs look for it.
    pub fn serve_guest(self: &Arc<Self>) {
        let listener =
            SocketAddr::from_abstract_name(SOCKET).and_then(|address| UnixListener::bind_addr(&address));
        let calls = Arc::clone(self);
        let served = listener.and_then(|listener| {
            thread::Builder::new()
                .name("calls".into())
                .spawn(move || calls.serve(&listener))
        });
        if let Err(error) = served {
            log(&format!("programs in this guest cannot call the host: {error}"));
        }
    }

    /// Takes calls at a socket, until it fails.
    pub fn serve(self: &Arc<Self>, listener: &UnixListener) {
        let programs = Arc::new(AtomicUsize::new(0));
        loop {
            match listener.accept() {
                Ok((program, _)) => {
                    let (calls, programs) = (Arc::clone(self), Arc::clone(&programs));
                    if programs.fetch_add(1, Ordering::Relaxed) >= PROGRAMS_MAX {
                        programs.fetch_sub(1, Ordering::Relaxed);
                        continue; // closed: too many
                    }
                    thread::spawn(move || {
                        let _ = calls.serve_program(&program); // it has gone
                        programs.fetch_sub(1, Ordering::Relaxed);
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log(&format!(
                        "programs in this guest cannot call the host any more: {error}"
                    ));
                    return;
                }
            }
        }
    }

    fn serve_program(&self, program: &UnixStream) -> io::Result<()> {
        let uid = syscalls::peer_user(program)?;
        let mut reader = BufReader::new(program);
        loop {
            let mut line = Vec::new();
            let count = (&mut reader)
                .take(LINE_BYTES as u64)
                .read_until(b'\n', &mut line)?;
            if count == 0 {
                return Ok(());
            }
            let reply = match checked(&line) {
                Ok(call) => self.ask(&Ask { uid, call }, || {
                    syscalls::wait_readable(&[program.as_fd()], Some(Duration::ZERO))
                        .is_ok_and(|ready| !ready[0])
                }),
                Err(error) => Some(GuestReply::Error(error)),
            };
            let Some(reply) = reply else { return Ok(()) };
            let mut answer = to_payload(&reply);
            answer.push(b'\n');
            (&*program).write_all(&answer)?;
            if line.last() != Some(&b'\n') {
                return Ok(()); // the rest of a line that was too long is no call
            }
        }
    }
}

/// The call in a line, if it may go to the host.
fn checked(line: &[u8]) -> Result<GuestCall, GuestError> {
    let invalid = |words: String| GuestError::new(GuestErrorKind::Invalid, words);
    if line.last() != Some(&b'\n') {
        return Err(invalid(format!(
            "a line has at most {LINE_BYTES} bytes and an end"
        )));
    }
    let call = serde_json::from_slice(line).map_err(|error| invalid(format!("no such call: {error}")))?;
    if let GuestCall::Exit { data, .. } = &call
        && data.len() > DATA_BYTES.div_ceil(3) * 4
    {
        return Err(invalid(format!("a child hands over at most {DATA_BYTES} bytes")));
    }
    Ok(call)
}
