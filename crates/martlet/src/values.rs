//! Values of options: sizes, ports, probes, names.

use martlet_api::{PortForward, Probe, Problem, names};

/// `512M`, `2G`, `4096`; binary units.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit
        .to_ascii_lowercase()
        .trim_end_matches("ib")
        .trim_end_matches('b')
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err("write a whole number and K, M, G or T, for example 512M".into()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "write a positive number and K, M, G or T, for example 512M")?;
    let bytes = number
        .checked_mul(1 << shift)
        .ok_or("that is more than any computer has")?;
    if bytes == 0 {
        Err("a size of 0 makes no sense".into())
    } else {
        Ok(bytes)
    }
}

/// `8080:80`, `127.0.0.1:8080:80`, `80`.
pub fn port(text: &str) -> Result<PortForward, String> {
    let number = |part: &str| part.parse::<u16>().map_err(|_| format!("{part:?} is not a port"));
    let parts: Vec<_> = text.split(':').collect();
    let (host_port, guest_port) = match parts[..] {
        [guest] => (0, number(guest)?),
        [host, guest] | ["127.0.0.1" | "localhost", host, guest] => (number(host)?, number(guest)?),
        [_, _, _] => return Err("ports are forwarded from 127.0.0.1 only".into()),
        _ => return Err("write HOST:GUEST, for example 8080:80".into()),
    };
    if guest_port == 0 {
        Err("0 is not a port in the guest".into())
    } else {
        Ok(PortForward {
            host_port,
            guest_port,
        })
    }
}

/// `6379`, `6379=PING\r\n`, `6379=PING\r\n=PONG`.
pub fn probe(text: &str) -> Result<Probe, String> {
    let mut parts = text.splitn(3, '=');
    let guest_port = parts.next().unwrap_or_default();
    let guest_port = guest_port.parse().ok().filter(|port| *port != 0);
    let guest_port = guest_port.ok_or("write PORT[=SEND[=EXPECT]], for example 6379=PING\\r\\n=PONG")?;
    let mut next = || parts.next().map(unescape).unwrap_or_default();
    Ok(Probe {
        guest_port,
        send: next(),
        expect: next(),
    })
}

/// Line ends are hard to type in a shell.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, false) => out.push(c),
            _ => match chars.next() {
                Some('r') => out.push('\r'),
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('\\') | None => out.push('\\'),
                Some(other) => out.extend(['\\', other]),
            },
        }
    }
    out
}

/// `NAME=value`.
pub fn env_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("write NAME=value".into()),
    }
}

/// Name of a machine or base.
pub fn name(text: &str) -> Result<String, String> {
    checked(text, names::check_name)
}

/// Where clones go: a host, `auto` or `plugin:NAME`.
pub fn place(text: &str) -> Result<String, String> {
    checked(text, names::check_place)
}

/// A tag.
pub fn tag(text: &str) -> Result<String, String> {
    checked(text, names::check_tag)
}

/// Reference to a snapshot, or a name.
pub fn reference(text: &str) -> Result<String, String> {
    checked(text, names::check_reference)
}

/// A reference that is to be made.
pub fn new_reference(text: &str) -> Result<String, String> {
    checked(text, names::check_new_reference)
}

fn checked(text: &str, check: fn(&str) -> Result<(), Problem>) -> Result<String, String> {
    match check(text) {
        Ok(()) => Ok(text.into()),
        Err(problem) => {
            let Problem {
                message,
                cause,
                remediation,
                ..
            } = problem;
            let parts = [Some(message), cause, remediation];
            Err(parts.into_iter().flatten().collect::<Vec<_>>().join("; "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("2g"), Ok(2 << 30));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("4096"), Ok(4096));
        for bad in [
            "",
            "0",
            "0G",
            "-1",
            "-1G",
            "1.5G",
            "G",
            "1X",
            "1 G",
            "99999999999999999999",
            "99999999999T",
        ] {
            assert!(size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ports() {
        let forward = |host_port, guest_port| {
            Ok(PortForward {
                host_port,
                guest_port,
            })
        };
        assert_eq!(port("8080:80"), forward(8080, 80));
        assert_eq!(port("127.0.0.1:8080:80"), forward(8080, 80));
        assert_eq!(port("80"), forward(0, 80));
        for bad in [
            "",
            ":",
            "80:",
            "80:0",
            "0.0.0.0:80:80",
            "1:2:3:4",
            "70000:1",
            "-1:1",
        ] {
            assert!(port(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn probes() {
        let asked = probe(r"6379=PING\r\n=PONG=").unwrap();
        assert_eq!(
            (asked.guest_port, &*asked.send, &*asked.expect),
            (6379, "PING\r\n", "PONG=")
        );
        assert_eq!(
            probe("80").unwrap(),
            Probe {
                guest_port: 80,
                send: String::new(),
                expect: String::new()
            }
        );
        assert_eq!(probe(r"80=a\\nb").unwrap().send, r"a\nb");
        for bad in ["", "0", "x", "=PING", "99999"] {
            assert!(probe(bad).is_err(), "{bad:?}");
        }
    }
}
