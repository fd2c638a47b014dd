//! Forking: a checkpoint, then N starts from it, each under an identity of its own; here, or at other hosts.
//!
//! ```text
//!   from outside: fork ──┐                                    ┌─► here: start_clones ──► attend: what each is for
//!   from inside: calls ──┴─► begin_fork ─► start_everywhere ──┤
//!                tickets        (flock)                       └─► there: hosted ─► the same
//! ```

mod allocator;
mod calls;
mod children;
mod ending;
mod flock;
mod held;
mod hosted;
mod inboxes;
mod map;
mod placing;
mod quota;
mod task;
mod tickets;
mod work;

pub use hosted::{Ask, Give, Started, Wanted};

pub(crate) use calls::Calls;
pub(crate) use children::Children;
pub(crate) use hosted::Flocks;
pub(crate) use tickets::Tickets;

use crate::crash;
use crate::engine::Engine;
use crate::family_network::{ForkNetwork, Member, Taken};
use crate::identity;
use crate::launch::{DiskFrom, Who, no_memory, now_unix_ms};
use crate::machine::{Config, Machine, Record};
use crate::phase::{Phase, Verb};
use crate::problem::Told;
use crate::run::agentless;
use ending::Ending;
use inboxes::Inboxes;
use martlet_api::{
    CheckpointRequest, CloneResult, ForkReport, ForkRequest, Probe, Problem, ProblemCode, ProgressSink,
    Timeline, User,
};
use martlet_image::{SnapshotId, SnapshotRecord};
use martlet_store::Pin;
use placing::{Demand, Placed, Share};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use task::{News, Task};

/// Most clones in one fork.
pub(crate) const CLONES_MAX: u32 = 1000;
/// Clones started at a time for each processor of the host: more only compete.
const STARTS_PER_CPU: usize = 2;

/// What is forked.
pub(crate) enum Origin<'a> {
    /// A machine as it runs; it goes on.
    Machine(&'a Arc<Machine>),
    /// A snapshot.
    Snapshot(&'a str),
}

/// A state to start clones from.
pub(crate) struct Begun {
    id: SnapshotId,
    /// Its name, if it was made for this.
    made: Option<String>,
    pause_ms: f64,
    source: String,
    /// Held until every clone holds it itself.
    pin: Pin,
}

/// What all clones of a fork have in common that this host starts.
pub(crate) struct Family {
    /// What they start from.
    pub id: SnapshotId,
    /// Its record.
    pub snapshot: SnapshotRecord,
    /// Its name, if it was made for this.
    pub made: Option<String>,
    /// What it is of, in words.
    pub source: String,
    /// Clones are called `PREFIX-INDEX`.
    pub prefix: String,
    /// Who is asked in each until it answers.
    pub probe: Option<Probe>,
    /// Who asked for them.
    pub user: User,
    /// What each is for.
    pub task: Task,
    /// What its clones here are to do next.
    pub inboxes: Arc<Inboxes>,
    /// For ending it early.
    pub ending: Arc<Ending>,
    /// When the fork was asked for.
    pub requested: Instant,
    /// Their network.
    pub network: Option<ForkNetwork>,
    /// Keeps their numbers there until what they are for is over.
    pub _numbers: Option<Taken>,
    /// Keeps the snapshot until every clone holds it itself.
    pub _pin: Pin,
}

impl Family {
    fn name(&self, index: u32) -> String {
        format!("{}-{index}", self.prefix)
    }

    fn started(&self, index: u32, machine: &Machine) -> CloneResult {
        CloneResult {
            index,
            name: self.name(index),
            host: None,
            machine: Some(machine.info()),
            timeline: machine.record().timeline,
            output: None,
            problem: None,
        }
    }

    /// What is said of a clone that did not start.
    pub(crate) fn failed(&self, index: u32, problem: Problem) -> CloneResult {
        CloneResult {
            index,
            name: self.name(index),
            host: None,
            machine: None,
            timeline: Timeline::default(),
            output: None,
            problem: Some(problem),
        }
    }
}

impl Engine {
    /// Starts clones of a running machine (after a checkpoint of it; it goes on) or of a snapshot. That a clone fails is
    /// told in its result, and harms no other.
    pub fn fork(
        self: &Arc<Self>,
        user: &User,
        source: &str,
        request: ForkRequest,
        progress: ProgressSink<'_>,
    ) -> Result<ForkReport, Problem> {
        let requested = Instant::now();
        let clones_go = request.command.as_ref().is_some_and(|command| !command.keep);
        let task = request.command.clone().map_or(Task::Stay, Task::Command);
        let (family, placed, pause_ms) = self.prepare((source, user), &request, task, requested, progress)?;
        let (mut clones, sent_bytes) = self.start_and_collect(&family, &placed.shares, progress);
        crash::step("fork");
        if let Some(allocation) = placed.allocation {
            for index in clones.len() as u32 + 1..=request.count {
                clones.push(family.failed(index, allocation.lacks()));
            }
            clones
                .iter_mut()
                .for_each(|clone| family.ending.explain_gone(clone));
            self.hold_while_clones_are(allocation, family.ending.clone());
        }
        if clones_go {
            self.forget_made(&family);
        }
        Ok(ForkReport {
            sent_bytes,
            snapshot: family.id.to_string(),
            pause_ms,
            total_ms: requested.elapsed().as_secs_f64() * 1e3,
            clones,
        })
    }

    /// All that there is to do before the clones can start, and where they start.
    fn prepare(
        self: &Arc<Self>,
        (source, user): (&str, &User),
        request: &ForkRequest,
        task: Task,
        requested: Instant,
        progress: ProgressSink<'_>,
    ) -> Result<(Family, Placed, f64), Problem> {
        if request.count == 0 || request.count > CLONES_MAX {
            return Err(Problem::new(
                ProblemCode::InvalidArgument,
                format!("{} clones are not possible", request.count),
            )
            .remediation(format!("ask for 1 to {CLONES_MAX} with -n")));
        }
        let machine = self.find(source);
        let (origin, demand) = match &machine {
            Ok(machine) => (
                Origin::Machine(machine),
                Demand::of_machine(machine, request.count, user),
            ),
            Err(_) => {
                let (id, snapshot) = self.snapshot_named(source)?;
                let memory = snapshot.memory.as_ref().ok_or_else(|| no_memory(&id))?;
                let demand = Demand::of_snapshot(&snapshot, memory.size_bytes, request.count, user)?;
                (Origin::Snapshot(source), demand)
            }
        };
        let prefix = request.prefix.clone().unwrap_or_else(|| demand.machine.clone());
        martlet_api::names::check_name(&format!("{prefix}-{}", request.count))?;
        let placed = self.place(&request.on, &demand)?;
        let begun = self.begin_fork(&origin, request, progress)?;
        crash::step("fork");
        let pause_ms = begun.pause_ms;
        let ending = Arc::<Ending>::default();
        if let Some(allocation) = &placed.allocation {
            self.end_with(allocation, &ending);
        }
        let mut family = self.family(begun, (prefix, user.clone()), task, ending, requested)?;
        family.probe = request.probe.clone();
        if let Ok(machine) = &machine {
            self.give_network(&mut family, machine, &placed.shares, request.count)?;
        }
        crash::step("fork");
        Ok((family, placed, pause_ms))
    }

    /// The state that clones start from: of a machine, its present one.
    pub(crate) fn begin_fork(
        self: &Arc<Self>,
        origin: &Origin<'_>,
        request: &ForkRequest,
        progress: ProgressSink<'_>,
    ) -> Result<Begun, Problem> {
        let (id, made, pause_ms, source) = match *origin {
            Origin::Machine(machine) => {
                let operation = machine.begin("fork")?;
                let live = machine.live_for(Verb::Checkpoint)?;
                let name = machine.record().name;
                if live.agent().is_none() && !machine.record().agent && !request.allow_agentless {
                    return Err(agentless(&format!("machine {name}")));
                }
                let tag = format!("fork-{}", self.state.next(&format!("fork of {name}")).told()?);
                let made = format!("{name}:{tag}");
                let checkpoint = CheckpointRequest {
                    tag: Some(tag),
                    note: Some(format!("forked into {} clones", request.count)),
                    method: request.method,
                    ..CheckpointRequest::default()
                };
                crash::step("fork");
                let report = self.checkpoint_held(machine, &operation, checkpoint, progress)?;
                let id = report.snapshot.parse().expect("the engine's own snapshot id");
                (id, Some(made), report.pause_ms, name)
            }
            Origin::Snapshot(source) => {
                let (id, snapshot) = self.snapshot_named(source)?;
                if snapshot.memory.is_none() {
                    return Err(no_memory(&id));
                }
                if !snapshot.agent && !request.allow_agentless {
                    return Err(agentless(&format!("snapshot {source}")));
                }
                (id, None, 0.0, source.to_owned())
            }
        };
        let pin = self.store.pin(id, "a fork under way").told()?;
        Ok(Begun {
            id,
            made,
            pause_ms,
            source,
            pin,
        })
    }

    /// The clones that start from it, for that task.
    pub(crate) fn family(
        &self,
        begun: Begun,
        (prefix, user): (String, User),
        task: Task,
        ending: Arc<Ending>,
        requested: Instant,
    ) -> Result<Family, Problem> {
        Ok(Family {
            snapshot: self.store.snapshot(&begun.id).told()?,
            id: begun.id,
            made: begun.made,
            source: begun.source,
            prefix,
            probe: None,
            user,
            task,
            ending,
            inboxes: Arc::default(),
            requested,
            network: None,
            _numbers: None,
            _pin: begun.pin,
        })
    }

    /// Clones of a machine that has a network with them are in it.
    pub(crate) fn give_network(
        &self,
        family: &mut Family,
        parent: &Machine,
        shares: &[Share],
        count: u32,
    ) -> Result<(), Problem> {
        let stay = matches!(family.task, Task::Stay);
        let hosts = shares.iter().filter_map(|share| share.host.as_deref());
        let network = self.fork_network(parent, count, stay, hosts)?;
        (family.network, family._numbers) = network.unzip();
        Ok(())
    }

    /// The snapshot that was made for a fork is not needed by name any more.
    pub(crate) fn forget_made(&self, family: &Family) {
        if let Some(made) = &family.made
            && let Err(problem) = self.unname(made)
        {
            tracing::warn!(%problem, snapshot = made, "the snapshot of a fork stays");
        }
    }

    /// Starts those clones, and tells of each when it has started, and done what it is for, or failed.
    pub(crate) fn start_clones(
        self: &Arc<Self>,
        family: &Family,
        indices: &[u32],
        each: &(dyn Fn(News) + Sync),
    ) {
        let first = match self.state.take("machine", indices.len() as u64).told() {
            Ok(first) => first,
            Err(problem) => {
                let failed = |index: &u32| each(News::last(family.failed(*index, problem.clone())));
                return indices.iter().for_each(failed);
            }
        };
        let clones: Vec<(u32, u64)> = indices.iter().copied().zip(first..).collect();
        let workers = std::thread::available_parallelism().map_or(2, |n| n.get()) * STARTS_PER_CPU;
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let start = || {
                while let Some((index, number)) = clones.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match (self.try_clone(family, *index, *number), &family.task) {
                        (Ok(machine), Task::Stay) => self.attend(family, *index, &machine, each),
                        // They all work at the same time, however few start at the same time.
                        (Ok(machine), _) => {
                            scope.spawn(move || self.attend(family, *index, &machine, each));
                        }
                        (Err(problem), _) => each(News::last(family.failed(*index, problem))),
                    }
                }
            };
            for _ in 0..workers.min(clones.len()) {
                scope.spawn(start);
            }
        });
    }

    fn try_clone(
        self: &Arc<Self>,
        family: &Family,
        index: u32,
        number: u64,
    ) -> Result<Arc<Machine>, Problem> {
        let (name, snapshot) = (family.name(index), &family.snapshot);
        let config = config_of(snapshot)?;
        // A port of the host is one machine's. In a family, who is outside comes to the parent.
        let ports = config.ports.iter().filter(|_| !config.family);
        let any = ports.map(|port| martlet_api::PortForward {
            host_port: 0,
            ..*port
        });
        let config = Config {
            ports: crate::run::pick_ports(&any.collect::<Vec<_>>())?,
            // So is a tap interface.
            tap: None,
            ..config
        };
        let id = identity::machine_id();
        let network = family.network.as_ref().map(|network| network.member(index));
        let record = Record {
            // A clone of a snapshot is nobody's child.
            member: network.or_else(|| Member::founder(&id, &config)),
            id,
            hostname: name.clone(),
            name,
            number,
            from: family.source.clone(),
            created_unix_ms: now_unix_ms(),
            phase: Phase::Starting,
            generation: snapshot.generation + 1,
            snapshot: Some(family.id),
            disk_base: family.id,
            disk_number: 1,
            running: None,
            agent: false,
            timeline: Timeline::default(),
            hardware: crate::run::planned_hardware(&config, snapshot),
            undo: None,
            awaited: true,
            line: None,
            given: None,
            is_clone: true,
            user: family.user.clone(),
            kin: match &family.task {
                Task::Return(called) => Some(called.kin(index)),
                _ => None,
            },
            config,
        };
        if record.kin.is_some() {
            self.children.expect(&record.id); // its first process may exit before its start is told
        }
        crash::step("fork");
        let added = self.add(record.clone());
        let machine = added.inspect_err(|_| self.children.forget(&record.id))?;
        crash::step("fork");
        let _operation = machine.begin("fork")?;
        self.repin(&machine, &record);
        crash::step("fork");
        let who = Who::Clone {
            parent: snapshot.machine_id.clone(),
            index,
            asked: match &family.task {
                Task::Return(called) => Some(called.returned(index)),
                _ => None,
            },
        };
        let disk = family.ending.add(&machine).and_then(|()| self.disk_of(snapshot));
        let started = disk.and_then(|disk| {
            self.launch_machine(
                &machine,
                family.id,
                snapshot,
                who,
                DiskFrom::New(disk),
                family.requested,
            )?;
            crash::step("fork");
            self.probe(&machine, family.probe.as_ref(), family.requested, &|_| ())
        });
        match started {
            Ok(()) => Ok(machine),
            Err(problem) => {
                // Nothing of a clone that failed is left.
                self.children.forget(&record.id);
                self.stop_live(&machine);
                let _ = self.forget(&machine); // logged
                Err(problem)
            }
        }
    }
}

/// What the user of a snapshot's machine had asked for.
pub(crate) fn config_of(snapshot: &SnapshotRecord) -> Result<Config, Problem> {
    let of = &snapshot.machine;
    let saved = snapshot.hardware.as_ref().ok_or_else(|| {
        let words = format!("a snapshot of {of} does not say what hardware it needs");
        Problem::new(ProblemCode::Damaged, words)
    })?;
    serde_json::from_value(saved.config.clone()).map_err(|error| {
        let words = format!("the configuration in a snapshot of {of} cannot be read");
        Problem::new(ProblemCode::Damaged, words).cause(error)
    })
}
