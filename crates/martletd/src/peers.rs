//! The server for other hosts, and for people with tokens: there as soon as this host is in a fleet, and as long as the daemon.

use crate::{arrivals, multicast};
use anyhow::{Context, Result};
use axum::routing::get;
use axum::{Extension, Json, Router};
use martlet_api::Problem;
use martlet_engine::{Engine, PeerService};
use martlet_peer::{Caller, Code, Limits, Refusal, join_router, peer_router, serve};
use martletd::people::People;
use serde::Serialize;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether the daemon ends.
const LOOK: Duration = Duration::from_millis(100);
/// An address that is not there yet, or not free yet, is tried again after this time.
const RETRY: Duration = Duration::from_secs(5);

/// Starts the thread that waits until there is something to serve, and serves it. `listen` says where, if not where the other
/// hosts reach this one.
pub fn start(engine: Arc<Engine>, listen: Option<SocketAddr>, people: People) -> Result<()> {
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
            match run(&engine, service, listen, people.clone()) {
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

fn run(engine: &Arc<Engine>, service: PeerService, listen: Option<SocketAddr>, people: People) -> Result<()> {
    let mut router = peer_router(service.store, service.policy.clone())
        .merge(fleet_router(engine.clone()))
        .merge(arrivals::router(engine.clone(), service.policy.clone()))
        .merge(multicast::router(engine.clone(), service.policy))
        .merge(people.router());
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
        if let Err(problem) = engine.serve_families(listener.local_addr()?) {
            tracing::error!(%problem, "forks over hosts have no network of their own");
        }
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

/// What hosts of the fleet ask each other about themselves: who is in it, and how this one is.
fn fleet_router(engine: Arc<Engine>) -> Router {
    let asked = engine.clone();
    let roll = move |caller| {
        let engine = asked.clone();
        answer(caller, move || Ok(engine.roll()))
    };
    let top = move |caller| {
        let engine = engine.clone();
        answer(caller, move || engine.host_usage())
    };
    Router::new()
        .route("/peer/roll", get(roll))
        .route("/peer/top", get(top))
}

async fn answer<T: Serialize + Send + 'static>(
    Extension(caller): Extension<Caller>,
    ask: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<Json<T>, Refusal> {
    let Caller::Host(_) = caller else {
        let words = "only hosts of the fleet are told of it";
        return Err(Refusal::new(Code::Forbidden, words));
    };
    let asked = tokio::task::spawn_blocking(ask).await;
    let asked = asked.map_err(|_| Refusal::new(Code::Failed, "the daemon hit a bug"))?;
    asked
        .map(Json)
        .map_err(|problem| Refusal::new(Code::Failed, problem.message))
}
