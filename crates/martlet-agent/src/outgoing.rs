//! Frames to the host. One lock, whole frames, and only those of the present epoch.

use martlet_agent_api::Kind;
use martlet_agent_api::frame::{self, HEADER_BYTES};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// The way to the host.
pub struct Outgoing {
    epoch: AtomicU64,
    writer: Mutex<Box<dyn Write + Send>>,
}

/// The frame was not sent: it is of a former life, or the channel is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotSent;

impl Outgoing {
    /// Nothing is sent before [`Outgoing::set_epoch`].
    pub fn new(writer: Box<dyn Write + Send>) -> Self {
        Self {
            epoch: AtomicU64::new(0),
            writer: Mutex::new(writer),
        }
    }

    /// The host's present epoch; 0 before it has greeted.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// From now on frames of any other epoch are dropped.
    pub fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Release);
    }

    /// Sends a frame, waiting while the host does not read.
    pub fn send(
        &self,
        epoch: u64,
        kind: Kind,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> Result<(), NotSent> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        frame::encode(kind, flags, stream, epoch, payload, &mut bytes);
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if self.epoch() != epoch {
            return Err(NotSent);
        }
        writer.write_all(&bytes).map_err(|_| NotSent)
    }
}
