//! Pages, frames, manifests and snapshot records. Pure: bytes in, bytes out.
//!
//! An *image* is a sparse array of 4 KiB pages (guest memory or a disk). A [`Manifest`] says for every page where
//! its content is: nowhere (all zero) or in slot `n` of a *frame*, a few pages compressed together and named by
//! the BLAKE3 hash of their uncompressed bytes.

mod id;
mod manifest;
mod page;

pub use id::{BlobId, FrameId, IdError, ManifestId, SnapshotId};
pub use manifest::{Manifest, PageLocation};
pub use page::{FRAME_PAGES_MAX, PAGE_SIZE, ZERO_PAGE, is_zero, pages_for};
