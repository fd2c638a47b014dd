//! What a host answers when it does not do what it is asked: `{"code": "removed", "message": "…"}`.

use axum::Json;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use martlet_store::StoreError;
use serde::{Deserialize, Serialize};

/// Why not, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The caller's certificate is of another fleet.
    Stranger,
    /// The caller's certificate is not valid now.
    Expired,
    /// The caller was removed from the fleet.
    Removed,
    /// The caller may not.
    Forbidden,
    /// There is no such invitation.
    InvitationUnknown,
    /// Somebody has joined by this invitation.
    InvitationUsed,
    /// The invitation's time is over.
    InvitationExpired,
    /// Another host, or another snapshot, has this name.
    NameTaken,
    /// The question is malformed.
    BadRequest,
    /// There is no such thing.
    NotFound,
    /// Objects are missing that a snapshot needs.
    Lacks,
    /// The disk is full.
    NoSpace,
    /// It may go better another time.
    Busy,
    /// Anything else.
    #[serde(other)]
    Failed,
}

impl Code {
    /// Could the same question be answered another time?
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Lacks | Self::NoSpace | Self::Busy)
    }

    fn status(self) -> StatusCode {
        match self {
            Self::Stranger | Self::Expired | Self::Removed | Self::Forbidden => StatusCode::FORBIDDEN,
            Self::InvitationUnknown | Self::InvitationUsed | Self::InvitationExpired => {
                StatusCode::UNAUTHORIZED
            }
            Self::NameTaken | Self::Lacks => StatusCode::CONFLICT,
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// An answer that says no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why, for programs.
    pub code: Code,
    /// Why, for people.
    pub message: String,
}

impl Refusal {
    /// No, because.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::NotFound(_) => Code::NotFound,
            StoreError::NoSpace { .. } => Code::NoSpace,
            StoreError::Invalid(_) | StoreError::Format(_) => Code::BadRequest,
            error if error.is_retryable() => Code::Busy,
            _ => Code::Failed,
        };
        Self::new(code, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.code.status(), Json(self)).into_response()
    }
}
