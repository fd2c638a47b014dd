//! For programs in a guest that fork their own VM, as SnowFlock's do (Lagar-Cavilla et al., EuroSys 2009): the calls of
//! [`martlet_agent_api::guest`] as functions. `docs/guest-api.md` says what each means.
//!
//! ```no_run
//! use martlet_guest::{Cloned, Guest, TicketOptions, Wait};
//!
//! let mut guest = Guest::connect()?;
//! let ticket = guest.request_ticket(8, TicketOptions::default())?;
//! match guest.fork(&ticket, Wait::Running)? {
//!     Cloned::Child { id } => {
//!         guest.exit(0, format!("{id} was here").as_bytes())?;
//!     }
//!     Cloned::Parent { .. } => {
//!         for exited in guest.join(&ticket)? {
//!             println!("{}: {}", exited.id, String::from_utf8_lossy(&exited.data));
//!         }
//!     }
//! }
//! # Ok::<(), martlet_guest::Error>(())
//! ```

pub mod cli;
mod connection;
mod error;
mod guest;
mod interrupt;
mod process;

pub use error::{Error, ErrorKind, Result};
pub use guest::{
    Checkpointed, CheckpointedVm, Cloned, ClonedVm, Exited, Family, Guest, Processes, Ticket, TicketOptions,
    Wait,
};
pub use martlet_agent_api::guest::{DATA_BYTES, FailedClone};
