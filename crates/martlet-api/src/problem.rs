//! What went wrong, why, and what to do about it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The kind of a problem: decides the HTTP status and the command line's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProblemCode {
    /// The request itself is wrong (400).
    InvalidArgument,
    /// No such machine, snapshot, base or path (404).
    NotFound,
    /// The name is taken (409).
    AlreadyExists,
    /// Something else uses it; the message names who (409).
    InUse,
    /// The machine is not in a state that allows this (409).
    WrongState,
    /// Another command is at work on the same machine (409); worth retrying.
    Busy,
    /// This host cannot run it: CPU model, machine type, QEMU version (422).
    Incompatible,
    /// Stored bytes do not match their hash or cannot be decoded (422).
    Damaged,
    /// No room left on the disk, or not enough memory (507).
    NoSpace,
    /// A program or kernel feature is missing (424).
    MissingDependency,
    /// The guest did not confirm or answer in time, or answered nonsense (504).
    GuestFailed,
    /// QEMU failed; the message has its last words (502).
    HypervisorFailed,
    /// Not allowed (403).
    PermissionDenied,
    /// Everything else (500).
    Internal,
}

/// An error as the API returns it and people read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// The kind.
    pub code: ProblemCode,
    /// What happened, in one sentence.
    pub message: String,
    /// Why, as far as is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remediation: Option<String>,
    /// Is the same request worth sending again, unchanged?
    #[serde(default)]
    pub retry: bool,
}

impl Problem {
    /// A problem of this kind, not worth retrying unchanged.
    pub fn new(code: ProblemCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            cause: None,
            remediation: None,
            retry: code == ProblemCode::Busy,
        }
    }
    /// Says why.
    pub fn cause(mut self, cause: impl std::fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }
    /// Says what to do.
    pub fn remediation(mut self, remediation: impl Into<String>) -> Self {
        self.remediation = Some(remediation.into());
        self
    }
}
