//! Who put something, and when. Clocks are wrong: it is for people, and to tell what was left long ago.
//!
//! ```text
//!  0  unix seconds 8 | 8  length 1 | 9  host, UTF-8
//! ```

/// Longest name of a host; of longer ones the end is not kept.
pub const HOST_BYTES_MAX: usize = 64;

/// See the module's documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamp {
    /// When, by the host's clock.
    pub unix_s: u64,
    /// Who; empty if it has not said.
    pub host: String,
}

impl Stamp {
    /// As bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let host = &self.host[..self.host.floor_char_boundary(HOST_BYTES_MAX)];
        let mut bytes = self.unix_s.to_le_bytes().to_vec();
        bytes.push(host.len() as u8);
        bytes.extend(host.as_bytes());
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
        for host in ["", "here", &"ä".repeat(100)] {
            let stamp = Stamp {
                unix_s: u64::MAX - 7,
                host: host.to_owned(),
            };
            let bytes = stamp.encode();
            let (back, rest) = Stamp::decode(&bytes).unwrap();
            assert!(host.starts_with(&back.host) && back.host.len() == host.len().min(64));
            assert_eq!((back.unix_s, rest), (stamp.unix_s, &[][..]));
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
