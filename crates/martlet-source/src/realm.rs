//! Realms: what leaves a host is sealed with the key of one, so that a remote keeps what it can neither read nor change
//! unnoticed. It learns sizes, and what is equal within a realm.
//!
//! ```text
//! sealed   0  nonce 24 | 24  XChaCha20-Poly1305 of the content | tag 16
//! ```
//!
//! The nonce is a keyed hash of what is sealed and of what it is for (as in SIV, RFC 5297): the same content is sealed to
//! the same bytes, so it is kept once, and no nonce comes with two contents. Two realms have nothing in common.

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use std::fmt;

const NONCE: usize = 24;
/// How much longer sealing makes something.
pub const SEAL_BYTES: usize = NONCE + 16;

/// The keys of a realm.
#[derive(Clone)]
pub struct Realm {
    names: [u8; 32],
    nonces: [u8; 32],
    cipher: XChaCha20Poly1305,
}

impl fmt::Debug for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Realm(…)")
    }
}

impl Realm {
    /// The realm of a secret.
    pub fn new(secret: &[u8; 32]) -> Self {
        let key = |purpose: &str| blake3::derive_key(purpose, secret);
        Self {
            names: key("martlet 2026 realm: names of objects"),
            nonces: key("martlet 2026 realm: nonces"),
            cipher: XChaCha20Poly1305::new(&key("martlet 2026 realm: contents").into()),
        }
    }

    /// What it is known by: the same on every host that has the secret, which it does not tell.
    pub fn id(&self) -> String {
        blake3::Hash::from_bytes(self.name(b"realm")).to_hex()[..16].to_owned()
    }

    /// What something is called where others can see it.
    pub fn name(&self, what: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.names, what).as_bytes()
    }

    /// Seals a content that is for `about`, which [`Realm::open`] has to be told.
    pub fn seal(&self, about: &[u8], content: &[u8]) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new_keyed(&self.nonces);
        hasher.update(&(about.len() as u64).to_le_bytes());
        hasher.update(about).update(content);
        let mut sealed = hasher.finalize().as_bytes()[..NONCE].to_vec();
        let payload = Payload {
            msg: content,
            aad: about,
        };
        let body = self.cipher.encrypt(XNonce::from_slice(&sealed), payload);
        sealed.extend(body.expect("no content is as large as the cipher's limit of 256 GiB"));
        sealed
    }

    /// Opens what was sealed for `about` in this realm. None if it was not, or is not as it was.
    pub fn open(&self, about: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, body) = sealed.split_at_checked(NONCE)?;
        let payload = Payload {
            msg: body,
            aad: about,
        };
        self.cipher.decrypt(XNonce::from_slice(nonce), payload).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_realm_opens_and_only_what_is_whole_and_in_its_place() {
        let [ours, theirs] = [[1; 32], [2; 32]].map(|secret| Realm::new(&secret));
        let sealed = ours.seal(b"place", b"content");
        assert_eq!(sealed.len(), b"content".len() + SEAL_BYTES);
        assert_eq!(ours.open(b"place", &sealed).unwrap(), b"content");
        assert_eq!(theirs.open(b"place", &sealed), None);
        assert_eq!(ours.open(b"another place", &sealed), None);
        for len in 0..sealed.len() {
            assert_eq!(ours.open(b"place", &sealed[..len]), None);
            let mut changed = sealed.clone();
            changed[len] ^= 1;
            assert_eq!(ours.open(b"place", &changed), None);
        }
    }

    #[test]
    fn what_is_equal_is_equal_within_a_realm_only() {
        let [ours, theirs] = [[1; 32], [2; 32]].map(|secret| Realm::new(&secret));
        assert_eq!(ours.seal(b"a", b"x"), ours.seal(b"a", b"x"));
        assert_ne!(ours.seal(b"a", b"x"), ours.seal(b"b", b"x"));
        assert_ne!(ours.seal(b"a", b"x"), theirs.seal(b"a", b"x"));
        assert_eq!(ours.name(b"x"), ours.name(b"x"));
        assert_ne!(ours.name(b"x"), theirs.name(b"x"));
    }
}
