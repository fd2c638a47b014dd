//! Snapshots and their references.

use crate::extract::{Body, Params, Referenced};
use crate::openapi::Method::{Delete, Get, Post};
use crate::openapi::{Routes, Spec};
use crate::operation::Reply;
use crate::server::Server;
use axum::extract::State;
use martlet_api::names::{check_new_reference, check_reference};
use martlet_api::{Role, SnapshotDiff, SnapshotInfo, TagRequest};
use serde::Deserialize;

pub fn routes(routes: Routes) -> Routes {
    let log_spec = Spec::new("A machine's or snapshot's ancestry, newest first").lists::<SnapshotInfo>();
    let diff_spec = Spec::new("How two snapshots differ")
        .query("from", "string", true, "`name:tag` or id")
        .query("to", "string", true, "`name:tag` or id");
    let tag_spec = Spec::new("Give it one more reference")
        .takes::<TagRequest>()
        .gives::<SnapshotInfo>()
        .needs(Role::Run);
    routes
        .route(
            Get,
            "/v1/snapshots",
            Spec::new("All snapshots").lists::<SnapshotInfo>(),
            list,
        )
        .route(
            Get,
            "/v1/snapshots/{reference}",
            Spec::new("One snapshot").gives::<SnapshotInfo>(),
            inspect,
        )
        .route(
            Delete,
            "/v1/snapshots/{reference}",
            Spec::new("Remove a reference, the last with its snapshot").needs(Role::Run),
            remove,
        )
        .route(Get, "/v1/snapshots/{reference}/log", log_spec, log)
        .route(Post, "/v1/snapshots/{reference}/tag", tag_spec, tag)
        .route(Get, "/v1/diff", diff_spec.gives::<SnapshotDiff>(), diff)
}

async fn list(State(server): State<Server>) -> Reply {
    server.answer(|control| control.snapshots()).await
}

async fn inspect(State(server): State<Server>, Referenced(reference): Referenced) -> Reply {
    server.answer(move |control| control.snapshot(&reference)).await
}

async fn remove(State(server): State<Server>, Referenced(reference): Referenced) -> Reply {
    server
        .effect(move |control| control.snapshot_remove(&reference))
        .await
}

async fn log(State(server): State<Server>, Referenced(source): Referenced) -> Reply {
    server.answer(move |control| control.log(&source)).await
}

async fn tag(
    State(server): State<Server>,
    Referenced(reference): Referenced,
    Body(request): Body<TagRequest>,
) -> Reply {
    check_new_reference(&request.reference)?;
    server
        .answer(move |control| control.tag(&reference, &request.reference))
        .await
}

#[derive(Deserialize)]
struct Between {
    from: String,
    to: String,
}

async fn diff(State(server): State<Server>, Params(Between { from, to }): Params<Between>) -> Reply {
    check_reference(&from)?;
    check_reference(&to)?;
    server.answer(move |control| control.diff(&from, &to)).await
}
