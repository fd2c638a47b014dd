//! Parcels put together of pieces that come in any order, or not at all.

use crate::{PIECE_BYTES, Piece};
use std::collections::BTreeMap;

/// Parcels that are put together at the same time; of more, the oldest is given up.
pub const OPEN_MAX: usize = 64;
/// Nor do they take more memory than this, together.
pub const OPEN_BYTES_MAX: usize = 2 * crate::PARCEL_BYTES_MAX;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Assembler {
    open: BTreeMap<u32, Open>,
    open_bytes: usize,
}

/// A parcel of which not all has come.
#[derive(Debug)]
struct Open {
    bytes: Vec<u8>,
    has_come: Vec<bool>,
    missing: usize,
}

impl Assembler {
    /// A piece, which its opener found possible; the parcel, if it was the last that lacked.
    pub fn take(&mut self, piece: &Piece) -> Option<Vec<u8>> {
        let pieces = usize::from(piece.pieces);
        if piece.piece >= piece.pieces || self.is_too_old(piece.parcel, pieces * PIECE_BYTES) {
            return None;
        }
        let open_bytes = &mut self.open_bytes;
        let open = self.open.entry(piece.parcel).or_insert_with(|| {
            *open_bytes += pieces * PIECE_BYTES;
            Open {
                bytes: vec![0; pieces * PIECE_BYTES],
                has_come: vec![false; pieces],
                missing: pieces,
            }
        });
        let (at, len) = (usize::from(piece.piece), piece.bytes.len());
        if open.has_come.len() != pieces || open.has_come[at] {
            return None;
        }
        open.bytes[at * PIECE_BYTES..at * PIECE_BYTES + len].copy_from_slice(&piece.bytes);
        open.has_come[at] = true;
        open.missing -= 1;
        if at + 1 == pieces {
            open.bytes.truncate(at * PIECE_BYTES + len);
        }
        match open.missing {
            0 => self.remove(piece.parcel),
            _ => None,
        }
    }

    /// How many parcels are put together.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// The memory that they take, or will.
    pub fn open_bytes(&self) -> usize {
        self.open_bytes
    }

    fn remove(&mut self, parcel: u32) -> Option<Vec<u8>> {
        let open = self.open.remove(&parcel)?;
        self.open_bytes -= open.has_come.len() * PIECE_BYTES;
        Some(open.bytes)
    }

    /// Makes room for one of so many bytes, if this is not what would have to go.
    fn is_too_old(&mut self, parcel: u32, bytes: usize) -> bool {
        if self.open.contains_key(&parcel) {
            return false;
        }
        while self.open.len() >= OPEN_MAX || !self.open.is_empty() && self.open_bytes + bytes > OPEN_BYTES_MAX
        {
            match self.open.first_key_value() {
                Some((oldest, _)) if *oldest < parcel => drop(self.remove(*oldest)),
                _ => return true,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Opener, PIECES_MAX, Sealer, Window};
    use proptest::prelude::*;

    const KEY: [u8; 32] = [7; 32];

    fn content(number: usize, len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 + number * 17) as u8).collect()
    }

    fn datagrams(sealer: &mut Sealer, bytes: &[u8]) -> Vec<Vec<u8>> {
        let (parcel, ranges) = sealer.begin(bytes.len()).unwrap();
        let pieces = ranges.len() as u16;
        let ranges = ranges.into_iter().enumerate();
        ranges
            .map(|(at, range)| sealer.seal(parcel, at as u16, pieces, &bytes[range]))
            .collect()
    }

    #[derive(Debug, Clone, Copy)]
    enum Fate {
        Comes,
        Lost,
        Twice,
        /// So many others come before it.
        Late(usize),
        /// A bit of it is another.
        Forged(usize),
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            12 => Just(Fate::Comes),
            1 => Just(Fate::Lost),
            1 => Just(Fate::Twice),
            2 => (1..40_usize).prop_map(Fate::Late),
            1 => (0..10_000_usize).prop_map(Fate::Forged),
        ]
    }

    proptest! {
        /// Whatever happens on the way: a parcel is put together if each of its packets came whole at some time, it is what was
        /// sent, and comes once.
        #[test]
        fn parcels_are_what_was_sent_and_those_of_which_all_came(
            lens in prop::collection::vec(1..5 * PIECE_BYTES, 1..20),
            fates in prop::collection::vec(fate(), 100),
        ) {
            let mut sealer = Sealer::new(&KEY);
            let parcels: Vec<Vec<u8>> = lens.iter().enumerate().map(|(number, len)| content(number, *len)).collect();
            let mut is_whole = vec![true; parcels.len()];
            // What was sent before the first that is heard is nobody's loss.
            let mut way: Vec<(usize, Vec<u8>)> = vec![(0, datagrams(&mut sealer, b"first").remove(0))];
            let mut at = 1;
            for (number, parcel) in parcels.iter().enumerate() {
                for mut datagram in datagrams(&mut sealer, parcel) {
                    match fates[at % fates.len()] {
                        Fate::Comes => way.push((at, datagram)),
                        Fate::Lost => is_whole[number] = false,
                        Fate::Twice => way.extend([(at, datagram.clone()), (at + 3, datagram)]),
                        Fate::Late(by) => way.push((at + by, datagram)),
                        Fate::Forged(bit) => {
                            let bit = bit % (8 * datagram.len());
                            datagram[bit / 8] ^= 1 << (bit % 8);
                            way.push((at, datagram));
                            is_whole[number] = false;
                        }
                    }
                    at += 1;
                }
            }
            way.sort_by_key(|(at, _)| *at);
            let (opener, mut window, mut assembler) = (Opener::new(&KEY), Window::default(), Assembler::default());
            let mut came = Vec::new();
            for (_, datagram) in &way {
                let is_new = Opener::count(datagram).is_some_and(|count| window.is_new(count));
                let Some(piece) = opener.open(datagram).filter(|_| is_new) else { continue };
                if window.note(Opener::count(datagram).unwrap()) {
                    came.extend(assembler.take(&piece));
                }
            }
            prop_assert_eq!(came.remove(0), b"first");
            for (number, parcel) in parcels.iter().enumerate() {
                let times = came.iter().filter(|came| *came == parcel).count();
                prop_assert_eq!(times, usize::from(is_whole[number]), "parcel {}", number);
            }
            prop_assert!(came.iter().all(|came| parcels.contains(came)), "nothing that was not sent");
        }
    }

    #[test]
    fn no_more_is_kept_than_so_many_parcels() {
        let mut assembler = Assembler::default();
        let piece = |parcel: u32| Piece {
            parcel,
            piece: 0,
            pieces: [1, 2, PIECES_MAX / 40, PIECES_MAX][parcel as usize / 100 % 4].max(2),
            bytes: vec![0; PIECE_BYTES],
        };
        for parcel in 100..10_000 {
            assert_eq!(assembler.take(&piece(parcel)), None);
            assert!(assembler.open() <= OPEN_MAX && assembler.open_bytes() <= OPEN_BYTES_MAX);
        }
        assert_eq!(assembler.take(&piece(50)), None);
        assert!(!assembler.open.contains_key(&50), "it is older than all others");
    }

    #[test]
    fn pieces_that_do_not_agree_harm_nobody() {
        let mut assembler = Assembler::default();
        let piece = |piece, pieces, byte| Piece {
            parcel: 1,
            piece,
            pieces,
            bytes: vec![byte; if piece + 1 == pieces { 5 } else { PIECE_BYTES }],
        };
        assert_eq!(assembler.take(&piece(0, 2, 1)), None);
        assert_eq!(assembler.take(&piece(0, 1, 9)), None, "of another length");
        assert_eq!(assembler.take(&piece(0, 2, 9)), None, "it is there");
        let whole = [vec![1; PIECE_BYTES], vec![2; 5]].concat();
        assert_eq!(assembler.take(&piece(1, 2, 2)), Some(whole));
    }
}
