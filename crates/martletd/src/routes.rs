//! The API's table of routes.

mod bases;
mod explain;
mod guest;
mod hosts;
mod lines;
mod machines;
mod realms;
mod remotes;
mod service;
mod snapshots;
mod store;
mod tokens;

use crate::openapi::Routes;

/// Every route.
pub fn all() -> Routes {
    let routes = service::routes(Routes::new());
    let routes = bases::routes(routes);
    let routes = machines::routes(routes);
    let routes = guest::routes(routes);
    let routes = snapshots::routes(routes);
    let routes = explain::routes(routes);
    let routes = hosts::routes(routes);
    let routes = tokens::routes(routes);
    let routes = realms::routes(routes);
    let routes = remotes::routes(routes);
    let routes = lines::routes(routes);
    store::routes(routes)
}
