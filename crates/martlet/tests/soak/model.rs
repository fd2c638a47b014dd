//! What must be: machines and snapshots as the driver knows them, and what may have become of them when a command was
//! cut short.
//!
//! ```text
//!   model ──► operation: what may be afterwards ──► the world: what is listed ──► model
//!             (done, not done, half done)           (narrows it to what is)
//! ```

use crate::content::{Contents, without_memory};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// `name:tag`.
pub type Reference = String;

/// What a machine is doing, when nothing is at work on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Running,
    Suspended,
    Stopped,
    Failed,
}

impl State {
    fn named(name: &str) -> Option<Self> {
        match name {
            "running" => Some(Self::Running),
            "suspended" => Some(Self::Suspended),
            "stopped" => Some(Self::Stopped),
            "failed" => Some(Self::Failed),
            _ => None,
        }
    }
}

/// A machine as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub state: State,
    pub contents: Contents,
    /// The snapshot it was last saved to or started from.
    pub newest: Reference,
    /// Snapshots of which it maps the memory of one: a checkpoint by handover, which it may be, has it map what it made.
    pub mapped: BTreeSet<Reference>,
    /// Its QEMU's keeper is not the one that started it, so how it ends may not be known.
    pub adopted: bool,
}

impl Machine {
    /// One that a snapshot was restored to.
    pub fn restored(snapshot: &Reference, contents: &Contents) -> Self {
        Self {
            state: State::Running,
            contents: contents.clone(),
            newest: snapshot.clone(),
            mapped: [snapshot.clone()].into(),
            adopted: false,
        }
    }

    /// The same, saved to a snapshot.
    pub fn saved_to(&self, snapshot: &Reference) -> Self {
        let mut saved = self.clone();
        saved.newest = snapshot.clone();
        saved.mapped.insert(snapshot.clone());
        saved
    }

    /// The same without a QEMU.
    pub fn ended(&self, state: State) -> Self {
        let contents = match state {
            State::Suspended => self.contents.clone(),
            _ => without_memory(&self.contents),
        };
        Self {
            state,
            contents,
            mapped: BTreeSet::new(),
            ..self.clone()
        }
    }

    /// The same, booted from its disk.
    pub fn booted(&self) -> Self {
        Self {
            state: State::Running,
            adopted: false,
            ..self.ended(State::Stopped)
        }
    }
}

/// A snapshot as it must be.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub id: String,
    /// The machine that it is of; only that can go back to it.
    pub machine: String,
    pub contents: Contents,
}

/// All there must be.
#[derive(Debug, Default)]
pub struct Model {
    pub machines: BTreeMap<String, Machine>,
    pub snapshots: BTreeMap<Reference, Snapshot>,
}

/// What may have become of a machine; `None` is gone.
pub type Possible = Option<Machine>;

impl Model {
    /// Machines in a state.
    pub fn count(&self, state: State) -> usize {
        self.machines
            .values()
            .filter(|machine| machine.state == state)
            .count()
    }

    /// Snapshots that a machine may be put back to.
    pub fn snapshots_of(&self, machine: &str) -> Vec<Reference> {
        let own = self
            .snapshots
            .iter()
            .filter(|(_, snapshot)| snapshot.machine == machine);
        own.map(|(reference, _)| reference.clone()).collect()
    }

    /// Machines that need a snapshot.
    pub fn users(&self, reference: &Reference) -> BTreeSet<&str> {
        self.machines_that(|machine| {
            machine.newest == *reference || machine.mapped.len() == 1 && machine.mapped.contains(reference)
        })
    }

    /// Machines that need it or may do so.
    pub fn possible_users(&self, reference: &Reference) -> BTreeSet<&str> {
        self.machines_that(|machine| machine.newest == *reference || machine.mapped.contains(reference))
    }

    fn machines_that(&self, use_it: impl Fn(&Machine) -> bool) -> BTreeSet<&str> {
        let users = self.machines.iter().filter(|(_, machine)| use_it(machine));
        users.map(|(name, _)| name.as_str()).collect()
    }
}

/// A machine as it is listed.
#[derive(Debug)]
pub struct Seen {
    /// None while something is at work on it.
    pub state: Option<State>,
    pub pid: Option<u64>,
    snapshot: Option<String>,
    pub last_error: String,
}

/// What is listed.
#[derive(Debug, Default)]
pub struct World {
    pub machines: BTreeMap<String, Seen>,
    /// References to snapshots with memory, and ids.
    pub references: BTreeMap<Reference, String>,
}

impl World {
    /// From the answers of `ps` and `images`.
    pub fn new(machines: &Value, snapshots: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let machines = machines.as_array().into_iter().flatten().map(|machine| {
            let seen = Seen {
                state: State::named(&text(&machine["state"])),
                pid: machine["pid"].as_u64(),
                snapshot: machine["snapshot"].as_str().map(str::to_owned),
                last_error: text(&machine["last_error"]),
            };
            (text(&machine["name"]), seen)
        });
        let with_memory = snapshots.as_array().into_iter().flatten();
        let with_memory = with_memory.filter(|snapshot| snapshot["memory_bytes"].as_u64() > Some(0));
        let references = with_memory.flat_map(|snapshot| {
            let references = snapshot["references"].as_array().into_iter().flatten();
            references.map(|reference| (text(reference), text(&snapshot["id"])))
        });
        Self {
            machines: machines.collect(),
            references: references.collect(),
        }
    }

    /// The one of these that is, with all that it may hold if several are.
    pub fn narrow(&self, name: &str, possible: &[Possible]) -> Result<Possible, String> {
        let seen = self.machines.get(name);
        let is = |possible: &&Possible| match (possible, seen) {
            (None, None) => true,
            (Some(machine), Some(seen)) => {
                seen.state == Some(machine.state)
                    && seen.snapshot.as_ref() == self.references.get(&machine.newest)
            }
            _ => false,
        };
        let mut those = possible.iter().filter(is).cloned();
        let Some(first) = those.next() else {
            return Err(format!("{name} is {seen:?}, and may be {possible:?}"));
        };
        Ok(those.fold(first, |all, one| match (all, one) {
            (Some(mut all), Some(one)) => {
                all.contents.extend(one.contents);
                all.adopted |= one.adopted;
                Some(all)
            }
            (all, _) => all,
        }))
    }
}
