//! A way out for a guest: TCP to what a list allows, and names that lead there; no faster than so.
//!
//! ```text
//!   guest ══ frames ══► Gateway ─┬─ TCP: Rules, may it? ──► a connection of this host's, first ──► then the guest's is accepted
//!                                │           └─ no: refused
//!                                ├─ UDP 53: Rules ──► this host's resolver ──► Names, told ──► answer
//!                                └─ anything else goes nowhere
//! ```
//!
//! The guest's connections end here, in [smoltcp](https://docs.rs/smoltcp), and others begin at this host, as ordinary sockets of this process:
//! nothing is configured at the host, and nobody has to be root. One thread serves one guest; what it keeps is bounded. When it ends, so
//! do these connections.

mod bucket;
mod cable;
mod flow;
mod gateway;
mod names;
mod resolve;
mod rules;

pub use bucket::Bucket;
pub use gateway::{ADDRESS, CONNECTIONS_MAX, Counts, Gateway, MAC, Options, Out};
pub use names::{Asked, Names, Question, asked};
pub use resolve::{Resolve, System};
pub use rules::{BadRule, Rule, Rules};
