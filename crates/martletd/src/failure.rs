//! Problems as HTTP answers.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use martlet_api::{Problem, ProblemCode};

/// A problem on its way to a client.
#[derive(Debug)]
pub struct Failure(pub Problem);

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (status(self.0.code), Json(self.0)).into_response()
    }
}

/// The status of each kind of problem, as [`ProblemCode`] documents it.
pub fn status(code: ProblemCode) -> StatusCode {
    use ProblemCode::*;
    match code {
        InvalidArgument => StatusCode::BAD_REQUEST,
        PermissionDenied => StatusCode::FORBIDDEN,
        NotFound => StatusCode::NOT_FOUND,
        AlreadyExists | InUse | WrongState | Busy => StatusCode::CONFLICT,
        Incompatible | Damaged => StatusCode::UNPROCESSABLE_ENTITY,
        MissingDependency => StatusCode::FAILED_DEPENDENCY,
        Internal => StatusCode::INTERNAL_SERVER_ERROR,
        HypervisorFailed => StatusCode::BAD_GATEWAY,
        GuestFailed => StatusCode::GATEWAY_TIMEOUT,
        NoSpace => StatusCode::INSUFFICIENT_STORAGE,
    }
}
