//! Errors as the host is told them.

use martlet_agent_api::{RemoteError, RemoteErrorKind};
use std::fmt::Display;
use std::io;

/// A result whose error goes to the host.
pub type Result<T> = std::result::Result<T, RemoteError>;

/// An error of this kind.
pub fn fault(kind: RemoteErrorKind, message: impl Into<String>) -> RemoteError {
    RemoteError {
        kind,
        message: message.into(),
    }
}

/// Something was tried and did not work.
pub fn failed(what: impl Display, error: impl Display) -> RemoteError {
    fault(RemoteErrorKind::Failed, format!("{what}: {error}"))
}

/// As [`failed`], but told apart when it was not there.
pub fn io_failed(what: impl Display, error: &io::Error) -> RemoteError {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => RemoteErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => RemoteErrorKind::Denied,
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => RemoteErrorKind::Invalid,
        io::ErrorKind::Unsupported => RemoteErrorKind::Unsupported,
        _ => RemoteErrorKind::Failed,
    };
    fault(kind, format!("{what}: {error}"))
}
