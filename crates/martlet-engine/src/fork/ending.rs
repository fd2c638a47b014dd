//! The end of a fork before its clones are done: wherever they are, and those that are still to start.

use super::calls::patiently;
use crate::engine::{Engine, lock};
use crate::machine::Machine;
use crate::problem::Told;
use martlet_api::{CloneResult, Problem, ProblemCode};
use std::sync::{Arc, Mutex};

/// What there is to end.
#[derive(Default)]
pub(crate) struct Ending(Mutex<State>);

#[derive(Default)]
struct State {
    is_ended: bool,
    /// Why, if that was not asked for.
    why: Option<Problem>,
    here: Vec<Arc<Machine>>,
    /// Hosts, and the fork's id there.
    elsewhere: Vec<(String, String)>,
}

impl Ending {
    /// A clone at this host; refused when it is too late for more.
    pub(crate) fn add(&self, machine: &Arc<Machine>) -> Result<(), Problem> {
        let mut state = lock(&self.0);
        if state.is_ended {
            let ended = || Problem::new(ProblemCode::WrongState, "the fork was ended");
            return Err(state.why.clone().unwrap_or_else(ended));
        }
        state.here.push(machine.clone());
        Ok(())
    }

    /// Clones at another host. Is it too late for them?
    pub(crate) fn add_elsewhere(&self, host: &str, flock: &str) -> bool {
        let mut state = lock(&self.0);
        state.elsewhere.push((host.to_owned(), flock.to_owned()));
        state.is_ended
    }

    /// It ends for this reason.
    pub(crate) fn end_because(&self, why: Problem) {
        let mut state = lock(&self.0);
        state.is_ended = true;
        state.why.get_or_insert(why);
    }

    /// Tells of a clone why it was ended, if it was: what it has failed by itself is only how.
    pub(crate) fn explain(&self, clone: &mut CloneResult) {
        if let (Some(how), Some(why)) = (&mut clone.problem, &lock(&self.0).why) {
            *how = why.clone();
        }
    }

    /// The same of one that stays, and was well when it was told of.
    pub(crate) fn explain_gone(&self, clone: &mut CloneResult) {
        if clone.problem.is_none() && clone.output.is_none() {
            clone.problem = lock(&self.0).why.clone();
        }
    }

    /// The fork's id at a host.
    pub(crate) fn flock_at(&self, host: &str) -> Option<String> {
        let state = lock(&self.0);
        let found = state.elsewhere.iter().find(|(there, _)| there == host);
        found.map(|(_, flock)| flock.clone())
    }
}

impl Engine {
    /// Ends all clones of a fork; how many there were at this host.
    pub(crate) fn end_clones(self: &Arc<Self>, ending: &Ending) -> u32 {
        let (here, elsewhere) = {
            let mut state = lock(&ending.0);
            state.is_ended = true;
            (
                std::mem::take(&mut state.here),
                std::mem::take(&mut state.elsewhere),
            )
        };
        for (host, flock) in elsewhere {
            if let Err(problem) = self.end_at(&host, &flock) {
                tracing::warn!(%problem, host, "clones there are not ended");
            }
        }
        let is_there = |machine: &&Arc<Machine>| !machine.writing().forgotten;
        let left: Vec<_> = here.iter().filter(is_there).collect();
        for machine in &left {
            let name = machine.record().name;
            match patiently(|| self.remove(&name, true)) {
                Err(problem) if problem.code != ProblemCode::NotFound => {
                    tracing::warn!(%problem, machine = name, "a clone is not ended");
                }
                _ => {}
            }
        }
        left.len() as u32
    }

    /// How many clones of a fork there still are. Hosts that cannot be asked may have some.
    pub(crate) fn clones_left(&self, ending: &Ending) -> u32 {
        let (here, elsewhere) = {
            let state = lock(&ending.0);
            (state.here.clone(), state.elsewhere.clone())
        };
        let there = elsewhere.iter().map(|(host, flock)| {
            let left = self.left_at(host, flock);
            left.unwrap_or_else(|problem| u32::from(problem.code != ProblemCode::NotFound))
        });
        let is_there = |machine: &&Arc<Machine>| !machine.writing().forgotten;
        here.iter().filter(is_there).count() as u32 + there.sum::<u32>()
    }

    fn left_at(&self, host: &str, flock: &str) -> Result<u32, Problem> {
        let peer = self.peer(host)?.ok_or_else(|| crate::hosts::no_host(host))?;
        let answer = peer.post::<_, Result<u32, Problem>>("/peer/clones/left", &flock);
        answer.told().and_then(|answer| answer)
    }

    fn end_at(&self, host: &str, flock: &str) -> Result<(), Problem> {
        let peer = self.peer(host)?.ok_or_else(|| crate::hosts::no_host(host))?;
        let answer = peer.post::<_, Result<u32, Problem>>("/peer/clones/end", &flock);
        answer.told().and_then(|answer| answer).map(drop)
    }
}
