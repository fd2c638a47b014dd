//! Who answers the read that a thread is at: noted where that is known, taken where the read is told of. All of a read
//! is done by one thread.

use std::cell::RefCell;
use std::sync::Arc;

/// What came from elsewhere for a read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// The last place that it waited for; none if all was here.
    pub from: Option<Arc<str>>,
    /// What came from there, as it came. Nothing, if it came for somebody else.
    pub came_bytes: u64,
}

thread_local! {
    static ANSWER: RefCell<Answer> = RefCell::default();
}

/// This thread's read waits, or has waited, for what comes from there; so much of it came for this read.
pub fn came(from: &Arc<str>, bytes: usize) {
    ANSWER.with_borrow_mut(|answer| {
        answer.from = Some(from.clone());
        answer.came_bytes += bytes as u64;
    });
}

/// What was noted since this was last called; nothing is noted any more.
pub fn take() -> Answer {
    ANSWER.take()
}
