//! Who is who in a family: addresses follow from numbers.

use std::net::Ipv4Addr;

/// The highest number of a clone.
pub const NUMBER_MAX: u16 = 0xfff0;
/// Length of the network's prefix: 10.78.0.0/16.
pub const PREFIX: u8 = 16;
/// Bytes of a packet: sealed, and in UDP, it still fits an Ethernet of 1500.
pub const MTU: u16 = 1400;

const NETWORK: [u8; 2] = [10, 78];
/// 10.78.255.254.
const PARENT: u16 = 0xfffe;
const MAC: [u8; 4] = [0x52, 0x4e, 0x4d, 0]; // locally administered

/// A member of a family: 0 is the parent, the others are its clones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number(u16);

impl Number {
    /// The parent.
    pub const PARENT: Self = Self(0);

    /// None if no member has such a number.
    pub fn new(number: u32) -> Option<Self> {
        let number = u16::try_from(number).ok()?;
        (number <= NUMBER_MAX).then_some(Self(number))
    }

    /// As a number.
    pub fn get(self) -> u16 {
        self.0
    }

    /// 10.78.0.3 is clone 3, and 10.78.255.254 the parent.
    pub fn address(self) -> Ipv4Addr {
        let host = if self == Self::PARENT { PARENT } else { self.0 };
        let [high, low] = host.to_be_bytes();
        Ipv4Addr::new(NETWORK[0], NETWORK[1], high, low)
    }

    /// Who has this address.
    pub fn of_address(address: Ipv4Addr) -> Option<Self> {
        let [a, b, high, low] = address.octets();
        let host = u16::from_be_bytes([high, low]);
        match host {
            _ if [a, b] != NETWORK => None,
            PARENT => Some(Self::PARENT),
            1..=NUMBER_MAX => Some(Self(host)),
            _ => None,
        }
    }

    /// 52:4e:4d:00:00:03.
    pub fn mac(self) -> [u8; 6] {
        let [high, low] = self.0.to_be_bytes();
        [MAC[0], MAC[1], MAC[2], MAC[3], high, low]
    }

    /// Who has this MAC address.
    pub fn of_mac(mac: [u8; 6]) -> Option<Self> {
        let [a, b, c, d, high, low] = mac;
        let number = u16::from_be_bytes([high, low]);
        ([a, b, c, d] == MAC && number <= NUMBER_MAX).then_some(Self(number))
    }

    /// `parent`, or `clone-3`.
    pub fn name(self) -> String {
        match self.0 {
            0 => "parent".into(),
            number => format!("clone-{number}"),
        }
    }
}

/// The network's broadcast address.
pub(crate) fn broadcast() -> Ipv4Addr {
    Ipv4Addr::new(NETWORK[0], NETWORK[1], 255, 255)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_has_an_address_of_its_own_that_tells_who_it_is() {
        let all: Vec<Number> = (0..=u32::from(NUMBER_MAX)).filter_map(Number::new).collect();
        assert_eq!(all.len(), usize::from(NUMBER_MAX) + 1);
        let addresses: HashSet<Ipv4Addr> = all.iter().map(|number| number.address()).collect();
        assert_eq!(addresses.len(), all.len());
        for number in all {
            assert_eq!(Number::of_address(number.address()), Some(number));
            assert_eq!(Number::of_mac(number.mac()), Some(number));
        }
        assert_eq!(Number::new(3).unwrap().address(), Ipv4Addr::new(10, 78, 0, 3));
        assert_eq!(Number::PARENT.address(), Ipv4Addr::new(10, 78, 255, 254));
        assert_eq!(Number::new(u32::from(NUMBER_MAX) + 1), None);
        assert_eq!(Number::new(0x1_0001), None);
        for nobody in [
            [10, 78, 0, 0],
            [10, 78, 255, 255],
            [10, 77, 0, 3],
            [10, 78, 255, 253],
        ] {
            assert_eq!(Number::of_address(nobody.into()), None, "{nobody:?}");
        }
    }
}
