//! How names are found.

use std::io;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};

/// Finds addresses of names. It may block for as long as it takes.
pub trait Resolve: Send + Sync {
    /// All IPv4 addresses; none if there is no such name.
    fn resolve(&self, name: &str) -> io::Result<Vec<Ipv4Addr>>;
}

/// As the host itself does it.
#[derive(Debug, Clone, Copy)]
pub struct System;

impl Resolve for System {
    fn resolve(&self, name: &str) -> io::Result<Vec<Ipv4Addr>> {
        let found = (name, 0).to_socket_addrs()?;
        let mut addresses: Vec<Ipv4Addr> = found
            .filter_map(|address| match address.ip() {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            })
            .collect();
        addresses.dedup();
        Ok(addresses)
    }
}
