//! Which frames go where: against what a guest may truly send, built by hand.

use martlet_switch::{FRAME_BYTES_MAX, Number, Refused, To, check};
use proptest::prelude::*;
use std::net::Ipv4Addr;

fn n(number: u32) -> Number {
    Number::new(number).unwrap()
}

fn ethernet(to: [u8; 6], from: [u8; 6], protocol: u16, packet: &[u8]) -> Vec<u8> {
    [&to[..], &from, &protocol.to_be_bytes(), packet].concat()
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0; 28];
    packet[0] = 0x45;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet
}

fn arp(operation: u8, mac: [u8; 6], from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    [
        &[0, 1, 8, 0, 6, 4, 0, operation][..],
        &mac,
        &from.octets(),
        &[0; 6],
        &to.octets(),
    ]
    .concat()
}

const ALL: [u8; 6] = [0xff; 6];

#[test]
fn what_a_guest_may_send() {
    let (me, other) = (n(3), n(4));
    let (mac, ip) = (me.mac(), me.address());
    let to_other = ethernet(other.mac(), mac, 0x0800, &ipv4(ip, other.address()));
    assert_eq!(check(&to_other, me), Ok(To::One(other)));
    let parent = Number::PARENT;
    let to_parent = ethernet(parent.mac(), mac, 0x0800, &ipv4(ip, parent.address()));
    assert_eq!(check(&to_parent, me), Ok(To::One(parent)));
    for (address, to) in [
        (Ipv4Addr::BROADCAST, ALL),
        (Ipv4Addr::new(10, 78, 255, 255), ALL),
        (Ipv4Addr::new(224, 0, 0, 251), [1, 0, 0x5e, 0, 0, 0xfb]),
    ] {
        let frame = ethernet(to, mac, 0x0800, &ipv4(ip, address));
        assert_eq!(check(&frame, me), Ok(To::All), "{address}");
    }
    for (operation, to) in [(1, ALL), (1, other.mac()), (2, other.mac())] {
        let frame = ethernet(to, mac, 0x0806, &arp(operation, mac, ip, other.address()));
        assert_eq!(check(&frame, me), Ok(To::One(other)), "ARP {operation}");
    }
    let announcement = arp(1, mac, ip, ip);
    assert_eq!(check(&ethernet(ALL, mac, 0x0806, &announcement), me), Ok(To::All));
    let probe = arp(1, mac, Ipv4Addr::UNSPECIFIED, other.address());
    assert_eq!(check(&ethernet(ALL, mac, 0x0806, &probe), me), Ok(To::One(other)));
}

#[test]
fn what_a_hostile_guest_may_not_send() {
    let (me, other) = (n(3), n(4));
    let (mac, ip) = (me.mac(), me.address());
    let good = ipv4(ip, other.address());
    let outside = Ipv4Addr::new(192, 0, 2, 1);
    let refused = |to, from, protocol, packet: &[u8]| check(&ethernet(to, from, protocol, packet), me);
    let cases = [
        (
            "another's MAC",
            refused(other.mac(), n(5).mac(), 0x0800, &good),
            Refused::Mac,
        ),
        (
            "a MAC of nobody",
            refused(other.mac(), [2, 0, 0, 0, 0, 1], 0x0800, &good),
            Refused::Mac,
        ),
        (
            "another's IP",
            refused(other.mac(), mac, 0x0800, &ipv4(n(5).address(), other.address())),
            Refused::Address,
        ),
        (
            "an IP from outside",
            refused(other.mac(), mac, 0x0800, &ipv4(outside, other.address())),
            Refused::Address,
        ),
        (
            "to the outside",
            refused(other.mac(), mac, 0x0800, &ipv4(ip, outside)),
            Refused::Destination,
        ),
        (
            "to one by IP, to another by MAC",
            refused(n(5).mac(), mac, 0x0800, &good),
            Refused::Destination,
        ),
        (
            "to one by IP, to all by MAC",
            refused(ALL, mac, 0x0800, &good),
            Refused::Destination,
        ),
        (
            "to itself",
            refused(mac, mac, 0x0800, &ipv4(ip, ip)),
            Refused::Destination,
        ),
        (
            "ARP in another's name",
            refused(
                other.mac(),
                mac,
                0x0806,
                &arp(2, mac, n(5).address(), other.address()),
            ),
            Refused::Address,
        ),
        (
            "ARP with another's MAC inside",
            refused(other.mac(), mac, 0x0806, &arp(2, n(5).mac(), ip, other.address())),
            Refused::Address,
        ),
        (
            "an ARP reply from nowhere",
            refused(
                other.mac(),
                mac,
                0x0806,
                &arp(2, mac, Ipv4Addr::UNSPECIFIED, other.address()),
            ),
            Refused::Address,
        ),
        (
            "ARP for the outside",
            refused(ALL, mac, 0x0806, &arp(1, mac, ip, outside)),
            Refused::Destination,
        ),
        (
            "an ARP reply to itself, to all",
            refused(ALL, mac, 0x0806, &arp(2, mac, ip, ip)),
            Refused::Destination,
        ),
        (
            "an ARP reply to all",
            refused(ALL, mac, 0x0806, &arp(2, mac, ip, other.address())),
            Refused::Destination,
        ),
        (
            "a VLAN",
            refused(other.mac(), mac, 0x8100, &[&[0, 7, 8, 0][..], &good].concat()),
            Refused::Protocol,
        ),
        (
            "a VLAN in a VLAN",
            refused(other.mac(), mac, 0x88a8, &good),
            Refused::Protocol,
        ),
        (
            "IPv6",
            refused(other.mac(), mac, 0x86dd, &[0x60; 40]),
            Refused::Protocol,
        ),
        (
            "spanning tree",
            refused([1, 0x80, 0xc2, 0, 0, 0], mac, 38, &[0; 38]),
            Refused::Protocol,
        ),
        ("no header", check(&[0; 13], me), Refused::Length),
        (
            "half a header",
            refused(other.mac(), mac, 0x0800, &good[..19]),
            Refused::Length,
        ),
        (
            "IPv6 that says it is IPv4",
            refused(other.mac(), mac, 0x0800, &[&[0x65][..], &good[1..]].concat()),
            Refused::Protocol,
        ),
        (
            "a giant",
            refused(
                other.mac(),
                mac,
                0x0800,
                &[&good[..], &[0; FRAME_BYTES_MAX]].concat(),
            ),
            Refused::Length,
        ),
    ];
    for (what, is, wanted) in cases {
        assert_eq!(is, Err(wanted), "{what}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Whatever comes out is from whom it says, by MAC address and by what lies in it.
    #[test]
    fn nothing_comes_through_in_the_name_of_another(
        from in 0u32..8,
        to_mac in prop_oneof![Just(ALL), Just(martlet_egress::MAC), (0u32..8).prop_map(|of| n(of).mac()), any::<[u8; 6]>()],
        from_mac in prop_oneof![3 => (0u32..8).prop_map(|of| n(of).mac()), 1 => any::<[u8; 6]>()],
        protocol in prop_oneof![Just(0x0800u16), Just(0x0806), any::<u16>()],
        sender in prop_oneof![3 => (0u32..8).prop_map(|of| n(of).address()), 1 => any::<[u8; 4]>().prop_map(Ipv4Addr::from)],
        target in prop_oneof![3 => (0u32..8).prop_map(|of| n(of).address()), 1 => Just(martlet_egress::ADDRESS), 1 => any::<[u8; 4]>().prop_map(Ipv4Addr::from)],
        sender_mac in (0u32..8).prop_map(|of| n(of).mac()),
        operation in 0u8..4,
        cut in 0usize..64,
    ) {
        let packet = match protocol {
            0x0806 => arp(operation, sender_mac, sender, target),
            _ => ipv4(sender, target),
        };
        let mut frame = ethernet(to_mac, from_mac, protocol, &packet);
        frame.truncate(frame.len().max(cut) - cut / 2);
        if let Ok(to) = check(&frame, n(from)) {
            prop_assert_eq!(from_mac, n(from).mac());
            prop_assert!(sender == n(from).address() || (protocol == 0x0806 && sender.is_unspecified()));
            prop_assert!(protocol == 0x0800 || sender_mac == n(from).mac());
            match to {
                To::Out => prop_assert!(to_mac == martlet_egress::MAC || target == martlet_egress::ADDRESS),
                To::One(to) => prop_assert!(target == to.address() && to != n(from)),
                To::All => prop_assert!((protocol == 0x0806 && target == n(from).address()) || target.is_broadcast() || target.is_multicast() || target == Ipv4Addr::new(10, 78, 255, 255)),
            }
        }
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..64), from in 0u32..4) {
        let _ = check(&bytes, n(from));
    }
}
