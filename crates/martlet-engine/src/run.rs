//! Starting machines: run, start, resume, rollback.

use crate::crash;
use crate::engine::{Engine, lock};
use crate::family_network::Member;
use crate::identity;
use crate::launch::{DiskFrom, From, Launch, Launched, Who, no_memory, now_unix_ms};
use crate::machine::{Config, HardwareRecord, Machine, Operation, Record, Undo};
use crate::outbound::{check_network, leads_out};
use crate::phase::{Phase, Verb};
use crate::problem::Told;
use crate::state::When;
use martlet_api::{
    Accel, InitKind, MachineInfo, PortForward, Probe, Problem, ProblemCode, Progress, ProgressSink,
    ProgressUnit, ResumeFromRequest, ResumeRequest, RollbackRequest, RunRequest, Timeline, User,
};
use martlet_image::{DiskRecord, Manifest, SnapshotId, SnapshotRecord};
use martlet_store::RefName;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Instant;

/// A machine's first start, in the foreground or in the background.
struct FirstStart {
    id: SnapshotId,
    snapshot: SnapshotRecord,
    probe: Option<Probe>,
    requested: Instant,
}

/// Tag under which bases are kept.
pub const BASE_TAG: &str = "base";
const CPUS_DEFAULT: u32 = 1;
const MEMORY_DEFAULT_BYTES: u64 = 512 << 20;
pub(crate) const MEMORY_MIN_BYTES: u64 = 64 << 20;
/// With less, Debian's kernel panics at boot now or with its next update: 6.1 needs 76 MiB to start the agent.
const KERNEL_MEMORY_MIN_BYTES: u64 = 96 << 20;
const MEMORY_MAX_BYTES: u64 = 1 << 40;
const DISK_MAX_BYTES: u64 = 16 << 40;

impl Engine {
    /// Starts a new machine from a base or a snapshot.
    pub fn run(
        self: &Arc<Self>,
        user: &User,
        request: RunRequest,
        progress: ProgressSink<'_>,
    ) -> Result<MachineInfo, Problem> {
        let requested = Instant::now();
        let (id, snapshot) = self.resolve_source(&request.from)?;
        let number = self.state.next("machine").told()?;
        let name = request
            .name
            .clone()
            .unwrap_or_else(|| identity::generated_name(number));
        martlet_api::names::check_name(&name)?;
        let config = self.configure(&request, &snapshot)?;
        let restored = snapshot.memory.is_some();
        if restored && !snapshot.agent && !request.allow_agentless {
            return Err(agentless(&request.from));
        }
        let machine_id = identity::machine_id();
        let record = Record {
            member: Member::founder(&machine_id, &config),
            id: machine_id,
            hostname: name.clone(),
            name,
            number,
            from: request.from.clone(),
            created_unix_ms: now_unix_ms(),
            phase: Phase::Starting,
            generation: snapshot.generation + u64::from(restored),
            snapshot: restored.then_some(id),
            disk_base: id,
            disk_number: 1,
            running: None,
            agent: false,
            timeline: Timeline::default(),
            hardware: planned_hardware(&config, &snapshot),
            undo: None,
            awaited: !request.detach,
            line: None,
            given: None,
            is_clone: false,
            user: user.clone(),
            kin: None,
            config,
        };
        let machine = self.add(record.clone())?;
        crash::step("start");
        let operation = machine.begin("run")?;
        self.repin(&machine, &record);
        let start = FirstStart {
            id,
            snapshot,
            probe: request.probe,
            requested,
        };
        if request.detach {
            let (engine, info) = (self.clone(), machine.info());
            std::thread::Builder::new()
                .name("run".into())
                .spawn(move || engine.start_detached(&machine, &operation, start))
                .map_err(|error| {
                    Problem::new(ProblemCode::Internal, "there is no thread for it").cause(error)
                })?;
            return Ok(info);
        }
        if let Err(problem) = self.first_start(&machine, &start, progress) {
            if machine.live().is_none() {
                // A machine that never ran is nothing to keep.
                let _ = self.forget(&machine); // logged
            }
            return Err(problem);
        }
        Ok(machine.info())
    }

    /// The start of a machine that nobody waits for. A failed one is kept: how else would its user learn why?
    fn start_detached(self: &Arc<Self>, machine: &Arc<Machine>, _operation: &Operation, start: FirstStart) {
        if let Err(problem) = self.first_start(machine, &start, &|_| ()) {
            tracing::warn!(%problem, machine = machine.record().name, "a machine that was started in the background");
        }
    }

    fn first_start(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        start: &FirstStart,
        progress: ProgressSink<'_>,
    ) -> Result<(), Problem> {
        let FirstStart {
            id,
            snapshot,
            probe,
            requested,
        } = start;
        let restored = snapshot.memory.is_some();
        let who = match restored {
            true => Who::Clone {
                parent: snapshot.machine_id.clone(),
                index: 1,
                asked: None,
            },
            false => Who::Same,
        };
        progress(stage(if restored { "restoring" } else { "booting" }));
        let disk = DiskFrom::New(self.disk_of(snapshot)?);
        self.launch_machine(machine, *id, snapshot, who, disk, *requested)?;
        let grown = |disk: &DiskRecord| disk.size_bytes < machine.record().config.disk_bytes;
        if snapshot.disks.first().is_some_and(grown) {
            self.grow_root(machine);
        }
        self.probe(machine, probe.as_ref(), *requested, progress)
    }

    /// Boots a stopped machine from its own disk.
    pub fn start(self: &Arc<Self>, name: &str, progress: ProgressSink<'_>) -> Result<MachineInfo, Problem> {
        let requested = Instant::now();
        let machine = self.find(name)?;
        let _operation = machine.begin("start")?;
        let record = machine.record();
        record.phase.allow(Verb::Start, name)?;
        self.may_run(&record)?;
        progress(stage("booting"));
        self.boot_again(&machine, requested)?;
        Ok(machine.info())
    }

    /// Boots a machine from its own disk.
    pub(crate) fn boot_again(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        requested: Instant,
    ) -> Result<(), Problem> {
        let record = machine.record();
        let below = self.store.snapshot(&record.disk_base).told()?;
        // A cold boot: the memory that snapshots of it have is left aside.
        let cold = SnapshotRecord {
            memory: None,
            ..below
        };
        let disk = self.disk_of(&cold)?;
        let kept = self.dirs.disk(&record.id, record.disk_number).exists();
        let disk = if kept {
            DiskFrom::Kept(disk)
        } else {
            DiskFrom::New(disk)
        };
        self.launch_machine(machine, record.disk_base, &cold, Who::Same, disk, requested)
    }

    /// Goes on from the snapshot a machine was suspended to.
    pub fn resume(
        self: &Arc<Self>,
        name: &str,
        request: ResumeRequest,
        progress: ProgressSink<'_>,
    ) -> Result<MachineInfo, Problem> {
        let requested = Instant::now();
        let machine = self.find(name)?;
        let _operation = machine.begin("resume")?;
        let record = machine.record();
        record.phase.allow(Verb::Resume, name)?;
        if record.line.as_ref().is_some_and(|line| line.published.is_some()) {
            let from = ResumeFromRequest {
                probe: request.probe,
                ..ResumeFromRequest::default()
            };
            return self.resume_line(&machine, &from, requested, progress);
        }
        let id = record.snapshot.ok_or_else(|| {
            Problem::new(
                ProblemCode::Internal,
                format!("machine {name} is suspended without a snapshot"),
            )
        })?;
        progress(stage("restoring"));
        self.restore_in_place(&machine, id, Who::Same, requested, Phase::Suspended)?;
        self.probe(&machine, request.probe.as_ref(), requested, progress)?;
        Ok(machine.info())
    }

    /// Goes back to an earlier snapshot of the same machine. History is not rewritten: the next checkpoint's parent is
    /// the snapshot gone back to.
    pub fn rollback(
        self: &Arc<Self>,
        name: &str,
        request: RollbackRequest,
        progress: ProgressSink<'_>,
    ) -> Result<MachineInfo, Problem> {
        let requested = Instant::now();
        let machine = self.find(name)?;
        let _operation = machine.begin("rollback")?;
        let record = machine.record();
        record.phase.allow(Verb::Rollback, name)?;
        self.may_run(&record)?;
        let (id, snapshot) = self.snapshot_named(&request.to)?;
        if snapshot.memory.is_none() {
            return Err(no_memory(&id));
        }
        if snapshot.machine_id != record.id {
            return Err(Problem::new(
                ProblemCode::InvalidArgument,
                format!(
                    "{} is a snapshot of machine {}, not of {name}",
                    request.to, snapshot.machine
                ),
            )
            .remediation(format!("start a machine from it: `martlet run {}`", request.to)));
        }
        progress(stage("restoring"));
        self.stop_live(&machine);
        // The disk of the present is given up only when the past runs.
        let fallback = if matches!(record.phase, Phase::Suspended) {
            Phase::Suspended
        } else {
            Phase::Stopped
        };
        self.restore_in_place(&machine, id, Who::Same, requested, fallback)?;
        Ok(machine.info())
    }

    /// Restores a snapshot as the machine that it is of. When that fails the machine is in phase `fallback`, with the
    /// disk it had.
    pub(crate) fn restore_in_place(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        id: SnapshotId,
        who: Who,
        requested: Instant,
        fallback: Phase,
    ) -> Result<(), Problem> {
        let snapshot = self.store.snapshot(&id).told()?;
        let before = machine.record();
        let counting = self.may_live(machine)?;
        let begun = self.update(machine, When::Now, |record| {
            record.undo = Some(Undo {
                phase: fallback,
                snapshot: before.snapshot,
                disk_base: before.disk_base,
                disk_number: before.disk_number,
            });
            record.phase = Phase::Starting;
            record.snapshot = Some(id);
            record.disk_base = id;
            record.disk_number += 1;
            record.generation = snapshot.generation.max(record.generation) + 1;
        });
        drop(counting);
        crash::step("start");
        let started = begun.and_then(|()| self.disk_of(&snapshot)).and_then(|disk| {
            let disk = DiskFrom::New(disk);
            self.launch_machine(machine, id, &snapshot, who, disk, requested)
        });
        match started {
            Ok(()) => {
                let record = machine.record();
                crash::step("start");
                self.remove_disks(&record, Some(record.disk_number));
                Ok(())
            }
            Err(problem) => {
                self.undo(machine)?;
                Err(problem)
            }
        }
    }

    /// Takes a restore back that did not succeed: the machine is what it was, with the disk it had.
    pub(crate) fn undo(&self, machine: &Machine) -> Result<(), Problem> {
        let record = machine.record();
        let Some(before) = record.undo else { return Ok(()) };
        self.keep_disk(machine, before.disk_number)?;
        self.update(machine, When::Now, |record| {
            record.phase = before.phase;
            // The disk's number is not given again: its directory may not be gone.
            record.snapshot = before.snapshot;
            record.disk_base = before.disk_base;
            record.running = None;
            record.undo = None;
        })
    }

    /// After a failed restore the machine has the disk it had.
    fn keep_disk(&self, machine: &Machine, number: u64) -> Result<(), Problem> {
        let record = machine.record();
        let (old, new) = (
            self.dirs.disk(&record.id, number),
            self.dirs.disk(&record.id, record.disk_number),
        );
        if old.exists() {
            // What the restore that failed has made of its own.
            let _ = std::fs::remove_dir_all(&new);
            std::fs::rename(&old, &new).map_err(|error| crate::problem::io("keep", &old, &error))?;
        }
        Ok(())
    }

    /// Launches and enters the result into the machine. On failure the machine is `Failed`.
    pub(crate) fn launch_machine(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        id: SnapshotId,
        snapshot: &SnapshotRecord,
        who: Who,
        disk: DiskFrom,
        requested: Instant,
    ) -> Result<(), Problem> {
        let counting = self.may_live(machine)?;
        let begun = self.update(machine, When::Later, |record| record.phase = Phase::Starting);
        drop(counting);
        crash::step("start");
        let init = init_of(snapshot);
        let from = match (&snapshot.memory, &snapshot.boot) {
            (Some(_), _) => From::Snapshot(id, Box::new(snapshot.clone())),
            (None, Some(boot)) => From::Boot(boot.clone()),
            (None, None) => From::Firmware,
        };
        let record = machine.record();
        let launch = Launch {
            machine,
            record: &record,
            from,
            who,
            disk,
            init,
            requested,
        };
        let launched = begun.and_then(|()| self.launch(launch));
        match launched.and_then(|launched| self.enter(machine, launched)) {
            Ok(()) => Ok(()),
            Err(problem) => {
                let why = match &problem.cause {
                    Some(cause) => format!("{}: {cause}", problem.message),
                    None => problem.message.clone(),
                };
                self.update(machine, When::Now, |record| {
                    record.phase = Phase::Failed { why };
                    record.running = None;
                })?;
                Err(problem)
            }
        }
    }

    fn enter(self: &Arc<Self>, machine: &Arc<Machine>, launched: Launched) -> Result<(), Problem> {
        let Launched {
            live,
            timeline,
            hardware,
        } = launched;
        let live = Arc::new(live);
        machine.set_live(Some(live.clone()));
        if let Some(agent) = live.agent() {
            self.take_calls(machine, &agent);
        }
        crash::step("start");
        let entered = self.update(machine, When::Now, |record| {
            record.phase = Phase::Running;
            record.undo = None;
            record.awaited = false;
            record.agent = live.agent().is_some();
            record.timeline = timeline;
            record.hardware = hardware;
            record.running = Some(live.to_record());
        });
        if let Err(problem) = entered {
            // A machine that a crash would forget must not run.
            live.expect_end();
            drop(live);
            self.end_live(machine);
            return Err(problem);
        }
        crash::step("start");
        self.watch(machine, &live);
        Ok(())
    }

    /// What `run FROM` means: a base of that name, else a snapshot.
    pub(crate) fn resolve_source(&self, from: &str) -> Result<(SnapshotId, SnapshotRecord), Problem> {
        martlet_api::names::check_reference(from)?;
        if let Ok(name) = RefName::new(from, BASE_TAG)
            && let Ok(id) = self.store.resolve(&name.to_string())
        {
            return Ok((id, self.store.snapshot(&id).told()?));
        }
        self.snapshot_named(from).map_err(|problem| match problem.code {
            ProblemCode::NotFound => Problem::new(ProblemCode::NotFound, format!("there is no base and no snapshot {from}"))
                .remediation(format!("`martlet base ls` and `martlet images` list what there is; `martlet base build {from}` makes a base")),
            _ => problem,
        })
    }

    /// A snapshot by reference or id.
    pub(crate) fn snapshot_named(&self, reference: &str) -> Result<(SnapshotId, SnapshotRecord), Problem> {
        martlet_api::names::check_reference(reference)?;
        let id = self
            .store
            .resolve(reference)
            .told_as(format!("there is no snapshot {reference}"))?;
        Ok((
            id,
            self.store
                .snapshot(&id)
                .told_as(format!("the record of snapshot {reference} cannot be read"))?,
        ))
    }

    pub(crate) fn configure(
        &self,
        request: &RunRequest,
        snapshot: &SnapshotRecord,
    ) -> Result<Config, Problem> {
        let saved: Option<Config> = snapshot
            .hardware
            .as_ref()
            .and_then(|hardware| serde_json::from_value(hardware.config.clone()).ok());
        let restored = snapshot.memory.as_ref().and(saved.as_ref());
        let disk = snapshot.disks.first().map_or(0, |disk| disk.size_bytes);
        let fixed = |what: &str, asked: String, is: String| {
            Problem::new(
                ProblemCode::InvalidArgument,
                format!("a restored machine keeps its {what}: {asked} was asked for, {is} was saved"),
            )
            .remediation("leave the option out, or start from a base")
        };
        if let (Some(memory), Some(_)) = (&snapshot.memory, &saved) {
            if let Some(asked) = request.memory_bytes.filter(|asked| *asked != memory.size_bytes) {
                return Err(fixed("memory", asked.to_string(), memory.size_bytes.to_string()));
            }
            let cpus = saved.as_ref().map_or(CPUS_DEFAULT, |saved| saved.cpus);
            if let Some(asked) = request.cpus.filter(|asked| *asked != cpus) {
                return Err(fixed("virtual CPUs", asked.to_string(), cpus.to_string()));
            }
            if request.family && !saved.as_ref().is_some_and(|saved| saved.family) {
                return Err(fixed("network cards", "one for a family".into(), "none".into()));
            }
            if request.disk_bytes.is_some_and(|asked| asked != disk) {
                return Err(fixed(
                    "disk size",
                    request.disk_bytes.unwrap_or_default().to_string(),
                    disk.to_string(),
                ));
            }
        }
        let memory_bytes = snapshot.memory.as_ref().map(|memory| memory.size_bytes);
        let memory_bytes = memory_bytes
            .or(request.memory_bytes)
            .unwrap_or(MEMORY_DEFAULT_BYTES);
        let cpus = request
            .cpus
            .or(saved.as_ref().map(|saved| saved.cpus))
            .unwrap_or(CPUS_DEFAULT);
        let disk_bytes = request.disk_bytes.unwrap_or(disk);
        let boots_kernel = snapshot.memory.is_none() && snapshot.boot.is_some();
        let memory_min_bytes = if boots_kernel {
            KERNEL_MEMORY_MIN_BYTES
        } else {
            MEMORY_MIN_BYTES
        };
        check_memory(memory_bytes, memory_min_bytes)?;
        check_network(request, restored)?;
        check_sizes(cpus, disk_bytes, disk)?;
        let base_env = snapshot.env.iter().filter_map(|pair| pair.split_once('='));
        let mut env: std::collections::BTreeMap<_, _> =
            base_env.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        env.extend(request.env.clone());
        Ok(Config {
            cpus,
            memory_bytes,
            disk_bytes,
            env,
            cmd: if request.cmd.is_empty() {
                snapshot.cmd.clone()
            } else {
                request.cmd.clone()
            },
            ports: pick_ports(&request.ports)?,
            accel: request.accel,
            outbound: request.outbound,
            outbound_to: request.outbound_to.clone(),
            outbound_bytes_per_s: request.outbound_bytes_per_s,
            family: restored.map_or(request.family || leads_out(request), |saved| saved.family),
            tap: request.tap.clone(),
            restart: request.restart,
            workdir: snapshot.labels.get("workdir").cloned(),
            user: snapshot.labels.get("user").cloned(),
            fork: request.fork.clone(),
        })
    }

    /// The root disk of a snapshot.
    pub(crate) fn disk_of(&self, snapshot: &SnapshotRecord) -> Result<Arc<Manifest>, Problem> {
        let disk = snapshot.disks.first().ok_or_else(|| {
            Problem::new(
                ProblemCode::Damaged,
                format!("the snapshot of {} has no disk", snapshot.machine),
            )
        })?;
        self.store
            .manifest(&disk.manifest)
            .told_as("the snapshot's disk cannot be read")
    }

    /// The root disk of a snapshot, by id.
    pub(crate) fn disk_manifest(&self, id: &SnapshotId) -> Result<Arc<Manifest>, Problem> {
        self.disk_of(&self.store.snapshot(id).told()?)
    }

    /// Lets the root file system fill a disk that was made larger.
    fn grow_root(&self, machine: &Machine) {
        let Some(agent) = machine.live().and_then(|live| live.agent()) else {
            return;
        };
        if let Err(error) = agent.grow_root(std::time::Duration::from_secs(60)) {
            tracing::warn!(%error, "the root file system does not fill its larger disk");
        }
    }

    /// Takes a machine out of everything.
    pub(crate) fn forget(&self, machine: &Arc<Machine>) -> Result<(), Problem> {
        let mut written = machine.writing();
        let record = machine.record();
        self.remember_taken(&record)?;
        let forgotten = self.state.remove_machine(&record.id);
        if let Err(error) = forgotten {
            tracing::warn!(%error, machine = record.name, "its record stays behind");
            // It would be there again after the next start of a daemon, so it is now.
            machine.change(|record| {
                if record.phase.is_live() {
                    record.phase = Phase::Stopped;
                }
            });
            return Err(error).told_as(format!("machine {} cannot be forgotten", record.name));
        }
        written.forgotten = true;
        tracing::info!(machine = record.name, "forgotten");
        crash::step("end");
        lock(&self.machines).remove(&record.name);
        machine.set_pins(Vec::new());
        for id in record.snapshot.iter().chain([&record.disk_base]) {
            if let Err(problem) = self.forget_unused(id) {
                tracing::warn!(%problem, snapshot = %id, "it still comes, for nobody");
            }
        }
        let _ = std::fs::remove_dir_all(self.dirs.machine(&record.id));
        crash::step("end");
        drop(written);
        self.tickets.forget_unused(&record.id);
        self.calls.forget(&record.id);
        Ok(())
    }

    /// Deletes the disks of a machine, but one.
    pub(crate) fn remove_disks(&self, record: &Record, but: Option<u64>) {
        let keep = but.map(|number| self.dirs.disk(&record.id, number));
        let Ok(entries) = std::fs::read_dir(self.dirs.machine(&record.id)) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let is_disk = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("disk-"));
            if is_disk && Some(&path) != keep.as_ref() {
                let _ = std::fs::remove_dir_all(&path);
            }
        }
    }
}

/// What a machine's hardware is until its first start says it exactly.
pub(crate) fn planned_hardware(config: &Config, snapshot: &SnapshotRecord) -> HardwareRecord {
    let saved = snapshot.hardware.as_ref();
    HardwareRecord {
        accel: config.accel.unwrap_or(Accel::Tcg),
        machine_type: saved.map_or_else(String::new, |saved| saved.machine_type.clone()),
        cpu_model: saved.map_or_else(String::new, |saved| saved.cpu_model.clone()),
        qemu_version: saved.map_or_else(String::new, |saved| saved.qemu_version.clone()),
    }
}

/// What runs as init in a snapshot.
pub fn init_of(snapshot: &SnapshotRecord) -> InitKind {
    match snapshot.init.as_str() {
        "systemd" => InitKind::Systemd,
        "firmware" => InitKind::Firmware,
        _ => InitKind::Command,
    }
}

/// As snapshots spell it.
pub fn init_text(init: InitKind) -> &'static str {
    match init {
        InitKind::Systemd => "systemd",
        InitKind::Command => "command",
        InitKind::Firmware => "firmware",
    }
}

/// A second guest with the identity and the entropy of the first is refused unless it is asked for in so many words.
pub fn agentless(source: &str) -> Problem {
    Problem::new(
        ProblemCode::GuestFailed,
        format!("{source} has no agent in its guest, so a clone could be given no identity of its own"),
    )
    .cause("clones would repeat each other's random numbers, names and addresses")
    .remediation("suspend and resume work without an agent; to clone all the same, add --allow-agentless")
}

pub(crate) fn check_memory(memory_bytes: u64, min_bytes: u64) -> Result<(), Problem> {
    let refuse = |message: String, remedy: String| {
        Err(Problem::new(ProblemCode::InvalidArgument, message).remediation(remedy))
    };
    if !(min_bytes..=MEMORY_MAX_BYTES).contains(&memory_bytes) {
        return refuse(
            format!("{memory_bytes} bytes of memory are not possible here"),
            format!(
                "ask for {}M to 1T with --memory, for example --memory 512M",
                min_bytes >> 20
            ),
        );
    }
    if !memory_bytes.is_multiple_of(1 << 20) {
        return refuse(
            format!("{memory_bytes} bytes of memory are not a whole number of MiB"),
            "for example --memory 512M".into(),
        );
    }
    Ok(())
}

pub(crate) fn check_sizes(cpus: u32, disk_bytes: u64, disk_min_bytes: u64) -> Result<(), Problem> {
    let refuse = |message: String, remedy: &str| {
        Err(Problem::new(ProblemCode::InvalidArgument, message).remediation(remedy))
    };
    if cpus == 0 || cpus > martlet_vm::spec::CPUS_MAX {
        return refuse(
            format!("{cpus} virtual CPUs are not possible"),
            "ask for 1 to 64 with --cpus",
        );
    }
    if disk_bytes < disk_min_bytes {
        return refuse(
            format!(
                "a disk of {disk_bytes} bytes is smaller than the {disk_min_bytes} of what it starts from"
            ),
            "a disk can only grow: ask for more with --disk",
        );
    }
    if disk_bytes > DISK_MAX_BYTES || !disk_bytes.is_multiple_of(4096) {
        return refuse(
            format!("a disk of {disk_bytes} bytes is not possible"),
            "ask for a multiple of 4096 bytes, at most 16T, for example --disk 4G",
        );
    }
    Ok(())
}

/// Fills in free host ports, and refuses ports that are taken.
pub(crate) fn pick_ports(asked: &[PortForward]) -> Result<Vec<PortForward>, Problem> {
    // All are held until all are picked, so that no port is picked twice.
    let mut held = Vec::new();
    let mut ports = Vec::new();
    for port in asked {
        if port.guest_port == 0 {
            return Err(Problem::new(
                ProblemCode::InvalidArgument,
                "port 0 of a guest cannot be forwarded",
            )
            .remediation("write -p HOST:GUEST, for example -p 8080:80"));
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.host_port)).map_err(|error| {
            Problem::new(
                ProblemCode::InUse,
                format!("port {} of this host cannot be forwarded", port.host_port),
            )
            .cause(error)
            .remediation("choose another, or 0 to have a free one picked")
        })?;
        let host_port = listener
            .local_addr()
            .map_or(port.host_port, |address| address.port());
        held.push(listener);
        ports.push(PortForward {
            host_port,
            guest_port: port.guest_port,
        });
    }
    Ok(ports)
}

pub(crate) fn stage(stage: &str) -> Progress {
    Progress {
        stage: stage.into(),
        done: 0,
        total: None,
        unit: ProgressUnit::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_sizes_are_refused_in_words() {
        const M: u64 = 1 << 20;
        let refused = |checked: Result<(), Problem>| {
            let problem = checked.unwrap_err();
            assert_eq!(problem.code, ProblemCode::InvalidArgument);
            assert!(problem.remediation.is_some());
            problem.message
        };
        for (cpus, disk) in [(0, 0), (1000, 0), (1, 4095), (1, u64::MAX - 4095)] {
            refused(check_sizes(cpus, disk, 0));
        }
        for memory in [0, M, 95 * M, u64::MAX, 512 * M + 1] {
            refused(check_memory(memory, 96 * M));
        }
        assert!(refused(check_sizes(1, 4 * M, 8 * M)).contains("smaller"));
        check_sizes(2, 8 * M, 8 * M).unwrap();
        check_memory(96 * M, 96 * M).unwrap();
    }

    #[test]
    fn ports_are_picked_once_and_taken_ones_are_refused() {
        let any = PortForward {
            host_port: 0,
            guest_port: 80,
        };
        let picked = pick_ports(&[any, any]).unwrap();
        assert!(picked[0].host_port != 0 && picked[0].host_port != picked[1].host_port);
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let problem = pick_ports(&[PortForward {
            host_port: port,
            guest_port: 80,
        }])
        .unwrap_err();
        assert_eq!(problem.code, ProblemCode::InUse);
        assert!(
            pick_ports(&[PortForward {
                host_port: 0,
                guest_port: 0
            }])
            .is_err()
        );
    }
}
