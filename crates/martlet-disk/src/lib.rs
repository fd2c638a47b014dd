//! Copy-on-write disks: layers of blocks over an immutable image, frozen in an instant.
//!
//! ```text
//!   reads ──► top layer      writable, one           state of a block in a layer:
//!               │ absent                               absent   look in the layer below
//!               ▼                                      data     in the layer's data file, at the block's offset
//!             frozen layers  0 or more, newest first   zero     discarded or zeroed
//!               │ absent
//!               ▼
//!             manifest       immutable, by way of the Pager
//! ```
//!
//! A block is a page of 4 KiB. `freeze` puts an empty layer on top: nothing is copied. When the frozen layers have become
//! part of a stored image, `rebase` puts that image's manifest below and deletes them.
//!
//! **Surviving.** A layer is two files, `layer-N.data` (sparse, blocks at their own offsets) and `layer-N.map` (a header, then
//! two bits a block, twice). The first copy is mapped and changed in place: the page cache keeps it when
//! the process is killed, so a restarted daemon finds every write that was answered. The second is what a flush
//! made durable: the map is copied, the data synced, and only then the copy written. After the *host* went down the
//! second is believed (the header names the boot), so no block is ever shown whose data did not reach the disk.

mod disk;
mod error;
mod frozen;
mod layer;
mod stack;
mod state_map;

pub use disk::{CowDisk, DiskUsage};
pub use error::DiskError;
pub use frozen::{BlockChange, FrozenLayer};

/// Bytes in a block: a page, so that disks and memory share frames.
pub const BLOCK_SIZE: usize = martlet_image::PAGE_SIZE;

/// Largest disk: 16 TiB.
pub const DISK_BYTES_MAX: u64 = 1 << 44;
