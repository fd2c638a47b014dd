//! The daemon itself: health, version, metrics, its own description.

use crate::failure::Failure;
use crate::metrics::render;
use crate::openapi::Method::Get;
use crate::openapi::{Routes, Spec};
use crate::operation::Reply;
use crate::server::Server;
use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use martlet_api::{Check, VersionInfo};

pub fn routes(routes: Routes) -> Routes {
    routes
        .route(
            Get,
            "/healthz",
            Spec::new("Is the daemon there?").gives_bytes("text/plain"),
            healthz,
        )
        .route(
            Get,
            "/version",
            Spec::new("Which daemon answers").gives::<VersionInfo>(),
            version,
        )
        .route(
            Get,
            "/metrics",
            Spec::new("Metrics for Prometheus").gives_bytes("text/plain"),
            metrics,
        )
        .route(
            Get,
            "/v1/openapi.json",
            Spec::new("This description").gives_bytes("application/json"),
            openapi,
        )
        .route(
            Get,
            "/v1/doctor",
            Spec::new("How the daemon itself is").lists::<Check>(),
            doctor,
        )
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn version(State(server): State<Server>) -> Json<VersionInfo> {
    Json((*server.version).clone())
}

async fn metrics(State(server): State<Server>) -> Reply {
    let mut metrics = server.call(|control| control.metrics()).await?;
    metrics.extend(server.metrics());
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], render(&metrics)).into_response())
}

async fn openapi(State(server): State<Server>) -> Result<impl IntoResponse, Failure> {
    Ok(Json(server.document().clone()))
}

async fn doctor(State(server): State<Server>) -> Reply {
    server.answer(|control| control.doctor()).await
}
