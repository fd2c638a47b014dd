//! What a frame says of itself, and whether its sender can truly have sent it. Pure: bytes in, verdict out.
//!
//! Ethernet II, IPv4 (RFC 791) and ARP (RFC 826) only.

use crate::number::{self, Number};
use std::net::Ipv4Addr;

/// Ethernet's header and 1500 bytes: guests that ignore the MTU they are told.
pub const FRAME_BYTES_MAX: usize = 1514;

const ETHERNET_BYTES: usize = 14;
const ARP_BYTES: usize = 28;
const IPV4_BYTES: usize = 20;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
/// Ethernet, IPv4, and the lengths of their addresses.
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const BROADCAST: [u8; 6] = [0xff; 6];

/// Who a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// A member, who may not exist.
    One(Number),
    /// All others.
    All,
    /// The way out, if it has one.
    Out,
}

/// Why a frame goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Shorter than its headers, or longer than a frame can be.
    Length,
    /// The sender's MAC address is not the sender's.
    Mac,
    /// Its IP address is not, or what it says of itself in ARP.
    Address,
    /// Neither IPv4 nor ARP: IPv6 and VLANs, for example.
    Protocol,
    /// It is for nobody in this family, or says two different things about whom it is for.
    Destination,
}

/// Who a frame says that it is from.
pub fn source(frame: &[u8]) -> Option<Number> {
    Number::of_mac(bytes(frame, 6)?)
}

/// Who a frame of this member is for.
pub fn check(frame: &[u8], from: Number) -> Result<To, Refused> {
    if frame.len() > FRAME_BYTES_MAX {
        return Err(Refused::Length);
    }
    let to_mac: [u8; 6] = bytes(frame, 0).ok_or(Refused::Length)?;
    let from_mac: [u8; 6] = bytes(frame, 6).ok_or(Refused::Length)?;
    let protocol = u16::from_be_bytes(bytes(frame, 12).ok_or(Refused::Length)?);
    if from_mac != from.mac() {
        return Err(Refused::Mac);
    }
    let packet = &frame[ETHERNET_BYTES..];
    let to = match protocol {
        IPV4 => ipv4(packet, from, to_mac)?,
        ARP => arp(packet, from, to_mac)?,
        _ => return Err(Refused::Protocol),
    };
    match to {
        To::One(to) if to == from => Err(Refused::Destination),
        to => Ok(to),
    }
}

fn ipv4(packet: &[u8], from: Number, to_mac: [u8; 6]) -> Result<To, Refused> {
    if packet.len() < IPV4_BYTES {
        return Err(Refused::Length);
    }
    if packet[0] >> 4 != 4 || usize::from(packet[0] & 0xf) * 4 < IPV4_BYTES {
        return Err(Refused::Protocol);
    }
    let address = |at| {
        bytes(packet, at)
            .map(<Ipv4Addr as From<[u8; 4]>>::from)
            .ok_or(Refused::Length)
    };
    if address(12)? != from.address() {
        return Err(Refused::Address);
    }
    let to = address(16)?;
    if (to == Ipv4Addr::BROADCAST || to == number::broadcast()) && to_mac == BROADCAST {
        return Ok(To::All);
    }
    if to.is_multicast() && to_mac == multicast_mac(to) {
        return Ok(To::All);
    }
    if to_mac == martlet_egress::MAC {
        return Ok(To::Out);
    }
    let to = Number::of_address(to).ok_or(Refused::Destination)?;
    match to_mac == to.mac() {
        true => Ok(To::One(to)),
        false => Err(Refused::Destination),
    }
}

fn arp(packet: &[u8], from: Number, to_mac: [u8; 6]) -> Result<To, Refused> {
    if packet.len() < ARP_BYTES {
        return Err(Refused::Length);
    }
    if packet[..6] != ARP_KIND {
        return Err(Refused::Protocol);
    }
    let operation = u16::from_be_bytes([packet[6], packet[7]]);
    let sender_mac: [u8; 6] = bytes(packet, 8).ok_or(Refused::Length)?;
    let sender: Ipv4Addr = bytes::<4>(packet, 14).ok_or(Refused::Length)?.into();
    let target: Ipv4Addr = bytes::<4>(packet, 24).ok_or(Refused::Length)?.into();
    // Whoever asks whether an address is free has none yet.
    let is_probe = operation == ARP_REQUEST && sender.is_unspecified();
    if sender_mac != from.mac() || !(sender == from.address() || is_probe) {
        return Err(Refused::Address);
    }
    if operation == ARP_REQUEST && target == sender && to_mac == BROADCAST {
        return Ok(To::All); // it says where it is, as one that has moved does
    }
    if target == martlet_egress::ADDRESS {
        let is_there = to_mac == martlet_egress::MAC || operation == ARP_REQUEST && to_mac == BROADCAST;
        return is_there.then_some(To::Out).ok_or(Refused::Destination);
    }
    let to = Number::of_address(target).ok_or(Refused::Destination)?;
    match operation {
        // To the one who is asked for, whom it would reach anyway.
        ARP_REQUEST if to_mac == BROADCAST || to_mac == to.mac() => Ok(To::One(to)),
        ARP_REPLY if to_mac == to.mac() => Ok(To::One(to)),
        ARP_REQUEST | ARP_REPLY => Err(Refused::Destination),
        _ => Err(Refused::Protocol),
    }
}

/// RFC 1112, section 6.4.
fn multicast_mac(address: Ipv4Addr) -> [u8; 6] {
    let [_, b, c, d] = address.octets();
    [0x01, 0x00, 0x5e, b & 0x7f, c, d]
}

fn bytes<const N: usize>(of: &[u8], at: usize) -> Option<[u8; N]> {
    of.get(at..)?.first_chunk().copied()
}
