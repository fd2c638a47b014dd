//! What programs in the guest ask: the VM fork of SnowFlock (Lagar-Cavilla et al., EuroSys 2009, section 3.1), as calls.
//!
//! A program connects to [`SOCKET`] and writes one call per line, as JSON; each is answered by one line, a [`GuestReply`]. The
//! agent passes calls on to the host and answers back. A call that waits while the VM is forked is answered in the parent
//! and in each clone: that is how `clone` returns in all of them.
//!
//! ```text
//! {"call":"ticket","count":8}            {"ok":{"answer":"ticket","ticket":"t3-91c2","granted":8}}
//! {"call":"clone","ticket":"t3-91c2"}    {"ok":{"answer":"cloned","id":0,"processes":1}}       in the parent
//!                                        {"ok":{"answer":"cloned","id":5,"processes":1}}       in a clone
//! {"call":"exit","id":5,"status":0}      (none: the clone is gone)
//! {"call":"next_exit","ticket":"t3-91c2","seen":0}
//!                                        {"ok":{"answer":"exited","id":5,"status":0,"data":""}}
//! ```

use serde::{Deserialize, Serialize};

/// Name of the unix stream socket, in Linux's abstract namespace: there from the first instant, whatever is mounted where.
pub const SOCKET: &str = "martlet.guest";

/// Longest line in each direction, with its end.
pub const LINE_BYTES: usize = 60 << 10;

/// Most bytes that a child can hand to its parent when it exits.
pub const DATA_BYTES: usize = 32 << 10;

/// A call of a program in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "call")]
pub enum GuestCall {
    /// Asks for room for `count` processes in clones of this VM; fewer may be granted.
    Ticket {
        /// How many, at least 1.
        count: u32,
        /// As many processes in each clone as it has processors: fewer VMs.
        #[serde(default)]
        hierarchical: bool,
        /// Each clone is ended so long after its start.
        #[serde(default)]
        timeout_s: Option<u64>,
    },
    /// Forks the VM. A ticket can be used once.
    Clone {
        /// Which ticket.
        ticket: String,
        /// The parent waits until its clones run, or have failed to.
        #[serde(default = "yes")]
        wait: bool,
    },
    /// The end of a process of a clone; with its last process the clone is gone.
    Exit {
        /// Of which process.
        id: u32,
        /// As that of a process: 0 is success.
        status: i32,
        /// For the parent, at most [`DATA_BYTES`] of bytes in base64.
        #[serde(default)]
        data: String,
    },
    /// Waits for the end of one more of a ticket's processes, in the order in which they end.
    NextExit {
        /// Which ticket.
        ticket: String,
        /// How many are known already.
        seen: u32,
    },
    /// Ends all clones of a ticket, and the ticket.
    Kill {
        /// Which ticket.
        ticket: String,
    },
    /// Saves the VM's state for [`GuestCall::CreateClones`]. Returns there as well: in clones as [`GuestAnswer::Cloned`].
    Checkpoint,
    /// Starts clones of the state that a checkpoint saved.
    CreateClones {
        /// The checkpoint.
        checkpoint: String,
        /// Which ticket.
        ticket: String,
        /// The parent waits until they run, or have failed to.
        #[serde(default = "yes")]
        wait: bool,
    },
    /// Who is this VM?
    Me,
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

fn yes() -> bool {
    true
}

/// Answer to a [`GuestCall`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestReply {
    /// It was done.
    Ok(GuestAnswer),
    /// It was not.
    Error(GuestError),
}

/// What is answered to a call that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum GuestAnswer {
    /// To [`GuestCall::Ticket`].
    Ticket {
        /// To be used in other calls.
        ticket: String,
        /// For how many processes there is room; at least 1.
        granted: u32,
    },
    /// To [`GuestCall::Clone`], [`GuestCall::CreateClones`] and, in clones, [`GuestCall::Checkpoint`].
    Cloned {
        /// 0 in the parent; in a clone the number of its first process, 1 and up.
        id: u32,
        /// How many processes are to work in this VM, with ids from this one up. (In the parent 1.)
        processes: u32,
        /// In the parent: processes whose clone did not start, and why.
        #[serde(default)]
        failed: Vec<FailedClone>,
    },
    /// To [`GuestCall::Exit`], in clones where other processes go on.
    Done,
    /// To [`GuestCall::NextExit`].
    Exited {
        /// Which process.
        id: u32,
        /// What it gave to [`GuestCall::Exit`]; none when its clone ended otherwise.
        status: Option<i32>,
        /// The data that it gave, in base64.
        data: String,
        /// Why its clone ended otherwise.
        #[serde(default)]
        problem: Option<String>,
    },
    /// To [`GuestCall::NextExit`]: all are known.
    Over,
    /// To [`GuestCall::Kill`].
    Killed {
        /// How many clones were ended.
        clones: u32,
    },
    /// To [`GuestCall::Checkpoint`].
    Checkpoint {
        /// To be given to [`GuestCall::CreateClones`].
        checkpoint: String,
    },
    /// To [`GuestCall::Me`].
    Me {
        /// 0 in a VM that is nobody's clone by such a call; else the number of its first process.
        id: u32,
        /// Id of the VM that its family has in common: the parent's.
        family: String,
        /// How many processes its family has, without the parent's; 0 when there is none.
        size: u32,
        /// The VM's name at its host.
        name: String,
    },
}

/// A process whose clone did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedClone {
    /// Its number.
    pub id: u32,
    /// Why.
    pub problem: String,
}

/// A call was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct GuestError {
    /// What kind of failure.
    pub kind: GuestErrorKind,
    /// For people.
    pub message: String,
}

/// Kinds of failure of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestErrorKind {
    /// This user may not.
    Denied,
    /// No such ticket or checkpoint.
    NotFound,
    /// The call makes no sense.
    Invalid,
    /// The VM or its ticket is not in the state that the call needs.
    State,
    /// Too much is asked for at the same time.
    Busy,
    /// The host's side of the call was lost: the VM was suspended and resumed, or the daemon started anew. May be repeated,
    /// but for `clone`, of which it is not known whether it was done.
    Interrupted,
    /// It was tried and did not work.
    #[serde(other)]
    Failed,
}

impl GuestError {
    /// One of this kind.
    pub fn new(kind: GuestErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { kind, message }
    }
}

/// A call on its way to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Who calls, as the guest's kernel says.
    pub uid: u32,
    /// The call.
    pub call: GuestCall,
}
