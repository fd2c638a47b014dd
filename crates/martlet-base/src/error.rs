//! What can go wrong while a base is made.

use std::path::{Path, PathBuf};

/// Why a base could not be made. Nothing of the attempt is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BaseError {
    /// A program this step needs is not installed.
    #[error("`{tool}` is not installed; `apt-get install {package}` provides it")]
    MissingTool {
        /// The program.
        tool: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The request cannot be met as it stands: a name, a size, a suite.
    #[error("{0}")]
    Invalid(String),
    /// The content does not fit into the size asked for.
    #[error(
        "the content needs about {needed_bytes} bytes, which does not fit into {size_bytes}: ask for a larger disk or leave the size out"
    )]
    TooSmall {
        /// Size asked for.
        size_bytes: u64,
        /// Size that would do.
        needed_bytes: u64,
    },
    /// What is to be imported is not what it claims to be, is damaged, or is hostile.
    #[error("cannot import {}: {reason}", path.display())]
    BadSource {
        /// What was being imported.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A program failed; its last words.
    #[error("{tool} failed ({status}): {last_words}")]
    Tool {
        /// The program.
        tool: String,
        /// How it ended.
        status: String,
        /// The end of what it wrote to standard error.
        last_words: String,
    },
    /// Packages could not be downloaded.
    #[error("cannot get packages from the Debian archive: {last_words}")]
    Download {
        /// What the package manager said.
        last_words: String,
    },
    /// Ownership and device nodes can only be made by root.
    #[error(
        "{what} keeps ownership and device nodes as they are in the image, which needs root: start martletd as root, or \
         import a raw or qcow2 disk, which does not need it"
    )]
    NeedsRoot {
        /// The step that needs it.
        what: &'static str,
    },
    /// The caller asked for it to stop.
    #[error("cancelled")]
    Cancelled,
    /// The host's file system refused.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The host's answer.
        source: std::io::Error,
    },
}

impl BaseError {
    /// Is the same request worth sending again, unchanged? Only failed downloads are.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Download { .. })
    }

    /// Is the host's disk full?
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            Self::Tool { last_words, .. } => last_words.contains("No space left on device"),
            _ => false,
        }
    }

    pub(crate) fn bad_source(path: &Path, reason: impl Into<String>) -> Self {
        Self::BadSource {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

/// Names the action and the path of a failed file operation.
pub(crate) trait IoContext<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, BaseError>;
}

impl<T, E: Into<std::io::Error>> IoContext<T> for Result<T, E> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, BaseError> {
        self.map_err(|error| BaseError::Io {
            action,
            path: path.to_owned(),
            source: error.into(),
        })
    }
}
