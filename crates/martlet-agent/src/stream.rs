//! The guest's end of a stream: input with credit, output with credit, and its end.
//!
//! ```text
//! open ── finish ─────────────────────► ended (Finished is sent)
//!   └──── Cancel, or a new epoch ─────► abandoned: input ends, output is thrown away
//! ```
//!
//! Abandoned streams go on reading what their command prints, so that a clone's inherited processes do not stall on a
//! pipe that nobody empties.

use crate::outgoing::{Outgoing, Speech};
use martlet_agent_api::frame::{FLAG_END, Kind, MAX_PAYLOAD_BYTES};
use martlet_agent_api::window::{ReceiveWindow, SendWindow};
use martlet_agent_api::{Control, Finished, to_payload};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

type ControlHandler = Box<dyn Fn(Control) + Send>;

/// A stream.
pub struct Stream {
    id: u32,
    epoch: u64,
    outgoing: Arc<Outgoing>,
    state: Mutex<State>,
    changed: Condvar,
    on_control: Mutex<Option<ControlHandler>>,
}

#[derive(Default)]
struct State {
    input: VecDeque<Vec<u8>>,
    input_ended: bool,
    receive: ReceiveWindow,
    send: SendWindow,
    abandoned: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    /// A stream that the host has opened.
    pub fn new(id: u32, epoch: u64, outgoing: Arc<Outgoing>) -> Arc<Self> {
        Arc::new(Self {
            id,
            epoch,
            outgoing,
            state: Mutex::default(),
            changed: Condvar::new(),
            on_control: Mutex::default(),
        })
    }

    /// Who acts on [`Control`] messages.
    pub fn set_control_handler(&self, handler: impl Fn(Control) + Send + 'static) {
        *lock(&self.on_control) = Some(Box::new(handler));
    }

    /// Data from the host; whoever overdraws the window is abandoned.
    pub fn accept_data(&self, flags: u8, bytes: Vec<u8>) {
        let mut state = lock(&self.state);
        if state.receive.receive(bytes.len()).is_err() {
            state.abandoned = true;
        } else if !state.input_ended && !state.abandoned {
            if !bytes.is_empty() {
                state.input.push_back(bytes);
            }
            state.input_ended = flags & FLAG_END != 0;
        }
        self.changed.notify_all();
    }

    /// Credit from the host.
    pub fn accept_credit(&self, bytes: u32) {
        let mut state = lock(&self.state);
        state.abandoned |= state.send.grant(bytes).is_err();
        self.changed.notify_all();
    }

    /// A control message from the host.
    pub fn accept_control(&self, control: Control) {
        if let Some(handler) = &*lock(&self.on_control) {
            handler(control);
        }
        if control == Control::Cancel {
            self.abandon();
        }
    }

    /// Nobody waits for this stream any more.
    pub fn abandon(&self) {
        let mut state = lock(&self.state);
        state.abandoned = true;
        state.input.clear();
        self.changed.notify_all();
    }

    /// The next input; `None` when no more comes.
    pub fn next_input(&self) -> Option<Vec<u8>> {
        let mut state = lock(&self.state);
        loop {
            if state.abandoned {
                return None;
            }
            if let Some(bytes) = state.input.pop_front() {
                let credit = state.receive.consume(bytes.len());
                drop(state);
                if let Some(credit) = credit {
                    self.send(Kind::Credit, 0, &credit.to_le_bytes());
                }
                return Some(bytes);
            }
            if state.input_ended {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sends output as credit allows; false once nobody wants it.
    pub fn output(&self, flags: u8, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let taken = {
                let mut state = lock(&self.state);
                loop {
                    if state.abandoned {
                        return false;
                    }
                    let taken = state.send.take(bytes.len().min(MAX_PAYLOAD_BYTES));
                    if taken > 0 {
                        break taken;
                    }
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            self.send(Kind::Data, flags, &bytes[..taken]);
            bytes = &bytes[taken..];
        }
        true
    }

    /// Says how it ended.
    pub fn finish(&self, finished: &Finished) {
        let abandoned = std::mem::replace(&mut lock(&self.state).abandoned, true);
        self.changed.notify_all();
        if !abandoned {
            self.send(Kind::Finished, 0, &to_payload(finished));
        }
        *lock(&self.on_control) = None;
    }

    fn send(&self, kind: Kind, flags: u8, payload: &[u8]) {
        if self
            .outgoing
            .send(Speech::Report, self.epoch, kind, flags, self.id, payload)
            .is_err()
        {
            self.abandon();
        }
    }
}

/// Input as a reader.
pub struct InputReader<'a> {
    stream: &'a Stream,
    chunk: Vec<u8>,
    at: usize,
}

impl<'a> InputReader<'a> {
    /// Reads the stream's input from where it is.
    pub fn new(stream: &'a Stream) -> Self {
        Self {
            stream,
            chunk: Vec::new(),
            at: 0,
        }
    }
}

impl Read for InputReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            match self.stream.next_input() {
                Some(bytes) => (self.chunk, self.at) = (bytes, 0),
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len() - self.at);
        buffer[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Output as a writer.
pub struct OutputWriter<'a>(pub &'a Stream);

impl Write for OutputWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.output(0, bytes) {
            true => Ok(bytes.len()),
            false => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
