//! Images as files: faults in, pages and notify-stores out.
//!
//! ```text
//!   qemu: mmap of mem/NAME, pread/pwrite of disk/NAME
//!     │ kernel: page cache of mem (shared by all VMs of an image), none of disk
//!     ▼
//!   /dev/fuse ──► worker threads ──► MemoryImage::read │ CowDisk::{read_at, write_at, discard, flush}
//!       ▲  ▲          │ answer           │ rest of the frame
//!       │  └──────────┘                  ▼
//!       └── notify-store ◄────────── push thread, prefetch threads
//! ```
//!
//! **The protocol is spoken here**, in about 400 lines, not by a library: what is needed is a score of opcodes, and a
//! connection that outlives its server. `fuser` wants to see an INIT, which an adopted connection never sends
//! again; `fuse-backend-rs` can do without, but brings an executor and its own notions of buffers and file systems.
//!
//! **One descriptor, several readers.** `FUSE_DEV_IOC_CLONE` is deliberately not used: a request read through a clone
//! belongs to that clone and is *aborted* when the clone is closed, so the death of a server would turn into
//! I/O errors in its guests. Requests read through the descriptor that the keeper holds too stay in the kernel, and
//! the next server gets them again with `FUSE_NOTIFY_RESEND`.
//!
//! **File handles carry no state**: a handle is the opener's pid, and whether its window of readahead is large. Node ids are the registry's; a restarted daemon registers
//! the same images under the same numbers *before* it adopts the connection.
//!
//! **Never store or invalidate inside a handler**: the kernel takes page locks for it which the request being
//! handled holds. Pushes go through the pager's queue thread and then, as all notices do, through a thread that holds
//! nothing which a successor could need; [`Server::invalidate`] and the removal of names are for callers outside.

mod attr;
mod device;
#[cfg(fuzzing)]
pub mod fuzzing;
mod mount;
mod notifier;
mod prefetcher;
mod proto;
mod readahead;
mod reads;
mod registry;
mod request;
mod server;
mod threads;

pub use mount::{MountOptions, mount, mounts_at, unmount};
pub use prefetcher::Prefetcher;
pub use readahead::{READAHEAD_KIB, Readahead, set_readahead};
pub use reads::{Answered, Reads};
pub use registry::{Content, Placement, Registry, RegistryError};
pub use server::{Negotiated, Server, ServerError};
