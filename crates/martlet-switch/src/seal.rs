//! Frames between hosts: each a datagram, sealed with its family's key.
//!
//! ```text
//!   "MF" | version 1 | family, 6 bytes | nonce, 24 bytes | sealed frame and its tag (XChaCha20-Poly1305)
//! ```
//!
//! Who records a datagram can send it again, as any network may deliver one twice; nobody without the key can read, change
//! or make one.

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const MAGIC: [u8; 3] = [b'M', b'F', 1];
const NONCE_BYTES: usize = 24;

/// Which family: the id of its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FamilyId(pub [u8; 6]);

/// A family's key.
pub struct Seal {
    key: [u8; 32],
    cipher: XChaCha20Poly1305,
    header: [u8; HEADER_BYTES],
    /// Begins each nonce; random, so that no other host, nor this one in another life, has the same.
    prefix: [u8; 16],
    next: AtomicU64,
}

const HEADER_BYTES: usize = 9;

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(…)")
    }
}

impl Seal {
    /// That of a family. `random` is 16 random bytes, new each time.
    pub fn new(family: FamilyId, key: &[u8; 32], random: [u8; 16]) -> Self {
        let [a, b, c, d, e, f] = family.0;
        Self {
            key: *key,
            cipher: XChaCha20Poly1305::new(key.into()),
            header: [MAGIC[0], MAGIC[1], MAGIC[2], a, b, c, d, e, f],
            prefix: random,
            next: AtomicU64::new(0),
        }
    }

    /// Whether it seals with this key.
    pub fn has(&self, key: &[u8; 32]) -> bool {
        self.key == *key
    }

    /// Which family's a datagram says it is.
    pub fn family(datagram: &[u8]) -> Option<FamilyId> {
        let rest = datagram.strip_prefix(&MAGIC)?;
        rest.first_chunk().copied().map(FamilyId)
    }

    /// A datagram with this frame.
    pub fn seal(&self, frame: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::with_capacity(HEADER_BYTES + NONCE_BYTES + frame.len() + 16);
        datagram.extend_from_slice(&self.header);
        datagram.extend_from_slice(&self.prefix);
        datagram.extend_from_slice(&self.next.fetch_add(1, Relaxed).to_be_bytes());
        let payload = Payload {
            msg: frame,
            aad: &self.header,
        };
        let nonce = XNonce::from_slice(&datagram[HEADER_BYTES..]);
        let sealed = self.cipher.encrypt(nonce, payload);
        datagram.extend(sealed.expect("a frame is shorter than the cipher's limit"));
        datagram
    }

    /// The frame, if it was sealed with this key, and is as it was.
    pub fn open(&self, datagram: &[u8]) -> Option<Vec<u8>> {
        let rest = datagram.strip_prefix(&self.header)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_BYTES)?;
        let payload = Payload {
            msg: sealed,
            aad: &self.header,
        };
        self.cipher.decrypt(XNonce::from_slice(nonce), payload).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILY: FamilyId = FamilyId([1, 2, 3, 4, 5, 6]);

    #[test]
    fn only_the_family_opens_and_only_what_is_whole() {
        let ours = Seal::new(FAMILY, &[7; 32], [1; 16]);
        let there = Seal::new(FAMILY, &[7; 32], [2; 16]);
        let sealed = ours.seal(b"frame");
        assert_eq!(Seal::family(&sealed), Some(FAMILY));
        assert_eq!(there.open(&sealed).as_deref(), Some(&b"frame"[..]));
        assert_ne!(ours.seal(b"frame"), sealed, "no nonce comes twice");
        assert!(!sealed.windows(5).any(|five| five == b"frame"));
        for other in [
            Seal::new(FAMILY, &[8; 32], [1; 16]),
            Seal::new(FamilyId([0; 6]), &[7; 32], [1; 16]),
        ] {
            assert_eq!(other.open(&sealed), None);
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(there.open(&changed), None, "byte {at}");
            assert_eq!(there.open(&sealed[..at]), None, "{at} bytes of it");
        }
    }
}
