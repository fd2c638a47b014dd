//! How long an allocation holds: until its clones are gone, or it has ended, which ends them.

use super::allocator::Allocation;
use super::ending::Ending;
use crate::engine::Engine;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether any clone that stays is still there.
const LOOK: Duration = Duration::from_secs(2);

impl Engine {
    /// The end of the allocation is the end of the fork.
    pub(crate) fn end_with(self: &Arc<Self>, allocation: &Allocation, ending: &Arc<Ending>) {
        let (engine, ending) = (Arc::downgrade(self), ending.clone());
        allocation.on_end(move |why| {
            tracing::warn!(problem = %why, cause = why.cause, "all clones of a fork are ended");
            ending.end_because(why);
            if let Some(engine) = engine.upgrade() {
                engine.end_clones(&ending);
            }
        });
    }

    /// Gives the allocation back when none of the clones is left, which may be now.
    pub(crate) fn hold_while_clones_are(self: &Arc<Self>, allocation: Allocation, ending: Arc<Ending>) {
        if self.clones_left(&ending) == 0 {
            return;
        }
        let (engine, away) = (Arc::downgrade(self), self.away.clone());
        let hold = move || {
            while engine
                .upgrade()
                .is_some_and(|engine| engine.clones_left(&ending) > 0)
                && away.pause(LOOK).is_ok()
            {}
            drop(allocation);
        };
        if let Err(error) = std::thread::Builder::new().name("allocation".into()).spawn(hold) {
            tracing::warn!(%error, "the allocation of clones that stay is given back");
        }
    }
}
