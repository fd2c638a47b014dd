//! Machines of other hosts that are to go on here.
//!
//! ```text
//! POST /peer/moves/could    hardware         ► could it run here?
//! POST /peer/moves/offer    what it is       ► it may come
//! POST /peer/moves/load     its state        ► it only has to go on
//! POST /peer/moves/go       its id           ► it runs here
//! POST /peer/moves/settle   its id           ► whose it is
//! POST /peer/moves/lacks    a snapshot's id  ► how much of it is still to come here
//! ```
//!
//! An answer is a result, or a problem of this host's.

use axum::extract::State;
use axum::routing::{MethodRouter, post};
use axum::{Extension, Json, Router};
use martlet_api::Problem;
use martlet_engine::{Engine, HardwareRecord, Load, Offer};
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
            asked(|engine, _, hardware: HardwareRecord| engine.could(&hardware)),
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
            asked(|engine, from, machine: String| Ok(engine.settle_move(from, &machine))),
        )
        .route(
            "/peer/moves/lacks",
            asked(|engine, _, snapshot: String| engine.still_lacks(&snapshot)),
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
                Caller::Host(name) if (movers.policy)(&name, Access::Run) => {
                    Ok(Json(answer(&movers.engine, &name, question)))
                }
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
