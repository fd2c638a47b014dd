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
//! User code is held *inside* the snapshot too. Whoever starts from it finds a guest in which nothing but the agent
//! runs, and the agent waits to be told who it is: that is why a clone cannot run user code under its parent's
//! identity (invariant 5).

use crate::crash;
use crate::engine::Engine;
use crate::guest::not_connected;
use crate::launch::{now_unix_ms, now_unix_ns};
use crate::live::Live;
use crate::machine::{Machine, Operation, Record};
use crate::phase::{Phase, Verb};
use crate::problem::{Told, of_guest};
use crate::state::When;
use martlet_api::{
    Accel, Avoided, AvoidedMeans, CheckpointReport, CheckpointRequest, Problem, ProblemCode, Progress,
    ProgressSink, ProgressUnit,
};
use martlet_disk::{BlockChange, FrozenLayer};
use martlet_image::{
    DiskRecord, Hardware, Manifest, MemoryRecord, PAGE_SIZE, PageLocation, PageSet, SnapshotId,
    SnapshotRecord,
};
use martlet_store::{Batch, Pin, RefName};
use martlet_vm::agent::AgentError;
use martlet_vm::capture::{self, CaptureBuffer, CapturedMemory, Mapping};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// User code is held within this time, or the checkpoint is refused. A process that waits for its disk cannot be held, and
/// the disk may be as slow as a host's that is busy writing.
const HOLD_TIMEOUT: Duration = Duration::from_secs(30);
/// Pages handed to the store at a time.
const PAGES_AT_ONCE: usize = 4096;

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

    fn release(mut self) -> Result<Duration, Problem> {
        self.released = true;
        if let Some(agent) = self.live.agent() {
            agent
                .release(Some(now_unix_ns()))
                .told_as("the guest did not go on after its checkpoint")?;
        }
        Ok(self.since.elapsed())
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
        Ok((stopped, held.release()?))
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

/// Everything that a snapshot is made of, at one instant.
struct Captured {
    memory: CapturedMemory,
    free: PageSet,
    descriptor: Vec<u8>,
    disk: FrozenLayer,
    /// Was user code held by an agent?
    agent: bool,
}

impl Captured {
    fn take(still: &Still<'_>, mapping: &Mapping, buffer: CaptureBuffer) -> Result<Self, Problem> {
        let live = still.live();
        let disk = live.disk.freeze().told_as("the disk could not be frozen")?;
        crash::step("checkpoint");
        let descriptor = live.vm.save_descriptor().told()?;
        crash::step("checkpoint");
        let memory = capture::capture(live.vm.pid(), mapping, buffer).told()?;
        let mut free = live.reported().image.free_pages(live.key);
        for page in memory.pages().iter() {
            free.remove(page);
        }
        Ok(Self {
            memory,
            free,
            descriptor,
            disk,
            agent: still.held.as_ref().is_some_and(|held| held.by_agent),
        })
    }
}

/// What happens to the machine after its state was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Afterwards {
    GoesOn,
    Ends,
}

/// One checkpoint or suspend, with all that it has gathered before the pause.
struct Saving<'a> {
    machine: &'a Arc<Machine>,
    live: &'a Arc<Live>,
    record: &'a Record,
    reference: RefName,
    note: Option<String>,
    mapping: &'a Mapping,
    /// Room for what is copied in the pause. Given back right after it: idle, the daemon is small.
    buffer: CaptureBuffer,
    afterwards: Afterwards,
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
        self.save(machine, request, Afterwards::GoesOn, progress)
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
        self.save(&machine, request, Afterwards::Ends, progress)
    }

    fn save(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        request: CheckpointRequest,
        afterwards: Afterwards,
        progress: ProgressSink<'_>,
    ) -> Result<CheckpointReport, Problem> {
        let requested = Instant::now();
        let live = machine.live_for(Verb::Checkpoint)?;
        let record = machine.record();
        let reference = self.new_reference(&record, request.tag.as_deref())?;
        crash::step("checkpoint");
        let mapping = Mapping::find(live.vm.pid(), &live.memory_path).told()?;
        let mut buffer = CaptureBuffer::default();
        capture::prepare(live.vm.pid(), &mapping, &mut buffer).told()?;
        live.disk.prepare_freeze().told_as("the disk cannot be frozen")?;
        crash::step("checkpoint");
        // From here on a daemon that finds this phase knows that the guest may stand still.
        self.update_or_not(machine, |record| record.phase = Phase::Pausing)?;
        crash::step("checkpoint");
        let saving = Saving {
            machine,
            live: &live,
            record: &record,
            reference,
            note: request.note,
            mapping: &mapping,
            buffer,
            afterwards,
            requested,
        };
        self.save_pausing(saving, progress).or_else(|problem| {
            self.update(machine, When::Now, goes_on)?;
            Err(of_guest(&live.vm, problem))
        })
    }

    fn save_pausing(
        self: &Arc<Self>,
        saving: Saving<'_>,
        progress: ProgressSink<'_>,
    ) -> Result<CheckpointReport, Problem> {
        let Saving {
            machine,
            live,
            record,
            reference,
            note,
            mapping,
            buffer,
            afterwards,
            requested,
        } = saving;
        progress(Progress {
            stage: "pausing".into(),
            done: 0,
            total: None,
            unit: ProgressUnit::None,
        });
        let still = Still::stop(Held::hold(live, record)?)?;
        let captured = Captured::take(&still, mapping, buffer)?;
        crash::step("checkpoint");
        let (pause, still) = match afterwards {
            Afterwards::GoesOn => {
                let (stop, pause) = still.go()?;
                (Some(Pause { pause, stop }), None)
            }
            Afterwards::Ends => (None, Some(still)),
        };
        crash::step("checkpoint");
        let (committed, mut report) = self.put(live, record, &captured, &reference, note, progress)?;
        // The pin lasts until the machine has its own.
        let id = committed.id();
        // A machine that does not go on stands still until there is nothing left of it that could.
        let pause = pause
            .or_else(|| still.as_ref().map(Still::so_far))
            .unwrap_or_default();
        report.pause_ms = ms(pause.pause);
        report.stop_ms = ms(pause.stop);
        let Captured { memory, disk, .. } = captured;
        drop(memory);
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
        Ok(report)
    }

    /// Writes all of it to the store and commits it: only now the snapshot exists.
    fn put(
        &self,
        live: &Live,
        record: &Record,
        captured: &Captured,
        reference: &RefName,
        note: Option<String>,
        progress: ProgressSink<'_>,
    ) -> Result<(Pin, CheckpointReport), Problem> {
        let full = "the checkpoint could not be written";
        let parent = match record.snapshot {
            Some(id) => Some((id, self.store.snapshot(&id).told()?)),
            None => None,
        };
        let mut batch = self.store.begin().told_as(full)?;
        let memory = self
            .put_memory(&mut batch, live, captured, progress)
            .told_as(full)?;
        crash::step("checkpoint");
        let disk = put_disk(&mut batch, &captured.disk)?;
        crash::step("checkpoint");
        let parent_memory = parent
            .as_ref()
            .and_then(|(_, snapshot)| snapshot.memory.as_ref())
            .map(|m| m.manifest);
        let parent_disk = parent
            .as_ref()
            .and_then(|(_, snapshot)| snapshot.disks.first())
            .map(|disk| disk.manifest);
        let memory_manifest = batch
            .put_manifest(&memory.manifest, parent_memory)
            .told_as(full)?;
        let disk_manifest = batch.put_manifest(&disk.manifest, parent_disk).told_as(full)?;
        let descriptor = batch.put_blob(&captured.descriptor).told_as(full)?;
        let base = self.store.snapshot(&record.disk_base).told()?;
        let snapshot = SnapshotRecord {
            machine: record.name.clone(),
            machine_id: record.id.clone(),
            created_unix_ms: now_unix_ms(),
            parent: record.snapshot,
            note,
            memory: Some(MemoryRecord {
                manifest: memory_manifest,
                size_bytes: record.config.memory_bytes,
                descriptor,
                trace: None,
                free_pages: memory.unstored_pages,
            }),
            disks: vec![DiskRecord {
                manifest: disk_manifest,
                size_bytes: record.config.disk_bytes,
            }],
            hardware: Some(hardware(record)?),
            agent: captured.agent,
            generation: record.generation,
            hostname: record.hostname.clone(),
            // What it boots and what its base said of it go along, so that it can be started cold too.
            ..base
        };
        let id = batch.put_snapshot(&snapshot).told_as(full)?;
        crash::step("checkpoint");
        let committed = batch.commit(&[(reference.clone(), id)]).told_as(full)?;
        crash::step("checkpoint");
        let stats = committed.stats;
        let private_bytes = captured.memory.size_bytes();
        let clean = record
            .config
            .memory_bytes
            .saturating_sub(private_bytes + memory.unstored_pages * PAGE_SIZE as u64);
        let avoided = [
            (AvoidedMeans::Clean, clean),
            (AvoidedMeans::Zero, stats.zero_pages * PAGE_SIZE as u64),
            (
                AvoidedMeans::FreePageReporting,
                memory.unstored_pages * PAGE_SIZE as u64,
            ),
            (AvoidedMeans::Discard, disk.unstored_pages * PAGE_SIZE as u64),
            (AvoidedMeans::Duplicate, stats.duplicate_pages * PAGE_SIZE as u64),
        ];
        let report = CheckpointReport {
            snapshot: id.to_string(),
            reference: reference.to_string(),
            pause_ms: 0.0,
            stop_ms: 0.0,
            total_ms: 0.0,
            memory_bytes: record.config.memory_bytes,
            private_bytes,
            stored_bytes: stats.stored_bytes,
            new_bytes: stats.new_bytes,
            avoided: avoided
                .into_iter()
                .map(|(means, bytes)| Avoided { means, bytes })
                .collect(),
        };
        let pin = committed.pins.into_iter().next().expect("one snapshot was put");
        Ok((pin, report))
    }

    fn put_memory(
        &self,
        batch: &mut Batch,
        live: &Live,
        captured: &Captured,
        progress: ProgressSink<'_>,
    ) -> martlet_store::Result<PutImage> {
        let mut manifest = (**live.memory.image.manifest()).clone();
        let total = captured.memory.size_bytes();
        let mut done = 0;
        let mut pages = captured.memory.iter().peekable();
        while pages.peek().is_some() {
            let some: Vec<_> = pages.by_ref().take(PAGES_AT_ONCE).collect();
            done += (some.len() * PAGE_SIZE) as u64;
            put_pages(batch, &some, &mut manifest)?;
            progress(Progress {
                stage: "storing memory".into(),
                done,
                total: Some(total),
                unit: ProgressUnit::Bytes,
            });
        }
        // What the guest reported free and has not touched since: it does not care what is there, and zero is free.
        let mut free_pages = 0;
        for range in captured.free.iter_ranges() {
            free_pages += range.end - range.start;
            manifest.set_zero(range);
        }
        Ok(PutImage {
            manifest,
            unstored_pages: free_pages,
        })
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

/// The pause is over, unless the machine was ended meanwhile.
fn goes_on(record: &mut Record) {
    if matches!(record.phase, Phase::Pausing) {
        record.phase = Phase::Running;
    }
}

/// An image's new manifest and what it took.
struct PutImage {
    manifest: Manifest,
    /// Pages given up by the guest: reported free, or discarded.
    unstored_pages: u64,
}

/// Puts pages and writes their places into the manifest.
pub(crate) fn put_pages(
    batch: &mut Batch,
    pages: &[(u64, &[u8; PAGE_SIZE])],
    manifest: &mut Manifest,
) -> martlet_store::Result<()> {
    for (page, location) in batch.put_pages(pages.iter().copied())? {
        manifest.set(page, location);
    }
    Ok(())
}

fn put_disk(batch: &mut Batch, frozen: &FrozenLayer) -> Result<PutImage, Problem> {
    let pages = martlet_image::pages_for(frozen.size_bytes());
    let mut manifest = match frozen.base().page_count() {
        count if count == pages => (**frozen.base()).clone(),
        _ => frozen.base().resized(pages),
    };
    let mut discarded_pages = 0;
    let mut waiting: Vec<(u64, Box<[u8; PAGE_SIZE]>)> = Vec::new();
    let flush =
        |batch: &mut Batch, waiting: &mut Vec<(u64, Box<[u8; PAGE_SIZE]>)>, manifest: &mut Manifest| {
            let borrowed: Vec<_> = waiting.iter().map(|(page, bytes)| (*page, &**bytes)).collect();
            let put = put_pages(batch, &borrowed, manifest);
            waiting.clear();
            put.told_as("the disk could not be written to the store")
        };
    for (page, change) in frozen.changes() {
        match change {
            BlockChange::Zero => {
                discarded_pages += u64::from(manifest.locate(page) != PageLocation::Zero);
                manifest.set(page, PageLocation::Zero);
            }
            BlockChange::Data => {
                let mut bytes = Box::new([0; PAGE_SIZE]);
                frozen
                    .read_block(page, &mut bytes)
                    .told_as("the disk could not be read")?;
                waiting.push((page, bytes));
            }
        }
        if waiting.len() == PAGES_AT_ONCE {
            flush(batch, &mut waiting, &mut manifest)?;
        }
    }
    flush(batch, &mut waiting, &mut manifest)?;
    Ok(PutImage {
        manifest,
        unstored_pages: discarded_pages,
    })
}

fn hardware(record: &Record) -> Result<Hardware, Problem> {
    let config = serde_json::to_value(&record.config).map_err(|error| {
        Problem::new(ProblemCode::Internal, "the configuration cannot be recorded").cause(error)
    })?;
    Ok(Hardware {
        machine_type: record.hardware.machine_type.clone(),
        cpu_model: record.hardware.cpu_model.clone(),
        cpus: record.config.cpus,
        accel: match record.hardware.accel {
            Accel::Kvm => "kvm".into(),
            Accel::Tcg => "tcg".into(),
        },
        qemu_version: record.hardware.qemu_version.clone(),
        nic_mac: crate::identity::mac_text(crate::identity::mac(record.number)),
        address: crate::identity::address(record.number)
            .map(|byte| byte.to_string())
            .join("."),
        config,
    })
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
