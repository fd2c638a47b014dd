//! Parcels that go to all members of a group at once, by UDP multicast: unordered, unreliable, as fast as all of them take it.
//!
//! ```text
//!   members ──send──► Wants ──► Limit, Bucket ──► Sealer ──► datagrams ──► group
//!      ▲       └─ what they hear ──┘                                  │
//!      └──────────────── sent, up to this packet ◄────────────────────┘
//!   group ──► Opener: forged, seen? ──► Assembler: all pieces? ──► Parcel, not believed by this alone
//! ```
//!
//! How members say what they want is for others to say (it needs a way that loses nothing); so is how they come to what was lost. The
//! answer says up to which packet of the group it was sent: a member that has seen that packet, or a later one, knows what it has lost, and
//! nobody has to guess how long things take.
//! After mcdist of SnowFlock (Lagar-Cavilla et al., EuroSys 2009): the sender keeps nothing of what it sent but when, sender and
//! members estimate rates, the limit rises by steps and falls when something is lost to a part of what members hear, and of several that
//! want the same at the same time all have it of one.

mod assembly;
mod limit;
mod meter;
mod packet;
mod receiver;
mod sender;
mod socket;
mod wants;
mod window;

pub use assembly::{Assembler, OPEN_BYTES_MAX, OPEN_MAX};
pub use limit::{Bucket, Limit};
pub use meter::{Meter, TICK};
pub use packet::{DATAGRAM_BYTES, Opener, PIECE_BYTES, PIECES_MAX, Piece, Sealer, WIRE_BYTES};
pub use receiver::{Heard, Parcel, Receiver};
pub use sender::{Group, Parcels, Sender, Sent};
pub use socket::{local_address_towards, random_address};
pub use wants::{LOCKSTEP, WANTS_MAX, Wants};
pub use window::{WINDOW, Window};

/// What a parcel is called: the id of what is in it.
pub type Name = [u8; 32];
/// Secret of a group. Whoever has it can read and forge packets; that a parcel is what its name says is for who gets it to verify.
pub type Key = [u8; 32];
/// The largest parcel, with its name.
pub const PARCEL_BYTES_MAX: usize = PIECES_MAX as usize * PIECE_BYTES;

/// What a member has heard since it last told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// What it hears, in bytes a second.
    pub rate_bytes: u64,
    /// Packets that did not come.
    pub lost: u64,
}
