//! What is done to machines and snapshots, and what may be true afterwards.

use crate::content::{Content, Contents, Version};
use crate::model::{Machine, Model, Possible, Reference, State};
use crate::random::Random;

/// One command, or a few that belong together.
#[derive(Debug, Clone)]
pub enum Operation {
    Checkpoint {
        machine: String,
        tag: String,
    },
    Suspend {
        machine: String,
        tag: String,
    },
    Resume {
        machine: String,
    },
    Rollback {
        machine: String,
        to: Reference,
    },
    Fork {
        machine: String,
        prefix: String,
        count: usize,
    },
    /// A machine of a snapshot.
    Run {
        snapshot: Reference,
        name: String,
    },
    Stop {
        machine: String,
    },
    Kill {
        machine: String,
    },
    Start {
        machine: String,
    },
    Remove {
        machine: String,
    },
    RemoveImage {
        snapshot: Reference,
    },
    CollectGarbage,
    Verify,
    /// A new version into memory and disk of a guest.
    Write {
        machine: String,
        version: Version,
    },
    /// Everything that a guest holds is compared.
    Check {
        machine: String,
    },
}

/// What may be after an operation.
#[derive(Debug, Default)]
pub struct Afterwards {
    /// Of each machine that it concerns.
    pub machines: Vec<(String, Vec<Possible>)>,
    /// A snapshot that there is, or may be if the operation failed.
    pub snapshot: Option<NewSnapshot>,
    /// A snapshot that there is not any more, or may not be if it failed.
    pub gone: Option<Reference>,
}

/// A snapshot that an operation makes.
#[derive(Debug)]
pub struct NewSnapshot {
    pub reference: Reference,
    pub machine: String,
    pub contents: Contents,
}

impl Operation {
    /// As the report counts it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Checkpoint { .. } => "checkpoint",
            Self::Suspend { .. } => "suspend",
            Self::Resume { .. } => "resume",
            Self::Rollback { .. } => "rollback",
            Self::Fork { .. } => "fork",
            Self::Run { .. } => "run",
            Self::Stop { .. } => "stop",
            Self::Kill { .. } => "kill",
            Self::Start { .. } => "start",
            Self::Remove { .. } => "rm",
            Self::RemoveImage { .. } => "images rm",
            Self::CollectGarbage => "gc",
            Self::Verify => "verify",
            Self::Write { .. } => "exec (write)",
            Self::Check { .. } => "exec (check)",
        }
    }

    /// The machine that it works on.
    pub fn machine(&self) -> Option<&str> {
        match self {
            Self::Checkpoint { machine, .. }
            | Self::Suspend { machine, .. }
            | Self::Resume { machine }
            | Self::Rollback { machine, .. }
            | Self::Fork { machine, .. }
            | Self::Stop { machine }
            | Self::Kill { machine }
            | Self::Start { machine }
            | Self::Remove { machine }
            | Self::Write { machine, .. }
            | Self::Check { machine }
            | Self::Run { name: machine, .. } => Some(machine),
            Self::RemoveImage { .. } | Self::CollectGarbage | Self::Verify => None,
        }
    }

    /// The snapshot that must stay, or must not be used, meanwhile.
    pub fn snapshot(&self) -> Option<&Reference> {
        match self {
            Self::Rollback { to: snapshot, .. }
            | Self::Run { snapshot, .. }
            | Self::RemoveImage { snapshot } => Some(snapshot),
            _ => None,
        }
    }

    /// Does it need the keeper to start or to end a QEMU?
    pub fn needs_keeper(&self) -> bool {
        matches!(
            self,
            Self::Suspend { .. }
                | Self::Resume { .. }
                | Self::Rollback { .. }
                | Self::Fork { .. }
                | Self::Run { .. }
                | Self::Stop { .. }
                | Self::Kill { .. }
                | Self::Start { .. }
                | Self::Remove { .. }
        )
    }

    /// Is a guest's content compared after it, as it comes from a snapshot or a disk?
    pub fn restores(&self) -> bool {
        matches!(
            self,
            Self::Resume { .. }
                | Self::Rollback { .. }
                | Self::Fork { .. }
                | Self::Run { .. }
                | Self::Start { .. }
                | Self::Check { .. }
        )
    }

    /// Arguments of the command line, for what is one command.
    pub fn args(&self) -> Vec<&str> {
        match self {
            Self::Checkpoint { machine, tag } => {
                let method = ["auto", "handover", "copy"][tag.bytes().last().map_or(0, usize::from) % 3];
                vec!["checkpoint", machine, "--tag", tag, "--method", method]
            }
            Self::Suspend { machine, tag } => vec!["suspend", machine, "--tag", tag],
            Self::Resume { machine } => vec!["resume", machine],
            Self::Rollback { machine, to } => vec!["rollback", machine, to],
            Self::Fork {
                machine,
                prefix,
                count,
            } => {
                let count = ["0", "1", "2", "3"][*count];
                vec!["fork", machine, "-n", count, "--prefix", prefix]
            }
            Self::Run { snapshot, name } => vec!["run", snapshot, "--name", name],
            Self::Stop { machine } => vec!["stop", machine],
            Self::Kill { machine } => vec!["kill", machine],
            Self::Start { machine } => vec!["start", machine],
            Self::Remove { machine } => vec!["rm", "--force", machine],
            Self::RemoveImage { snapshot } => vec!["images", "rm", snapshot],
            Self::CollectGarbage => vec!["gc"],
            Self::Verify => vec!["verify"],
            Self::Write { .. } | Self::Check { .. } => Vec::new(),
        }
    }

    /// What is true when it was done; with `failed`, what may be true when it was refused or cut short. `forked` is the
    /// reference of the snapshot that a fork made.
    pub fn afterwards(&self, model: &Model, failed: bool, forked: Option<&Reference>) -> Afterwards {
        let mut after = Afterwards::default();
        let contents_of = |snapshot: &Reference| model.snapshots[snapshot].contents.clone();
        let before = self.machine().and_then(|name| model.machines.get(name)).cloned();
        let done: Possible = match (self, &before) {
            (Self::Checkpoint { machine, tag } | Self::Suspend { machine, tag }, Some(before)) => {
                let reference = format!("{machine}:{tag}");
                let saved = before.saved_to(&reference);
                after.snapshot = Some(NewSnapshot {
                    reference,
                    machine: machine.clone(),
                    contents: before.contents.clone(),
                });
                match self {
                    Self::Suspend { .. } => Some(saved.ended(State::Suspended)),
                    _ => Some(saved),
                }
            }
            (Self::Resume { .. }, Some(before)) => Some(Machine::restored(&before.newest, &before.contents)),
            (Self::Rollback { to, .. }, _) => Some(Machine::restored(to, &contents_of(to))),
            (
                Self::Fork {
                    machine,
                    prefix,
                    count,
                },
                Some(before),
            ) => match forked {
                None => Some(before.clone()),
                Some(reference) => {
                    after.snapshot = Some(NewSnapshot {
                        reference: reference.clone(),
                        machine: machine.clone(),
                        contents: before.contents.clone(),
                    });
                    for index in 1..=*count {
                        let clone = Machine::restored(reference, &before.contents);
                        let possible = self.possible(None, Some(clone), failed);
                        after.machines.push((format!("{prefix}-{index}"), possible));
                    }
                    Some(before.saved_to(reference))
                }
            },
            (Self::Run { snapshot, .. }, _) => Some(Machine::restored(snapshot, &contents_of(snapshot))),
            (Self::Stop { .. } | Self::Kill { .. }, Some(before)) => Some(before.ended(State::Stopped)),
            (Self::Start { .. }, Some(before)) => Some(before.booted()),
            (Self::Write { version, .. }, Some(before)) => {
                let both = Content {
                    memory: Some(*version),
                    disk: Some(*version),
                };
                // Memory is written first.
                let half = before.contents.iter().map(|content| Content {
                    memory: both.memory,
                    ..*content
                });
                let contents = match failed {
                    true => half
                        .chain([both])
                        .chain(before.contents.iter().copied())
                        .collect(),
                    false => [both].into(),
                };
                Some(Machine {
                    contents,
                    ..before.clone()
                })
            }
            (Self::RemoveImage { snapshot }, _) => {
                after.gone = Some(snapshot.clone());
                None
            }
            (_, before) => before.clone().filter(|_| !matches!(self, Self::Remove { .. })),
        };
        if let Some(name) = self.machine() {
            let possible = self.possible(before, done, failed);
            after.machines.push((name.to_owned(), possible));
        }
        after
    }

    /// What may have become of one machine.
    fn possible(&self, before: Possible, done: Possible, failed: bool) -> Vec<Possible> {
        let mut possible = vec![done.clone()];
        if !failed {
            return possible;
        }
        possible.push(before.clone());
        // A first start, or one from the disk, that was cut short has failed.
        if matches!(self, Self::Fork { .. } | Self::Run { .. } | Self::Start { .. }) {
            possible.extend(done.iter().map(|machine| Some(machine.ended(State::Failed))));
        }
        // What ends a QEMU first may have come no further than that.
        if matches!(
            self,
            Self::Rollback { .. } | Self::Stop { .. } | Self::Kill { .. } | Self::Remove { .. }
        ) {
            for state in [State::Stopped, State::Failed] {
                possible.extend(before.iter().map(|machine| Some(machine.ended(state))));
            }
        }
        possible
    }
}

/// How many of what there may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub machines: usize,
    pub snapshots: usize,
}

/// Numbers for names, tags and versions that were not there before.
#[derive(Debug, Default)]
pub struct Numbers(u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}

/// Chooses operations that do not get into each other's way: each machine and snapshot is in one of them only.
pub fn choose(
    random: &mut Random,
    numbers: &mut Numbers,
    model: &Model,
    limits: Limits,
    kept: &Reference,
) -> Vec<Operation> {
    let mut chosen: Vec<Operation> = Vec::new();
    let mut expected = model.machines.len();
    for _ in 0..=random.below(3) {
        let is_free = |operation: &Operation| {
            let machine = chosen
                .iter()
                .all(|other| operation.machine().is_none() || other.machine() != operation.machine());
            let snapshot = chosen
                .iter()
                .all(|other| operation.snapshot().is_none() || other.snapshot() != operation.snapshot());
            machine && snapshot
        };
        let room = limits.machines.saturating_sub(expected);
        // More machines first, if there are few.
        let store_percent = match model.machines.len() * 2 < limits.machines {
            true => 45,
            false => 20,
        };
        let operation = match model.machines.is_empty() || random.chance(store_percent) {
            true => on_store(random, numbers, model, limits, room, kept),
            false => on_machine(random, numbers, model, limits, room),
        };
        if let Some(operation) = operation.filter(is_free) {
            expected += match &operation {
                Operation::Fork { count, .. } => *count,
                Operation::Run { .. } => 1,
                _ => 0,
            };
            chosen.push(operation);
        }
    }
    chosen
}

fn on_store(
    random: &mut Random,
    numbers: &mut Numbers,
    model: &Model,
    limits: Limits,
    room: usize,
    kept: &Reference,
) -> Option<Operation> {
    let snapshots: Vec<Reference> = model.snapshots.keys().cloned().collect();
    let others: Vec<Reference> = snapshots.iter().filter(|one| *one != kept).cloned().collect();
    let mut may = vec![(2, Operation::CollectGarbage), (1, Operation::Verify)];
    if room > 0 {
        let snapshot = random.pick(&snapshots)?.clone();
        let name = format!("m{}", numbers.next());
        let weight = if model.machines.len() * 2 < limits.machines {
            20
        } else {
            3
        };
        may.push((weight, Operation::Run { snapshot, name }));
    }
    if let Some(snapshot) = random.pick(&others).cloned() {
        let weight = if others.len() >= limits.snapshots { 20 } else { 3 };
        may.push((weight, Operation::RemoveImage { snapshot }));
    }
    random.weighted(&may)
}

fn on_machine(
    random: &mut Random,
    numbers: &mut Numbers,
    model: &Model,
    limits: Limits,
    room: usize,
) -> Option<Operation> {
    let names: Vec<&String> = model.machines.keys().collect();
    let machine = (*random.pick(&names)?).clone();
    let number = numbers.next();
    let tag = format!("t{number}");
    // One more snapshot is fewer than a fork may make of itself.
    let save = usize::from(model.snapshots.len() < limits.snapshots);
    let remove = if room == 0 { 8 } else { 1 };
    let own = model.snapshots_of(&machine);
    let mut may = vec![(
        remove,
        Operation::Remove {
            machine: machine.clone(),
        },
    )];
    if let Some(to) = random.pick(&own).cloned() {
        let machine = machine.clone();
        may.push((4, Operation::Rollback { machine, to }));
    }
    match model.machines[&machine].state {
        State::Running => {
            let count = 1 + random.below(room.clamp(1, 3));
            let prefix = format!("m{number}");
            let fork = if room > 0 { 4 * save } else { 0 };
            may.extend([
                (
                    12,
                    Operation::Write {
                        machine: machine.clone(),
                        version: number,
                    },
                ),
                (
                    2,
                    Operation::Check {
                        machine: machine.clone(),
                    },
                ),
                (
                    5 * save,
                    Operation::Checkpoint {
                        machine: machine.clone(),
                        tag: tag.clone(),
                    },
                ),
                (
                    5 * save,
                    Operation::Suspend {
                        machine: machine.clone(),
                        tag,
                    },
                ),
                (
                    fork,
                    Operation::Fork {
                        machine: machine.clone(),
                        prefix,
                        count,
                    },
                ),
                (
                    1,
                    Operation::Stop {
                        machine: machine.clone(),
                    },
                ),
                (1, Operation::Kill { machine }),
            ]);
        }
        State::Suspended => may.push((8, Operation::Resume { machine })),
        State::Stopped | State::Failed => may.push((3, Operation::Start { machine })),
    }
    random.weighted(&may)
}
