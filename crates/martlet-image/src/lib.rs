//! Pages, frames, manifests and snapshot records. Pure: bytes in, bytes out.
//!
//! An *image* is a sparse array of 4 KiB pages (guest memory or a disk). A [`Manifest`] says for every page where
//! its content is: nowhere (all zero) or in slot `n` of a *frame*, a few pages compressed together and named by
//! the BLAKE3 hash of their uncompressed bytes.

mod frame;
mod id;
mod manifest;
mod manifest_codec;
mod page;
mod page_set;
mod snapshot;
mod starter;
mod trace;
mod wire;

pub use frame::{Codec, EncodedFrame, compress, compress_well, decode_frame, decompress, encode_frame};
pub use id::{BlobId, FrameId, IdError, ManifestId, SnapshotId};
pub use manifest::{MANIFEST_PAGES_MAX, Manifest, ManifestDiff, PageLocation};
pub use manifest_codec::{MANIFEST_DEPTH_MAX, ManifestHeader, ManifestParent};
pub use page::{FRAME_PAGES_MAX, PAGE_SIZE, ZERO_PAGE, is_zero, pages_for};
pub use page_set::PageSet;
pub use snapshot::{
    BootRecord, DiskRecord, Hardware, MemoryRecord, SNAPSHOT_BYTES_MAX, SnapshotRecord, StarterRecord,
};
pub use starter::{STARTER_CHUNK_PAGES, STARTER_CHUNKS_MAX, StarterIndex};
pub use trace::{TRACE_PAGES_MAX, Trace};
pub use wire::FormatError;
