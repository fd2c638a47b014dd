//! Where frames come from.

use bytes::Bytes;
use martlet_image::FrameId;
use std::io;
use std::sync::Arc;

/// A place that has frames: the store on this host, later other hosts and remotes. Blocking.
pub trait FrameSource: Send + Sync {
    /// The frame's uncompressed bytes, whole pages, verified against its id.
    fn frame(&self, id: &FrameId) -> Result<Bytes, SourceError>;

    /// Is there anything that takes so long to get that nothing should be got ahead of being asked for?
    fn is_far(&self) -> bool {
        false
    }

    /// These are about to be asked for, one after the other: what is far is better got at the same time.
    fn prepare(&self, _frames: &[FrameId]) {}

    /// A read had to wait for this frame, which another was getting.
    fn waited(&self, _frame: &FrameId) {}
}

impl<S: FrameSource + ?Sized> FrameSource for Arc<S> {
    fn frame(&self, id: &FrameId) -> Result<Bytes, SourceError> {
        (**self).frame(id)
    }

    fn is_far(&self) -> bool {
        (**self).is_far()
    }

    fn prepare(&self, frames: &[FrameId]) {
        (**self).prepare(frames);
    }

    fn waited(&self, frame: &FrameId) {
        (**self).waited(frame);
    }
}

/// Why a frame cannot be had. Cheap to clone, for one failure reaches every waiter.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// The source has no such frame.
    #[error("frame {frame} is missing")]
    Missing {
        /// Which.
        frame: FrameId,
    },
    /// What is stored is not what the id names.
    #[error("frame {frame} is damaged: {reason}")]
    Damaged {
        /// Which.
        frame: FrameId,
        /// What is wrong with it.
        reason: String,
    },
    /// Reading failed.
    #[error("frame {frame} cannot be read: {reason}")]
    Io {
        /// Which.
        frame: FrameId,
        /// The operating system's kind of error.
        kind: io::ErrorKind,
        /// Its words.
        reason: String,
    },
    /// Of what was asked for, some is in a starter and some in frames that are not: to be asked for page by page.
    #[error("page {page} and those behind it are not in one place")]
    Apart {
        /// The first of them.
        page: u64,
    },
}

impl SourceError {
    /// May the same read succeed later without anybody's help?
    pub fn is_retryable(&self) -> bool {
        use io::ErrorKind::{ConnectionReset, Interrupted, TimedOut, WouldBlock};
        matches!(
            self,
            Self::Io {
                kind: Interrupted | TimedOut | WouldBlock | ConnectionReset,
                ..
            }
        )
    }
}

impl From<SourceError> for io::Error {
    fn from(error: SourceError) -> Self {
        let kind = match &error {
            SourceError::Missing { .. } => io::ErrorKind::NotFound,
            SourceError::Damaged { .. } => io::ErrorKind::InvalidData,
            SourceError::Io { kind, .. } => *kind,
            SourceError::Apart { .. } => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, error)
    }
}
