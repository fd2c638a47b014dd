//! What makes one machine another than its twin: number, address, MAC address, user id, generated name.
//!
//! All follow from the machine's *number*, which a durable counter gives out and never gives out twice.

/// User ids of QEMU processes: one for each machine, so that no VM can touch another's files. The range lies above
/// what distributions give to people and services and below what containers usually map.
const UID_FIRST: u32 = 0x4d41_0000;
const UIDS: u64 = 0xfff0;

const ADJECTIVES: [&str; 16] = [
    "amber", "brisk", "calm", "deft", "eager", "fleet", "gentle", "high", "keen", "light", "mild", "nimble",
    "quick", "silent", "swift", "wild",
];
const BIRDS: [&str; 16] = [
    "avocet", "bunting", "curlew", "dunlin", "egret", "finch", "godwit", "heron", "ibis", "jay", "kestrel",
    "lark", "merlin", "osprey", "plover", "swallow",
];

/// A name for the machine with this number, when its user gave none.
pub fn generated_name(number: u64) -> String {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let adjective = ADJECTIVES[(mixed % 16) as usize];
    let bird = BIRDS[(mixed / 16 % 16) as usize];
    format!("{adjective}-{bird}-{number}")
}

/// The address of the machine with this number in 10.77.0.0/16. The first 16 addresses are the network's own; numbers
/// come round after 65,000 machines, long after the first ones have gone.
pub fn address(number: u64) -> [u8; 4] {
    let host = 16 + (number % (65536 - 32)) as u16;
    let [high, low] = host.to_be_bytes();
    [10, 77, high, low]
}

/// A MAC address of our own (locally administered) for the machine with this number.
pub fn mac(number: u64) -> [u8; 6] {
    let n = number.to_be_bytes();
    [0x52, 0x4d, n[4], n[5], n[6], n[7]]
}

/// `52:4d:00:00:00:01`.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The user that runs the QEMU of the machine with this number.
pub fn uid(number: u64) -> u32 {
    UID_FIRST + (number % UIDS) as u32
}

/// Random bytes from the host's kernel.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut urandom = std::fs::File::open("/dev/urandom").expect("/dev/urandom is there on every Linux");
    std::io::Read::read_exact(&mut urandom, &mut bytes).expect("/dev/urandom does not end");
    bytes
}

/// A machine's id: 12 random hexadecimal digits.
pub fn machine_id() -> String {
    random::<6>().map(|byte| format!("{byte:02x}")).concat()
}

/// Is it one? It is the name of a directory, and comes from others with a machine that was theirs.
pub fn is_machine_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A random UUID (RFC 9562, version 4), for the guest's machine id and VM generation id.
pub fn uuid() -> String {
    let mut bytes = random::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = bytes.map(|byte| format!("{byte:02x}")).concat();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_others_is_no_path() {
        assert!(is_machine_id(&machine_id()));
        for bad in [
            "",
            "..",
            "../../../etc",
            "0123456789a/",
            "0123456789AB",
            "0123456789abc",
        ] {
            assert!(!is_machine_id(bad), "{bad:?}");
        }
    }
    use std::collections::BTreeSet;

    #[test]
    fn generated_names_are_valid_and_differ() {
        let names: BTreeSet<_> = (1..2000).map(generated_name).collect();
        assert_eq!(names.len(), 1999);
        names
            .iter()
            .for_each(|name| martlet_api::names::check_name(name).unwrap());
    }

    #[test]
    fn a_family_shares_no_address() {
        let numbers = 1..60_000u64;
        assert_eq!(
            numbers.clone().map(address).collect::<BTreeSet<_>>().len(),
            59_999
        );
        assert_eq!(numbers.clone().map(uid).collect::<BTreeSet<_>>().len(), 59_999);
        assert_eq!(numbers.map(mac).collect::<BTreeSet<_>>().len(), 59_999);
        assert_eq!(address(0), [10, 77, 0, 16]);
        assert_eq!(mac_text(mac(258)), "52:4d:00:00:01:02");
        assert_eq!(mac(1)[0] & 3, 2, "locally administered, not multicast");
    }

    #[test]
    fn uuids_have_the_form_of_version_4() {
        let uuid = uuid();
        assert_eq!((uuid.len(), &uuid[14..15]), (36, "4"));
        assert_ne!(uuid, super::uuid());
    }
}
