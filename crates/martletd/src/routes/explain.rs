//! Where a machine's time went.

use crate::extract::{Params, Referenced};
use crate::openapi::Method::Get;
use crate::openapi::{Routes, Spec};
use crate::operation::Reply;
use crate::server::Server;
use axum::extract::State;
use martlet_api::Explanation;
use serde::Deserialize;

/// Stalls that are listed when nobody says how many.
const TOP_DEFAULT: usize = 10;

pub fn routes(routes: Routes) -> Routes {
    let spec = Spec::new("What a machine's last start waited for; of a snapshot, the last start from it")
        .query(
            "top",
            "integer",
            false,
            "how many of the longest stalls are listed; 10, else",
        )
        .gives::<Explanation>();
    routes.route(Get, "/v1/explain/{source}", spec, explain)
}

#[derive(Deserialize)]
struct Top {
    top: Option<usize>,
}

async fn explain(
    State(server): State<Server>,
    Referenced(source): Referenced,
    Params(Top { top }): Params<Top>,
) -> Reply {
    let top = top.unwrap_or(TOP_DEFAULT);
    server.answer(move |control| control.explain(&source, top)).await
}
