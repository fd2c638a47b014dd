//! Frames to the host. One lock, whole frames, and only those of the present epoch.
//!
//! While user code is held the agent is quiet: it answers what it is asked and says nothing of itself. So what is
//! saved then has no half of a frame in its channel, which a clone's host would have to find its way out of.

use martlet_agent_api::Kind;
use martlet_agent_api::frame::{self, HEADER_BYTES};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The way to the host.
pub struct Outgoing {
    epoch: AtomicU64,
    channel: Mutex<Channel>,
    changed: Condvar,
}

struct Channel {
    writer: Box<dyn Write + Send>,
    quiet: bool,
}

/// Why a frame is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// The host has just asked, and waits.
    Answer,
    /// Anything else: streams, and the ends of what takes its time.
    Report,
}

/// The frame was not sent: it is of a former life, or the channel is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotSent;

impl Outgoing {
    /// Nothing is sent before [`Outgoing::set_epoch`].
    pub fn new(writer: Box<dyn Write + Send>) -> Self {
        Self {
            epoch: AtomicU64::new(0),
            channel: Mutex::new(Channel { writer, quiet: false }),
            changed: Condvar::new(),
        }
    }

    fn channel(&self) -> MutexGuard<'_, Channel> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, or no longer, only answers are sent.
    pub fn set_quiet(&self, quiet: bool) {
        self.channel().quiet = quiet;
        self.changed.notify_all();
    }

    /// The host's present epoch; 0 before it has greeted.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// From now on frames of any other epoch are dropped. The new one's host has asked for no quiet.
    pub fn set_epoch(&self, epoch: u64) {
        let mut channel = self.channel(); // nobody is between its look at the epoch and its wait
        self.epoch.store(epoch, Ordering::Release);
        channel.quiet = false;
        drop(channel);
        self.changed.notify_all();
    }

    /// Sends a frame, waiting while the host does not read and, for what it did not just ask, while the agent is quiet.
    pub fn send(
        &self,
        speech: Speech,
        epoch: u64,
        kind: Kind,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> Result<(), NotSent> {
        let waits =
            |channel: &mut Channel| speech == Speech::Report && channel.quiet && self.epoch() == epoch;
        let channel = self.changed.wait_while(self.channel(), waits);
        let mut channel = channel.unwrap_or_else(PoisonError::into_inner);
        if self.epoch() != epoch {
            return Err(NotSent);
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        frame::encode(kind, flags, stream, epoch, payload, &mut bytes);
        channel.writer.write_all(&bytes).map_err(|_| NotSent)
    }
}
