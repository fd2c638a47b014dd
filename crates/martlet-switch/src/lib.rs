//! Families' networks: a machine and its clones have a layer-2 network of their own, across hosts.
//!
//! ```text
//!   guest ─ virtio-net ─ QEMU ──datagrams──► Switch ─ check ─┬─► QEMU of another one here
//!                                                            └─► sealed, by UDP ──► Switch of another host ─► its QEMU
//! ```
//!
//! QEMU and the switch exchange frames as datagrams of unix sockets in the machine's own directory (`-netdev dgram`), so that
//! either may be started anew while the other goes on. There is no interface at the host, nothing to be root for, and nobody to
//! talk to but the family: neither the host nor another family has an address in it.
//!
//! Guests are hostile. A port lets through only what its own guest can truly have sent ([`check`]): its MAC address, its IP
//! address, ARP for itself, no VLANs, no IPv6. ARP goes to the one who is asked for, so nothing is flooded but broadcasts,
//! which are few ([`Bucket`]). Between hosts, frames are sealed with the family's key.

mod bucket;
mod frame;
mod number;
mod seal;
mod switch;

pub use bucket::Bucket;
pub use frame::{FRAME_BYTES_MAX, Refused, To, check, source};
pub use number::{MTU, NUMBER_MAX, Number, PREFIX};
pub use seal::{FamilyId, Seal};
pub use switch::{FROM_QEMU, HOSTS_MAX, Plug, Plugged, Switch, TO_QEMU};
