//! The host daemon: HTTP over a unix socket in front of [`control::Control`].
//!
//! ```text
//!   socket ─► server ─► routes ─► extract, check ─► operation ─► Control (blocking threads)
//!                          │                            └─► server-sent events
//!                          └─► exec, stream: upgraded connections and bodies without end
//! ```
//!
//! [`server::Service`] is the whole API, [`daemon::run`] a process that serves it. What a route takes and gives is said once, in
//! `routes`, for the router and for the OpenAPI document alike.

pub mod allocator;
pub mod check;
mod console;
pub mod control;
pub mod daemon;
mod exec;
mod extract;
mod failure;
mod idle;
pub mod instance;
pub mod metrics;
mod openapi;
mod operation;
pub mod people;
mod routes;
pub mod server;
mod stream;
pub mod systemd;
