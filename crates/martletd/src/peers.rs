//! The server for other hosts: there as soon as this host is in a fleet, and as long as the daemon.

use anyhow::{Context, Result};
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use martlet_api::Problem;
use martlet_engine::{Engine, HardwareRecord, Load, Offer, PeerService};
use martlet_peer::{Access, Caller, Code, Limits, Policy, Refusal, join_router, peer_router, serve};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether the daemon ends.
const LOOK: Duration = Duration::from_millis(100);
/// An address that is not there yet, or not free yet, is tried again after this time.
const RETRY: Duration = Duration::from_secs(5);

/// Starts the thread that waits until there is something to serve, and serves it. `listen` says where, if not where the other
/// hosts reach this one.
pub fn start(engine: Arc<Engine>, listen: Option<SocketAddr>) -> Result<()> {
    let run = move || {
        loop {
            let service = match engine.wait_for_fleet() {
                Ok(Some(service)) => service,
                Ok(None) => return,
                Err(problem) => {
                    tracing::error!(%problem, "other hosts are not served");
                    return;
                }
            };
            match run(&engine, service, listen) {
                Ok(()) => return,
                Err(error) => tracing::error!("other hosts are not served: {error:#}; this is tried again"),
            }
            std::thread::sleep(RETRY);
        }
    };
    std::thread::Builder::new()
        .name("peers".into())
        .spawn(run)
        .context("cannot start a thread")?;
    Ok(())
}

fn run(engine: &Arc<Engine>, service: PeerService, listen: Option<SocketAddr>) -> Result<()> {
    let mut router = peer_router(service.store, service.policy.clone())
        .merge(roll_router(engine.clone()))
        .merge(moves_router(Movers {
            engine: engine.clone(),
            policy: service.policy,
        }));
    if let Some(inviter) = service.inviter {
        router = router.merge(join_router(inviter));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("peers")
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = match listen {
            Some(address) => tokio::net::TcpListener::bind(address).await,
            None => tokio::net::TcpListener::bind(&service.address).await,
        };
        let address = listen.map_or(service.address, |listen| listen.to_string());
        let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
        tracing::info!(address, "serving other hosts");
        let engine = engine.clone();
        let shutdown = async move {
            while !engine.is_ending() {
                tokio::time::sleep(LOOK).await;
            }
        };
        serve(
            listener,
            &service.identity,
            service.removed,
            router,
            Limits::default(),
            shutdown,
        )
        .await?;
        Ok(())
    })
}

/// Who is in the fleet, for hosts of it.
fn roll_router(engine: Arc<Engine>) -> Router {
    let roll = move |Extension(caller): Extension<Caller>| async move {
        let Caller::Host(_) = caller else {
            return Err(Refusal::new(
                Code::Forbidden,
                "only hosts of the fleet are told who is in it",
            ));
        };
        let asked = tokio::task::spawn_blocking(move || engine.roll()).await;
        asked
            .map(Json)
            .map_err(|_| Refusal::new(Code::Failed, "the fleet cannot be looked up"))
    };
    Router::new().route("/peer/roll", get(roll))
}

/// Who answers hosts that want machines to go on here.
#[derive(Clone)]
struct Movers {
    engine: Arc<Engine>,
    policy: Policy,
}

/// Machines of other hosts that are to go on here. An answer is a result, or a problem of this host's.
fn moves_router(movers: Movers) -> Router {
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
        .with_state(movers)
}

/// A question of a host that may have machines go on here.
fn asked<Q, A>(answer: fn(&Arc<Engine>, &str, Q) -> Result<A, Problem>) -> axum::routing::MethodRouter<Movers>
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
