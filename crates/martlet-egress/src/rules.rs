//! What may be reached: addresses and names, with ports or without.
//!
//! ```text
//!   192.0.2.7:443    192.0.2.0/24    pypi.org:443    *.debian.org    any
//! ```
//!
//! An address that only a name leads to may be reached for as long as the guest has been told it ([`crate::Names`]). Some addresses
//! are never reached, whatever the rules and names say: those that mean another machine to this host than to whoever wrote the rule.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Longest name (RFC 1035).
const NAME_BYTES_MAX: usize = 253;

/// One line of an allow-list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    to: To,
    /// Any, if it does not say.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum To {
    Any,
    Network {
        address: Ipv4Addr,
        prefix: u8,
    },
    Name(String),
    /// All below it, and not itself.
    Below(String),
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRule(String);

impl fmt::Display for BadRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(text) = self;
        write!(
            f,
            "{text:?} says nothing that may be reached: an IPv4 address or network, a name, *.NAME or any, and :PORT if need be"
        )
    }
}

impl std::error::Error for BadRule {}

impl FromStr for Rule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        let bad = || BadRule(text.to_owned());
        let (to, port) = match text.rsplit_once(':') {
            Some((to, port)) => (
                to,
                Some(port.parse().ok().filter(|port| *port > 0).ok_or_else(bad)?),
            ),
            None => (text, None),
        };
        Ok(Self {
            to: to_of(to).ok_or_else(bad)?,
            port,
        })
    }
}

fn to_of(text: &str) -> Option<To> {
    if text == "any" {
        return Some(To::Any);
    }
    if let Ok(address) = text.parse() {
        return Some(To::Network { address, prefix: 32 });
    }
    if let Some((address, prefix)) = text.split_once('/') {
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
        return Some(To::Network {
            address: address.parse().ok()?,
            prefix,
        });
    }
    match text.strip_prefix("*.") {
        Some(below) => name(below).map(To::Below),
        None => name(text).map(To::Name),
    }
}

/// A host's name, as it is compared; none if it can be none. What looks like an address and is none is no name either.
pub(crate) fn name(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let is_name = text.len() <= NAME_BYTES_MAX
        && text.split('.').all(is_label)
        && !text
            .split('.')
            .next_back()?
            .bytes()
            .all(|byte| byte.is_ascii_digit());
    is_name.then(|| text.to_ascii_lowercase())
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            To::Any => f.write_str("any")?,
            To::Network { address, prefix: 32 } => write!(f, "{address}")?,
            To::Network { address, prefix } => write!(f, "{address}/{prefix}")?,
            To::Name(name) => f.write_str(name)?,
            To::Below(name) => write!(f, "*.{name}")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl Rule {
    fn is_for_address(&self, of: Ipv4Addr) -> bool {
        match &self.to {
            To::Any => true,
            To::Network { address, prefix } => {
                let mask = u32::MAX.checked_shl(32 - u32::from(*prefix)).unwrap_or(0);
                u32::from(*address) & mask == u32::from(of) & mask
            }
            To::Name(_) | To::Below(_) => false,
        }
    }

    fn is_for_name(&self, of: &str) -> bool {
        match &self.to {
            To::Any => true,
            To::Network { .. } => false,
            To::Name(name) => name == of,
            To::Below(name) => of
                .strip_suffix(name.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        }
    }

    fn is_for_port(&self, of: u16) -> bool {
        self.port.is_none_or(|port| port == of)
    }
}

/// A list of what may be reached; nothing else may.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

impl FromIterator<Rule> for Rules {
    fn from_iter<T: IntoIterator<Item = Rule>>(rules: T) -> Self {
        Self(rules.into_iter().collect())
    }
}

impl Rules {
    /// May a guest be told the addresses of this name?
    pub fn name(&self, name: &str) -> bool {
        self.0.iter().any(|rule| rule.is_for_name(name))
    }

    /// May this be reached, to which the guest was led by these names?
    pub fn reach<'a>(&self, address: Ipv4Addr, port: u16, mut names: impl Iterator<Item = &'a str>) -> bool {
        let rules = || self.0.iter().filter(|rule| rule.is_for_port(port));
        is_outside(address)
            && (rules().any(|rule| rule.is_for_address(address))
                || names.any(|name| rules().any(|rule| rule.is_for_name(name))))
    }
}

/// Not this host itself, nor another guest of it, nor whatever has such an address on any network: what tells clouds' machines
/// who they are, for example (169.254.169.254).
pub(crate) fn is_outside(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    let is_guest = a == 10 && (b == 77 || b == 78);
    let is_here = a == 0 || address.is_loopback() || address.is_link_local();
    !(is_guest || is_here || address.is_multicast() || a >= 240)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules(texts: &[&str]) -> Rules {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn reached(rules: &Rules, to: &str, names: &[&str]) -> bool {
        let (address, port) = to.split_once(':').unwrap();
        rules.reach(
            address.parse().unwrap(),
            port.parse().unwrap(),
            names.iter().copied(),
        )
    }

    #[test]
    fn what_the_list_says_is_reached_and_nothing_else() {
        let list = rules(&["192.0.2.7:443", "198.51.100.0/24", "pypi.org:443", "*.debian.org"]);
        for to in ["192.0.2.7:443", "198.51.100.1:1", "198.51.100.255:65535"] {
            assert!(reached(&list, to, &[]), "{to}");
        }
        for to in [
            "192.0.2.7:80",
            "192.0.2.8:443",
            "198.51.101.1:1",
            "203.0.113.1:443",
        ] {
            assert!(!reached(&list, to, &[]), "{to}");
        }
        assert!(reached(&list, "203.0.113.1:443", &["other.example", "pypi.org"]));
        assert!(!reached(&list, "203.0.113.1:80", &["pypi.org"]));
        assert!(reached(&list, "203.0.113.1:80", &["deb.debian.org"]));
        for name in ["pypi.org", "deb.debian.org", "a.b.debian.org"] {
            assert!(list.name(name), "{name}");
        }
        for name in ["debian.org", "xdebian.org", "pypi.org.example", "org", ""] {
            assert!(!list.name(name), "{name}");
        }
        assert!(!reached(&rules(&[]), "203.0.113.1:80", &["pypi.org"]));
    }

    #[test]
    fn what_is_not_outside_is_never_reached() {
        let list = rules(&["any", "127.0.0.1", "169.254.169.254:80"]);
        assert!(reached(&list, "203.0.113.1:80", &[]) && list.name("example.org"));
        for to in [
            "127.0.0.1:22",
            "0.0.0.0:80",
            "169.254.169.254:80",
            "10.77.0.2:80",
            "10.78.0.1:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
        ] {
            assert!(!reached(&list, to, &["example.org"]), "{to}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_in_words() {
        for text in [
            "",
            ":80",
            "a:0",
            "a:65536",
            "a:b",
            "*",
            "*.",
            "a..b",
            "192.0.2.0/33",
            "192.0.2.300",
            "a b",
            "http://a",
            "::1",
            "*.1",
        ] {
            let error = text.parse::<Rule>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("{text:?}")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_rule_is_written_as_it_is_read(
            to in prop_oneof![
                Just("any".to_owned()),
                (any::<u32>(), 0..=31_u8).prop_map(|(address, prefix)| format!("{}/{prefix}", Ipv4Addr::from(address))),
                any::<u32>().prop_map(|address| Ipv4Addr::from(address).to_string()),
                "([*][.])?[a-z][a-z0-9-]{0,20}([.][a-z]{2,5}){0,3}",
            ],
            port in prop::option::of(1..u16::MAX),
        ) {
            let text = port.map_or(to.clone(), |port| format!("{to}:{port}"));
            prop_assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }

        #[test]
        fn no_text_harms_it(text in ".{0,300}") {
            let _ = text.parse::<Rule>();
        }
    }
}
