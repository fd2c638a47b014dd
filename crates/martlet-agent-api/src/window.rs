//! Credit windows: how much of a stream may be under way.
//!
//! A sender starts with [`WINDOW_BYTES`] and spends them on data; the receiver hands bytes back as it consumes them.
//! A receiver therefore never has to hold more than a window for each stream, and may call a sender that overdraws a
//! liar.

/// Bytes of one direction of one stream that may be under way.
pub const WINDOW_BYTES: u32 = 256 * 1024;

/// The receiver hands credit back in pieces of at least this size.
const GRANT_BYTES: u32 = WINDOW_BYTES / 4;

/// What a sender may still send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendWindow {
    available: u32,
}

/// The other side broke the rules of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer broke the stream's credit window")]
pub struct WindowError;

impl Default for SendWindow {
    fn default() -> Self {
        Self {
            available: WINDOW_BYTES,
        }
    }
}

impl SendWindow {
    /// Bytes that may be sent now.
    pub fn available(&self) -> usize {
        self.available as usize
    }

    /// Takes up to `wanted` bytes of credit and says how many were to be had.
    pub fn take(&mut self, wanted: usize) -> usize {
        let taken = wanted.min(self.available as usize);
        self.available -= taken as u32;
        taken
    }

    /// Credit came back. More than was ever spent is an error.
    pub fn grant(&mut self, bytes: u32) -> Result<(), WindowError> {
        let total = self
            .available
            .checked_add(bytes)
            .filter(|total| *total <= WINDOW_BYTES)
            .ok_or(WindowError)?;
        self.available = total;
        Ok(())
    }
}

/// What a receiver has let in and not yet given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveWindow {
    allowed: u32,
    consumed: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self {
            allowed: WINDOW_BYTES,
            consumed: 0,
        }
    }
}

impl ReceiveWindow {
    /// Data arrived.
    pub fn receive(&mut self, bytes: usize) -> Result<(), WindowError> {
        let bytes = u32::try_from(bytes).map_err(|_| WindowError)?;
        self.allowed = self.allowed.checked_sub(bytes).ok_or(WindowError)?;
        Ok(())
    }

    /// `bytes` of it were consumed; the credit to hand back now, if any.
    pub fn consume(&mut self, bytes: usize) -> Option<u32> {
        self.consumed = self
            .consumed
            .saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        let outstanding = WINDOW_BYTES - self.allowed;
        let grant = self.consumed.min(outstanding);
        (grant >= GRANT_BYTES).then(|| {
            self.consumed -= grant;
            self.allowed += grant;
            grant
        })
    }
}
