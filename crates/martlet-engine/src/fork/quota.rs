//! How many clones may live at this host at the same time.

use crate::engine::Engine;
use crate::machine::Machine;
use martlet_api::{Problem, ProblemCode};
use std::sync::Arc;

impl Engine {
    /// How many more may, if there is a limit.
    pub(crate) fn clones_left_to<'a>(&self, machines: impl Iterator<Item = &'a Arc<Machine>>) -> Option<u32> {
        let most = self.options.clones_max?;
        let clones = machines.map(|machine| machine.record());
        let live = clones.filter(|record| record.is_clone && record.phase.is_live());
        Some(most.saturating_sub(live.count() as u32))
    }

    /// May one more, beside these machines?
    pub(crate) fn check_clones<'a>(
        &self,
        machines: impl Iterator<Item = &'a Arc<Machine>>,
    ) -> Result<(), Problem> {
        match (self.clones_left_to(machines), self.options.clones_max) {
            (Some(0), Some(most)) => {
                let words = format!("no more than {most} clones may live at this host at the same time");
                Err(Problem::new(ProblemCode::NoSpace, words).remediation(
                    "end some, start them at other hosts, or raise MARTLET_CLONES_MAX of its martletd",
                ))
            }
            _ => Ok(()),
        }
    }
}
