//! The store: space, garbage, damage.

use crate::check;
use crate::extract::{Body, WantsEvents};
use crate::openapi::Method::{Get, Post};
use crate::openapi::{Routes, Spec};
use crate::operation::Reply;
use crate::server::Server;
use axum::extract::State;
use martlet_api::{GcReport, GcRequest, Role, StoreUsage, VerifyReport, VerifyRequest};

pub fn routes(routes: Routes) -> Routes {
    let gc_spec = Spec::new("Free what nothing refers to")
        .takes::<GcRequest>()
        .gives::<GcReport>();
    let verify_spec = Spec::new("Read and check everything")
        .takes::<VerifyRequest>()
        .gives::<VerifyReport>();
    routes
        .route(
            Get,
            "/v1/store/usage",
            Spec::new("Where the space goes").gives::<StoreUsage>(),
            df,
        )
        .route(Post, "/v1/store/gc", gc_spec.with_events().needs(Role::Run), gc)
        .route(Post, "/v1/store/verify", verify_spec.with_events(), verify)
}

async fn df(State(server): State<Server>) -> Reply {
    server.answer(|control| control.df()).await
}

async fn gc(
    State(server): State<Server>,
    WantsEvents(events): WantsEvents,
    Body(request): Body<GcRequest>,
) -> Reply {
    server
        .operation(events, move |control, progress| {
            control.gc(request.dry_run, progress)
        })
        .await
}

async fn verify(
    State(server): State<Server>,
    WantsEvents(events): WantsEvents,
    Body(request): Body<VerifyRequest>,
) -> Reply {
    request
        .repair_from
        .iter()
        .try_for_each(|path| check::absolute_path(path))?;
    server
        .operation(events, move |control, progress| {
            control.verify(request.repair_from, progress)
        })
        .await
}
