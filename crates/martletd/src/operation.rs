//! From a handler to the engine and back.
//!
//! Every call runs to its end on a blocking thread, whether or not somebody still waits for the answer. Long ones
//! report progress as server-sent events when the client asks for them:
//!
//! ```text
//! event: progress          any number of times; dropped rather than delayed when the client reads slowly
//! data: {"stage":"…"}
//!
//! event: result            exactly one of `result` and `error`, last
//! data: {…}
//! ```

use crate::control::{Answer, Control};
use crate::failure::Failure;
use crate::server::Server;
use crate::stream::ChannelBody;
use axum::Json;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use martlet_api::{Problem, ProblemCode, Progress, ProgressSink};
use serde::Serialize;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What handlers answer.
pub type Reply = Result<Response, Failure>;

impl Server {
    /// Calls the engine on a blocking thread.
    pub async fn call<T, F>(&self, work: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Control) -> Answer<T> + Send + 'static,
    {
        let (control, under_way) = (self.control.clone(), self.activity.begin());
        let work = move || {
            let _under_way = under_way;
            guarded(|| work(&*control))
        };
        let done = tokio::task::spawn_blocking(work).await;
        Ok(done.unwrap_or_else(|error| Err(panicked(&error)))?)
    }

    /// Calls the engine and answers with what it returns.
    pub async fn answer<T, F>(&self, work: F) -> Reply
    where
        T: Serialize + Send + 'static,
        F: FnOnce(&dyn Control) -> Answer<T> + Send + 'static,
    {
        Ok(Json(self.call(work).await?).into_response())
    }

    /// Calls the engine for an effect.
    pub async fn effect<F>(&self, work: F) -> Reply
    where
        F: FnOnce(&dyn Control) -> Answer<()> + Send + 'static,
    {
        self.call(work).await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    }

    /// Calls the engine for something long.
    pub async fn operation<T, F>(&self, events: bool, work: F) -> Reply
    where
        T: Serialize + Send + 'static,
        F: FnOnce(&dyn Control, ProgressSink<'_>) -> Answer<T> + Send + 'static,
    {
        if !events {
            return self.answer(move |control| work(control, &|_| ())).await;
        }
        let (sender, body) = ChannelBody::new();
        let (control, under_way) = (self.control.clone(), self.activity.begin());
        tokio::task::spawn_blocking(move || {
            let _under_way = under_way;
            let progress = |progress: Progress| {
                let _ = sender.try_send(Ok(event("progress", &progress)));
            };
            let last = match guarded(|| work(&*control, &progress)) {
                Ok(value) => event("result", &value),
                Err(problem) => event("error", &problem),
            };
            // Nobody is there any more when this fails; the work is done all the same.
            let _ = sender.blocking_send(Ok(last));
        });
        let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
        Ok((headers, body.into_body(None)).into_response())
    }
}

fn event(kind: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("API types are plain data");
    format!("event: {kind}\ndata: {data}\n\n").into()
}

/// A bug in one call must not leave its client without an answer.
fn guarded<T>(work: impl FnOnce() -> Answer<T>) -> Answer<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        Err(panicked(
            &words
                .or(panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message"),
        ))
    })
}

fn panicked(why: &dyn std::fmt::Display) -> Problem {
    Problem::new(ProblemCode::Internal, "the daemon hit a bug")
        .cause(why)
        .remediation("the daemon's log has the details; please report it")
}
