//! A shelf of one-page frames in memory.
#![allow(dead_code)] // each test binary uses its part

use bytes::Bytes;
use martlet_disk::{BLOCK_SIZE, BlockChange, FrozenLayer};
use martlet_image::{FrameId, Manifest, PageLocation, pages_for};
use martlet_pager::{FrameSource, Pager, SourceError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

#[derive(Default)]
pub struct Shelf(Mutex<HashMap<FrameId, Bytes>>);

impl FrameSource for Shelf {
    fn frame(&self, id: &FrameId) -> Result<Bytes, SourceError> {
        self.0
            .lock()
            .unwrap()
            .get(id)
            .cloned()
            .ok_or(SourceError::Missing { frame: *id })
    }
}

impl Shelf {
    pub fn pager(self: &Arc<Self>) -> Arc<Pager> {
        Pager::new(self.clone(), 1 << 20)
    }
    pub fn put(&self, page: &[u8]) -> PageLocation {
        let frame = FrameId::of(page);
        self.0.lock().unwrap().insert(frame, page.to_vec().into());
        PageLocation::Frame { frame, slot: 0 }
    }
    /// An image of these bytes.
    pub fn image(&self, content: &[u8]) -> Arc<Manifest> {
        let mut manifest = Manifest::zero(pages_for(content.len() as u64));
        for (page, bytes) in content.chunks(BLOCK_SIZE).enumerate() {
            let mut whole = bytes.to_vec();
            whole.resize(BLOCK_SIZE, 0);
            if whole.iter().any(|&byte| byte != 0) {
                manifest.set(page as u64, self.put(&whole));
            }
        }
        Arc::new(manifest)
    }
    /// What a checkpoint does: the base with the frozen changes.
    pub fn checkpoint(&self, frozen: &FrozenLayer) -> Arc<Manifest> {
        let mut manifest = frozen.base().resized(pages_for(frozen.size_bytes()));
        let mut buf = [0; BLOCK_SIZE];
        for (block, change) in frozen.changes() {
            let location = match change {
                BlockChange::Zero => PageLocation::Zero,
                BlockChange::Data => {
                    frozen.read_block(block, &mut buf).unwrap();
                    self.put(&buf)
                }
            };
            manifest.set(block, location);
        }
        Arc::new(manifest)
    }
}
