//! Images whose bytes are known, and a store over a faulty disk that holds them.
#![allow(dead_code)] // each test uses a part of it

use martlet_image::{ManifestId, PAGE_SIZE, PageLocation};
use martlet_store::faulty::FaultyFiles;
use martlet_store::{Options, Store, StoreError};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub const IMAGE_PAGES: u64 = 40;
pub const IMAGE_BYTES: u64 = IMAGE_PAGES * PAGE_SIZE as u64;

/// What each page holds; one that is not named holds zeros.
pub type Image = BTreeMap<u64, u8>;

pub fn page(content: u8) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    if content > 0 {
        // Some compress and some do not.
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[content]);
        let len = if content.is_multiple_of(2) { PAGE_SIZE } else { 64 };
        hasher.finalize_xof().fill(&mut page[..len]);
    }
    page
}

pub fn dir() -> &'static Path {
    Path::new("/store")
}

pub fn open(files: &FaultyFiles) -> Result<Store, StoreError> {
    Store::open_with(
        dir(),
        Arc::new(files.clone()),
        Options {
            pack_bytes_max: 40_000,
        },
    )
}

/// Every byte of an image in the store is as it must be.
pub fn assert_holds(store: &Store, manifest: &ManifestId, image: &Image) {
    let manifest = store.manifest(manifest).unwrap();
    for at in 0..IMAGE_PAGES {
        let expected = page(image.get(&at).copied().unwrap_or(0));
        match manifest.locate(at) {
            PageLocation::Zero => assert!(expected.iter().all(|b| *b == 0), "page {at}"),
            PageLocation::Frame { frame, slot } => {
                let frame = store.frame(&frame).unwrap();
                let start = usize::from(slot) * PAGE_SIZE;
                assert!(frame[start..start + PAGE_SIZE] == expected, "page {at}");
            }
        }
    }
}
