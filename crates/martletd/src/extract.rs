//! What handlers take out of a request, checked, with [`Problem`]s instead of the framework's bare texts.

use crate::failure::Failure;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::ACCEPT;
use axum::http::request::Parts;
use martlet_api::names::{check_name, check_reference};
use martlet_api::{Problem, ProblemCode, User};
use serde::de::DeserializeOwned;

/// Longest JSON body. Command lines and environments are the longest things in there.
const BODY_MAX_BYTES: usize = 1 << 20;

/// A JSON body; an empty one counts as `{}`.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let bytes = axum::body::to_bytes(request.into_body(), BODY_MAX_BYTES)
            .await
            .map_err(|error| {
                invalid(
                    "the request's body could not be read or is longer than 1 MiB",
                    &error,
                )
            })?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        let value = serde_json::from_slice(text)
            .map_err(|error| invalid("the request's body is not what this call takes", &error))?;
        Ok(Self(value))
    }
}

/// The query string.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(error) => Err(invalid(
                "the query is not what this call takes",
                &error.body_text(),
            )),
        }
    }
}

/// The path's parameter as the name of a machine or base.
pub struct Named(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let name = path_parameter(parts, state).await?;
        check_name(&name)?;
        Ok(Self(name))
    }
}

/// The path's parameter as a reference to a snapshot, or a name.
pub struct Referenced(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Referenced {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let reference = path_parameter(parts, state).await?;
        check_reference(&reference)?;
        Ok(Self(reference))
    }
}

async fn path_parameter<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<String, Failure> {
    match Path::from_request_parts(parts, state).await {
        Ok(Path(text)) => Ok(text),
        Err(error) => Err(invalid("the path is not valid", &error.body_text())),
    }
}

/// Does the client want events, or one answer at the end?
pub struct WantsEvents(pub bool);

impl<S: Send + Sync> FromRequestParts<S> for WantsEvents {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let accept = parts.headers.get(ACCEPT).and_then(|value| value.to_str().ok());
        Ok(Self(
            accept.is_some_and(|accept| accept.contains("text/event-stream")),
        ))
    }
}

/// Who asks, as far as the door has found out: whoever comes by the socket is one of the host's own.
pub struct Asks(pub User);

impl<S: Send + Sync> FromRequestParts<S> for Asks {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(parts.extensions.get().cloned().unwrap_or_default()))
    }
}

fn invalid(message: &str, cause: &dyn std::fmt::Display) -> Failure {
    Failure(Problem::new(ProblemCode::InvalidArgument, message).cause(cause))
}
