//! What goes wrong with a remote, in kinds a caller can act on.

use crate::Key;
use martlet_store::StoreError;
use thiserror::Error;

/// An operation on a remote failed.
#[derive(Debug, Error)]
pub enum SourceError {
    /// There is no such object.
    #[error("{place} has no {key}")]
    NotFound {
        /// The remote.
        place: String,
        /// The object.
        key: Key,
    },
    /// The remote does not let us.
    #[error("{place} refuses to {action}: {reason}")]
    Refused {
        /// The remote.
        place: String,
        /// What was tried.
        action: &'static str,
        /// The remote's words.
        reason: String,
    },
    /// The remote does not answer as it must.
    #[error("{place} cannot {action}: {reason}")]
    Unavailable {
        /// The remote.
        place: String,
        /// What was tried.
        action: &'static str,
        /// What is known.
        reason: String,
    },
    /// The remote answered with something else than what was asked for.
    #[error("{place} gave something wrong for {key}: {reason}")]
    Wrong {
        /// The remote.
        place: String,
        /// The object.
        key: Key,
        /// What is wrong.
        reason: String,
    },
    /// There is no space left.
    #[error("{place} is full")]
    Full {
        /// The remote.
        place: String,
    },
    /// An address that no remote has.
    #[error("{address:?} is no address of a remote: {reason}")]
    BadAddress {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no snapshot of this name.
    #[error("{place} has no snapshot {name}")]
    NoSnapshot {
        /// The remote.
        place: String,
        /// What was asked for.
        name: String,
    },
    /// The remote does not have all of a snapshot that it says it has.
    #[error("{place} lacks {object}, which the snapshot needs")]
    Incomplete {
        /// The remote.
        place: String,
        /// What is missing.
        object: String,
    },
    /// A name stands for something else since it was looked at.
    #[error("{name} was changed at {place} by somebody else meanwhile")]
    Changed {
        /// The remote.
        place: String,
        /// The name.
        name: String,
    },
    /// A name is held by somebody else: there its machine runs.
    #[error("{name} is held at {place} by {host}")]
    Held {
        /// The remote.
        place: String,
        /// The name.
        name: String,
        /// Who holds it.
        host: String,
    },
    /// The lease that a name was held under here is over.
    #[error("{name} is no longer held here: it has gone on at {place} with version {version}, by {host}")]
    Lost {
        /// The remote.
        place: String,
        /// The name.
        name: String,
        /// The version it has there now; 0: none.
        version: u32,
        /// Who made that.
        host: String,
    },
    /// Another host collects garbage there.
    #[error("{host} has been collecting garbage at {place} for {minutes} min")]
    Collecting {
        /// The remote.
        place: String,
        /// Who does.
        host: String,
        /// Since when, as the clocks say.
        minutes: u64,
    },
    /// A push took so long that what it relied on may have been collected.
    #[error("the push to {place} took more than a day; another one goes on from what was sent")]
    TooLong {
        /// The remote.
        place: String,
    },
    /// A snapshot is in more packs than a ref can list.
    #[error("{name} is in {packs} packs at {place}, more than a name can have")]
    Scattered {
        /// The remote.
        place: String,
        /// The name.
        name: String,
        /// How many.
        packs: usize,
    },
    /// A ref is shown in an older state than was seen before, or in another.
    #[error(
        "{place} shows version {shown} of {name}, but version {seen} was seen there before, or another of that number"
    )]
    RolledBack {
        /// The remote.
        place: String,
        /// The ref.
        name: String,
        /// The newest version that was seen.
        seen: u32,
        /// What is shown as the newest; 0: none.
        shown: u32,
    },
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This kind of remote only lets itself be read.
    #[error("{place} can only be read")]
    ReadOnly {
        /// The remote.
        place: String,
    },
}

impl SourceError {
    /// Could the same call succeed if it is made again, with nothing changed?
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. }
            | Self::Changed { .. }
            | Self::Collecting { .. }
            | Self::TooLong { .. } => true,
            Self::Store(error) => error.is_retryable(),
            _ => false,
        }
    }
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, SourceError>;
