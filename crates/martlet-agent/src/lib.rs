//! The guest agent: `/init` of the boot initramfs, then the host's hands inside the guest.
//!
//! ```text
//! kernel ──► init: modules, root disk, cgroup2 ──fork──► agent ◄── virtio-serial ──► host
//!                 │                                        │
//!                 └─ waits at the gate, then the image's   ├─ hold: freezes every cgroup but its own
//!                    init (or reaps orphans)               ├─ identity: clock, entropy, names, addresses, hooks
//!                                                          └─ exec, files, file systems, metrics
//! ```
//!
//! Threads and blocking calls: one thread reads the channel and never waits for anything but the host; whatever may take
//! long has a thread of its own, which is kept for the next. Nothing here keeps a secret or trusts user code, and all it knows fits in memory, so
//! it goes on in a clone exactly where its parent's stood, under a new epoch.

pub mod calls;
pub mod copy;
pub mod exec;
pub mod fault;
pub mod filesystems;
pub mod hold;
pub mod hooks;
pub mod identity;
pub mod init;
pub mod log;
pub mod metrics;
pub mod network;
pub mod outgoing;
pub mod port;
pub mod process;
pub mod pty;
pub mod rewrite;
pub mod serve;
pub mod stream;
pub mod syscalls;
pub mod tools;
pub mod users;
pub mod workers;

pub use serve::{Agent, AgentOptions};
