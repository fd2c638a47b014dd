//! Types of the daemon's HTTP API. Plain data: the engine answers with them, the daemon serves them, the command
//! line shows them.
//!
//! Sizes are in bytes, durations in milliseconds, instants in milliseconds since the Unix epoch; the unit is the
//! last word of a field's name.

mod base;
mod checkpoint;
mod doctor;
mod exec;
mod explain;
mod host;
mod line;
mod machine;
mod map;
mod moves;
pub mod names;
mod paths;
mod problem;
mod progress;
mod realm;
mod remote;
mod store;
mod token;
mod user;
mod version;

pub use base::*;
pub use checkpoint::*;
pub use doctor::*;
pub use exec::*;
pub use explain::*;
pub use host::*;
pub use line::*;
pub use machine::*;
pub use map::*;
pub use moves::*;
pub use paths::*;
pub use problem::*;
pub use progress::*;
pub use realm::*;
pub use remote::*;
pub use store::*;
pub use token::*;
pub use user::*;
pub use version::*;
