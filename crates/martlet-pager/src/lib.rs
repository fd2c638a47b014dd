//! Which page next: faults, prefetch, traces. Knows no kernel interface.
//!
//! ```text
//!  a fault's thread                      the push queue's thread            a prefetch's thread
//!  MemoryImage::read ──► Pager::read     PagePush::push  ◄── rest of        MemoryImage::prefetch
//!      │                  │ cache hit          ▲             the frame           │ trace, in large pieces
//!      │ records trace    │ or ONE fetch       └── bounded queue ◄──┐            │ waits while faults are served
//!      └──────────────────┴─► FrameSource                           └── read ────┴─► PagePush::push
//! ```
//!
//! * [`Pager`] decodes frames into a bounded cache. A frame is fetched once however many threads wait for it, and a
//!   failure reaches all of them and is forgotten, so that the next read tries again.
//! * [`MemoryImage`] is a guest's memory that any number of VMs map. It records the order in which pages are
//!   first touched (the trace), remembers for each VM the pages its guest reported as free, and hands pages that
//!   were decoded anyway to a [`PushQueue`].
//! * Of a [`Starter`] pages are read, and pushed as they come, before any frame of theirs is here.
//! * A [`PagePush`] may wait for a lock which a fault in flight holds (a kernel's page lock does), so it is never called
//!   on the thread that answers a fault.

mod arrived;
mod cache;
mod memory;
mod pager;
mod prefetch;
mod push;
mod sequence;
mod source;
mod starter;
#[cfg(test)]
mod testing;

pub use arrived::FramePages;
pub use memory::{Learning, MemoryImage, MemoryStats, Neighbours, VmKey};
pub use pager::{Pager, PagerStats};
pub use prefetch::{Cancel, PrefetchReport};
pub use push::{PagePush, PushQueue};
pub use source::{FrameSource, SourceError};
pub use starter::Starter;
