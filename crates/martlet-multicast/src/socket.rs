//! Sockets of groups. A group's packets stay in the local network: their time to live is one hop.

use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketAddrV4 as Bound, SocketFlags, SocketType, bind, socket_with};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, ToSocketAddrs, UdpSocket};

/// What comes while nobody looks is kept up to so much, if the system lets us: a tenth of a second of a gigabit.
const RECEIVE_BYTES: usize = 12 << 20;

/// An address for a group, of those that are everybody's within an organization (RFC 2365).
pub fn random_address([a, b, c]: [u8; 3], port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(239, 192 + a % 4, b, c), port)
}

/// Which of this host's addresses are seen at `ADDRESS:PORT`; none if nothing leads there by IPv4. Nothing is sent.
pub fn local_address_towards(other: &str) -> Option<Ipv4Addr> {
    let mut found = other.to_socket_addrs().ok()?;
    let other = found.find(|address| address.is_ipv4())?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(other).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// One to send by, out of the interface that has this address.
pub(crate) fn sending(interface: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((interface, 0))?;
    sockopt::set_ip_multicast_if(&socket, &interface)?;
    sockopt::set_ip_multicast_ttl(&socket, 1)?;
    sockopt::set_ip_multicast_loop(&socket, true)?; // other daemons of this host may be members
    Ok(socket)
}

/// One that has what is sent to a group, and nothing else, and comes in at the interface that has this address.
pub(crate) fn receiving(group: SocketAddrV4, interface: Ipv4Addr) -> io::Result<UdpSocket> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?; // other daemons of this host may be members
    bind(&socket, &Bound::new(*group.ip(), group.port()))?;
    sockopt::set_ip_add_membership(&socket, group.ip(), &interface)?;
    let is_forced = sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BYTES);
    if is_forced.is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BYTES)?;
    }
    Ok(socket.into())
}
