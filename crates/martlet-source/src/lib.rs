//! Places that snapshots come from and go to.
//!
//! ```text
//!              ┌── Directory   a disk, also a carried one
//!  Objects ◄───┼── Cloud       a bucket (S3); a web server, to read
//!              └── Registry    a repository of OCI images
//!      ▲
//!   Remote    sealed packs, their indexes, names ◄── push, pull ──► martlet_store::Store
//! ```
//!
//! [`Objects`] is all that a place has to be able to do; the same suite of tests is run over each kind with real servers.

mod check;
mod cloud;
mod directory;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gc;
mod index;
mod intent;
mod invitation;
mod key;
mod lease;
mod objects;
mod pack;
mod parallel;
mod preview;
mod pull;
mod push;
mod realm;
mod refs;
mod registry;
mod remote;
mod run;
mod scope;
mod seen;
mod stamp;
mod throttled;
mod unique;

pub use check::check;
pub use cloud::{Cloud, Credentials, Patience};
pub use directory::Directory;
pub use error::{Result, SourceError};
pub use gc::{GcOptions, GcReport, gc};
pub use invitation::{BadInvitation, Invitation, SECRETS_MAX};
pub use key::{Key, NAME_BYTES_MAX, Room};
pub use lease::{Beat, Lease, LeaseId, Under};
pub use objects::{Entry, Objects, Put};
pub use pull::{PullReport, fetch_without_frames, pull};
pub use push::{PushReport, carry, point, push, upload};
pub use realm::{Realm, SEAL_BYTES};
pub use refs::Ref;
pub use registry::{Login, Registry};
pub use remote::Remote;
pub use seen::{Seen, Version};
pub use stamp::{HOST_BYTES_MAX, Stamp};
pub use throttled::Throttled;
