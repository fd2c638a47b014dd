//! Frames that other hosts want of a group that this one sends to.
//!
//! ```text
//! POST /peer/multicast/want   frames of a group ► which of them come, and when
//! ```

use axum::extract::State;
use axum::routing::post;
use axum::{Extension, Json, Router};
use martlet_api::Problem;
use martlet_engine::{Engine, SentFrames, WantedFrames};
use martlet_peer::{Access, Caller, Code, Policy, Refusal};
use std::sync::Arc;

type Answer = Result<Json<Result<SentFrames, Problem>>, Refusal>;

#[derive(Clone)]
struct Sending {
    engine: Arc<Engine>,
    policy: Policy,
}

/// The path, for hosts of the fleet that may read here.
pub fn router(engine: Arc<Engine>, policy: Policy) -> Router {
    Router::new()
        .route("/peer/multicast/want", post(want))
        .with_state(Sending { engine, policy })
}

async fn want(
    State(sending): State<Sending>,
    Extension(caller): Extension<Caller>,
    Json(wanted): Json<WantedFrames>,
) -> Answer {
    let work = move || match caller {
        Caller::Host(name) => (sending.policy)(&name, Access::Read)
            .map(|()| Json(sending.engine.multicast_wanted(&name, &wanted))),
        _ => Err(Refusal::new(
            Code::Forbidden,
            "only hosts of the fleet have frames sent",
        )),
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Refusal::new(Code::Failed, "this host has failed to answer")))
}
