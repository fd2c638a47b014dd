//! The network card of the machine's family.

use martlet_agent_api::FAMILY_MAC;
use std::fs;
use std::net::Ipv4Addr;

/// As the guest has it.
#[derive(Debug, PartialEq, Eq)]
pub struct FamilyCard {
    /// Its interface.
    pub interface: String,
    /// What others call this machine by it.
    pub name: String,
}

impl FamilyCard {
    /// None if the machine was run without `--family`.
    pub fn find() -> Option<Self> {
        fs::read_dir("/sys/class/net").ok()?.flatten().find_map(|entry| {
            let mac = fs::read_to_string(entry.path().join("address")).ok()?;
            Some(Self {
                interface: entry.file_name().to_str()?.to_owned(),
                name: name(mac.trim())?,
            })
        })
    }
}

/// Who has this MAC address, if it is a family's.
fn name(mac: &str) -> Option<String> {
    let bytes: Option<Vec<u8>> = mac
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    match bytes?.strip_prefix(&FAMILY_MAC)? {
        [0, 0] => Some("parent".into()),
        [high, low] => Some(format!("clone-{}", u16::from_be_bytes([*high, *low]))),
        _ => None,
    }
}

/// Who is called so in `/etc/hosts`, where the agent names the family: a static program asks no other names.
pub fn address(name: &str) -> Option<Ipv4Addr> {
    named(&fs::read_to_string("/etc/hosts").ok()?, name)
}

fn named(hosts: &str, name: &str) -> Option<Ipv4Addr> {
    hosts.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word == name).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_who() {
        assert_eq!(name("52:4e:4d:00:00:00").as_deref(), Some("parent"));
        assert_eq!(name("52:4e:4d:00:01:02").as_deref(), Some("clone-258"));
        for other in ["52:4d:00:00:00:01", "52:4e:4d:00:01", "", "00:00:00:00:00:00"] {
            assert_eq!(name(other), None, "{other}");
        }
        let hosts = "127.0.0.1\tlocalhost\n# 10.78.0.9 clone-3\n10.78.0.3\tclone-3\n10.78.0.30\tclone-30\n";
        assert_eq!(named(hosts, "clone-3"), Some(Ipv4Addr::new(10, 78, 0, 3)));
        assert_eq!(named(hosts, "clone"), None);
    }
}
