//! A disk as it was at one instant.

use crate::disk::Shared;
use crate::stack::{Place, Stack};
use crate::{BLOCK_SIZE, DiskError};
use martlet_image::Manifest;
use std::sync::Arc;

/// How a block differs from the image below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockChange {
    /// It was written: [`FrozenLayer::read_block`] has the bytes (which may be zeros).
    Data,
    /// It was discarded or zeroed.
    Zero,
}

/// A disk as it was when it was frozen: the manifest below and every layer up to then. The bytes stay readable
/// whatever becomes of the disk.
pub struct FrozenLayer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) stack: Stack, // of immutable layers
    pub(crate) seq: u64,
}

impl FrozenLayer {
    /// The manifest that [`changes`](Self::changes) are changes of.
    pub fn base(&self) -> &Arc<Manifest> {
        &self.stack.base
    }
    /// The disk's size.
    pub fn size_bytes(&self) -> u64 {
        self.shared.size_bytes
    }
    /// Every block that was written or discarded since the base, in order.
    pub fn changes(&self) -> impl Iterator<Item = (u64, BlockChange)> + '_ {
        self.stack
            .layered_blocks(martlet_image::pages_for(self.shared.size_bytes))
            .map(|(block, place)| match place {
                Place::Zero => (block, BlockChange::Zero),
                _ => (block, BlockChange::Data),
            })
    }
    /// A block's bytes, whole. Beyond the disk's end are zeros.
    pub fn read_block(&self, block: u64, buf: &mut [u8; BLOCK_SIZE]) -> Result<(), DiskError> {
        if block >= martlet_image::pages_for(self.shared.size_bytes) {
            buf.fill(0);
            return Ok(());
        }
        self.stack
            .read(&self.shared.pager, block * BLOCK_SIZE as u64, buf)
    }
    /// Bytes of the whole view from `offset`; a range that leaves the disk is refused.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.shared.check_range(offset, buf.len() as u64)?;
        self.stack.read(&self.shared.pager, offset, buf)
    }
}
