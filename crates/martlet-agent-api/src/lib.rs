//! What host and guest agent say to each other. Pure: bytes in, messages out.
//!
//! The channel is one byte stream in each direction (a virtio-serial port) that outlives both ends: a clone inherits
//! its parent's half-read buffers, and a host may go away in the middle of a frame. Three things make that safe:
//!
//! - every frame carries the **epoch**, a random number that the host chooses anew whenever it connects (boot, resume,
//!   clone, restarted daemon). [`frame::Kind::Hello`] sets it; frames of any other epoch are dropped, so bytes meant
//!   for the parent are never read by a clone, and a parent's late output never reaches a clone's host;
//! - headers and payloads have checksums, and [`frame::Decoder`] slides over anything else to the next whole frame;
//! - every stream has a credit [`window`], so a command that prints fast, or does not read its input, holds up nobody.
//!
//! ```text
//! host                                guest
//!  Hello{epoch, start}  ────────────►            drops what an older epoch started
//!                       ◄────────────  HelloReply{protocol, held, ..}
//!  Request (stream n)   ────────────►
//!                       ◄────────────  Reply (stream n): Response, or an error
//!  Data / Control (n)   ◄───────────►  Data (n), Credit (n)        exec and files only
//!                       ◄────────────  Finished (n)                last frame of the stream
//!                       ◄────────────  Ask (m)                     a guest's program wants something; m is the guest's number
//!  Request Answer{m}    ────────────►
//! ```

pub mod frame;
pub mod guest;
pub mod message;
pub mod window;

pub use frame::{Decoder, Frame, Kind, MAX_PAYLOAD_BYTES};
pub use message::*;

/// Name of the virtio-serial port.
pub const PORT_NAME: &str = "martlet.agent";

/// Newest protocol that this crate speaks.
pub const PROTOCOL: u32 = 1;

/// Oldest protocol that this crate speaks.
pub const PROTOCOL_OLDEST: u32 = 1;
