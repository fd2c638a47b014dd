//! Indexes of starters: what decodes is bounded, and is written and read again unchanged.
#![no_main]
use libfuzzer_sys::fuzz_target;
use martlet_image::{STARTER_CHUNK_PAGES, STARTER_CHUNKS_MAX, StarterIndex};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(index) = StarterIndex::decode(bytes) {
        assert!(index.chunks().len() <= STARTER_CHUNKS_MAX);
        assert!(index.chunks().iter().all(|pages| pages.len() <= STARTER_CHUNK_PAGES && pages.is_sorted()));
        assert_eq!(StarterIndex::new(index.chunks().to_vec()), index);
        assert_eq!(StarterIndex::decode(&index.encode()), Ok(index));
    }
});
