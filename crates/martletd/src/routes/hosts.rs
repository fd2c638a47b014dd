//! The hosts of the fleet.

use crate::extract::{Body, Named};
use crate::openapi::Method::{Delete, Get, Post};
use crate::openapi::{Routes, Spec};
use crate::operation::Reply;
use crate::server::Server;
use axum::extract::State;
use martlet_api::{HostInfo, HostInitRequest, HostInvitationInfo, HostJoinRequest, HostTop};

pub fn routes(routes: Routes) -> Routes {
    let init_spec = Spec::new("Make a fleet of which this is the first host")
        .takes::<HostInitRequest>()
        .lists::<HostInfo>();
    let join_spec = Spec::new("Join the fleet of another host")
        .takes::<HostJoinRequest>()
        .lists::<HostInfo>();
    let invite_spec = Spec::new("What lets one more host join: a secret").gives::<HostInvitationInfo>();
    let list_spec = Spec::new("The hosts of the fleet; each is asked whether it answers").lists::<HostInfo>();
    let top_spec = Spec::new("How each host of the fleet is, or why it does not say").lists::<HostTop>();
    let remove_spec = Spec::new("Have a host be none of the fleet any more");
    routes
        .route(Get, "/v1/hosts", list_spec, list)
        .route(Get, "/v1/hosts/top", top_spec, top)
        .route(Post, "/v1/hosts/init", init_spec, init)
        .route(Post, "/v1/hosts/invite", invite_spec, invite)
        .route(Post, "/v1/hosts/join", join_spec, join)
        .route(Delete, "/v1/hosts/{name}", remove_spec, remove)
}

async fn list(State(server): State<Server>) -> Reply {
    server.answer(|control| control.hosts()).await
}

async fn top(State(server): State<Server>) -> Reply {
    server.answer(|control| control.host_top()).await
}

async fn init(State(server): State<Server>, Body(request): Body<HostInitRequest>) -> Reply {
    server.answer(move |control| control.host_init(request)).await
}

async fn invite(State(server): State<Server>) -> Reply {
    server.answer(|control| control.host_invite()).await
}

async fn join(State(server): State<Server>, Body(request): Body<HostJoinRequest>) -> Reply {
    server.answer(move |control| control.host_join(request)).await
}

async fn remove(State(server): State<Server>, Named(name): Named) -> Reply {
    server.effect(move |control| control.host_remove(&name)).await
}
