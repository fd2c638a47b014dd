//! What can go wrong, in kinds that a caller can act upon.

use martlet_image::FormatError;
use std::io;
use std::path::PathBuf;

/// The result of anything the store does.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Why the store could not do it. The old state is whole in every case.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system is full. Nothing was committed.
    #[error("no space left while {doing}: run gc, or free space in the store's file system")]
    NoSpace {
        /// What was being done.
        doing: String,
    },
    /// Stored bytes are not what they were.
    #[error(
        "{id} is damaged in {pack} at {offset}: {reason}; verify names who is hurt and repairs from other copies"
    )]
    Damaged {
        /// Pack it is in.
        pack: String,
        /// Offset of its record.
        offset: u64,
        /// What was read.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// There is no such thing.
    #[error("{0} does not exist")]
    NotFound(String),
    /// Somebody uses it.
    #[error("{what} is in use by {}", by.join(", "))]
    InUse {
        /// What is in use.
        what: String,
        /// Who uses it.
        by: Vec<String>,
    },
    /// Another process has the store open.
    #[error("the store in {} is open in another process", .0.display())]
    Locked(PathBuf),
    /// A name, id prefix or object that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// An object whose bytes are intact is malformed.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The index is damaged. It is rebuilt from the packs when the store is opened next.
    #[error("the index is damaged ({0}): open the store again to rebuild it from the packs")]
    Index(String),
    /// An earlier failure left it open whether a commit happened, and the disk still does not let that be settled.
    #[error(
        "an earlier write failed half-way and cannot be settled yet: free space, or mend the disk, and try again"
    )]
    Unsettled,
    /// Any other failure of the file system.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
}

impl StoreError {
    /// Could the same call succeed later, with nothing else changed than time or free space?
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoSpace { .. } | Self::InUse { .. } | Self::Locked(_) | Self::Unsettled => true,
            Self::Io { source, .. } => {
                matches!(
                    source.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::TimedOut
                )
            }
            _ => false,
        }
    }

    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { doing },
            _ => Self::Io { doing, source },
        }
    }
}
