//! The agent channel as the host reads it: however the bytes are cut, the decoder finds the frames that a reader of the
//! whole finds, and what it finds is what was sent.
#![no_main]
use libfuzzer_sys::{arbitrary, fuzz_target};
use martlet_agent_api::frame::{HEADER_BYTES, MAGIC, VERSION};
use martlet_agent_api::{Decoder, Frame, Kind, MAX_PAYLOAD_BYTES};

/// The fuzzer cannot guess checksums, so whole frames are made for it.
#[derive(Debug, arbitrary::Arbitrary)]
enum Piece<'a> {
    Bytes(&'a [u8]),
    Frame {
        kind: u8,
        flags: u8,
        stream: u32,
        epoch: u64,
        payload: &'a [u8],
    },
    /// Its sender was cut off, or its kind is one of a later version.
    Damaged {
        at: u8,
        flip: u8,
        keep: u16,
        payload: &'a [u8],
    },
}

fn whole(kind: u8, flags: u8, stream: u32, epoch: u64, payload: &[u8]) -> Vec<u8> {
    let kind = Kind::from_byte(kind % 8 + 1).expect("kinds are 1 to 8");
    Frame {
        kind,
        flags,
        stream,
        epoch,
        payload: payload.to_vec(),
    }
    .to_bytes()
}

fn bytes_of(piece: &Piece<'_>) -> Vec<u8> {
    match *piece {
        Piece::Bytes(bytes) => bytes.to_vec(),
        Piece::Frame {
            kind,
            flags,
            stream,
            epoch,
            payload,
        } => whole(kind, flags, stream, epoch, payload),
        Piece::Damaged {
            at,
            flip,
            keep,
            payload,
        } => {
            let mut bytes = whole(at, flip, 7, 7, payload);
            bytes[usize::from(at) % HEADER_BYTES] ^= flip;
            if at & 0x80 != 0 {
                let crc = crc32fast::hash(&bytes[..28]);
                bytes[28..32].copy_from_slice(&crc.to_le_bytes());
            }
            bytes.truncate(usize::from(keep));
            bytes
        }
    }
}

/// What the header comment of the frames says, and nothing cleverer.
fn expected(bytes: &[u8]) -> Vec<Frame> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let (mut frames, mut at) = (Vec::new(), 0);
    while at + HEADER_BYTES <= bytes.len() {
        let length = word(at + 20) as usize;
        let good = bytes[at..at + 4] == MAGIC
            && bytes[at + 4..at + 6] == VERSION.to_le_bytes()
            && length <= MAX_PAYLOAD_BYTES
            && crc32fast::hash(&bytes[at..at + 28]) == word(at + 28);
        if !good {
            at += 1;
            continue;
        }
        let Some(payload) = bytes.get(at + HEADER_BYTES..at + HEADER_BYTES + length) else {
            break; // the rest may still come
        };
        if crc32fast::hash(payload) != word(at + 24) {
            at += 1;
            continue;
        }
        frames.extend(Kind::from_byte(bytes[at + 6]).map(|kind| Frame {
            kind,
            flags: bytes[at + 7],
            stream: word(at + 8),
            epoch: u64::from(word(at + 12)) | u64::from(word(at + 16)) << 32,
            payload: payload.to_vec(),
        }));
        at += HEADER_BYTES + length;
    }
    frames
}

fuzz_target!(|input: (Vec<Piece<'_>>, Vec<u16>)| {
    let (pieces, cuts) = input;
    let bytes: Vec<u8> = pieces.iter().flat_map(bytes_of).collect();
    let (mut decoder, mut found, mut rest) = (Decoder::new(), Vec::new(), &bytes[..]);
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let cut = cuts
            .next()
            .map_or(rest.len(), |cut| usize::from(*cut).clamp(1, rest.len()));
        let (now, later) = rest.split_at(cut);
        decoder.push(now);
        found.extend(std::iter::from_fn(|| decoder.next_frame()));
        rest = later;
    }
    assert_eq!(found, expected(&bytes));
    assert!(decoder.damaged() <= bytes.len() as u64 / HEADER_BYTES as u64);
});
