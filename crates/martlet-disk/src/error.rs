//! What can go wrong with a disk.

use martlet_pager::SourceError;
use std::io;
use std::path::{Path, PathBuf};

/// Why a disk operation failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file operation failed. A full file system shows here, as `ENOSPC`.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A layer's file is not what was written.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process has the disk open.
    #[error("the disk in {} is in use", dir.display())]
    InUse {
        /// The disk's directory.
        dir: PathBuf,
    },
    /// The directory holds no disk, or one already where one was to be made.
    #[error("{}: {reason}", dir.display())]
    Unsuitable {
        /// The disk's directory.
        dir: PathBuf,
        /// Why.
        reason: String,
    },
    /// The range is not within the disk.
    #[error("{length} bytes at {offset} are not within a disk of {size_bytes} bytes")]
    OutOfRange {
        /// Where the range starts.
        offset: u64,
        /// Its length.
        length: u64,
        /// The disk's size.
        size_bytes: u64,
    },
    /// A block of the image below cannot be had.
    #[error(transparent)]
    Source(#[from] SourceError),
}

impl DiskError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
    /// The error number that says it to a guest.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Self::OutOfRange { .. } => libc::EFBIG,
            Self::InUse { .. } => libc::EBUSY,
            Self::Damaged { .. } | Self::Unsuitable { .. } | Self::Source(_) => libc::EIO,
        }
    }
    /// May the same operation succeed later? (A full file system may be given room.)
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Self::InUse { .. } => true,
            Self::Source(error) => error.is_retryable(),
            _ => false,
        }
    }
}
