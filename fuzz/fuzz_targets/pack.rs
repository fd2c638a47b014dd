//! Packs and roots: a scan stays inside the bytes, and its records do not overlap.
#![no_main]
use libfuzzer_sys::fuzz_target;
use martlet_store::{Root, scan};

fuzz_target!(|bytes: &[u8]| {
    let mut end = 0;
    for found in scan(bytes, 0) {
        assert!(found.offset >= end);
        end = found.offset + 56 + u64::from(found.header.stored_len);
        assert!(end <= bytes.len() as u64);
    }
    if let Some(root) = Root::decode(bytes) {
        assert_eq!(Root::decode(&root.encode()), Some(root));
    }
});
