//! Packets: a piece of a parcel, sealed with the group's key.
//!
//! ```text
//! datagram   0  count 8 | 8  ChaCha20-Poly1305 of (parcel 4 | piece 2 | pieces 2 | bytes) | tag 16
//! ```
//!
//! The count is the nonce: one sender has the key, and counts what it sends. All numbers are little-endian. All pieces of a parcel are of
//! [`PIECE_BYTES`], but the last, which may be shorter.

use crate::Key;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Nonce};
use std::ops::Range;

/// The largest datagram: as much as Ethernet takes in one frame, less the headers of IP and UDP.
pub const DATAGRAM_BYTES: usize = 1472;
/// What the headers of Ethernet, IP and UDP take beside it.
pub const WIRE_BYTES: usize = 14 + 20 + 8;
/// The most pieces of a parcel.
pub const PIECES_MAX: u16 = 12 << 10;
const COUNT: usize = 8;
const HEAD: usize = 8;
const TAG: usize = 16;
/// Bytes of a parcel in one packet.
pub const PIECE_BYTES: usize = DATAGRAM_BYTES - COUNT - HEAD - TAG;
/// What else the key might be used for has other words.
const ABOUT: &[u8] = b"martlet multicast 1";

/// A piece of a parcel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Which parcel of the sender's.
    pub parcel: u32,
    /// Which piece of it.
    pub piece: u16,
    /// How many it has.
    pub pieces: u16,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Piece {
    fn decode(mut bytes: Vec<u8>) -> Option<Self> {
        let [a, b, c, d, e, f, g, h] = *bytes.first_chunk::<HEAD>()?;
        bytes.drain(..HEAD);
        let piece = Self {
            parcel: u32::from_le_bytes([a, b, c, d]),
            piece: u16::from_le_bytes([e, f]),
            pieces: u16::from_le_bytes([g, h]),
            bytes,
        };
        piece.is_possible().then_some(piece)
    }

    fn is_possible(&self) -> bool {
        let is_last = self.piece.checked_add(1) == Some(self.pieces);
        let bytes = if is_last {
            1..=PIECE_BYTES
        } else {
            PIECE_BYTES..=PIECE_BYTES
        };
        self.piece < self.pieces && self.pieces <= PIECES_MAX && bytes.contains(&self.bytes.len())
    }
}

fn nonce(count: u64) -> Nonce {
    let mut nonce = Nonce::default();
    nonce[..COUNT].copy_from_slice(&count.to_le_bytes());
    nonce
}

/// Seals what is sent to a group.
pub struct Sealer {
    cipher: ChaCha20Poly1305,
    count: u64,
    parcel: u32,
}

impl Sealer {
    /// For a new key, which nobody else seals with.
    pub fn new(key: &Key) -> Self {
        Self {
            cipher: ChaCha20Poly1305::new(key.into()),
            count: 0,
            parcel: 0,
        }
    }

    /// Datagrams sealed so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The next parcel's number, and where in it its pieces lie. None if it is too large, or nothing.
    pub fn begin(&mut self, len: usize) -> Option<(u32, Vec<Range<usize>>)> {
        if len == 0 || len > crate::PARCEL_BYTES_MAX {
            return None;
        }
        let parcel = self.parcel;
        self.parcel = parcel.checked_add(1)?;
        let begins = (0..len).step_by(PIECE_BYTES);
        Some((
            parcel,
            begins.map(|begin| begin..len.min(begin + PIECE_BYTES)).collect(),
        ))
    }

    /// The datagram of a piece.
    pub fn seal(&mut self, parcel: u32, piece: u16, pieces: u16, bytes: &[u8]) -> Vec<u8> {
        let mut open = Vec::with_capacity(HEAD + bytes.len());
        open.extend_from_slice(&parcel.to_le_bytes());
        open.extend_from_slice(&piece.to_le_bytes());
        open.extend_from_slice(&pieces.to_le_bytes());
        open.extend_from_slice(bytes);
        let payload = Payload {
            msg: &open,
            aad: ABOUT,
        };
        let sealed = self.cipher.encrypt(&nonce(self.count), payload);
        let mut datagram = self.count.to_le_bytes().to_vec();
        datagram.extend(sealed.expect("no piece is as large as the cipher's limit"));
        self.count += 1; // 2^64 are never sent
        datagram
    }
}

/// Opens what comes from a group.
pub struct Opener(ChaCha20Poly1305);

impl Opener {
    /// With a group's key.
    pub fn new(key: &Key) -> Self {
        Self(ChaCha20Poly1305::new(key.into()))
    }

    /// What a datagram says that its count is, which nobody has checked yet.
    pub fn count(datagram: &[u8]) -> Option<u64> {
        datagram
            .first_chunk::<COUNT>()
            .map(|count| u64::from_le_bytes(*count))
    }

    /// The piece in a datagram. None if somebody without the key made it, or it is none.
    pub fn open(&self, datagram: &[u8]) -> Option<Piece> {
        if datagram.len() > DATAGRAM_BYTES {
            return None;
        }
        let (_, sealed) = datagram.split_at_checked(COUNT)?;
        let payload = Payload {
            msg: sealed,
            aad: ABOUT,
        };
        let nonce = nonce(Self::count(datagram)?);
        Piece::decode(self.0.decrypt(&nonce, payload).ok()?)
    }
}

#[cfg(fuzzing)]
impl Piece {
    /// A door for the fuzzer: what is inside of a seal.
    pub fn decode_for_fuzzing(bytes: &[u8]) -> Option<Self> {
        Self::decode(bytes.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_changed_or_of_another_key_does_not_open() {
        let mut sealer = Sealer::new(&[1; 32]);
        let (parcel, pieces) = sealer.begin(PIECE_BYTES + 10).unwrap();
        assert_eq!(pieces, [0..PIECE_BYTES, PIECE_BYTES..PIECE_BYTES + 10]);
        let datagram = sealer.seal(parcel, 1, 2, &[7; 10]);
        let opener = Opener::new(&[1; 32]);
        let piece = opener.open(&datagram).unwrap();
        assert_eq!((piece.parcel, piece.piece, piece.pieces), (parcel, 1, 2));
        assert_eq!(piece.bytes, [7; 10]);
        assert_eq!(Opener::new(&[2; 32]).open(&datagram), None);
        for len in 0..datagram.len() {
            assert_eq!(opener.open(&datagram[..len]), None);
            let mut changed = datagram.clone();
            changed[len] ^= 1;
            assert_eq!(opener.open(&changed), None);
        }
        // The same is never sealed to the same.
        assert_ne!(sealer.seal(parcel, 1, 2, &[7; 10]), datagram);
    }

    #[test]
    fn a_packet_fits_into_an_ethernet_frame() {
        let mut sealer = Sealer::new(&[1; 32]);
        assert_eq!(sealer.seal(0, 0, 2, &[0; PIECE_BYTES]).len(), DATAGRAM_BYTES);
        assert!(sealer.begin(crate::PARCEL_BYTES_MAX).is_some());
        assert!(sealer.begin(crate::PARCEL_BYTES_MAX + 1).is_none() && sealer.begin(0).is_none());
    }

    #[test]
    fn pieces_that_cannot_be_are_refused_whoever_made_them() {
        let mut sealer = Sealer::new(&[1; 32]);
        let opener = Opener::new(&[1; 32]);
        let mut is_taken = |piece, pieces, len| {
            opener
                .open(&sealer.seal(9, piece, pieces, &vec![0; len]))
                .is_some()
        };
        assert!(is_taken(0, 1, 1) && is_taken(0, 2, PIECE_BYTES) && is_taken(1, 2, PIECE_BYTES));
        assert!(is_taken(PIECES_MAX - 1, PIECES_MAX, 5));
        assert!(!is_taken(0, 1, 0), "nothing");
        assert!(
            !is_taken(0, 0, 5) && !is_taken(2, 2, 5) && !is_taken(u16::MAX, u16::MAX, 5),
            "no such piece"
        );
        assert!(!is_taken(0, 2, PIECE_BYTES - 1), "short, and not the last");
        assert!(!is_taken(0, PIECES_MAX + 1, PIECE_BYTES), "too many");
    }
}
