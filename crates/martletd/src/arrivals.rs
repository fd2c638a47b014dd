//! Machines of other hosts that are to go on here, and clones that those start here.
//!
//! ```text
//! POST /peer/moves/could    hardware         ► could it run here?
//! POST /peer/moves/offer    what it is       ► it may come
//! POST /peer/moves/load     its state        ► it only has to go on
//! POST /peer/moves/go       its id           ► it runs here
//! POST /peer/moves/settle   and a snapshot's ► whose it is
//! POST /peer/moves/lacks    a snapshot's id  ► how much of it is still to come here
//! POST /peer/clones/start   what they are    ► their fork's id
//! POST /peer/clones/wait    its id           ► what has become of some more
//! POST /peer/clones/give    its next input   ► it has it
//! POST /peer/clones/end     its id           ► they are gone
//! POST /peer/clones/left    its id           ► how many there still are
//! ```
//!
//! An answer is a result, or a problem of this host's.

use axum::extract::State;
use axum::routing::{MethodRouter, post};
use axum::{Extension, Json, Router};
use martlet_api::Problem;
use martlet_engine::{Ask, Engine, Give, HardwareRecord, Load, Offer, Settle, Wanted};
use martlet_peer::{Access, Caller, Code, Policy, Refusal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

#[derive(Clone)]
struct Movers {
    engine: Arc<Engine>,
    policy: Policy,
}

/// The paths, for hosts of the fleet that the policy lets have machines go on here.
pub fn router(engine: Arc<Engine>, policy: Policy) -> Router {
    Router::new()
        .route(
            "/peer/moves/could",
            asked(|engine, _, hardware: HardwareRecord| engine.could_take(&hardware)),
        )
        .route(
            "/peer/moves/offer",
            asked(|engine, from, offer: Offer| engine.offered(from, offer)),
        )
        .route(
            "/peer/moves/load",
            asked(|engine, from, load: Load| engine.load(from, load)),
        )
        .route(
            "/peer/moves/go",
            asked(|engine, from, machine: String| engine.go(from, &machine)),
        )
        .route(
            "/peer/moves/settle",
            asked(|engine, from, settle: Settle| engine.settle_move(from, &settle)),
        )
        .route(
            "/peer/moves/lacks",
            asked(|engine, _, snapshot: String| engine.still_lacks(&snapshot)),
        )
        .route(
            "/peer/clones/start",
            asked(|engine, from, wanted: Wanted| engine.clones_wanted(from, wanted)),
        )
        .route(
            "/peer/clones/wait",
            asked(|engine, from, ask: Ask| engine.clones_started(from, &ask)),
        )
        .route(
            "/peer/clones/give",
            asked(|engine, from, give: Give| engine.clone_given(from, give)),
        )
        .route(
            "/peer/clones/end",
            asked(|engine, from, flock: String| engine.clones_ended(from, &flock)),
        )
        .route(
            "/peer/clones/left",
            asked(|engine, from, flock: String| engine.clones_left_here(from, &flock)),
        )
        .with_state(Movers { engine, policy })
}

/// A question of a host that may have machines go on here.
fn asked<Q, A>(answer: fn(&Arc<Engine>, &str, Q) -> Result<A, Problem>) -> MethodRouter<Movers>
where
    Q: DeserializeOwned + Send + 'static,
    A: Serialize + Send + 'static,
{
    post(
        move |State(movers): State<Movers>, Extension(caller): Extension<Caller>, Json(question): Json<Q>| async move {
            let work = move || match caller {
                Caller::Host(name) => (movers.policy)(&name, Access::Run)
                    .map(|()| Json(answer(&movers.engine, &name, question))),
                _ => Err(Refusal::new(
                    Code::Forbidden,
                    "only hosts of the fleet have machines go on here",
                )),
            };
            let done = tokio::task::spawn_blocking(work).await;
            done.unwrap_or_else(|_| Err(Refusal::new(Code::Failed, "this host has failed to answer")))
        },
    )
}
