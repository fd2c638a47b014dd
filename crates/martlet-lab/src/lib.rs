//! Several hosts on one machine, for tests and benches: network namespaces with set bandwidth, delay and loss.
//!
//! ```text
//!   host a (namespace)                    relay (a thread)                    host b (namespace)
//!  programs ─ TCP ─ eth0 ──tap──► link of a ► switch ► link of b ──tap──► eth0 ─ TCP ─ programs
//!                 10.77.0.1 ◄──── link of a ◄ switch ◄ link of b ◄──── 10.77.0.2
//! ```
//!
//! ```no_run
//! use martlet_lab::{Lab, Link};
//! # fn main() -> Result<(), martlet_lab::LabError> {
//! let lab = Lab::new()?;
//! let near = lab.host("near", Link::local())?;
//! let far = lab.host("far", Link { rate_mbit: Some(20.0), delay_ms: 10.0, ..Link::local() })?;
//! let mut server = far.command("martletd"); // any program
//! let stream = near.run(|| std::net::TcpStream::connect((far.address(), 80)))?; // any code
//! far.cut()?; // and what is sent is lost, until
//! far.mend()?;
//! # Ok(()) }
//! ```
//!
//! Every host has a network of its own (and with it abstract Unix sockets) and nothing else: files, processes and the clock
//! are those of the machine. Hosts of one lab reach each other, by all that goes over Ethernet, and nothing beyond it; two
//! labs have nothing in common.
//!
//! **Congestion control** is what the machine uses by default, which says much about a link that loses something: at 40 ms
//! and 1 % loss bbr gets 46 of 50 Mbit/s, reno 3.5 (`examples/figures.rs`). [`Host::set_sysctl`] of `net.ipv4.tcp_congestion_control`
//! chooses another, of those that `net.ipv4.tcp_allowed_congestion_control` has.
//!
//! **Nothing is left behind**: all that there is hangs on descriptors of this process, and goes with the last of the lab
//! and its hosts, or with the process. Who starts programs ends them; in what is left of their host they reach nobody.

mod chance;
mod error;
mod host;
mod lab;
mod link;
mod pipe;
mod relay;
mod syscalls;

pub use chance::Chance;
pub use error::LabError;
pub use host::Host;
pub use lab::Lab;
pub use link::Link;

/// What may go wrong here does so in these ways.
pub type Result<T> = std::result::Result<T, LabError>;
