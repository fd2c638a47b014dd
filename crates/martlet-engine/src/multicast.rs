//! Frames and blobs of a fork that goes to several hosts: each is sent once, to all of them.
//!
//! ```text
//!   the parent's host                                      the others
//!   offer_group ──── Wanted, with key and address ───────► join_group ──► Member listens
//!   multicast_wanted ◄── which frames, what was heard ──── ByMulticast ◄── reads, and the rest behind
//!        └──► Sender ══════ to all members ══════════════► Member ──► verified ──► stored, pushed to guests
//!   sent, up to which packet ────────────────────────────► ByMulticast ── what was in these and has not come ──► unicast
//! ```
//!
//! Nothing depends on it: what is lost, comes late, or is forged is got from the same host as without a group, and when a network
//! carries no multicast the group is given up. Frames are sealed on the way with a key that went over TLS.

mod groups;
mod members;

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddrV4;

pub(crate) use groups::{GettingReady, Groups, Invited};
pub(crate) use members::{ByMulticast, Members};

/// How frames are sent to several hosts at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MulticastOptions {
    /// Never more than so many bytes a second.
    pub rate_bytes: u64,
    /// The UDP port of groups.
    pub port: u16,
}

/// A group that a host may listen to.
#[derive(Clone, Serialize, Deserialize)]
pub struct OfferedGroup {
    /// What it is called where it is sent from.
    pub id: String,
    /// Where its packets go.
    pub address: SocketAddrV4,
    /// What they are sealed with.
    pub key: martlet_multicast::Key,
}

impl fmt::Debug for OfferedGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OfferedGroup({} at {})", self.id, self.address)
    }
}

/// A member wants frames or blobs.
#[derive(Debug, Serialize, Deserialize)]
pub struct WantedFrames {
    /// Of which group.
    pub group: String,
    /// Their ids.
    pub objects: Vec<String>,
    /// Somebody waits for them.
    pub is_urgent: bool,
    /// What it hears, in bytes a second.
    pub heard_bytes: u64,
    /// Packets that it has lost since it last told.
    pub lost: u64,
    /// The answer comes when they have been sent, and in any case after this time.
    pub within_ms: u64,
}

/// They have been sent, if there was time.
#[derive(Debug, Serialize, Deserialize)]
pub struct SentFrames {
    /// How many packets that group has been sent by now.
    pub through_packets: u64,
}

/// Objects that are wanted at once.
const OBJECTS_MAX: usize = 256;
