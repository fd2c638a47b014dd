//! Calls of programs in a machine: the VM fork from inside (SnowFlock: Lagar-Cavilla et al., EuroSys 2009, section 3.1).
//!
//! ```text
//!   program ─► agent ─Ask─► here ─► ticket ─► fork ─► clones: the same call returns there, by their identities
//!           ◄─ agent ◄─Answer─┘                └────► parent: 0
//! ```
//!
//! A guest is hostile: each call is checked against the machine's own policy, and so many are at work at the same time.

use super::children::ProcessExit;
use super::placing::Demand;
use super::task::{Called, News, Task};
use super::tickets::{Ticket, all_in_use};
use super::{CLONES_MAX, Origin};
use crate::engine::{Engine, lock};
use crate::identity;
use crate::machine::Machine;
use crate::problem::Told;
use martlet_agent_api::guest::{Ask, GuestAnswer, GuestCall, GuestError, GuestErrorKind, GuestReply};
use martlet_api::{CheckpointRequest, ForkPolicy, ForkRequest, Problem, ProblemCode};
use martlet_vm::agent::AgentClient;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// Calls of one machine that are at work at the same time. An agent has fewer.
const CALLS_MAX: usize = 64;
/// Another command has the machine; a call waits for so long.
const BUSY_PATIENCE: Duration = Duration::from_secs(60);
/// Most checkpoints by calls that are remembered, of one machine.
const CHECKPOINTS_MAX: usize = 64;

type Answer = Result<GuestAnswer, GuestError>;

/// What there is by calls.
#[derive(Default)]
pub(crate) struct Calls {
    at_work: Mutex<HashMap<String, usize>>,
    /// Snapshots that were made by calls: of which machine, and by which call.
    checkpoints: Mutex<HashMap<String, HashMap<String, u32>>>,
}

impl Calls {
    /// The machine is gone.
    pub(crate) fn forget(&self, machine: &str) {
        lock(&self.checkpoints).remove(machine);
    }
}

fn refused(kind: GuestErrorKind, words: impl Into<String>) -> GuestError {
    GuestError::new(kind, words)
}

fn of_problem(problem: Problem) -> GuestError {
    let kind = match problem.code {
        ProblemCode::Busy => GuestErrorKind::Busy,
        ProblemCode::NotFound => GuestErrorKind::NotFound,
        ProblemCode::InvalidArgument => GuestErrorKind::Invalid,
        ProblemCode::WrongState => GuestErrorKind::State,
        _ => GuestErrorKind::Failed,
    };
    let words = match problem.cause {
        Some(cause) => format!("{}: {cause}", problem.message),
        None => problem.message,
    };
    refused(kind, words)
}

impl Engine {
    /// From now on calls of the machine's programs are answered.
    pub(crate) fn take_calls(self: &Arc<Self>, machine: &Arc<Machine>, agent: &AgentClient) {
        let (engine, machine) = (Arc::downgrade(self), Arc::downgrade(machine));
        agent.take_calls(Box::new(move |agent, number, ask| {
            called(&engine, &machine, agent, number, ask);
        }));
    }

    /// `None`: whoever called is to be gone.
    fn call(self: &Arc<Self>, machine: &Arc<Machine>, number: u32, ask: Ask) -> Option<Answer> {
        let record = machine.record();
        if let GuestCall::Exit { id, status, data } = ask.call {
            let exit = ProcessExit { id, status, data };
            return match &record.kin {
                Some(kin) => self.children.exited(&record.id, kin, exit),
                None => Some(Err(refused(
                    GuestErrorKind::State,
                    "this VM is not a clone of such a call",
                ))),
            };
        }
        if let GuestCall::Me = ask.call {
            let kin = record.kin.as_ref();
            return Some(Ok(GuestAnswer::Me {
                id: kin.map_or(0, |kin| kin.first),
                family: kin.map_or(record.id, |kin| kin.family.clone()),
                size: kin.map_or(0, |kin| kin.size),
                name: record.name,
            }));
        }
        Some(self.call_of_parent(machine, number, ask))
    }

    fn call_of_parent(self: &Arc<Self>, machine: &Arc<Machine>, number: u32, ask: Ask) -> Answer {
        let record = machine.record();
        let policy = allowed(record.config.fork.as_ref(), ask.uid)?;
        if record.kin.is_some() {
            let words = "this VM is a clone, and clones do not fork";
            return Err(refused(GuestErrorKind::State, words));
        }
        let is_there = || machine.live().is_some();
        match ask.call {
            GuestCall::Ticket {
                count,
                hierarchical,
                timeout_s,
            } => {
                let processes = if hierarchical {
                    record.config.cpus.max(1)
                } else {
                    1
                };
                self.grant(machine, policy, count, processes, timeout_s, ask.uid)
            }
            GuestCall::Clone { ticket, wait } => {
                let ticket = self.tickets.of(&record.id, &ticket)?;
                self.fork_by(machine, &ticket, Origin::Machine(machine), number, wait)
            }
            GuestCall::CreateClones {
                checkpoint,
                ticket,
                wait,
            } => {
                let ticket = self.tickets.of(&record.id, &ticket)?;
                let known = lock(&self.calls.checkpoints);
                let asked = known
                    .get(&record.id)
                    .and_then(|own| own.get(&checkpoint))
                    .copied();
                drop(known);
                let asked = asked.ok_or_else(|| {
                    let words = format!("this VM has no checkpoint {checkpoint}");
                    refused(GuestErrorKind::NotFound, words)
                })?;
                self.fork_by(machine, &ticket, Origin::Snapshot(&checkpoint), asked, wait)
            }
            GuestCall::NextExit { ticket, seen } => {
                self.tickets.of(&record.id, &ticket)?.next_exit(seen, is_there)
            }
            GuestCall::Kill { ticket } => {
                let ticket = self.tickets.of(&record.id, &ticket)?;
                let snapshot = self.tickets.discard(&ticket);
                let clones = self.end_clones(&ticket.ending);
                ticket.give_back();
                if let Some(snapshot) = snapshot
                    && let Err(problem) = self.unname(&snapshot)
                {
                    tracing::warn!(%problem, snapshot, "the snapshot of a fork stays");
                }
                Ok(GuestAnswer::Killed { clones })
            }
            GuestCall::Checkpoint => {
                let known = lock(&self.calls.checkpoints)
                    .get(&record.id)
                    .map_or(0, HashMap::len);
                if known >= CHECKPOINTS_MAX {
                    let words = format!("this VM has made {CHECKPOINTS_MAX} checkpoints already");
                    return Err(refused(GuestErrorKind::Busy, words));
                }
                let report = patiently(|| {
                    let request = CheckpointRequest {
                        note: Some("by a call of the guest".into()),
                        ..CheckpointRequest::default()
                    };
                    self.checkpoint(&record.name, request, &|_| ())
                })
                .map_err(of_problem)?;
                let mut known = lock(&self.calls.checkpoints);
                let own = known.entry(record.id).or_default();
                own.insert(report.snapshot.clone(), number);
                drop(known);
                if machine.writing().forgotten {
                    self.calls.forget(&machine.record().id); // it went meanwhile
                }
                Ok(GuestAnswer::Checkpoint {
                    checkpoint: report.snapshot,
                })
            }
            GuestCall::Exit { .. } | GuestCall::Me | GuestCall::Unknown => {
                Err(refused(GuestErrorKind::Invalid, "this host knows no such call"))
            }
        }
    }

    fn grant(
        self: &Arc<Self>,
        machine: &Machine,
        policy: &ForkPolicy,
        count: u32,
        processes: u32,
        timeout_s: Option<u64>,
        uid: u32,
    ) -> Answer {
        if count == 0 {
            return Err(refused(
                GuestErrorKind::Invalid,
                "a ticket is for at least one process",
            ));
        }
        let record = machine.record();
        let left = policy.most.saturating_sub(self.tickets.granted_to(&record.id));
        if left == 0 {
            return Err(all_in_use(policy.most));
        }
        let granted = count.min(left);
        let clones = granted.div_ceil(processes).min(CLONES_MAX);
        let demand = Demand {
            guest_uid: Some(uid),
            ..Demand::of_machine(machine, clones, &record.user)
        };
        let placed = self.place_within(&policy.on, &demand).map_err(of_problem)?;
        let clones: usize = placed.shares.iter().map(|share| share.indices.len()).sum();
        let granted = granted.min(clones as u32 * processes);
        let number = self.state.next("ticket").told().map_err(of_problem)?;
        let id = format!("t{number}-{}", identity::machine_id());
        let ticket = Ticket::new(id.clone(), record.id, granted, processes, timeout_s, placed);
        ticket.end_with(self);
        self.tickets.add(ticket, policy.most)?;
        if machine.writing().forgotten {
            self.tickets.forget_unused(&machine.record().id); // it went while its places were asked for
        }
        Ok(GuestAnswer::Ticket { ticket: id, granted })
    }

    fn fork_by(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        ticket: &Arc<Ticket>,
        origin: Origin<'_>,
        asked: u32,
        wait: bool,
    ) -> Answer {
        ticket.begin()?;
        let requested = Instant::now();
        let record = machine.record();
        let number = ticket
            .id
            .split_once('-')
            .map_or(&*ticket.id, |(number, _)| number);
        let called = Called {
            ask: asked,
            family: record.id.clone(),
            size: ticket.granted,
            processes: ticket.processes,
            timeout_s: ticket.timeout_s,
        };
        let begun = patiently(|| {
            let request = ForkRequest {
                count: ticket.clones(),
                ..ForkRequest::default()
            };
            let begun = self.begin_fork(&origin, &request, &|_| ())?;
            let (prefix, task) = (format!("{}-{number}", record.name), Task::Return(called.clone()));
            let mut family = self.family(
                begun,
                (prefix, record.user.clone()),
                task,
                ticket.ending.clone(),
                requested,
            )?;
            self.give_network(&mut family, machine, &ticket.shares, ticket.clones())?;
            Ok(family)
        });
        let family = begun.map_err(|problem| {
            ticket.take_back();
            of_problem(problem)
        })?;
        ticket.forked(family.made.clone());
        let (engine, started) = (self.clone(), ticket.clone());
        let start = move || {
            let hear = |news: News| started.hear(&news);
            engine.start_everywhere(&family, &started.shares, &hear);
            started.give_back();
        };
        if let Err(error) = std::thread::Builder::new().name("clones".into()).spawn(start) {
            if let Some(made) = self.tickets.discard(ticket) {
                let _ = self.unname(&made); // its machine keeps what it needs
            }
            return Err(refused(
                GuestErrorKind::Failed,
                format!("there is no thread for it: {error}"),
            ));
        }
        let failed = match wait {
            true => ticket.wait_until_started(|| machine.live().is_some()),
            false => Vec::new(),
        };
        Ok(GuestAnswer::Cloned {
            id: 0,
            processes: 1,
            failed,
        })
    }
}

/// What a call may, if its user may at all.
fn allowed(policy: Option<&ForkPolicy>, uid: u32) -> Result<&ForkPolicy, GuestError> {
    policy.filter(|policy| policy.allows(uid)).ok_or_else(|| {
        let words = format!("user {uid} may not fork this VM: `martlet run --fork-by {uid}` grants it");
        refused(GuestErrorKind::Denied, words)
    })
}

/// Two may call at the same time, and a checkpoint be under way.
pub(super) fn patiently<T>(mut call: impl FnMut() -> Result<T, Problem>) -> Result<T, Problem> {
    let begun = Instant::now();
    loop {
        match call() {
            Err(problem) if problem.code == ProblemCode::Busy && begun.elapsed() < BUSY_PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return done,
        }
    }
}

/// Runs on the thread that reads the agent's channel: it must not wait.
fn called(engine: &Weak<Engine>, machine: &Weak<Machine>, agent: AgentClient, number: u32, ask: Ask) {
    let (Some(engine), Some(machine)) = (engine.upgrade(), machine.upgrade()) else {
        return;
    };
    let id = machine.record().id;
    {
        let mut at_work = lock(&engine.calls.at_work);
        let own = at_work.entry(id.clone()).or_default();
        if *own >= CALLS_MAX {
            tracing::warn!(machine = id, "its agent passes on more calls than one may");
            return;
        }
        *own += 1;
    }
    let answer = {
        let engine = engine.clone();
        let id = id.clone();
        move || {
            let answer = engine.call(&machine, number, ask);
            if let Some(answer) = answer {
                let reply = match answer {
                    Ok(answer) => GuestReply::Ok(answer),
                    Err(error) => GuestReply::Error(error),
                };
                if let Err(error) = agent.answer(number, reply) {
                    tracing::info!(%error, machine = id, "a call's answer did not arrive");
                }
            }
            engine.calls.over(&id);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("call".into()).spawn(answer) {
        tracing::warn!(%error, machine = id, "there is no thread for a call");
        engine.calls.over(&id);
    }
}

impl Calls {
    fn over(&self, machine: &str) {
        let mut at_work = lock(&self.at_work);
        if let Some(own) = at_work.get_mut(machine) {
            *own -= 1;
            if *own == 0 {
                at_work.remove(machine);
            }
        }
    }
}
