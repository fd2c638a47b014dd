//! Checkpoint, suspend, resume, fork and rollback as explicit state machines.
//!
//! ```text
//!   run, resume, fork, rollback ──► launch ──► Live ◄── checkpoint ──► store
//!        │                            │          ▲
//!        ▼                            ▼          └── watch: QEMU's end, traces
//!    machine records (state)     mapped images + disks as files of the mount
//! ```
//!
//! [`Engine`] owns everything; its methods block and may be called from many threads. One command at a time works on a
//! machine: a second one is refused, naming the first. `phase` has the states of a machine, `checkpoint` and `launch`
//! those of the two ways through a pause.

mod answer;
mod arrivals;
mod away;
mod bases;
mod belongs;
mod bind;
mod boot;
mod carry;
mod checkpoint;
mod console;
mod could;
mod crash;
mod dirs;
mod end;
mod engine;
mod explain;
mod facts;
mod family_network;
mod follow;
mod foresee;
mod fork;
mod give_up;
mod guest;
mod handed;
mod heart;
mod host_memory;
mod host_policy;
mod hosts;
mod identity;
mod keeping;
mod launch;
mod leases;
mod ledger;
mod leftovers;
mod line;
mod lines;
mod live;
mod machine;
mod mapped;
mod moving;
mod multicast;
mod nearest;
mod outbound;
mod phase;
mod place;
mod pool;
mod probe;
mod problem;
mod publish;
mod realms;
mod recovery;
mod remotes;
mod run;
mod run_dir;
mod seen;
mod snapshots;
mod stalls;
mod start_pages;
mod starter;
mod state;
mod storing;
mod tokens;
mod top;
mod transfer;
mod watch;

pub use arrivals::{Load, Offer, Settle, Settled};
pub use engine::{Engine, Options};
pub use facts::Facts;
pub use fork::{Ask, Give, Started, Wanted};
pub use handed::Handed;
pub use hosts::{PeerService, Roll};
pub use machine::HardwareRecord;
pub use multicast::{MulticastOptions, OfferedGroup, SentFrames, WantedFrames};
pub use problem::Tell;
pub use run_dir::LOG_CARRIED_BYTES;
