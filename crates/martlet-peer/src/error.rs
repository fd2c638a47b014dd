//! What goes wrong with another host, in kinds a caller can act on.

use crate::{BadInvitation, Code, Refusal};
use martlet_store::StoreError;
use thiserror::Error;

/// Something with another host failed.
#[derive(Debug, Error)]
pub enum PeerError {
    /// No connection, or it ended before anything was said.
    #[error("{peer} cannot be reached: {reason}")]
    Unreachable {
        /// The other host.
        peer: String,
        /// What is known.
        reason: String,
    },
    /// What answers there is no Martlet host.
    #[error("what answers at {peer} is no host of a fleet: {reason}")]
    NotAPeer {
        /// Where.
        peer: String,
        /// What it did.
        reason: String,
    },
    /// What answers there is not the host that was meant.
    #[error("{peer} shows a certificate that is not its own: {reason}")]
    WrongCertificate {
        /// The host that was meant.
        peer: String,
        /// What is wrong.
        reason: String,
    },
    /// A certificate is not valid now: it has expired, or a clock is wrong.
    #[error("the certificate of {whose} is not valid now: renew it, or set the clock right")]
    Expired {
        /// The host whose it is.
        whose: String,
    },
    /// This host was removed from the fleet.
    #[error("{peer} says that this host was removed from the fleet")]
    Removed {
        /// The other host.
        peer: String,
    },
    /// The other host is of another fleet.
    #[error("{peer} does not know this host's fleet")]
    Stranger {
        /// The other host.
        peer: String,
    },
    /// The other host does not do it.
    #[error("{peer} refuses: {reason}")]
    Refused {
        /// The other host.
        peer: String,
        /// Why, for programs.
        code: Code,
        /// Why, in its words.
        reason: String,
    },
    /// It says nothing more.
    #[error("{peer} has said nothing for {milliseconds} ms while it was to {action}")]
    Stalled {
        /// The other host.
        peer: String,
        /// What it was asked to do.
        action: String,
        /// How long it was waited for.
        milliseconds: u64,
    },
    /// The connection ended in the middle of an answer.
    #[error("the connection to {peer} broke while it was to {action}: {reason}")]
    Broken {
        /// The other host.
        peer: String,
        /// What it was asked to do.
        action: String,
        /// What is known.
        reason: String,
    },
    /// It answered with something else than what was asked for.
    #[error("{peer} gave something wrong for {what}: {reason}")]
    Wrong {
        /// The other host.
        peer: String,
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It has no snapshot of this name.
    #[error("{peer} has no snapshot {name}")]
    NoSnapshot {
        /// The other host.
        peer: String,
        /// What was asked for.
        name: String,
    },
    /// It does not have all of a snapshot that it says it has.
    #[error("{peer} lacks {object}, which the snapshot needs")]
    Incomplete {
        /// The other host.
        peer: String,
        /// What is missing.
        object: String,
    },
    /// A certificate, key or name of this host's own that cannot be used.
    #[error("{0}")]
    Identity(String),
    /// The line is no invitation.
    #[error(transparent)]
    BadInvitation(#[from] BadInvitation),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PeerError {
    /// Could the same call succeed if it is made again, with nothing changed?
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Stalled { .. } | Self::Broken { .. } => true,
            Self::Refused { code, .. } => code.is_retryable(),
            Self::Store(error) => error.is_retryable(),
            _ => false,
        }
    }

    pub(crate) fn refused(peer: &str, refusal: Refusal) -> Self {
        let peer = peer.to_owned();
        match refusal.code {
            Code::Removed => Self::Removed { peer },
            Code::Stranger => Self::Stranger { peer },
            Code::Expired => Self::Expired {
                whose: "this host".into(),
            },
            code => Self::Refused {
                peer,
                code,
                reason: refusal.message,
            },
        }
    }

    pub(crate) fn wrong(peer: &str, what: impl ToString, reason: impl ToString) -> Self {
        Self::Wrong {
            peer: peer.to_owned(),
            what: what.to_string(),
            reason: reason.to_string(),
        }
    }
}

/// Shorthand.
pub type Result<T, E = PeerError> = std::result::Result<T, E>;
