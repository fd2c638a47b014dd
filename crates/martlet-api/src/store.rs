//! The store: space, verification, garbage.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where the space goes (`df`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreUsage {
    /// Pack files.
    pub packs: u64,
    /// Frames in them.
    pub frames: u64,
    /// Size of the packs.
    pub pack_bytes: u64,
    /// Uncompressed content of the frames.
    pub content_bytes: u64,
    /// What all snapshots would take as plain files (non-zero pages, no sharing).
    pub referenced_bytes: u64,
    /// Bytes in packs that nothing refers to; `gc` frees them.
    pub garbage_bytes: u64,
    /// The index.
    pub index_bytes: u64,
    /// Written layers of machines' disks.
    pub layer_bytes: u64,
    /// Free on the file system.
    pub free_bytes: u64,
    /// QEMUs started ahead.
    pub pool: PoolUsage,
}

/// QEMUs started ahead of the restores that will use them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolUsage {
    /// As many there are when the pool is full.
    pub size: u64,
    /// As many there are now.
    pub ready: u64,
    /// Host memory that they alone take, and that their end would give back.
    pub memory_bytes: u64,
}

/// What a garbage collection did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GcReport {
    /// Nothing was changed.
    pub dry_run: bool,
    /// Frames and blobs nothing refers to.
    pub frames_freed: u64,
    /// Bytes freed.
    pub freed_bytes: u64,
    /// Packs deleted.
    pub packs_deleted: u64,
    /// Packs rewritten to drop dead frames.
    pub packs_rewritten: u64,
    /// Bytes kept.
    pub kept_bytes: u64,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifyReport {
    /// Frames and blobs read.
    pub checked: u64,
    /// Their stored bytes.
    pub checked_bytes: u64,
    /// Those that are damaged or missing.
    pub damaged: Vec<DamagedFrame>,
    /// Repaired from another copy.
    pub repaired: u64,
    /// Those that are still to come from elsewhere.
    #[serde(default)]
    pub away: u64,
}

/// A damaged frame or blob, and whom it hurts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DamagedFrame {
    /// Its id.
    pub id: String,
    /// Pack it should be in.
    pub pack: String,
    /// What is wrong with it.
    pub reason: String,
    /// Snapshots that need it, by reference or id.
    pub hurts: Vec<String>,
    /// Has it been repaired?
    pub repaired: bool,
}

/// Free what nothing refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GcRequest {
    /// Only say what would be freed.
    #[serde(default)]
    pub dry_run: bool,
}

/// Read and check everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifyRequest {
    /// State directories of other stores to take whole copies of damaged frames from.
    #[serde(default)]
    pub repair_from: Vec<String>,
}
