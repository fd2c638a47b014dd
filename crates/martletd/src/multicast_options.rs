//! Whether frames of forks are sent to several hosts at once, and how fast: `MARTLET_MULTICAST` and `MARTLET_MULTICAST_PORT`.

use anyhow::Result;
use martlet_engine::MulticastOptions;
use std::ops::RangeInclusive;

const PORT: u16 = 7078;
/// From what an old radio link takes to what a host can seal.
const RATES_BYTES: RangeInclusive<u64> = 125_000..=1_250_000_000;

/// From the environment; off if it does not say.
pub fn from_env() -> Result<Option<MulticastOptions>> {
    let rate = std::env::var("MARTLET_MULTICAST").unwrap_or_else(|_| "off".into());
    let port = std::env::var("MARTLET_MULTICAST_PORT").ok();
    options(&rate, port.as_deref())
}

fn options(rate: &str, port: Option<&str>) -> Result<Option<MulticastOptions>> {
    if rate == "off" {
        return Ok(None);
    }
    let Some(rate_bytes) = rate_bytes(rate).filter(|rate| RATES_BYTES.contains(rate)) else {
        anyhow::bail!("MARTLET_MULTICAST is {rate:?}; off, and rates from 1mbit to 10gbit, are possible");
    };
    let port = match port.map(str::parse) {
        None => PORT,
        Some(Ok(port @ 1..)) => port,
        Some(_) => anyhow::bail!(
            "MARTLET_MULTICAST_PORT is {:?}; a port from 1 to 65535 is possible",
            port.unwrap_or_default()
        ),
    };
    Ok(Some(MulticastOptions { rate_bytes, port }))
}

/// `500mbit`, `1gbit`.
fn rate_bytes(text: &str) -> Option<u64> {
    let units = [("kbit", 1_000), ("mbit", 1_000_000), ("gbit", 1_000_000_000)];
    let (number, bits) = units
        .iter()
        .find_map(|(unit, bits)| Some((text.strip_suffix(unit)?, bits)))?;
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(*bits)
        .map(|bits| bits / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_people_write_them() {
        let rate = |text| {
            options(text, None)
                .ok()
                .flatten()
                .map(|options| options.rate_bytes)
        };
        assert_eq!(rate("500mbit"), Some(62_500_000));
        assert_eq!(rate("1gbit"), Some(125_000_000));
        assert_eq!(rate("2000kbit"), Some(250_000));
        for bad in [
            "",
            "on",
            "500",
            "0mbit",
            "11gbit",
            "-1mbit",
            "99999999999999999999gbit",
            "18446744073709551615gbit",
        ] {
            assert!(options(bad, None).is_err(), "{bad}");
        }
        assert_eq!(options("off", Some("x")).unwrap(), None);
        let port = |port| options("1mbit", port).ok().flatten().map(|options| options.port);
        assert_eq!((port(None), port(Some("9"))), (Some(7078), Some(9)));
        assert_eq!((port(Some("0")), port(Some("70000"))), (None, None));
    }
}
