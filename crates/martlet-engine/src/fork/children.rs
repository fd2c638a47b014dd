//! Clones at this host whose processes exit by calls: who has exited, and who waits for that.
//!
//! ```text
//!   expected (before it runs) ──exit──► … ──exit of the last process──► over ──► the clone is removed
//!                                └── its time is up, its VM ended, the fork was killed ──┘
//! ```

use crate::engine::{Engine, lock};
use crate::launch::now_unix_ms;
use crate::machine::{Kin, Machine};
use crate::phase::Phase;
use martlet_agent_api::guest::{DATA_BYTES, GuestAnswer, GuestError, GuestErrorKind};
use martlet_api::{Problem, ProblemCode};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How often it is looked whether a clone still lives.
const LOOK: Duration = Duration::from_millis(500);

/// How a process exited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessExit {
    /// Its number.
    pub id: u32,
    /// As it said.
    pub status: i32,
    /// For its parent, in base64.
    pub data: String,
}

/// The exits of one clone.
#[derive(Debug, Default)]
pub(crate) struct Child {
    exits: Mutex<Vec<ProcessExit>>,
    changed: Condvar,
}

/// All that are awaited, by their machines' ids.
#[derive(Debug, Default)]
pub(crate) struct Children(Mutex<HashMap<String, Arc<Child>>>);

impl Children {
    /// Exits of this machine's processes are awaited.
    pub(crate) fn expect(&self, machine: &str) {
        lock(&self.0).insert(machine.to_owned(), Arc::default());
    }

    /// Not any more.
    pub(crate) fn forget(&self, machine: &str) {
        lock(&self.0).remove(machine);
    }

    fn of(&self, machine: &str) -> Option<Arc<Child>> {
        lock(&self.0).get(machine).cloned()
    }

    /// A process says that it exits. Is it answered, or is its clone at its end?
    pub(crate) fn exited(
        &self,
        machine: &str,
        kin: &Kin,
        exit: ProcessExit,
    ) -> Option<Result<GuestAnswer, GuestError>> {
        let refuse = |kind, words: String| Some(Err(GuestError::new(kind, words)));
        let Some(child) = self.of(machine) else {
            return refuse(
                GuestErrorKind::State,
                "nobody waits for this clone any more".into(),
            );
        };
        if exit.data.len() > DATA_BYTES.div_ceil(3) * 4 {
            let words = format!("a child hands over at most {DATA_BYTES} bytes");
            return refuse(GuestErrorKind::Invalid, words);
        }
        if !kin.ids().contains(&exit.id) {
            let words = format!("process {} is not of this clone", exit.id);
            return refuse(GuestErrorKind::Invalid, words);
        }
        let mut exits = lock(&child.exits);
        match exits.iter().find(|known| known.id == exit.id) {
            // A call whose answer was lost is made again.
            Some(known) if *known == exit => {}
            Some(_) => {
                let words = format!("process {} has exited already", exit.id);
                return refuse(GuestErrorKind::State, words);
            }
            None => exits.push(exit),
        }
        child.changed.notify_all();
        // The VM goes with its last process, which must not run on.
        (exits.len() < kin.processes as usize).then_some(Ok(GuestAnswer::Done))
    }
}

impl Engine {
    /// Waits until all processes of a clone have exited, or cannot any more, and why not.
    pub(crate) fn wait_for_exits(&self, machine: &Arc<Machine>) -> (Vec<ProcessExit>, Option<Problem>) {
        let record = machine.record();
        let (Some(kin), Some(child)) = (&record.kin, self.children.of(&record.id)) else {
            let problem = Problem::new(ProblemCode::Internal, "a clone whose exit nobody awaits");
            return (Vec::new(), Some(problem));
        };
        let mut exits = lock(&child.exits);
        let problem = loop {
            if exits.len() >= kin.processes as usize {
                break None;
            }
            if let Some(problem) = why_no_more(machine, kin) {
                break Some(problem);
            }
            let waited = child.changed.wait_timeout(exits, LOOK);
            exits = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        self.children.forget(&record.id);
        (std::mem::take(&mut *exits), problem)
    }

    /// Clones that a predecessor of this daemon has started still go when they are done.
    pub(crate) fn recover_children(self: &Arc<Self>) {
        for machine in self.all() {
            let record = machine.record();
            if record.kin.is_none() {
                continue;
            }
            self.children.expect(&record.id);
            let engine = self.clone();
            let attend = move || {
                engine.wait_for_exits(&machine);
                engine.remove_clone(&machine);
            };
            if let Err(error) = std::thread::Builder::new().name("clone".into()).spawn(attend) {
                tracing::warn!(%error, machine = record.name, "a clone is not waited for");
            }
        }
    }
}

fn why_no_more(machine: &Machine, kin: &Kin) -> Option<Problem> {
    let record = machine.record();
    let name = &record.name;
    if machine.writing().forgotten {
        return Some(Problem::new(
            ProblemCode::GuestFailed,
            format!("{name} was removed before all of its processes had exited"),
        ));
    }
    match &record.phase {
        Phase::Failed { why } => {
            let words = format!("{name} ended before all of its processes had exited");
            return Some(Problem::new(ProblemCode::GuestFailed, words).cause(why));
        }
        Phase::Stopped => {
            let words = format!("{name} was shut down before all of its processes had exited");
            return Some(Problem::new(ProblemCode::GuestFailed, words));
        }
        _ => {}
    }
    kin.until_unix_ms
        .filter(|until| now_unix_ms() >= *until)
        .map(|_| {
            let words = format!("{name} was ended: its time was up before all of its processes had exited");
            Problem::new(ProblemCode::GuestFailed, words)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_exits_once_and_the_last_is_not_answered() {
        let children = Children::default();
        let kin = Kin {
            family: "f".into(),
            size: 4,
            first: 3,
            processes: 2,
            until_unix_ms: None,
        };
        let exit = |id| ProcessExit {
            id,
            status: 0,
            data: String::new(),
        };
        let kind = |answer: Option<Result<GuestAnswer, GuestError>>| answer.unwrap().unwrap_err().kind;
        assert_eq!(kind(children.exited("m", &kin, exit(3))), GuestErrorKind::State);
        children.expect("m");
        assert_eq!(kind(children.exited("m", &kin, exit(2))), GuestErrorKind::Invalid);
        assert_eq!(kind(children.exited("m", &kin, exit(5))), GuestErrorKind::Invalid);
        let large = ProcessExit {
            data: "A".repeat(DATA_BYTES * 2),
            ..exit(3)
        };
        assert_eq!(kind(children.exited("m", &kin, large)), GuestErrorKind::Invalid);
        assert_eq!(children.exited("m", &kin, exit(4)), Some(Ok(GuestAnswer::Done)));
        assert_eq!(children.exited("m", &kin, exit(4)), Some(Ok(GuestAnswer::Done)));
        let otherwise = ProcessExit { status: 1, ..exit(4) };
        assert_eq!(kind(children.exited("m", &kin, otherwise)), GuestErrorKind::State);
        assert_eq!(children.exited("m", &kin, exit(3)), None);
    }
}
