//! Why a call failed.

use martlet_agent_api::guest::{GuestError, GuestErrorKind};
use std::fmt;

/// A call was not done, or it is not known whether it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct Error {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
}

/// What a call answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The agent or the host refused or failed.
    Refused(GuestErrorKind),
    /// No agent listens: this is no guest of Martlet.
    Absent,
    /// The connection ended before the answer: it is not known whether the call was done.
    Lost,
    /// The answer makes no sense.
    Protocol,
}

impl ErrorKind {
    /// Its name, the same in all libraries.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused(GuestErrorKind::Denied) => "denied",
            Self::Refused(GuestErrorKind::NotFound) => "not_found",
            Self::Refused(GuestErrorKind::Invalid) => "invalid",
            Self::Refused(GuestErrorKind::State) => "state",
            Self::Refused(GuestErrorKind::Busy) => "busy",
            Self::Refused(GuestErrorKind::Interrupted) => "interrupted",
            Self::Refused(GuestErrorKind::Failed) => "failed",
            Self::Absent => "absent",
            Self::Lost => "lost",
            Self::Protocol => "protocol",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { kind, message }
    }

    /// The caller asked for what makes no sense.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused(GuestErrorKind::Invalid), message)
    }

    /// The agent answered what makes no sense.
    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Protocol, message)
    }
}

impl From<GuestError> for Error {
    fn from(error: GuestError) -> Self {
        Self::new(ErrorKind::Refused(error.kind), error.message)
    }
}
