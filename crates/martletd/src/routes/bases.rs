//! Bases.

use crate::check;
use crate::extract::{Body, Named, Params, WantsEvents};
use crate::openapi::Method::{Delete, Get, Post};
use crate::openapi::{Routes, Spec};
use crate::operation::Reply;
use crate::server::Server;
use axum::extract::State;
use martlet_api::{BaseBuildRequest, BaseImportRequest, BaseInfo};
use serde::Deserialize;

pub fn routes(routes: Routes) -> Routes {
    let build = Spec::new("Build a base from Debian packages").takes::<BaseBuildRequest>();
    let import = Spec::new("Make a base of a disk or an OCI image").takes::<BaseImportRequest>();
    let remove = Spec::new("Remove a base").query(
        "force",
        "boolean",
        false,
        "Also when machines were started from it",
    );
    routes
        .route(Get, "/v1/bases", Spec::new("All bases").lists::<BaseInfo>(), list)
        .route(
            Post,
            "/v1/bases/build",
            build.gives::<BaseInfo>().with_events(),
            build_base,
        )
        .route(
            Post,
            "/v1/bases/import",
            import.gives::<BaseInfo>().with_events(),
            import_base,
        )
        .route(
            Get,
            "/v1/bases/{name}",
            Spec::new("One base").gives::<BaseInfo>(),
            inspect,
        )
        .route(Delete, "/v1/bases/{name}", remove, remove_base)
}

/// `?force=true`.
#[derive(Deserialize)]
pub struct Force {
    #[serde(default)]
    pub force: bool,
}

async fn list(State(server): State<Server>) -> Reply {
    server.answer(|control| control.bases()).await
}

async fn build_base(
    State(server): State<Server>,
    WantsEvents(events): WantsEvents,
    Body(request): Body<BaseBuildRequest>,
) -> Reply {
    check::base_build(&request)?;
    server
        .operation(events, |control, progress| control.base_build(request, progress))
        .await
}

async fn import_base(
    State(server): State<Server>,
    WantsEvents(events): WantsEvents,
    Body(request): Body<BaseImportRequest>,
) -> Reply {
    check::base_import(&request)?;
    server
        .operation(events, |control, progress| control.base_import(request, progress))
        .await
}

async fn inspect(State(server): State<Server>, Named(name): Named) -> Reply {
    server.answer(move |control| control.base(&name)).await
}

async fn remove_base(
    State(server): State<Server>,
    Named(name): Named,
    Params(Force { force }): Params<Force>,
) -> Reply {
    server
        .effect(move |control| control.base_remove(&name, force))
        .await
}
