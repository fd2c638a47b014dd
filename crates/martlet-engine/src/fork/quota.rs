//! How many clones may live at this host at the same time: of all users, and of the same one.

use crate::engine::{Engine, lock};
use crate::machine::{Machine, Record};
use martlet_api::{Problem, ProblemCode, User};
use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};

/// Those of these machines.
fn live_clones<'a>(machines: impl Iterator<Item = &'a Arc<Machine>>) -> impl Iterator<Item = Record> {
    machines
        .map(|machine| machine.record())
        .filter(|record| record.is_clone && record.phase.is_live())
}

impl Engine {
    /// How many more may, if there is a limit.
    pub(crate) fn clones_left_to<'a>(&self, machines: impl Iterator<Item = &'a Arc<Machine>>) -> Option<u32> {
        let most = self.options.clones_max?;
        Some(most.saturating_sub(live_clones(machines).count() as u32))
    }

    /// How many each user has, where that is limited.
    pub(crate) fn clones_by_user<'a>(
        &self,
        machines: impl Iterator<Item = &'a Arc<Machine>>,
    ) -> BTreeMap<String, u32> {
        let mut by_user = BTreeMap::new();
        if self.options.clones_each.is_some() {
            live_clones(machines)
                .for_each(|record| *by_user.entry(record.user.to_string()).or_default() += 1);
        }
        by_user
    }

    /// A machine is about to live, again perhaps: not if it is a clone too many. No other one begins to while the answer is held.
    pub(crate) fn may_live(&self, machine: &Machine) -> Result<MutexGuard<'_, ()>, Problem> {
        let counting = lock(&self.counting);
        let record = machine.record();
        if record.is_clone && !record.phase.is_live() {
            self.check_clones(self.all().iter(), &record.user)?;
        }
        Ok(counting)
    }

    /// May one more of this user, beside these machines?
    pub(crate) fn check_clones<'a>(
        &self,
        machines: impl Iterator<Item = &'a Arc<Machine>> + Clone,
        user: &User,
    ) -> Result<(), Problem> {
        let refused = |most: u32, whose: String, variable: &str| {
            let words = format!("no more than {most} clones{whose} may live at this host at the same time");
            Err(Problem::new(ProblemCode::NoSpace, words).remediation(format!(
                "end some, start them at other hosts, or raise {variable} of its martletd"
            )))
        };
        if let (Some(0), Some(most)) = (self.clones_left_to(machines.clone()), self.options.clones_max) {
            return refused(most, String::new(), "MARTLET_CLONES_MAX");
        }
        if let Some(most) = self.options.clones_each {
            let theirs = live_clones(machines).filter(|record| record.user == *user);
            if theirs.count() as u32 >= most {
                return refused(most, format!(" of {user}"), "MARTLET_CLONES_EACH");
            }
        }
        Ok(())
    }
}
