//! The guest's addresses, by ioctl: there may be no `ip` in the image.
#![allow(unsafe_code)] // interface requests are unions, and packets go out by raw socket

use crate::fault::{Result, failed, fault};
use crate::rewrite::rewrite;
use martlet_agent_api::{FAMILY_MAC, FamilyNetwork, Network, RemoteErrorKind};
use std::fs::{self, File};
use std::io::{Error, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

type Mac = [u8; 6];

/// An interface request under construction.
struct Request {
    ifreq: libc::ifreq,
}

impl Request {
    fn new(interface: &str) -> Result<Self> {
        // SAFETY: all zeros is a valid ifreq.
        let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
        if interface.len() >= ifreq.ifr_name.len() {
            return Err(fault(
                RemoteErrorKind::Invalid,
                format!("{interface:?} is no interface name"),
            ));
        }
        for (to, from) in ifreq.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        Ok(Self { ifreq })
    }

    fn send(&mut self, socket: &OwnedFd, request: libc::c_ulong, what: &str) -> Result<()> {
        // SAFETY: the request wants a pointer to an ifreq.
        match unsafe { libc::ioctl(socket.as_raw_fd(), request, &mut self.ifreq) } {
            0.. => Ok(()),
            _ => Err(failed(what, Error::last_os_error())),
        }
    }
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from(address).to_be(),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: both are 16 bytes of plain data that begin with the family.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) }
}

fn socket(domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: numbers only.
    match unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) } {
        // SAFETY: a new descriptor that belongs to nobody else.
        fd @ 0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(failed("cannot open a socket", Error::last_os_error())),
    }
}

fn parse_mac(text: &str) -> Option<Mac> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok())
        .collect::<Option<_>>()?;
    let mac: Mac = bytes.try_into().ok()?;
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

/// The Ethernet interfaces of devices, in order.
fn interfaces() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let ethernet = entries.map(|entry| entry.path()).filter(|path| {
        let kind = fs::read_to_string(path.join("type")).unwrap_or_default();
        kind.trim() == "1" && path.join("device").exists()
    });
    let mut names: Vec<_> = ethernet
        .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
        .collect();
    names.sort_unstable();
    names
}

fn is_of_family(interface: &str) -> bool {
    read_mac(interface).is_some_and(|mac| mac.starts_with(&FAMILY_MAC))
}

/// Gives the guest its place in the network of its family, and the others their names.
pub fn join_family(family: &FamilyNetwork, etc: &Path) -> Result<()> {
    let interface = interfaces().into_iter().find(|interface| is_of_family(interface));
    let interface = interface.ok_or_else(|| {
        fault(
            RemoteErrorKind::NotFound,
            "the guest has no network card for its family",
        )
    })?;
    configure(&Network {
        interface: Some(interface.clone()),
        ..family.network.clone()
    })?;
    // Drivers that do not ask the card for it have Ethernet's.
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let mut request = Request::new(&interface)?;
    request.ifreq.ifr_ifru.ifru_mtu = family.mtu.into();
    request.send(&socket, libc::SIOCSIFMTU as libc::c_ulong, "cannot set the MTU")?;
    name_family(etc, &family.hosts)
}

/// Writes the lines into `/etc/hosts`, in place of those of a former family.
fn name_family(etc: &Path, lines: &str) -> Result<()> {
    const BEGIN: &str = "# the family of this machine";
    const END: &str = "# end of the family";
    let file = etc.join("hosts");
    let before = fs::read_to_string(&file).unwrap_or_default();
    let (above, rest) = before.split_once(BEGIN).unwrap_or((&before, ""));
    let below = rest.split_once(END).map_or("", |(_, below)| below.trim_start());
    let gap = if above.is_empty() || above.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    let text = format!("{above}{gap}{BEGIN}\n{lines}{END}\n{below}");
    if text == before {
        return Ok(());
    }
    rewrite(&file, &text).map_err(|error| failed("cannot write the family's names", error))
}

/// Brings up the loopback interface.
pub fn bring_up_loopback() -> Result<()> {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    set_up(&socket, "lo", true)
}

fn set_up(socket: &OwnedFd, interface: &str, up: bool) -> Result<()> {
    let mut request = Request::new(interface)?;
    request.send(
        socket,
        libc::SIOCGIFFLAGS as libc::c_ulong,
        "cannot read the interface's flags",
    )?;
    // SAFETY: SIOCGIFFLAGS has filled in the flags.
    let flags = unsafe { request.ifreq.ifr_ifru.ifru_flags };
    let bit = libc::IFF_UP as libc::c_short;
    request.ifreq.ifr_ifru.ifru_flags = if up { flags | bit } else { flags & !bit };
    request.send(
        socket,
        libc::SIOCSIFFLAGS as libc::c_ulong,
        "cannot bring the interface up or down",
    )
}

/// Gives the guest its addresses, forgets its neighbours, and tells the network who it is now.
pub fn configure(network: &Network) -> Result<()> {
    if network.prefix > 32 {
        return Err(fault(
            RemoteErrorKind::Invalid,
            format!("{} is no prefix length", network.prefix),
        ));
    }
    let first = || {
        interfaces()
            .into_iter()
            .find(|interface| !is_of_family(interface))
    };
    let interface = network.interface.clone().or_else(first);
    let interface =
        interface.ok_or_else(|| fault(RemoteErrorKind::NotFound, "the guest has no network interface"))?;
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    if let Some(text) = &network.mac {
        let mac = parse_mac(text)
            .ok_or_else(|| fault(RemoteErrorKind::Invalid, format!("{text:?} is no MAC address")))?;
        set_mac(&socket, &interface, mac)?;
    }
    forget_neighbours(&socket, &interface);
    let mut request = Request::new(&interface)?;
    request.ifreq.ifr_ifru.ifru_addr = socket_address(network.address);
    request.send(
        &socket,
        libc::SIOCSIFADDR as libc::c_ulong,
        "cannot set the address",
    )?;
    let mask = u32::MAX.checked_shl(32 - u32::from(network.prefix)).unwrap_or(0);
    request.ifreq.ifr_ifru.ifru_addr = socket_address(mask.into());
    request.send(
        &socket,
        libc::SIOCSIFNETMASK as libc::c_ulong,
        "cannot set the netmask",
    )?;
    set_up(&socket, &interface, true)?;
    if let Some(gateway) = network.gateway {
        set_default_route(&socket, gateway)?;
    }
    announce(&interface, network.address)
}

/// Writes `/etc/resolv.conf`, in place of a link that leads nowhere if need be.
pub fn set_name_servers(etc: &Path, servers: &[Ipv4Addr]) -> Result<()> {
    let lines: String = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    let file = etc.join("resolv.conf");
    let written =
        rewrite(&file, &lines).or_else(|_| fs::remove_file(&file).and_then(|()| rewrite(&file, &lines)));
    written.map_err(|error| failed("cannot write resolv.conf", error))
}

fn read_mac(interface: &str) -> Option<Mac> {
    parse_mac(
        fs::read_to_string(format!("/sys/class/net/{interface}/address"))
            .ok()?
            .trim(),
    )
}

fn set_mac(socket: &OwnedFd, interface: &str, mac: Mac) -> Result<()> {
    if read_mac(interface) == Some(mac) {
        return Ok(());
    }
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().zip(mac) {
        *to = from as libc::c_char;
    }
    let mut request = Request::new(interface)?;
    request.ifreq.ifr_ifru.ifru_hwaddr = libc::sockaddr {
        sa_family: libc::ARPHRD_ETHER,
        sa_data: data,
    };
    let mut set = || {
        request.send(
            socket,
            libc::SIOCSIFHWADDR as libc::c_ulong,
            "cannot set the MAC address",
        )
    };
    if set().is_err() {
        // Some drivers take a new address only while down.
        set_up(socket, interface, false)?;
        set()?;
    }
    // IPv6 addresses are made from the MAC address: have them made anew.
    let switch = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    if fs::read_to_string(&switch).is_ok_and(|value| value.trim() == "0") {
        let cannot = |error| failed("cannot renew the IPv6 addresses", error);
        fs::write(&switch, "1").map_err(cannot)?;
        fs::write(&switch, "0").map_err(cannot)?;
    }
    Ok(())
}

/// Neighbours are found again; one that has gone already is no matter.
fn forget_neighbours(socket: &OwnedFd, interface: &str) {
    for line in fs::read_to_string("/proc/net/arp")
        .unwrap_or_default()
        .lines()
        .skip(1)
    {
        let mut fields = line.split_whitespace();
        let (Some(address), Some(device)) = (fields.next().and_then(|a| a.parse().ok()), fields.next_back())
        else {
            continue;
        };
        if device != interface {
            continue;
        }
        // SAFETY: all zeros is a valid arpreq.
        let mut request: libc::arpreq = unsafe { std::mem::zeroed() };
        request.arp_pa = socket_address(address);
        for (to, from) in request.arp_dev.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: the request wants a pointer to an arpreq.
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCDARP as libc::c_ulong, &request) };
    }
}

/// Packets for elsewhere go to this gateway from now on, and to no other one that Martlet has given the guest before.
fn set_default_route(socket: &OwnedFd, gateway: Ipv4Addr) -> Result<()> {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let former = default_gateways(&routes).filter(|former| is_ours(*former) && *former != gateway);
    for former in former {
        let route = default_route(former);
        // SAFETY: the request wants a pointer to an rtentry, whose rt_dev may be null. One that has gone already is no matter.
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCDELRT as libc::c_ulong, &route) };
    }
    let route = default_route(gateway);
    // SAFETY: the request wants a pointer to an rtentry, whose rt_dev may be null.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as libc::c_ulong, &route) } {
        0.. => Ok(()),
        _ => match Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            error => Err(failed("cannot set the default route", error)),
        },
    }
}

fn default_route(gateway: Ipv4Addr) -> libc::rtentry {
    // SAFETY: all zeros is a valid rtentry.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    route
}

/// Those of `/proc/net/route`: hexadecimal, as they lie in memory.
fn default_gateways(routes: &str) -> impl Iterator<Item = Ipv4Addr> {
    let address = |text: &str| {
        let raw = u32::from_str_radix(text, 16).ok()?;
        Some(Ipv4Addr::from(raw.to_ne_bytes()))
    };
    routes.lines().skip(1).filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_default =
            address(fields.get(1)?)?.is_unspecified() && address(fields.get(7)?)?.is_unspecified();
        let gateway = address(fields.get(2)?)?;
        (is_default && !gateway.is_unspecified()).then_some(gateway)
    })
}

/// Is it of a network that Martlet makes?
fn is_ours(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [10, 77 | 78, ..])
}

/// Broadcasts "this address is at this MAC address" (gratuitous ARP).
fn announce(interface: &str, address: Ipv4Addr) -> Result<()> {
    const ARP: u16 = 0x0806;
    let Some(mac) = read_mac(interface) else {
        return Ok(());
    }; // no Ethernet, no ARP
    let index = fs::read_to_string(format!("/sys/class/net/{interface}/ifindex")).unwrap_or_default();
    let index: i32 = index
        .trim()
        .parse()
        .map_err(|error| failed("cannot find the interface", error))?;
    let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_protocol = ARP.to_be();
    to.sll_ifindex = index;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: pointer and length of a sockaddr_ll.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const to).cast(), length) } < 0 {
        return Err(failed("cannot announce the address", Error::last_os_error()));
    }
    let ip = address.octets();
    let packet = [
        &[0xff; 6][..],
        &mac,
        &ARP.to_be_bytes(),
        &[0, 1, 8, 0, 6, 4, 0, 1],
        &mac,
        &ip,
        &[0; 6],
        &ip,
    ]
    .concat();
    File::from(socket)
        .write_all(&packet)
        .map_err(|error| failed("cannot announce the address", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_familys_names_take_the_place_of_anothers() {
        let etc = tempfile::tempdir().unwrap();
        let file = etc.path().join("hosts");
        let own = "127.0.0.1\tlocalhost";
        fs::write(&file, own).unwrap();
        let block = |lines: &str| format!("# the family of this machine\n{lines}# end of the family\n");
        name_family(etc.path(), "10.78.0.1\tclone-1\n").unwrap();
        let wanted = format!("{own}\n{}", block("10.78.0.1\tclone-1\n"));
        assert_eq!(fs::read_to_string(&file).unwrap(), wanted);
        fs::write(&file, format!("{wanted}192.0.2.1\tother\n")).unwrap();
        for _ in 0..2 {
            name_family(etc.path(), "10.78.0.2\tclone-2\n").unwrap();
            let wanted = format!("{own}\n{}192.0.2.1\tother\n", block("10.78.0.2\tclone-2\n"));
            assert_eq!(fs::read_to_string(&file).unwrap(), wanted);
        }
        fs::remove_file(&file).unwrap();
        name_family(etc.path(), "").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), block(""));
    }

    #[test]
    fn mac_addresses() {
        assert_eq!(parse_mac("52:54:00:Ab:0:7"), Some([0x52, 0x54, 0, 0xab, 0, 7]));
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "zz:54:00:12:34:56",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
