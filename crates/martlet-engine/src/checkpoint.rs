//! Taking the state of a running machine.
//!
//! ```text
//!            hold user code       stop vCPUs        copy private pages,       let vCPUs go,
//!  Running ───────────────► Held ───────────► Still ─freeze disk────► Captured ─release────► Running
//!     ▲                      │                 │      save descriptor    │
//!     └──────────────────────┴─────────────────┘                         └─ store: pages, blobs, manifests, record,
//!              any failure: vCPUs and user code go on                        then one durable commit
//! ```
//!
//! The guest stands still from `Held` to its release. Hashing, compressing and writing come after. Memory and disk
//! are of one instant: both are frozen between the stop and the go.
//!
//! Where the daemon may, pages are not copied at all: they are handed over to a twin of QEMU's process, which shares them until one
//! of both is written to and stands still until they are stored (`martlet-vm/src/capture/twin.rs`). Of a machine that does not
//! go on they stay where they are.
//!
//! User code is held *inside* the snapshot too. Whoever starts from it finds a guest in which nothing but the agent
//! runs, and the agent waits to be told who it is: that is why a clone cannot run user code under its parent's
//! identity (invariant 5).

use crate::crash;
use crate::engine::Engine;
use crate::give_up;
use crate::guest::not_connected;
use crate::host_memory::has_room_ahead;
use crate::launch::now_unix_ns;
use crate::live::Live;
use crate::machine::{Machine, Operation, Record};
use crate::phase::{Phase, Verb};
use crate::pool::Launching;
use crate::problem::{Told, of_guest};
use crate::state::When;
use crate::storing::PutAhead;
use martlet_api::{
    CheckpointMethod, CheckpointReport, CheckpointRequest, Problem, ProblemCode, Progress, ProgressSink,
    ProgressUnit,
};
use martlet_disk::FrozenLayer;
use martlet_image::{PAGE_SIZE, PageSet, SnapshotId};
use martlet_store::RefName;
use martlet_vm::agent::AgentError;
use martlet_vm::capture::{Capture, CapturedMemory, Mapping, PausedMemory, ToFork, Twin};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// User code is held within this time, or the checkpoint is refused. A process that waits for its disk cannot be held, and
/// the disk may be as slow as a host's that is busy writing.
const HOLD_TIMEOUT: Duration = Duration::from_secs(30);

/// User code is held. Dropping it lets user code go.
struct Held<'a> {
    live: &'a Live,
    /// Does an agent hold it? One that connects meanwhile does not, and no clone of what is saved could be trusted.
    by_agent: bool,
    since: Instant,
    released: bool,
}

impl<'a> Held<'a> {
    fn hold(live: &'a Live, record: &Record) -> Result<Self, Problem> {
        let since = Instant::now();
        let agent = live.agent();
        if agent.is_none() && record.agent {
            return Err(not_connected(&record.name));
        }
        if let Some(agent) = &agent {
            let held = agent.prepare(HOLD_TIMEOUT);
            if let Err(AgentError::Timeout { .. }) = held {
                // It may come about yet, when the guest is only slow. Nobody waits for that, and no time goes along: it
                // would be past by then.
                agent.release_unheard();
            }
            held.told_as("the guest's user code could not be held, so nothing was saved")?;
            crash::step("checkpoint");
        }
        Ok(Self {
            live,
            by_agent: agent.is_some(),
            since,
            released: false,
        })
    }

    /// How long user code was held, besides the time that the vCPUs stood still: the guest knows best, and its answer comes
    /// later than its release.
    fn release(mut self, stopped: Duration) -> Result<Duration, Problem> {
        self.released = true;
        let mut held = None;
        if let Some(agent) = self.live.agent() {
            held = agent
                .release(Some(now_unix_ns()))
                .told_as("the guest did not go on after its checkpoint")?;
        }
        Ok(held.map_or_else(|| self.since.elapsed(), |held| held + stopped))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let (false, Some(agent)) = (self.released, self.live.agent())
            && let Err(error) = agent.release(Some(now_unix_ns()))
        {
            tracing::warn!(%error, "a guest was not released after a failed checkpoint");
        }
    }
}

/// The vCPUs stand still. Dropping it lets them, then user code, go.
struct Still<'a> {
    held: Option<Held<'a>>,
    since: Instant,
}

impl<'a> Still<'a> {
    fn stop(held: Held<'a>) -> Result<Self, Problem> {
        let since = Instant::now();
        held.live.vm.stop().told()?;
        crash::step("checkpoint");
        Ok(Self {
            held: Some(held),
            since,
        })
    }

    fn live(&self) -> &'a Live {
        self.held.as_ref().expect("taken only when it goes on").live
    }

    fn go(mut self) -> Result<(Duration, Duration), Problem> {
        let held = self.held.take().expect("taken only here");
        held.live.vm.cont().told()?;
        crash::step("checkpoint");
        let stopped = self.since.elapsed();
        Ok((stopped, held.release(stopped)?))
    }

    /// How long it has stood still.
    fn so_far(&self) -> Pause {
        let stop = self.since.elapsed();
        Pause {
            pause: self.held.as_ref().map_or(stop, |held| held.since.elapsed()),
            stop,
        }
    }

    /// It is not to go on: QEMU ends.
    fn end(mut self) {
        if let Some(mut held) = self.held.take() {
            held.released = true;
        }
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take()
            && let Err(error) = held.live.vm.cont()
        {
            tracing::warn!(%error, "a guest did not go on after a failed checkpoint");
        }
    }
}

/// The guest's own pages, at one instant.
pub(crate) enum Own {
    /// A copy, and what was put into the store before the pause.
    Copied {
        memory: CapturedMemory,
        ahead: Option<PutAhead>,
    },
    /// In a twin of its process.
    Twin(Twin),
    /// In its process, which does not go on.
    InPlace(PausedMemory),
}

impl Own {
    /// How much it is.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.pages().len() * PAGE_SIZE as u64
    }

    /// Which pages.
    pub(crate) fn pages(&self) -> &PageSet {
        match self {
            Self::Copied { memory, .. } => memory.pages(),
            Self::Twin(twin) => twin.memory().pages(),
            Self::InPlace(memory) => memory.pages(),
        }
    }

    /// The guest has gone on: what was left for this time.
    fn finish(&mut self) -> Result<(), Problem> {
        match self {
            Self::Copied { memory, .. } => {
                memory.unwatch();
                Ok(())
            }
            Self::Twin(twin) => twin.find_pages().told(),
            Self::InPlace(_) => Ok(()),
        }
    }
}

/// Everything that a snapshot is made of, at one instant.
pub(crate) struct Captured {
    pub(crate) own: Own,
    /// Pages that the guest has reported free, whatever they hold.
    pub(crate) free: PageSet,
    pub(crate) descriptor: Vec<u8>,
    pub(crate) disk: FrozenLayer,
    /// Was user code held by an agent?
    pub(crate) agent: bool,
    /// Does the machine end by it, to start again here or elsewhere?
    pub(crate) ends: bool,
}

impl Captured {
    fn take(still: &Still<'_>, room: Room, ends: bool) -> Result<Self, Problem> {
        let live = still.live();
        let disk = live.disk.freeze().told_as("the disk could not be frozen")?;
        crash::step("checkpoint");
        let descriptor = live.vm.save_descriptor().told()?;
        crash::step("checkpoint");
        let own = match room {
            Room::Copy(capture, ahead) => {
                let memory = capture.finish().told()?;
                Own::Copied { memory, ahead }
            }
            Room::Twin(process) => match process.fork().told() {
                Ok(twin) => Own::Twin(twin),
                Err(problem) => {
                    // For instance where memory may not be promised twice (vm.overcommit_memory=2).
                    tracing::warn!(%problem, "no twin of a process; its memory is copied");
                    let memory = process.copy().told()?;
                    Own::Copied { memory, ahead: None }
                }
            },
            Room::InPlace(mut memory) => {
                memory.find_pages(live.vm.pid()).told()?;
                Own::InPlace(memory)
            }
        };
        crash::step("checkpoint");
        Ok(Self {
            own,
            free: live.reported().image.free_pages(live.key),
            descriptor,
            disk,
            agent: still.held.as_ref().is_some_and(|held| held.by_agent),
            ends,
        })
    }
}

/// Where the guest's own pages will be while they are written.
enum Room {
    /// In a copy, most of which is made before the pause, and may be in the store by then.
    Copy(Capture, Option<PutAhead>),
    /// In a twin of its process.
    Twin(ToFork),
    /// In its process.
    InPlace(PausedMemory),
}

/// What happens to the machine after its state was taken.
enum Afterwards<'a> {
    GoesOn,
    Ends,
    /// What this says of its snapshot.
    Given(&'a dyn Fn(SnapshotId) -> Fate),
}

/// What became of a machine that was given to another host.
pub(crate) enum Fate {
    /// It goes on there.
    Taken,
    /// It goes on here.
    Back(Problem),
    /// It stands still, until it is known.
    Unknown(Problem),
}

/// One checkpoint or suspend, with all that it has gathered before the pause.
struct Saving<'a> {
    machine: &'a Arc<Machine>,
    live: &'a Arc<Live>,
    record: &'a Record,
    reference: RefName,
    note: Option<String>,
    /// How long the guest was giving up what it can do without.
    give_up: Duration,
    room: Room,
    afterwards: Afterwards<'a>,
    requested: Instant,
}

/// How long a machine stood still.
#[derive(Default)]
struct Pause {
    pause: Duration,
    stop: Duration,
}

impl Engine {
    /// Takes a checkpoint; the machine goes on.
    pub fn checkpoint(
        self: &Arc<Self>,
        name: &str,
        request: CheckpointRequest,
        progress: ProgressSink<'_>,
    ) -> Result<CheckpointReport, Problem> {
        let machine = self.find(name)?;
        let operation = machine.begin("checkpoint")?;
        self.checkpoint_held(&machine, &operation, request, progress)
    }

    /// The same, for a command that holds the machine already.
    pub(crate) fn checkpoint_held(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        _operation: &Operation,
        request: CheckpointRequest,
        progress: ProgressSink<'_>,
    ) -> Result<CheckpointReport, Problem> {
        self.save(machine, request, false, progress)
    }

    /// Takes a checkpoint and ends the machine. Until the snapshot is durable the machine can go on, and does if it
    /// cannot be saved.
    pub fn suspend(
        self: &Arc<Self>,
        name: &str,
        request: CheckpointRequest,
        progress: ProgressSink<'_>,
    ) -> Result<CheckpointReport, Problem> {
        let machine = self.find(name)?;
        let _operation = machine.begin("suspend")?;
        let mut report = self.save(&machine, request, true, progress)?;
        if machine.record().line.is_some() {
            match self.publish_newest(&machine, false, progress) {
                Ok(published) => report.published = Some(published),
                Err(problem) => report.unpublished = Some(problem),
            }
        }
        Ok(report)
    }

    fn save(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        request: CheckpointRequest,
        ends: bool,
        progress: ProgressSink<'_>,
    ) -> Result<CheckpointReport, Problem> {
        let requested = Instant::now();
        let live = machine.live_for(Verb::Checkpoint)?;
        let record = machine.record();
        let reference = self.new_reference(&record, request.tag.as_deref())?;
        let give_up = give_up::before_pause(&live, &record, &request)?;
        crash::step("checkpoint");
        let mapping = Mapping::find(live.vm.pid(), &live.memory_path).told()?;
        let launching = self.pool.launching();
        let (room, afterwards) = match ends {
            true => {
                let memory = PausedMemory::open(live.vm.pid(), mapping).told()?;
                (Room::InPlace(memory), Afterwards::Ends)
            }
            false => (room(&request, &record, &live, &mapping)?, Afterwards::GoesOn),
        };
        let saving = Saving {
            machine,
            live: &live,
            record: &record,
            reference,
            note: request.note,
            give_up,
            room,
            afterwards,
            requested,
        };
        self.save_as(saving, launching, progress)
    }

    /// Takes what is left to be taken of a running machine and gives it away as `give` says of the snapshot.
    pub(crate) fn save_given(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        live: &Arc<Live>,
        (capture, ahead): (Capture, PutAhead),
        give: &dyn Fn(SnapshotId) -> Fate,
        progress: ProgressSink<'_>,
    ) -> Result<CheckpointReport, Problem> {
        let record = machine.record();
        let saving = Saving {
            machine,
            live,
            record: &record,
            reference: self.new_reference(&record, None)?,
            note: None,
            give_up: Duration::ZERO,
            room: Room::Copy(capture, Some(ahead)),
            afterwards: Afterwards::Given(give),
            requested: Instant::now(),
        };
        self.save_as(saving, self.pool.launching(), progress)
    }

    fn save_as(
        self: &Arc<Self>,
        saving: Saving<'_>,
        launching: Launching<'_>,
        progress: ProgressSink<'_>,
    ) -> Result<CheckpointReport, Problem> {
        let (machine, live) = (saving.machine, saving.live);
        live.disk.prepare_freeze().told_as("the disk cannot be frozen")?;
        crash::step("checkpoint");
        // From here on a daemon that finds this phase knows that the guest may stand still.
        self.update_or_not(machine, |record| {
            // Who has killed it meanwhile has had the last word.
            if !matches!(record.phase, Phase::Stopped | Phase::Failed { .. }) {
                record.phase = Phase::Pausing;
            }
        })?;
        crash::step("checkpoint");
        self.save_pausing(saving, launching, progress).or_else(|problem| {
            self.update(machine, When::Now, goes_on)?;
            Err(of_guest(&live.vm, problem))
        })
    }

    fn save_pausing(
        self: &Arc<Self>,
        saving: Saving<'_>,
        launching: Launching<'_>,
        progress: ProgressSink<'_>,
    ) -> Result<CheckpointReport, Problem> {
        let Saving {
            machine,
            live,
            record,
            reference,
            note,
            give_up,
            room,
            afterwards,
            requested,
        } = saving;
        progress(Progress {
            stage: "pausing".into(),
            done: 0,
            total: None,
            unit: ProgressUnit::None,
        });
        let held = Held::hold(live, record)?;
        let still = Still::stop(held)?;
        let ends = matches!(afterwards, Afterwards::Ends);
        let mut captured = Captured::take(&still, room, ends)?;
        crash::step("checkpoint");
        let method = match captured.own {
            Own::Twin(_) => CheckpointMethod::Handover,
            Own::Copied { .. } | Own::InPlace(_) => CheckpointMethod::Copy,
        };
        let mut give = None;
        let (gone, still) = match afterwards {
            Afterwards::GoesOn => (Some(still.go()?), None),
            Afterwards::Ends => (None, Some(still)),
            Afterwards::Given(to) => {
                give = Some(to);
                (None, Some(still))
            }
        };
        drop(launching);
        if still.is_none() {
            captured.own.finish()?;
            // It can be used. That its record says so has time until there is something else to say.
            machine.change(goes_on);
        }
        crash::step("checkpoint");
        let (committed, mut report) = self.put(live, record, &mut captured, &reference, note, progress)?;
        // The pin lasts until the machine has its own.
        let id = committed.id();
        // A machine that does not go on stands still until there is nothing left of it that could.
        let pause = match (gone, &still) {
            (Some((stop, pause)), _) => Pause { pause, stop },
            (None, still) => still.as_ref().map(Still::so_far).unwrap_or_default(),
        };
        report.give_up_ms = ms(give_up);
        report.pause_ms = ms(pause.pause);
        report.stop_ms = ms(pause.stop);
        report.method = method;
        let mut is_back = None;
        let still = match (still, give.map(|give| give(id))) {
            (Some(still), Some(Fate::Back(problem))) => {
                still.go()?;
                machine.change(goes_on);
                is_back = Some(problem);
                None
            }
            (Some(still), Some(Fate::Unknown(problem))) => {
                still.end(); // it stands, in its process
                return Err(problem);
            }
            (Some(still), Some(Fate::Taken)) => {
                live.expect_end();
                still.end();
                self.end_live(machine);
                self.remove_disks(&machine.record(), None);
                report.total_ms = ms(requested.elapsed());
                return Ok(report);
            }
            (still, _) => still,
        };
        let Captured { own, disk, .. } = captured;
        drop(own);
        match still {
            None => {
                self.update_or_not(machine, |record| {
                    goes_on(record);
                    record.snapshot = Some(id);
                    record.disk_base = id;
                })?;
                crash::step("checkpoint");
                self.rebase(live, &disk, &id);
                crash::step("checkpoint");
            }
            Some(still) => {
                drop(disk);
                self.update_or_not(machine, |record| {
                    record.phase = Phase::Suspended;
                    record.snapshot = Some(id);
                    record.disk_base = id;
                    record.running = None;
                })?;
                crash::step("checkpoint");
                live.expect_end();
                still.end();
                self.end_live(machine);
                crash::step("checkpoint");
                self.remove_disks(&machine.record(), None);
            }
        }
        report.total_ms = ms(requested.elapsed());
        match is_back {
            None => Ok(report),
            Some(problem) => Err(problem),
        }
    }

    /// The layer is in the store now: the disk reads it from there, and its file goes.
    fn rebase(&self, live: &Live, frozen: &FrozenLayer, id: &SnapshotId) {
        let rebased = self
            .disk_manifest(id)
            .and_then(|manifest| live.disk.rebase(manifest, frozen).told());
        if let Err(problem) = rebased {
            // The disk stays right, it only keeps a layer that is in the store as well.
            tracing::warn!(%problem, "a frozen disk layer was not dropped");
        }
    }

    /// A reference for a new snapshot: the tag asked for, which must be free, or the next number.
    fn new_reference(&self, record: &Record, tag: Option<&str>) -> Result<RefName, Problem> {
        let taken = |name: &RefName| self.store.refs().contains_key(name);
        if let Some(tag) = tag {
            martlet_api::names::check_tag(tag)?;
            let name = RefName::new(&record.name, tag).told()?;
            if taken(&name) {
                return Err(Problem::new(
                    ProblemCode::AlreadyExists,
                    format!("there is a snapshot {name} already"),
                )
                .remediation(format!("choose another tag, or `martlet images rm {name}` first")));
            }
            return Ok(name);
        }
        loop {
            let number = self.state.next(&format!("tag of {}", record.name)).told()?;
            let name = RefName::new(&record.name, &number.to_string()).told()?;
            if !taken(&name) {
                return Ok(name);
            }
        }
    }
}

/// Hands the pages over to a twin where the daemon may fork QEMU and there is memory for what the guest writes meanwhile, and
/// copies them where not.
fn room(
    request: &CheckpointRequest,
    record: &Record,
    live: &Live,
    mapping: &Mapping,
) -> Result<Room, Problem> {
    let is_wanted = match request.method {
        CheckpointMethod::Handover => true,
        CheckpointMethod::Auto => has_room_ahead(),
        CheckpointMethod::Copy => false,
    };
    if is_wanted {
        match ToFork::prepare(live.vm.pid(), mapping.clone()).told() {
            Ok(process) => return Ok(Room::Twin(process)),
            Err(problem) if request.method.is_auto() => {
                tracing::debug!(%problem, machine = record.name, "not handed over; its memory is copied");
            }
            Err(problem) => {
                let why = "its process cannot be forked, which takes a daemon that administers the system (CAP_SYS_ADMIN)";
                return Err(Problem::new(
                    ProblemCode::PermissionDenied,
                    format!("machine {} cannot be handed over", record.name),
                )
                .cause(format!("{why}: {problem}"))
                .remediation("leave the method out, and its memory is copied"));
            }
        }
    }
    let mut capture = Capture::prepare(live.vm.pid(), mapping).told()?;
    capture.make_room().told()?;
    Ok(Room::Copy(capture, None))
}

/// The pause is over, unless the machine was ended meanwhile.
fn goes_on(record: &mut Record) {
    if matches!(record.phase, Phase::Pausing) {
        record.phase = Phase::Running;
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
