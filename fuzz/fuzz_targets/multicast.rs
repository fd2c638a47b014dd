//! Packets of a group, from somebody with its key: what is put together of them is bounded, and harms nobody.
#![no_main]
use libfuzzer_sys::fuzz_target;
use martlet_multicast::{Assembler, OPEN_BYTES_MAX, OPEN_MAX, Opener, PARCEL_BYTES_MAX, PIECE_BYTES, Piece, Window};

fuzz_target!(|packets: Vec<(u64, Vec<u8>)>| {
    let (opener, mut window, mut assembler) = (Opener::new(&[0; 32]), Window::default(), Assembler::default());
    for (count, bytes) in packets {
        let _ = opener.open(&bytes);
        let is_new = window.is_new(count);
        assert_eq!(window.note(count), is_new);
        assert!(!window.is_new(count));
        let Some(piece) = Piece::decode_for_fuzzing(&bytes) else { continue };
        assert!(piece.piece < piece.pieces && piece.bytes.len() <= PIECE_BYTES);
        if let Some(parcel) = assembler.take(&piece) {
            assert!(parcel.len() <= PARCEL_BYTES_MAX);
        }
        assert!(assembler.open() <= OPEN_MAX && assembler.open_bytes() <= OPEN_BYTES_MAX);
    }
});
