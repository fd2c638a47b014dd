//! Machines that other hosts have go on here.
//!
//! ```text
//!   offered ──load──► loading ──► loaded ──go──► going ──► runs: the machine is this host's
//!      │                 │           │             │
//!      └─────────────────┴───────────┴─────────────┴─ any failure, or nobody says go: forgotten, and its host goes on with it
//! ```
//!
//! Who has it is decided here, and in one place: it is this host's once its record says that it runs. [`Engine::settle_move`] answers
//! that to a host that has heard no answer, and takes care that an answer of no stays true.

use crate::engine::{Engine, lock};
use crate::family_network::Member;
use crate::handed::Handed;
use crate::identity;
use crate::launch::{Who, now_unix_ms};
use crate::line::{Hold, Line};
use crate::machine::{Config, HardwareRecord, Machine, Record};
use crate::phase::Phase;
use crate::pool::Shape;
use crate::problem::Told;
use crate::run::{MEMORY_MIN_BYTES, check_memory, check_sizes, pick_ports, planned_hardware};
use martlet_api::{Problem, ProblemCode, Timeline, User};
use martlet_image::SnapshotId;
use martlet_store::RefName;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// A host that has had its machine loaded says go within this time.
const GO_TIMEOUT: Duration = Duration::from_secs(10);
/// Setting in the state database: machines that were taken, and are not here any more.
const TAKEN: &str = "taken";
/// So many are remembered.
const TAKEN_MAX: usize = 1000;
/// Machines that arrive at the same time.
const ARRIVALS_MAX: usize = 16;

/// A machine that is to go on at another host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Offer {
    /// Its id.
    pub machine: String,
    /// Its name.
    pub name: String,
    /// What its user asked for.
    pub config: Config,
    /// The hardware that it has.
    pub hardware: HardwareRecord,
    /// The line that it is on.
    pub line: Option<Line>,
    /// Who it is in the network of its family.
    #[serde(default)]
    pub member: Option<Member>,
}

/// Its state, all of which the host has by now but for what can come when it is read.
#[derive(Debug, Serialize, Deserialize)]
pub struct Load {
    /// Its id.
    pub machine: String,
    /// The snapshot to go on from.
    #[serde(flatten)]
    pub handed: Handed,
}

/// Whose is a machine?
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settle {
    /// Its id.
    pub machine: String,
    /// The snapshot by which it was given, or would have been.
    pub snapshot: String,
}

/// Whose machine it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Settled {
    /// The host's that was asked.
    Taken,
    /// The asking host's: it does not run here, and will not by what was offered so far.
    Dropped,
}

/// See the module's documentation.
#[derive(Debug)]
enum Stage {
    Offered,
    Loading,
    Loaded,
    Going,
    Runs(Timeline),
    Failed(Problem),
}

/// A machine on its way here.
#[derive(Debug)]
pub struct Arrival {
    from: String,
    offer: Offer,
    since: Instant,
    /// When it began to be loaded: where its timeline begins.
    loading: OnceLock<Instant>,
    stage: Mutex<Stage>,
    changed: Condvar,
}

/// All that are.
#[derive(Debug, Default)]
pub struct Arrivals(Mutex<HashMap<String, Arc<Arrival>>>);

impl Arrivals {
    fn of(&self, from: &str, machine: &str) -> Option<Arc<Arrival>> {
        let there = lock(&self.0).get(machine).cloned();
        there.filter(|arrival| arrival.from == from)
    }

    fn remove(&self, arrival: &Arc<Arrival>) {
        let mut all = lock(&self.0);
        let machine = &arrival.offer.machine;
        if all.get(machine).is_some_and(|there| Arc::ptr_eq(there, arrival)) {
            all.remove(machine);
        }
    }
}

impl Arrival {
    fn step(&self, stage: Stage) {
        *lock(&self.stage) = stage;
        self.changed.notify_all();
    }

    /// From one stage to the next, if it is at that one.
    fn step_from(&self, is_at: impl Fn(&Stage) -> bool, next: Stage) -> Result<(), Problem> {
        let mut stage = lock(&self.stage);
        if !is_at(&stage) {
            return Err(match &*stage {
                Stage::Failed(problem) => problem.clone(),
                _ => Problem::new(
                    ProblemCode::WrongState,
                    format!("the arrival of machine {} is not that far", self.offer.name),
                ),
            });
        }
        *stage = next;
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until it is decided, or as far as `is_far`.
    fn wait(&self, is_far: impl Fn(&Stage) -> bool) -> Result<Timeline, Problem> {
        let stage = lock(&self.stage);
        let not_yet =
            |stage: &mut Stage| !matches!(stage, Stage::Runs(_) | Stage::Failed(_)) && !is_far(stage);
        let stage = self.changed.wait_while(stage, not_yet);
        match &*stage.unwrap_or_else(std::sync::PoisonError::into_inner) {
            Stage::Runs(timeline) => Ok(*timeline),
            Stage::Failed(problem) => Err(problem.clone()),
            _ => Ok(Timeline::default()),
        }
    }

    /// It is loaded. Returns when its host says go; fails when that takes too long.
    pub(crate) fn loaded(&self) -> Result<(), Problem> {
        self.step_from(|stage| matches!(stage, Stage::Loading), Stage::Loaded)?;
        let waits = |stage: &mut Stage| matches!(stage, Stage::Loaded);
        let waited = self
            .changed
            .wait_timeout_while(lock(&self.stage), GO_TIMEOUT, waits);
        let (mut stage, _) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*stage {
            Stage::Going => Ok(()),
            Stage::Failed(problem) => Err(problem.clone()),
            _ => {
                let silent = Problem::new(
                    ProblemCode::Busy,
                    format!(
                        "host {} did not say that machine {} is to go on",
                        self.from, self.offer.name
                    ),
                );
                // From here on it is too late for that.
                *stage = Stage::Failed(silent.clone());
                Err(silent)
            }
        }
    }
}

impl Engine {
    /// Could this host go on with a machine of another one? Remembers that it is to come.
    pub fn offered(self: &Arc<Self>, from: &str, offer: Offer) -> Result<(), Problem> {
        self.check_takes()?;
        if !identity::is_machine_id(&offer.machine) {
            let words = format!("{:.40?} is no machine", offer.machine);
            return Err(Problem::new(ProblemCode::InvalidArgument, words));
        }
        martlet_api::names::check_name(&offer.name)?;
        let config = &offer.config;
        check_memory(config.memory_bytes, MEMORY_MIN_BYTES)?;
        check_sizes(config.cpus, config.disk_bytes, 0)?;
        self.check_here(&offer)?;
        self.could(&offer.hardware)?;
        pick_ports(&offer.config.ports)?;
        if let Some(tap) = &offer.config.tap {
            check_tap(tap)?;
        }
        if let Some(line) = &offer.line {
            self.check_held(line)?;
        }
        self.pool
            .want(Shape::new(&offer.hardware.to_compat(), &offer.config));
        let arrival = Arc::new(Arrival {
            from: from.to_owned(),
            since: Instant::now(),
            loading: OnceLock::new(),
            stage: Mutex::new(Stage::Offered),
            changed: Condvar::new(),
            offer,
        });
        let mut all = lock(&self.arrivals.0);
        let is_idle = |there: &Arrival| matches!(*lock(&there.stage), Stage::Offered);
        if let Some(there) = all.get(&arrival.offer.machine)
            && (there.from != from || !is_idle(there))
        {
            return Err(Problem::new(
                ProblemCode::Busy,
                format!("machine {} is on its way here already", there.offer.name),
            ));
        }
        if all.len() >= ARRIVALS_MAX {
            // What was offered and has not come makes room.
            let idle = all.values().filter(|there| is_idle(there));
            let oldest = idle.min_by_key(|there| there.since);
            let oldest = oldest.map(|there| there.offer.machine.clone()).ok_or_else(|| {
                let words = format!("{ARRIVALS_MAX} machines come to this host already");
                Problem::new(ProblemCode::Busy, words)
            })?;
            all.remove(&oldest);
        }
        all.insert(arrival.offer.machine.clone(), arrival);
        Ok(())
    }

    /// Neither its name nor the machine is here. One that is here because it was here before does not count: all of it
    /// is on its line.
    fn check_here(self: &Arc<Self>, offer: &Offer) -> Result<(), Problem> {
        for machine in self.all() {
            let here = machine.record();
            if here.id == offer.machine {
                let was_here = |line: &Line| {
                    let same =
                        |other: &Line| (&other.remote, &other.reference) == (&line.remote, &line.reference);
                    line.hold == Hold::Free
                        && line.published == here.snapshot
                        && offer.line.as_ref().is_some_and(same)
                };
                if here.phase == Phase::Suspended && here.line.as_ref().is_some_and(was_here) {
                    continue;
                }
                return Err(match &here.phase {
                    Phase::Moved { to, .. } => Problem::new(
                        ProblemCode::Busy,
                        format!(
                            "machine {} has left this host, and host {to} still gets what it left here",
                            here.name
                        ),
                    )
                    .remediation("do it again when that is over"),
                    _ => Problem::new(
                        ProblemCode::AlreadyExists,
                        format!("this host has the machine, as {}", here.name),
                    )
                    .remediation(format!("`martlet rm {}` there forgets it", here.name)),
                });
            }
            if here.name == offer.name {
                return Err(Problem::new(
                    ProblemCode::AlreadyExists,
                    format!("this host has another machine {}", here.name),
                )
                .remediation("`martlet rename` one of them first"));
            }
        }
        Ok(())
    }

    /// Is the line that a machine comes with one of a remote of this host, by the same name, and held as it says?
    fn check_held(self: &Arc<Self>, line: &Line) -> Result<(), Problem> {
        let (name, Some(lease)) = (line.name().told()?, line.hold.lease()) else {
            return Ok(());
        };
        let held = self
            .newest(&line.remote, None)
            .and_then(|remote| remote.is_held(&name, &lease.id).told());
        held.map(drop).map_err(|problem| {
            Problem {
                cause: Some(problem.message.clone()),
                ..Problem::new(
                    problem.code,
                    format!(
                        "the machine's line {name} at remote {} is not to be gone on with here",
                        line.remote
                    ),
                )
            }
            .remediation(format!(
                "`martlet remote add {} …` there, with the same place and realm as here",
                line.remote
            ))
        })
    }

    /// Loads a machine, up to where it only has to go on.
    pub fn load(self: &Arc<Self>, from: &str, load: Load) -> Result<(), Problem> {
        let arrival = self.arrivals.of(from, &load.machine).ok_or_else(not_offered)?;
        arrival.step_from(|stage| matches!(stage, Stage::Offered), Stage::Loading)?;
        let (engine, arriving) = (self.clone(), arrival.clone());
        let arrive = move || {
            let done = engine.arrive_moved(&arriving, &load);
            if let Err(problem) = &done {
                tracing::info!(%problem, machine = arriving.offer.name, from = arriving.from, "it does not go on here");
            }
            arriving.step(match done {
                Ok(timeline) => Stage::Runs(timeline),
                Err(problem) => Stage::Failed(problem),
            });
            engine.arrivals.remove(&arriving);
        };
        if let Err(error) = std::thread::Builder::new().name("arrival".into()).spawn(arrive) {
            self.arrivals.remove(&arrival);
            return Err(Problem::new(ProblemCode::Busy, "there is no thread for it").cause(error));
        }
        arrival.wait(|stage| matches!(stage, Stage::Loaded)).map(drop)
    }

    /// Has it go on. Its first instruction and exec are counted from here.
    pub fn go(&self, from: &str, machine: &str) -> Result<Timeline, Problem> {
        let arrival = self.arrivals.of(from, machine).ok_or_else(not_offered)?;
        arrival.step_from(|stage| matches!(stage, Stage::Loaded), Stage::Going)?;
        let told = arrival
            .loading
            .get()
            .map_or(0.0, |begun| begun.elapsed().as_secs_f64() * 1e3);
        let timeline = arrival.wait(|_| false)?;
        let since_told = |at: Option<f64>| at.map(|at_ms| (at_ms - told).max(0.0));
        Ok(Timeline {
            load_ms: timeline.load_ms,
            first_instruction_ms: since_told(timeline.first_instruction_ms),
            first_exec_ms: since_told(timeline.first_exec_ms),
            ..timeline
        })
    }

    /// Whose is it? A host that asks goes on with it itself if it is its own.
    pub fn settle_move(&self, from: &str, settle: &Settle) -> Result<Settled, Problem> {
        if let Some(arrival) = self.arrivals.of(from, &settle.machine) {
            let dropped = Problem::new(ProblemCode::WrongState, format!("host {from} goes on with it"));
            {
                let mut stage = lock(&arrival.stage);
                if matches!(*stage, Stage::Offered) {
                    drop(stage);
                    self.arrivals.remove(&arrival);
                    return self.taken_here(settle);
                }
                if matches!(*stage, Stage::Loading | Stage::Loaded) {
                    *stage = Stage::Failed(dropped);
                    arrival.changed.notify_all();
                }
            }
            let _ = arrival.wait(|_| false);
        }
        self.taken_here(settle)
    }

    fn taken_here(&self, settle: &Settle) -> Result<Settled, Problem> {
        let is_it = |here: &Arc<Machine>| {
            let here = here.record();
            let given = here.given.is_some_and(|id| id.to_string() == settle.snapshot);
            given && here.id == settle.machine && !here.awaited
        };
        if self.all().iter().any(is_it) {
            return Ok(Settled::Taken);
        }
        let taken: Vec<Settle> = self.state.setting(TAKEN).told()?.unwrap_or_default();
        Ok(match taken.contains(settle) {
            true => Settled::Taken,
            false => Settled::Dropped,
        })
    }

    /// That a machine was taken stays true when it is forgotten here: it has gone on, and perhaps on to another host.
    pub(crate) fn remember_taken(&self, record: &Record) -> Result<(), Problem> {
        let Some(id) = record.given.filter(|_| !record.awaited) else {
            return Ok(());
        };
        let settle = Settle {
            machine: record.id.clone(),
            snapshot: id.to_string(),
        };
        let remembered = self.state.edit_setting(TAKEN, |taken: &mut Vec<Settle>| {
            taken.push(settle);
            taken.drain(..taken.len().saturating_sub(TAKEN_MAX));
        });
        remembered.told_as(format!(
            "that machine {} was here cannot be remembered",
            record.name
        ))
    }

    /// Objects of a snapshot that are still to come here.
    pub fn still_lacks(&self, snapshot: &str) -> Result<u64, Problem> {
        let id: SnapshotId = snapshot.parse().map_err(|_| not_offered())?;
        let progress = self.away.progress(&id).told()?;
        Ok(progress.map_or(0, |progress| progress.missing_objects))
    }

    fn arrive_moved(self: &Arc<Self>, arrival: &Arc<Arrival>, load: &Load) -> Result<Timeline, Problem> {
        let (
            offer,
            Handed {
                record, reference, ..
            },
        ) = (&arrival.offer, &load.handed);
        let requested = *arrival.loading.get_or_init(Instant::now);
        if record.machine_id != offer.machine {
            let words = format!("{reference}: this is of another machine");
            return Err(Problem::new(ProblemCode::Damaged, words));
        }
        let (id, _) = self.take_handed(&arrival.from, &load.handed, |id| {
            let there: RefName = reference.parse().told()?;
            let called = RefName::new(&offer.name, there.tag()).told()?;
            match self.store.refs().get(&called).is_some_and(|here| *here != id) {
                false => Ok(Some(called)),
                true => RefName::new(&offer.name, &format!("moved-{}", id.short()))
                    .map(Some)
                    .told(),
            }
        })?;
        let memory = record
            .memory
            .as_ref()
            .ok_or_else(|| crate::launch::no_memory(&id))?;
        let sizes = (
            memory.size_bytes,
            record.disks.first().map(|disk| disk.size_bytes),
        );
        if sizes != (offer.config.memory_bytes, Some(offer.config.disk_bytes)) {
            let words = format!("{reference} is not of the machine that was offered");
            return Err(Problem::new(ProblemCode::Damaged, words));
        }
        // Who was here before is of the same line: nothing of it is only here.
        self.check_here(offer)?;
        if let Some(before) = self
            .all()
            .into_iter()
            .find(|there| there.record().id == offer.machine)
        {
            let _operation = before.begin("move")?;
            self.forget(&before)?;
        }
        let machine = self.add(Record {
            id: offer.machine.clone(),
            name: offer.name.clone(),
            number: self.state.next("machine").told()?,
            from: format!("{reference} of host {}", arrival.from),
            created_unix_ms: now_unix_ms(),
            phase: Phase::Suspended,
            hostname: record.hostname.clone(),
            generation: record.generation,
            snapshot: Some(id),
            disk_base: id,
            disk_number: 0,
            running: None,
            agent: false,
            timeline: Timeline::default(),
            hardware: planned_hardware(&offer.config, record),
            undo: None,
            awaited: true,
            line: offer.line.clone().map(|line| Line {
                behind: Vec::new(), // those are of the host that it comes from
                ..line
            }),
            given: Some(id),
            is_clone: false,
            user: User::default(),
            kin: None,
            member: offer.member.clone(),
            config: offer.config.clone(),
        })?;
        self.repin(&machine, &machine.record());
        let _operation = machine.begin("move")?;
        let who = Who::Moved(arrival.clone());
        let restored = self.restore_in_place(&machine, id, who, requested, Phase::Suspended);
        if let Err(problem) = restored {
            let _ = self.forget(&machine); // logged; it never ran here
            return Err(problem);
        }
        self.start_heart(&machine);
        let timeline = machine.record().timeline;
        tracing::info!(machine = offer.name, from = arrival.from, "goes on here");
        Ok(timeline)
    }
}

fn check_tap(tap: &str) -> Result<(), Problem> {
    martlet_vm::tap::check(tap).map_err(|error| {
        Problem::new(
            ProblemCode::NotFound,
            format!("this host has no interface {tap:?} that is free"),
        )
        .cause(error)
        .remediation("make one there, or name another one: `martlet move MACHINE HOST --tap NAME`")
    })
}

fn not_offered() -> Problem {
    Problem::new(ProblemCode::NotFound, "no such machine is on its way here")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn arrival(stage: Stage) -> Arc<Arrival> {
        let config = json!({
            "cpus": 1, "memory_bytes": 1 << 27, "disk_bytes": 1 << 20, "env": {}, "cmd": [], "ports": [],
            "accel": null, "outbound": false, "restart": false,
        });
        Arc::new(Arrival {
            from: "desk".into(),
            since: Instant::now(),
            loading: OnceLock::new(),
            stage: Mutex::new(stage),
            changed: Condvar::new(),
            offer: Offer {
                member: None,
                machine: "0123456789ab".into(),
                name: "web".into(),
                config: serde_json::from_value(config).unwrap(),
                hardware: HardwareRecord {
                    accel: martlet_api::Accel::Tcg,
                    machine_type: "pc-q35-7.2".into(),
                    cpu_model: "qemu64-v1".into(),
                    qemu_version: "7.2.0".into(),
                },
                line: None,
            },
        })
    }

    #[test]
    fn only_the_host_that_offered_a_machine_is_told_of_it() {
        let arrivals = Arrivals::default();
        let coming = arrival(Stage::Offered);
        lock(&arrivals.0).insert(coming.offer.machine.clone(), coming.clone());
        assert!(arrivals.of("desk", "0123456789ab").is_some());
        assert!(arrivals.of("couch", "0123456789ab").is_none());
        assert!(arrivals.of("desk", "ba9876543210").is_none());
        // An arrival that has ended does not take another one's place away.
        arrivals.remove(&arrival(Stage::Offered));
        assert!(arrivals.of("desk", "0123456789ab").is_some());
        arrivals.remove(&coming);
        assert!(arrivals.of("desk", "0123456789ab").is_none());
    }

    #[test]
    fn it_goes_on_when_it_is_told_to_and_not_before_it_is_loaded() {
        let coming = arrival(Stage::Loading);
        let go = |coming: &Arrival| coming.step_from(|stage| matches!(stage, Stage::Loaded), Stage::Going);
        assert_eq!(go(&coming).unwrap_err().code, ProblemCode::WrongState);
        std::thread::scope(|scope| {
            let loads = scope.spawn(|| coming.loaded());
            coming.wait(|stage| matches!(stage, Stage::Loaded)).unwrap();
            go(&coming).unwrap();
            loads.join().unwrap().unwrap();
        });
        assert!(go(&coming).is_err(), "once");
    }

    #[test]
    fn what_was_dropped_does_not_go_on() {
        let coming = arrival(Stage::Loading);
        let dropped = Problem::new(ProblemCode::WrongState, "its host goes on with it");
        std::thread::scope(|scope| {
            let loads = scope.spawn(|| coming.loaded());
            coming.wait(|stage| matches!(stage, Stage::Loaded)).unwrap();
            coming.step(Stage::Failed(dropped.clone()));
            assert_eq!(loads.join().unwrap().unwrap_err(), dropped);
        });
        // Also one that is not loaded yet when that is said.
        let coming = arrival(Stage::Loading);
        coming.step(Stage::Failed(dropped.clone()));
        assert_eq!(coming.loaded().unwrap_err(), dropped);
        assert_eq!(coming.wait(|_| false).unwrap_err(), dropped);
    }
}
