//! Realms.

use crate::extract::{Body, Named};
use crate::openapi::Method::{Get, Post};
use crate::openapi::{Routes, Spec};
use crate::operation::Reply;
use crate::server::Server;
use axum::extract::State;
use martlet_api::{RealmCreateRequest, RealmInfo, RealmInvitation, RealmJoinRequest};

pub fn routes(routes: Routes) -> Routes {
    let create_spec = Spec::new("Make a realm")
        .takes::<RealmCreateRequest>()
        .gives::<RealmInfo>();
    let join_spec = Spec::new("Join a realm of another host, or get its newer secrets")
        .takes::<RealmJoinRequest>()
        .gives::<RealmInfo>();
    let share_spec = Spec::new("What lets another host join a realm: a secret").gives::<RealmInvitation>();
    let rotate_spec =
        Spec::new("Give a realm a new secret, by which all is sealed from now on").gives::<RealmInfo>();
    routes
        .route(
            Get,
            "/v1/realms",
            Spec::new("All realms").lists::<RealmInfo>(),
            list,
        )
        .route(Post, "/v1/realms", create_spec, create)
        .route(Post, "/v1/realms/join", join_spec, join)
        .route(Post, "/v1/realms/{name}/share", share_spec, share)
        .route(Post, "/v1/realms/{name}/rotate", rotate_spec, rotate)
}

async fn list(State(server): State<Server>) -> Reply {
    server.answer(|control| control.realms()).await
}

async fn create(State(server): State<Server>, Body(request): Body<RealmCreateRequest>) -> Reply {
    server
        .answer(move |control| control.realm_create(&request.name))
        .await
}

async fn join(State(server): State<Server>, Body(request): Body<RealmJoinRequest>) -> Reply {
    server.answer(move |control| control.realm_join(&request)).await
}

async fn share(State(server): State<Server>, Named(name): Named) -> Reply {
    server.answer(move |control| control.realm_share(&name)).await
}

async fn rotate(State(server): State<Server>, Named(name): Named) -> Reply {
    server.answer(move |control| control.realm_rotate(&name)).await
}
