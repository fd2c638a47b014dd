//! Frames: nothing is handed out that does not match its id.
#![no_main]
use libfuzzer_sys::{arbitrary, fuzz_target};
use martlet_image::{Codec, FrameId, decode_frame, decompress, encode_frame};

/// What is stored. The fuzzer does not see into the compressor, so pages are compressed for it.
#[derive(Debug, arbitrary::Arbitrary)]
enum Stored<'a> {
    Bytes {
        bytes: &'a [u8],
    },
    /// Pages that repeat a pattern, with bytes of their frame changed.
    Frame {
        pattern: &'a [u8],
        damage: Vec<(u16, u8)>,
        cut: Option<u16>,
    },
}

fuzz_target!(|input: (u8, Stored<'_>)| {
    let (pages, stored) = input;
    let pages = usize::from(pages % 20);
    match stored {
        Stored::Bytes { bytes } => {
            assert!(decode_frame(&FrameId([0; 32]), Codec::Zstd, bytes, pages).is_err());
            if let Ok(content) = decompress(Codec::Zstd, bytes, pages * 4096) {
                assert_eq!(content.len(), pages * 4096);
            }
        }
        Stored::Frame { pattern, damage, cut } => {
            let pages = 1 + pages % 4; // hashing more would only be slower
            let content: Vec<u8> = pattern
                .iter()
                .chain([&0])
                .copied()
                .cycle()
                .take(pages * 4096)
                .collect();
            let mut frame = encode_frame(&content);
            assert!(decode_frame(&frame.id, frame.codec, &frame.bytes, pages).as_ref() == Ok(&content));
            for (at, flip) in damage {
                let at = usize::from(at) % frame.bytes.len();
                frame.bytes[at] ^= flip;
            }
            frame.bytes.truncate(cut.map_or(usize::MAX, usize::from));
            for codec in [Codec::Zstd, Codec::Raw] {
                if let Ok(decoded) = decode_frame(&frame.id, codec, &frame.bytes, pages) {
                    assert!(decoded == content, "other pages under the same id");
                }
                if let Ok(decoded) = decompress(codec, &frame.bytes, pages * 4096) {
                    assert_eq!(decoded.len(), pages * 4096);
                }
            }
        }
    }
});
