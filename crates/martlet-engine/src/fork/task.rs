//! What a clone is for: nothing (it stays), a command, or what a program in it began by its own call.

use super::Family;
use super::children::ProcessExit;
use crate::engine::Engine;
use crate::machine::{Kin, Machine};
use martlet_agent_api::AskedFor;
use martlet_agent_api::guest::{GuestAnswer, GuestReply};
use martlet_api::{CloneCommand, CloneOutput, CloneResult, Problem, ProblemCode};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Most processes in one clone.
const PROCESSES_MAX: u32 = 1024;

/// What each clone is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Task {
    /// For whoever asked for it: it stays.
    Stay,
    /// To run a command, and then to go.
    Command(CloneCommand),
    /// To run a command over inputs, one after the other, and then to go.
    Inputs {
        /// Program and arguments, with `{}` for the input and `{id}` for the clone's index.
        argv: Vec<String>,
        /// It is killed when it has run for so long over one.
        timeout_s: Option<u64>,
    },
    /// To return from a call, and to go when its processes have exited.
    Return(Called),
}

/// By what call of a program in the parent clones are made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Called {
    /// Number of the call in the parent's agent: it waits in each clone too.
    pub ask: u32,
    /// Id of the machine that called.
    pub family: String,
    /// How many processes there are to be in all clones.
    pub size: u32,
    /// How many in each; the last may have fewer.
    pub processes: u32,
    /// Each clone is ended so long after its start.
    pub timeout_s: Option<u64>,
}

/// Something that a clone is to work on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Which.
    pub number: u32,
    /// What it is.
    pub text: String,
}

/// What a clone has done with an input.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Done {
    /// Which.
    pub number: u32,
    /// How long it took.
    pub took_ms: f64,
    /// How its command ended, or why it did not.
    pub outcome: Result<CloneOutput, Problem>,
}

/// What has become of a clone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct News {
    /// As far as it has come.
    pub clone: CloneResult,
    /// How its processes exited.
    #[serde(default)]
    pub exits: Vec<ProcessExit>,
    /// It waits for its next input.
    #[serde(default)]
    pub wants_input: bool,
    /// What it has done with the last.
    #[serde(default)]
    pub done: Option<Done>,
    /// There will be no other news of it.
    pub is_over: bool,
}

impl News {
    /// The only news of a clone.
    pub(crate) fn last(clone: CloneResult) -> Self {
        Self {
            clone,
            exits: Vec::new(),
            wants_input: false,
            done: None,
            is_over: true,
        }
    }
}

impl Task {
    /// Is it one that a host would give to so many clones?
    pub(crate) fn check(&self, indices: &[u32]) -> Result<(), Problem> {
        let Self::Return(called) = self else {
            return Ok(());
        };
        let is_one = (1..=PROCESSES_MAX).contains(&called.processes)
            && indices
                .iter()
                .all(|index| called.first(*index) <= called.size.into());
        match is_one {
            true => Ok(()),
            false => Err(Problem::new(
                ProblemCode::InvalidArgument,
                "these are no processes of a fork",
            )),
        }
    }
}

impl Called {
    fn first(&self, index: u32) -> u64 {
        u64::from(index - 1) * u64::from(self.processes) + 1
    }

    /// The processes of a clone.
    pub(crate) fn kin(&self, index: u32) -> Kin {
        let first = self.first(index) as u32;
        Kin {
            family: self.family.clone(),
            size: self.size,
            first,
            processes: self.processes.min(self.size - first + 1),
            until_unix_ms: self
                .timeout_s
                .map(|timeout| crate::launch::now_unix_ms().saturating_add(timeout.saturating_mul(1000))),
        }
    }

    /// What the call returns in a clone.
    pub(crate) fn returned(&self, index: u32) -> AskedFor {
        let kin = self.kin(index);
        AskedFor {
            ask: self.ask,
            reply: GuestReply::Ok(GuestAnswer::Cloned {
                id: kin.first,
                processes: kin.processes,
                failed: Vec::new(),
            }),
        }
    }
}

impl Engine {
    /// Sees a clone that has started through its task.
    pub(crate) fn attend(
        self: &Arc<Self>,
        family: &Family,
        index: u32,
        machine: &Arc<Machine>,
        each: &(dyn Fn(News) + Sync),
    ) {
        let mut news = News::last(family.started(index, machine));
        let keep = match &family.task {
            Task::Stay => return each(news),
            Task::Command(command) => {
                match self.work(&news.clone.name, index, command) {
                    Ok(output) => news.clone.output = Some(output),
                    Err(problem) => news.clone.problem = Some(problem),
                }
                command.keep
            }
            Task::Inputs { argv, timeout_s } => {
                news.clone.problem = self.work_off(family, &news.clone, argv, *timeout_s, each).err();
                false
            }
            Task::Return(_) => {
                each(News {
                    is_over: false,
                    ..news.clone()
                });
                (news.exits, news.clone.problem) = self.wait_for_exits(machine);
                false
            }
        };
        if !keep {
            self.remove_clone(machine);
        }
        each(news);
    }

    /// Removes a clone whose task is done.
    pub(crate) fn remove_clone(self: &Arc<Self>, machine: &Machine) {
        let name = machine.record().name;
        match self.remove(&name, true) {
            Ok(()) => {}
            Err(problem) if problem.code == ProblemCode::NotFound => {} // it was removed meanwhile
            Err(problem) => tracing::warn!(%problem, machine = name, "a clone stays when its work is done"),
        }
    }
}
