//! Content-addressed frames, blobs, manifests and snapshots on local disk.
//!
//! ```text
//! DIR/packs/NNNNNN.pack   append-only records; all there is to know, and the truth
//! DIR/index.redb          where each object is; made again from the packs when it is missing or damaged
//! DIR/lock                one process at a time
//! ```
//!
//! Objects are named by the BLAKE3 hash of their content and verified on every read. [`Store`] reads and names,
//! [`Batch`] writes. `docs/format.md` describes the bytes.

mod backend;
mod batch;
mod cache;
mod elsewhere;
mod error;
mod exchange;
pub mod faulty;
mod files;
mod gc;
mod index;
mod ingest;
mod inspect;
mod name;
mod pack;
mod record;
mod recover;
mod root;
mod store;
mod verify;
mod walk;

pub use backend::Backend;
pub use batch::{Batch, Committed, IngestStats};
pub use elsewhere::Elsewhere;
pub use error::{Result, StoreError};
pub use exchange::{Stored, Verified};
pub use files::{File, Files, RealFiles};
pub use gc::GcReport;
pub use index::Location;
pub use inspect::{SnapshotDiff, Usage};
pub use name::{LATEST, NAME_BYTES_MAX, RefName};
pub use record::{CONTENT_BYTES_MAX, Key, Kind, RECORD_HEADER, RecordHeader, Scanned, scan};
pub use root::Root;
pub use store::{Options, Pin, Store};
pub use verify::{DamagedObject, VerifyReport};
pub use walk::Part;
