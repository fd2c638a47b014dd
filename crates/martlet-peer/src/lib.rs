//! Hosts that know each other.
//!
//! ```text
//!   Fleet ── signs ──► HostIdentity ──┬── serve       TLS 1.3; hosts by certificate, anybody else as Anonymous ──► a router
//!     ▲                               └── PeerClient  a host, by its name and the fleet's CA
//!     └─ join ◄── HostInvitation (one line, a token that is good once)
//!
//!   peer_router ◄──────── refs, objects, lacks, put, ref ────────► push, pull, PeerClient::frames
//! ```
//!
//! A person has an [`AccessLine`], and is served as [`Caller::Anonymous`] with its secret.
//!
//! All calls but [`serve`] and [`AccessLine::connect`] block. What a host may do is said by the caller's router and its [`Policy`].

mod access;
mod audit;
mod channel;
mod client;
mod connection;
mod error;
mod exchange;
mod identity;
mod invite;
mod join;
mod kept;
mod refusal;
mod server;
mod stall;
mod tls;
mod transfer;
mod wire;

pub use access::{AccessLine, BadAccess, Secret};
pub use audit::{Audit, Entry as AuditEntry};
pub use client::{Patience, PeerClient};
pub use connection::Connection;
pub use error::{PeerError, Result};
pub use exchange::{Access, PUT_BYTES_MAX, Policy, peer_router};
pub use identity::{Fleet, HostIdentity, Validity, check_host_name};
pub use invite::{BadInvitation, HostInvitation, Token, TokenBook};
pub use join::{HostEntry, Inviter, Joined, Newcomer, Welcome, join, join_router, renew};
pub use refusal::{Code, Refusal};
pub use server::{Caller, Limits, Removed, serve};
pub use transfer::{PullReport, PushReport, fetch_without_frames, pull, push, send};
pub use wire::KEYS_MAX;
