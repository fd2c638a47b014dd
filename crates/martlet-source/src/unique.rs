//! Names that nobody else gives: `SECONDS-RANDOM`, by the clock of who gives them. So what a dead writer left is known by its
//! age wherever it is.

use std::fs::File;
use std::io::Read;
use std::time::{Duration, SystemTime};

/// A day, in seconds.
pub const DAY_S: u64 = 24 * 60 * 60;

/// Seconds since 1970, by this host's clock.
pub fn now_unix_s() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed();
    since.unwrap_or(Duration::ZERO).as_secs()
}

/// Random bytes.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut urandom = File::open("/dev/urandom").expect("/dev/urandom is there on every Linux");
    urandom.read_exact(&mut bytes).expect("/dev/urandom does not end");
    bytes
}

/// A name that is given now.
pub fn unique_name(now_unix_s: u64) -> String {
    format!("{now_unix_s:010}-{:016x}", u64::from_le_bytes(random()))
}

/// How long ago a name was given. None for what is no such name, or is of the future.
pub fn age_s(name: &str, now_unix_s: u64) -> Option<u64> {
    let (given, random) = name.split_once('-')?;
    let is_one = random.len() == 16 && given.len() >= 10;
    now_unix_s.checked_sub(given.parse().ok().filter(|_| is_one)?)
}
