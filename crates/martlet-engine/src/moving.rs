//! Giving a machine to another host, which goes on with it: a running one while it runs, a suspended one as it is.
//!
//! ```text
//!   offered ──► sent ──────────────────────► still ──► loaded ──► given ──► taken ──► left
//!    could it    a checkpoint, then what      rest to   there, it  durable   it runs   what is still here
//!    run there?  was written meanwhile, while the store does not   here      there     comes there, then is
//!                that gets less                         run yet                        forgotten here
//!      └───────────┴────────────────────────────┴─────────┴─ any failure: it goes on here
//! ```
//!
//! What is left when the guest stands still goes when it is read there, and behind: the pause depends neither on how
//! much memory there is nor on how fast it is written. (Pre-copy and post-copy are from QEMU's and Xen's live migration; Hines et
//! al., *Post-copy live migration of virtual machines*, 2009.)
//!
//! Before `given` the other host does not run it, whatever happens. From then on that host says who has it ([`Settled`]), and as
//! long as it cannot be asked the guest stands still here: never do both run it.

use crate::arrivals::{Load, Offer, Settle, Settled};
use crate::checkpoint::Fate;
use crate::crash;
use crate::engine::{Engine, lock};
use crate::hosts::no_host;
use crate::line::Hold;
use crate::machine::{Machine, Operation, Record};
use crate::phase::{Phase, Verb};
use crate::problem::{Tell, Told};
use crate::run::stage;
use crate::state::When;
use crate::storing::PutAhead;
use martlet_api::{
    CheckpointRequest, MoveReport, MoveRequest, MoveRound, Problem, ProblemCode, Progress, ProgressSink,
    ProgressUnit, ResumeFromRequest, Timeline,
};
use martlet_image::SnapshotId;
use martlet_peer::{PeerClient, PeerError};
use martlet_store::{Key, Kind};
use martlet_vm::capture::{Capture, Mapping};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What was written meanwhile goes again at most so often.
const ROUNDS_MAX: usize = 12;
/// So much is put into the store within the pause.
const SMALL_BYTES: u64 = 1 << 20;
/// A host that does not answer is asked again after this time,
const ASK_EVERY: Duration = Duration::from_secs(1);
/// by the command for so long,
const ASK_FOR: Duration = Duration::from_secs(30);
/// and then behind.
const ASK_BEHIND_EVERY: Duration = Duration::from_secs(5);
/// A host is asked whether it has all after this time,
const LOOK_FIRST: Duration = Duration::from_millis(50);
/// and then twice as late each time, up to this.
const LOOK_LAST: Duration = Duration::from_secs(3);

impl Engine {
    /// Has another host of the fleet go on with a machine.
    pub fn move_to(
        self: &Arc<Self>,
        name: &str,
        request: MoveRequest,
        progress: ProgressSink<'_>,
    ) -> Result<MoveReport, Problem> {
        let requested = Instant::now();
        let machine = self.find(name)?;
        let operation = machine.begin("move")?;
        let record = machine.record();
        record.phase.allow(Verb::Move, name)?;
        let peer = self.peer(&request.host)?.ok_or_else(|| no_host(&request.host))?;
        if self.is_this(&request.host)? {
            return Err(Problem::new(
                ProblemCode::InvalidArgument,
                format!("machine {name} is at host {} already", request.host),
            ));
        }
        let moving = Moving {
            engine: self,
            machine: &machine,
            operation: &operation,
            peer: &peer,
            tap: request.tap.as_deref(),
            sent_bytes: Cell::new(0),
            progress,
        };
        let moved = match record.phase {
            Phase::Running => moving.running()?,
            _ => moving.suspended()?,
        };
        let sent_bytes = moving.sent_bytes.get();
        let left_objects = moving.leave();
        if left_objects > 0 {
            self.leave_behind(&machine);
        }
        Ok(MoveReport {
            machine: record.name,
            host: request.host,
            rounds: moved.rounds,
            pause_ms: moved.saved_ms + moved.went.there_ms,
            saved_ms: moved.saved_ms,
            first_exec_ms: moved.went.timeline.first_exec_ms,
            sent_bytes,
            left_objects,
            total_ms: requested.elapsed().as_secs_f64() * 1e3,
        })
    }

    /// What was given, and what was left, where a predecessor was.
    pub(crate) fn recover_moved(self: &Arc<Self>) {
        for machine in self.all() {
            if machine.record().phase.host().is_some() {
                self.leave_behind(&machine);
            }
        }
    }

    /// Asks the host that a machine was given to until it is known whose it is, and forgets the machine here when the host has
    /// all of it.
    fn leave_behind(self: &Arc<Self>, machine: &Arc<Machine>) {
        let (engine, leaving, away) = (Arc::downgrade(self), Arc::downgrade(machine), self.away.clone());
        let ask = move || {
            while let (Some(engine), Some(machine)) = (engine.upgrade(), leaving.upgrade()) {
                if machine.writing().forgotten || engine.ask_behind(&machine) {
                    return;
                }
                drop((engine, machine));
                if away.pause(ASK_BEHIND_EVERY).is_err() {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("moved".into()).spawn(ask) {
            tracing::warn!(%error, machine = machine.record().name, "it is found out at the next start whose it is");
        }
    }

    /// Is there nothing more to ask?
    fn ask_behind(self: &Arc<Self>, machine: &Arc<Machine>) -> bool {
        let record = machine.record();
        let peer = record.phase.host().map(|host| self.peer(host));
        let Some(Ok(Some(peer))) = peer else {
            return peer.is_none();
        };
        match &record.phase {
            Phase::Given { to, made } => match whose(&peer, &record, record.snapshot) {
                Ok(Ok(Settled::Taken)) => {
                    tracing::info!(machine = record.name, to, "it goes on there");
                    self.stop_live(machine);
                    let moved = self.moved(machine, to, made.clone());
                    moved
                        .inspect_err(|problem| tracing::warn!(%problem, "it is asked again"))
                        .ok();
                    false
                }
                Ok(Ok(Settled::Dropped)) => match self.go_on_here(machine) {
                    Ok(()) => true,
                    Err(problem) => {
                        tracing::error!(%problem, machine = record.name, "it does not go on yet");
                        false
                    }
                },
                _ => false,
            },
            _ => match record.snapshot.map(|id| lacks(&peer, &id)) {
                Some(Ok(0)) | None => self.left(machine).is_ok(),
                Some(_) => false,
            },
        }
    }

    /// It is known that the other host does not have it.
    fn go_on_here(self: &Arc<Self>, machine: &Arc<Machine>) -> Result<(), Problem> {
        let Some(live) = machine.live() else {
            self.update(machine, When::Now, |record| record.phase = Phase::Suspended)?;
            self.start_heart(machine); // of the line that was acquired for the other host
            return Ok(());
        };
        live.vm.cont().told()?;
        self.update(machine, When::Now, |record| record.phase = Phase::Running)?;
        let record = machine.record();
        tracing::info!(machine = record.name, "it goes on here");
        if let Some(agent) = live.agent() {
            let released = agent.release(Some(crate::launch::now_unix_ns()));
            released.told_as("the guest's user code does not go on")?;
        } else if record.agent {
            let agent = self.connect_agent(&record).told()?;
            self.take_calls(machine, &agent);
            *lock(&live.agent) = Some(agent);
        }
        Ok(())
    }

    /// The other host has it: its line, too.
    fn moved(&self, machine: &Arc<Machine>, to: &str, made: Option<String>) -> Result<(), Problem> {
        self.update(machine, When::Now, |record| {
            record.phase = Phase::Moved {
                to: to.to_owned(),
                made,
            };
            record.running = None;
            record.line = None;
        })
    }

    /// The other host has all of it.
    fn left(&self, machine: &Arc<Machine>) -> Result<(), Problem> {
        let record = machine.record();
        self.forget(machine)?;
        if let Phase::Moved { made: Some(made), .. } = &record.phase
            && let Err(problem) = self.snapshot_remove(made)
        {
            tracing::info!(%problem, "the last snapshot of a machine that has moved stays here");
        }
        Ok(())
    }
}

/// A machine on its way to another host.
struct Moving<'a> {
    engine: &'a Arc<Engine>,
    machine: &'a Arc<Machine>,
    operation: &'a Operation,
    peer: &'a PeerClient,
    /// The interface of that host that its network is to lead to.
    tap: Option<&'a str>,
    sent_bytes: Cell<u64>,
    progress: ProgressSink<'a>,
}

impl Moving<'_> {
    fn offer(&self, record: &Record) -> Result<(), Problem> {
        let mut config = record.config.clone();
        if let (Some(tap), true) = (self.tap, config.tap.is_some()) {
            config.tap = Some(tap.to_owned());
        }
        let offer = Offer {
            machine: record.id.clone(),
            name: record.name.clone(),
            config,
            hardware: record.hardware.clone(),
            line: record.line.clone(),
            member: self.engine.member_elsewhere(record)?,
        };
        let offered: Result<(), Problem> = ask(self.peer, "offer", &offer).told()?;
        let host = self.peer.peer();
        offered.map_err(|problem| {
            let refused = Problem {
                cause: Some(match &problem.cause {
                    Some(cause) => format!("{}: {cause}", problem.message),
                    None => problem.message.clone(),
                }),
                message: format!("host {host} cannot go on with machine {}", record.name),
                ..problem
            };
            match refused.code {
                ProblemCode::Incompatible => self.engine.name_hosts_that_could(refused, &record.hardware),
                _ => refused,
            }
        })
    }

    fn running(&self) -> Result<Moved, Problem> {
        self.offer(&self.machine.record())?;
        // What is put into the store and named by nothing yet.
        let _keeper = self.engine.store.begin().told()?;
        let first = self.engine.checkpoint_held(
            self.machine,
            self.operation,
            CheckpointRequest::default(),
            self.progress,
        )?;
        let live = self.machine.live_for(Verb::Checkpoint);
        let moved = live.and_then(|live| self.running_after(&live, &first.snapshot));
        // It has served its purpose, also when the machine stays.
        if let Err(problem) = self.engine.snapshot_remove(&first.reference) {
            tracing::info!(%problem, snapshot = first.reference, "it stays");
        }
        if moved.is_err() && self.machine.record().phase.host().is_none() {
            // So that it is not waited for there.
            let record = self.machine.record();
            let _ = whose(self.peer, &record, record.snapshot);
        }
        moved
    }

    fn running_after(&self, live: &Arc<crate::live::Live>, first: &str) -> Result<Moved, Problem> {
        let engine = self.engine;
        let mut rounds = Vec::new();
        let begun = Instant::now();
        let first: SnapshotId = first.parse().map_err(|_| wrong("a snapshot has no id"))?;
        let record = Key::new(Kind::Snapshot, first.0);
        let mut needs = engine.store.needs(&first).told()?;
        needs.retain(|(key, _)| *key != record);
        let sent_bytes = self.send(&needs, "sending the machine")?;
        drop(needs);
        rounds.push(round(begun, sent_bytes, None));
        let copied = self.copy_ahead(live, &mut rounds)?;
        let went = Cell::new(Went::default());
        let give = |id| self.give(id, &went);
        let saved = engine.save_given(self.machine, live, copied, &give, self.progress)?;
        Ok(Moved {
            rounds,
            saved_ms: saved.stop_ms,
            went: went.take(),
        })
    }

    /// Sends what was written since, again and again while that gets less; then only puts it into the store, which is faster,
    /// until so little is left that the pause is short.
    fn copy_ahead(
        &self,
        live: &crate::live::Live,
        rounds: &mut Vec<MoveRound>,
    ) -> Result<(Capture, PutAhead), Problem> {
        let engine = self.engine;
        let mapping = Mapping::find(live.vm.pid(), &live.memory_path).told()?;
        let mut ahead = PutAhead::over(&live.memory.image.manifest());
        let mut capture = Capture::prepare(live.vm.pid(), &mapping).told()?;
        let (mut sends, mut before_bytes) = (true, u64::MAX);
        for _ in 0..ROUNDS_MAX {
            let begun = Instant::now();
            let frames = engine.put_ahead(&mut ahead, &capture.take())?;
            let mut sent_bytes = 0;
            if sends {
                let keys = frames.iter().map(|frame| Key::new(Kind::Frame, frame.0));
                let needs = engine.store.located(keys.collect()).told()?;
                sent_bytes = self.send(&needs, "sending what was written meanwhile")?;
            }
            let rest_bytes = capture.look().told()?;
            rounds.push(round(begun, sent_bytes, Some(rest_bytes)));
            if rest_bytes <= SMALL_BYTES || !capture.is_watching() {
                break;
            }
            // It is written about as fast as it goes.
            let gets_less = rest_bytes < before_bytes / 4 * 3;
            match (gets_less, sends) {
                (true, _) => before_bytes = rest_bytes,
                (false, true) => (sends, before_bytes) = (false, u64::MAX),
                (false, false) => break,
            }
            capture.again().told()?;
        }
        capture.make_room().told()?;
        Ok((capture, ahead))
    }

    fn suspended(&self) -> Result<Moved, Problem> {
        let engine = self.engine;
        let record = self.machine.record();
        let acquired = match &record.line {
            Some(line) if line.hold == Hold::Lost => {
                return Err(Problem::new(
                    ProblemCode::WrongState,
                    format!("the line of machine {} was lost", record.name),
                )
                .remediation(format!(
                    "`martlet resume {}` here publishes its work beside it first",
                    record.name
                )));
            }
            Some(line) if line.hold == Hold::Free && line.published.is_some() => {
                let request = ResumeFromRequest::default();
                Some(engine.acquire_for(self.machine, &request, self.progress)?)
            }
            _ => None,
        };
        let moved = self.suspended_held();
        if let (Err(_), Some((lease, _signs))) = (&moved, acquired)
            && self.machine.record().phase.host().is_none()
        {
            engine.release_for(self.machine, &lease);
        }
        moved
    }

    fn suspended_held(&self) -> Result<Moved, Problem> {
        let record = self.machine.record();
        let id = record
            .snapshot
            .ok_or_else(|| wrong("a suspended machine has no snapshot"))?;
        self.offer(&record)?;
        let went = Cell::new(Went::default());
        match self.give(id, &went) {
            Fate::Taken => self.engine.remove_disks(&record, None),
            Fate::Back(problem) => {
                let back = |record: &mut Record| record.phase = Phase::Suspended;
                self.engine.update(self.machine, When::Now, back)?;
                return Err(problem);
            }
            Fate::Unknown(problem) => return Err(problem),
        }
        Ok(Moved {
            rounds: Vec::new(),
            saved_ms: 0.0,
            went: went.take(),
        })
    }

    /// The guest stands still, and all of it is in this snapshot.
    fn give(&self, id: SnapshotId, went: &Cell<Went>) -> Fate {
        let begun = Instant::now();
        let reference = match self.load_there(id) {
            Ok(reference) => reference,
            Err(problem) => return Fate::Back(problem),
        };
        crash::step("move");
        let (host, machine) = (self.peer.peer(), self.machine);
        let record = machine.record();
        // One that was suspended was saved by its user.
        let made = (record.phase != Phase::Suspended).then_some(reference);
        // Known before the host may go on with it, so that no successor lets it go on here.
        let given = self.engine.update_or_not(machine, |record| {
            record.phase = Phase::Given {
                to: host.to_owned(),
                made: made.clone(),
            };
            (record.snapshot, record.disk_base) = (Some(id), id);
        });
        if let Err(problem) = given {
            return Fate::Back(problem);
        }
        crash::step("move");
        let before_ms = begun.elapsed().as_secs_f64() * 1e3;
        let back = |problem: Problem| {
            // Without the snapshot: what comes then sets it.
            let phase = record.phase.clone();
            let taken_back = self.engine.update(machine, When::Now, |now| now.phase = phase);
            if let Err(unwritten) = taken_back {
                // A successor would ask that host, and hear the same.
                tracing::warn!(problem = %unwritten, machine = record.name, "that it goes on here is not recorded yet");
            }
            Fate::Back(problem)
        };
        let answer: Result<Result<Timeline, Problem>, PeerError> = ask(self.peer, "go", &record.id);
        crash::step("move");
        match answer {
            Ok(Ok(timeline)) => {
                went.set(Went {
                    there_ms: before_ms + timeline.first_instruction_ms.unwrap_or(0.0),
                    timeline,
                });
            }
            Ok(Err(problem)) => return back(of_host(host, problem)),
            Err(error) => match self.ask_whose(&record, id) {
                // When it went on is not known: by now.
                Some(Settled::Taken) => went.set(Went {
                    there_ms: begun.elapsed().as_secs_f64() * 1e3,
                    timeline: Timeline::default(),
                }),
                Some(Settled::Dropped) => return back(error.tell()),
                None => {
                    self.engine.leave_behind(machine);
                    return Fate::Unknown(
                        Problem::new(
                            ProblemCode::Busy,
                            format!("it is not known whether host {host} goes on with machine {}", record.name),
                        )
                        .cause(error)
                        .remediation(
                            "it stands still here until that host answers, and then goes on there or here by itself",
                        ),
                    );
                }
            },
        }
        crash::step("move");
        // What has happened is true also when it cannot be kept: that is found out again.
        let _ = self.engine.moved(machine, host, made);
        Fate::Taken
    }

    /// Has the host load it, up to where it only has to go on. Returns the snapshot's name.
    fn load_there(&self, id: SnapshotId) -> Result<String, Problem> {
        let (handed, sent_bytes) = self.engine.hand_over(self.peer, id, self.progress)?;
        self.sent_bytes.set(self.sent_bytes.get() + sent_bytes);
        let reference = handed.reference.clone();
        let load = Load {
            machine: self.machine.record().id,
            handed,
        };
        let loaded: Result<(), Problem> = ask(self.peer, "load", &load).told()?;
        loaded.map_err(|problem| of_host(self.peer.peer(), problem))?;
        Ok(reference)
    }

    /// Whose machine it is, if its host says so within some time.
    fn ask_whose(&self, record: &Record, id: SnapshotId) -> Option<Settled> {
        let begun = Instant::now();
        while begun.elapsed() < ASK_FOR {
            (self.progress)(stage(&format!("asking host {} whose it is", self.peer.peer())));
            if let Ok(Ok(settled)) = whose(self.peer, record, Some(id)) {
                return Some(settled);
            }
            self.engine.away.pause(ASK_EVERY).ok()?;
        }
        None
    }

    /// Waits until the host has all of the machine, which is forgotten here then. How many objects does it still lack?
    fn leave(&self) -> u64 {
        let Some(id) = self.machine.record().snapshot else {
            return 0;
        };
        let (mut most, mut last, mut heard) = (0, 0, Instant::now());
        let mut pause = LOOK_FIRST;
        while heard.elapsed() < ASK_FOR {
            if let Ok(left) = lacks(self.peer, &id) {
                if left == 0 && self.engine.left(self.machine).is_ok() {
                    return 0;
                }
                (most, last, heard) = (left.max(most), left, Instant::now());
                (self.progress)(Progress {
                    stage: "the rest, while it runs there".into(),
                    done: most - left,
                    total: Some(most),
                    unit: ProgressUnit::Items,
                });
            }
            if self.engine.away.pause(pause).is_err() {
                break;
            }
            pause = (pause * 2).min(LOOK_LAST);
        }
        last.max(1)
    }

    fn send(&self, needs: &[(Key, u32)], stage: &str) -> Result<u64, Problem> {
        let sent_bytes = self.engine.send_to(self.peer, needs, stage, self.progress)?;
        self.sent_bytes.set(self.sent_bytes.get() + sent_bytes);
        Ok(sent_bytes)
    }
}

/// How it left.
struct Moved {
    rounds: Vec<MoveRound>,
    /// From when it stood still until all of it was durable here.
    saved_ms: f64,
    went: Went,
}

/// How it went on there.
#[derive(Default)]
struct Went {
    /// From the snapshot to the first instruction there.
    there_ms: f64,
    timeline: Timeline,
}

fn round(begun: Instant, sent_bytes: u64, rest_bytes: Option<u64>) -> MoveRound {
    MoveRound {
        ms: begun.elapsed().as_secs_f64() * 1e3,
        sent_bytes,
        rest_bytes,
    }
}

/// Asks a host something about a machine. The outer error: there is no answer.
fn ask<A: DeserializeOwned>(
    peer: &PeerClient,
    what: &str,
    question: &impl Serialize,
) -> Result<Result<A, Problem>, PeerError> {
    peer.post(&format!("/peer/moves/{what}"), question)
}

/// Whose is a machine that a host was given, or was to be given, by this snapshot?
fn whose(
    peer: &PeerClient,
    record: &Record,
    snapshot: Option<SnapshotId>,
) -> Result<Result<Settled, Problem>, PeerError> {
    let settle = Settle {
        machine: record.id.clone(),
        snapshot: snapshot.map(|id| id.to_string()).unwrap_or_default(),
    };
    ask(peer, "settle", &settle)
}

/// How many objects of a snapshot a host still lacks.
fn lacks(peer: &PeerClient, id: &SnapshotId) -> Result<u64, Problem> {
    ask(peer, "lacks", &id.to_string()).told()?
}

/// What another host has said, with its name.
pub(crate) fn of_host(host: &str, problem: Problem) -> Problem {
    Problem {
        message: format!("host {host}: {}", problem.message),
        ..problem
    }
}

fn wrong(words: &str) -> Problem {
    Problem::new(ProblemCode::Internal, words)
}
