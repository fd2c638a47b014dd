//! Inputs on their way to the clones of one fork at this host.

use super::task::Input;
use crate::engine::lock;
use std::collections::HashMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How often whoever waits looks whether its clone still lives.
const LOOK: Duration = Duration::from_millis(500);

/// One for each clone, by its index. `None` in one: there is nothing more to do.
#[derive(Default)]
pub(crate) struct Inboxes {
    given: Mutex<HashMap<u32, Option<Input>>>,
    changed: Condvar,
}

impl Inboxes {
    /// A clone is to do this next.
    pub(crate) fn put(&self, clone: u32, input: Option<Input>) {
        lock(&self.given).insert(clone, input);
        self.changed.notify_all();
    }

    /// Waits for what a clone is to do next; `None` when that is nothing, or `lives` says no.
    pub(crate) fn take(&self, clone: u32, lives: impl Fn() -> bool) -> Option<Input> {
        let mut given = lock(&self.given);
        loop {
            if let Some(input) = given.remove(&clone) {
                return input;
            }
            if !lives() {
                return None;
            }
            let waited = self.changed.wait_timeout(given, LOOK);
            given = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_clone_gets_its_own_and_one_that_has_ended_waits_no_longer() {
        let inboxes = Inboxes::default();
        let input = |number| {
            Some(Input {
                number,
                text: "x".into(),
            })
        };
        inboxes.put(2, input(7));
        inboxes.put(1, None);
        assert_eq!(inboxes.take(2, || true), input(7));
        assert_eq!(inboxes.take(1, || true), None);
        assert_eq!(inboxes.take(2, || false), None);
    }
}
