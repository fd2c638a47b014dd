//! Tokens of people.

use crate::check;
use crate::extract::{Body, Named};
use crate::openapi::Method::{Delete, Get, Post};
use crate::openapi::{Routes, Spec};
use crate::operation::Reply;
use crate::server::Server;
use axum::extract::State;
use martlet_api::{Role, TokenCreateRequest, TokenInfo, TokenLine};

pub fn routes(routes: Routes) -> Routes {
    let create_spec = Spec::new("Make a token by which a person uses this host: a secret")
        .takes::<TokenCreateRequest>()
        .gives::<TokenLine>();
    let list_spec = Spec::new("All tokens").lists::<TokenInfo>();
    let remove_spec = Spec::new("Have a token be good for nothing any more");
    routes
        .route(Post, "/v1/tokens", create_spec, create)
        .route(Get, "/v1/tokens", list_spec.needs(Role::Admin), list)
        .route(Delete, "/v1/tokens/{name}", remove_spec, remove)
}

async fn create(State(server): State<Server>, Body(request): Body<TokenCreateRequest>) -> Reply {
    check::token(&request)?;
    server.answer(move |control| control.token_create(&request)).await
}

async fn list(State(server): State<Server>) -> Reply {
    server.answer(|control| control.tokens()).await
}

async fn remove(State(server): State<Server>, Named(name): Named) -> Reply {
    server.effect(move |control| control.token_remove(&name)).await
}
