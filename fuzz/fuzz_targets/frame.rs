//! Frames: nothing is handed out that does not match its id.
#![no_main]
use libfuzzer_sys::fuzz_target;
use martlet_image::{Codec, FrameId, decode_frame, decompress};

fuzz_target!(|bytes: &[u8]| {
    let Some((pages, bytes)) = bytes.split_first() else { return };
    let pages = usize::from(pages % 20);
    assert!(decode_frame(&FrameId([0; 32]), Codec::Zstd, bytes, pages).is_err());
    if let Ok(content) = decompress(Codec::Zstd, bytes, pages * 4096) {
        assert_eq!(content.len(), pages * 4096);
    }
});
