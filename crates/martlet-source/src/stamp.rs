//! Who put something, and when. Clocks are wrong: it is for people, and to tell what was left long ago.
//!
//! ```text
//!  0  unix seconds 8 | 8  length 1 | 9  host, UTF-8
//! ```

/// Longest name of a host.
pub const HOST_BYTES_MAX: usize = 64;

/// See the module's documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamp {
    /// When, by the host's clock.
    pub unix_s: u64,
    /// Who; empty if it has not said.
    pub host: String,
}

/// As much of a host's name as a stamp can have.
pub(crate) fn fitting(mut host: String) -> String {
    while host.len() > HOST_BYTES_MAX {
        host.pop();
    }
    host
}

impl Stamp {
    /// As bytes. The host's name has to fit.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.unix_s.to_le_bytes().to_vec();
        bytes.push(self.host.len() as u8);
        bytes.extend(self.host.as_bytes());
        bytes
    }

    /// From bytes, and what is after it.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (unix_s, rest) = bytes.split_first_chunk()?;
        let (len, rest) = rest.split_first()?;
        let (host, rest) = rest.split_at_checked(usize::from(*len))?;
        let stamp = Self {
            unix_s: u64::from_le_bytes(*unix_s),
            host: str::from_utf8(host).ok()?.to_owned(),
        };
        (host.len() <= HOST_BYTES_MAX).then_some((stamp, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_comes_back_and_what_is_cut_off_is_none() {
        for (host, len) in [
            ("", 0),
            ("here", 4),
            (&"ä".repeat(100), 64),
            (&"€".repeat(100), 63),
        ] {
            let stamp = Stamp {
                unix_s: u64::MAX - 7,
                host: fitting(host.to_owned()),
            };
            assert!(host.starts_with(&stamp.host) && stamp.host.len() == len);
            let bytes = stamp.encode();
            assert_eq!(Stamp::decode(&bytes), Some((stamp, &[][..])));
            for len in 0..bytes.len() {
                assert_eq!(Stamp::decode(&bytes[..len]), None);
            }
        }
        assert_eq!(
            Stamp::decode(&[[0; 8].as_slice(), &[65], &[b'x'; 65]].concat()),
            None
        );
        assert_eq!(Stamp::decode(&[[0; 8].as_slice(), &[1, 0xff]].concat()), None);
    }
}
