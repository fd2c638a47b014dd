//! Who is told of reads that were answered: which VM's, of what, and how long each took.

use martlet_pager::VmKey;
use std::ops::Range;
use std::time::Duration;

/// A read that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Whose process read.
    pub vm: VmKey,
    /// Was it of a disk? Of a memory image, else.
    pub is_disk: bool,
    /// What of the file.
    pub bytes: Range<u64>,
    /// How long it took.
    pub took: Duration,
}

/// Is told of reads, on the thread that answers them. Between the two calls that thread does nothing else.
pub trait Reads: Send + Sync {
    /// A read begins.
    fn begun(&self);
    /// It can be answered.
    fn answered(&self, read: Answered);
}
