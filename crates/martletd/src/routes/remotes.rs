//! Remotes, and snapshots that go to them and come from them.

use crate::extract::{Body, Named, WantsEvents};
use crate::openapi::Method::{Delete, Get, Post};
use crate::openapi::{Routes, Spec};
use crate::operation::Reply;
use crate::server::Server;
use axum::extract::{Path, State};
use martlet_api::{
    AwaySnapshot, CarryReport, CarryRequest, FetchRequest, PullRequest, PushRequest, RemoteAddRequest,
    RemoteGcReport, RemoteGcRequest, RemoteInfo, RemoteSnapshot, RemoteVersion, Role, TransferReport,
};

pub fn routes(routes: Routes) -> Routes {
    let add_spec = Spec::new("Give a place that keeps snapshots a name, once it was tried out")
        .takes::<RemoteAddRequest>()
        .gives::<RemoteInfo>();
    let check_spec = Spec::new("Try a remote out").gives::<RemoteInfo>();
    let snapshots_spec = Spec::new("What a remote has").lists::<RemoteSnapshot>();
    let push_spec = Spec::new("Send a snapshot to a remote")
        .takes::<PushRequest>()
        .gives::<TransferReport>();
    let pull_spec = Spec::new("Get a snapshot from a remote")
        .takes::<PullRequest>()
        .gives::<TransferReport>();
    let gc_spec = Spec::new("Remove what no snapshot of a remote needs")
        .takes::<RemoteGcRequest>()
        .gives::<RemoteGcReport>();
    let fetch_spec = Spec::new("Get a snapshot from a remote, its frames when they are read")
        .takes::<FetchRequest>()
        .gives::<TransferReport>();
    let carry_spec = Spec::new("Fill a carried disk with what is most likely to be read")
        .takes::<CarryRequest>()
        .lists::<CarryReport>();
    routes
        .route(
            Get,
            "/v1/remotes",
            Spec::new("All remotes").lists::<RemoteInfo>(),
            list,
        )
        .route(Post, "/v1/remotes", add_spec.with_events(), add)
        .route(
            Delete,
            "/v1/remotes/{name}",
            Spec::new("Forget a remote; what it keeps stays"),
            remove,
        )
        .route(
            Post,
            "/v1/remotes/{name}/check",
            check_spec.with_events().needs(Role::Run),
            check,
        )
        .route(Get, "/v1/remotes/{name}/snapshots", snapshots_spec, snapshots)
        .route(
            Get,
            "/v1/remotes/{name}/snapshots/{reference}",
            Spec::new("What a name stood for at a remote, the newest first").lists::<RemoteVersion>(),
            history,
        )
        .route(
            Delete,
            "/v1/remotes/{name}/snapshots/{reference}",
            Spec::new("Take a name away at a remote").needs(Role::Run),
            forget,
        )
        .route(Post, "/v1/remotes/{name}/gc", gc_spec.with_events(), gc)
        .route(
            Post,
            "/v1/remotes/{name}/push",
            push_spec.with_events().needs(Role::Run),
            push,
        )
        .route(
            Post,
            "/v1/remotes/{name}/pull",
            pull_spec.with_events().needs(Role::Run),
            pull,
        )
        .route(
            Post,
            "/v1/remotes/{name}/fetch",
            fetch_spec.with_events().needs(Role::Run),
            fetch,
        )
        .route(Post, "/v1/carry", carry_spec.with_events(), carry)
        .route(
            Get,
            "/v1/away",
            Spec::new("Snapshots of which not all is here yet").lists::<AwaySnapshot>(),
            away,
        )
}

async fn list(State(server): State<Server>) -> Reply {
    server.answer(|control| control.remotes()).await
}

async fn add(
    State(server): State<Server>,
    WantsEvents(events): WantsEvents,
    Body(request): Body<RemoteAddRequest>,
) -> Reply {
    martlet_api::names::check_name(&request.name)?;
    server
        .operation(events, |control, _| control.remote_add(request))
        .await
}

async fn remove(State(server): State<Server>, Named(name): Named) -> Reply {
    server.effect(move |control| control.remote_remove(&name)).await
}

async fn check(State(server): State<Server>, WantsEvents(events): WantsEvents, Named(name): Named) -> Reply {
    server
        .operation(events, move |control, _| control.remote_check(&name))
        .await
}

async fn snapshots(State(server): State<Server>, Named(name): Named) -> Reply {
    server
        .answer(move |control| control.remote_snapshots(&name))
        .await
}

async fn push(
    State(server): State<Server>,
    WantsEvents(events): WantsEvents,
    Named(name): Named,
    Body(request): Body<PushRequest>,
) -> Reply {
    if let Some(reference) = &request.reference {
        martlet_api::names::check_new_reference(reference)?;
    }
    server
        .operation(events, move |control, progress| {
            control.push(&name, request, progress)
        })
        .await
}

async fn pull(
    State(server): State<Server>,
    WantsEvents(events): WantsEvents,
    Named(name): Named,
    Body(request): Body<PullRequest>,
) -> Reply {
    server
        .operation(events, move |control, progress| {
            control.pull(&name, request, progress)
        })
        .await
}

async fn fetch(
    State(server): State<Server>,
    WantsEvents(events): WantsEvents,
    Named(name): Named,
    Body(request): Body<FetchRequest>,
) -> Reply {
    server
        .operation(events, move |control, _| control.fetch(&name, request))
        .await
}

async fn carry(
    State(server): State<Server>,
    WantsEvents(events): WantsEvents,
    Body(request): Body<CarryRequest>,
) -> Reply {
    server
        .operation(events, move |control, progress| control.carry(request, progress))
        .await
}

async fn away(State(server): State<Server>) -> Reply {
    server.answer(|control| control.snapshots_away()).await
}

async fn history(State(server): State<Server>, Path((name, reference)): Path<(String, String)>) -> Reply {
    martlet_api::names::check_name(&name)?;
    server
        .answer(move |control| control.remote_history(&name, &reference))
        .await
}

async fn forget(State(server): State<Server>, Path((name, reference)): Path<(String, String)>) -> Reply {
    martlet_api::names::check_name(&name)?;
    server
        .effect(move |control| control.remote_forget(&name, &reference))
        .await
}

async fn gc(
    State(server): State<Server>,
    WantsEvents(events): WantsEvents,
    Named(name): Named,
    Body(request): Body<RemoteGcRequest>,
) -> Reply {
    server
        .operation(events, move |control, progress| {
            control.remote_gc(&name, &request, progress)
        })
        .await
}
