//! Starting a virtual machine: booting it, or restoring it from a snapshot.
//!
//! ```text
//!  files ──► spawned ──► loaded ──► running ──► confirmed ──► Live
//!   disk,     QEMU        device     vCPUs go;   clock, entropy and identity are the machine's own,
//!   memory    answers     state is   user code   user code is released, a command has been executed
//!   image                 in         is held
//! ```
//!
//! Each step consumes the one before; dropping any of them before the end takes everything back: QEMU is killed, the
//! files are withdrawn, a disk made for this start is deleted. So a start fails closed, whatever fails.

use crate::arrivals::Arrival;
use crate::away::Starting;
use crate::crash;
use crate::engine::Engine;
use crate::family_network::Member;
use crate::identity;
use crate::live::Live;
use crate::machine::{HardwareRecord, Machine, Record, to_compat};
use crate::mapped::{Mapped, QEMU_GID};
use crate::pool::Ahead;
use crate::problem::{self, Told};
use crate::run_dir;
use crate::stalls::Run;
use crate::start_pages::StartWatch;
use martlet_agent_api as agent;
use martlet_api::{InitKind, PortForward, Problem, ProblemCode, Timeline};
use martlet_disk::{CowDisk, DiskError};
use martlet_fuse::{Placement, Prefetcher};
use martlet_image::{BootRecord, Manifest, PAGE_SIZE, SnapshotId, SnapshotRecord, Trace};
use martlet_pager::{MemoryImage, VmKey};
use martlet_switch::Plugged;
use martlet_vm::agent::{AgentClient, AgentError};
use martlet_vm::compat;
use martlet_vm::process::User;
use martlet_vm::running::StartOptions;
use martlet_vm::spec::{AGENT_SOCKET, Boot, Disk, Forward, Link, MachineSpec, Memory, Net};
use martlet_vm::{EndReason, RunningVm};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Pages this near each other are pushed together.
const PUSH_GAP_PAGES: u32 = 4;
/// A restored guest answers within this time, or it is not released at all.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(60);
/// A booting guest's agent answers within this time (emulated guests on a busy host are slow).
const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
/// A disk whose QEMU has ended is let go of within this time.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// Preference of the kernel's out-of-memory killer: rather a machine than the daemon.
const OOM_SCORE: i32 = 200;
/// Pages that earlier runs touched are pushed up to this amount.
const PREFETCH_BYTES: u64 = 64 << 20;
/// The first of them before the device state is loaded: QEMU looks at each device's rings then, which are all over the memory.
pub(crate) const LOAD_PAGES: usize = 64;

/// What to start from.
pub enum From {
    /// The machine's own disk: a cold boot.
    Boot(BootRecord),
    /// A snapshot with memory.
    Snapshot(SnapshotId, Box<SnapshotRecord>),
    /// The disk boots by its own boot loader.
    Firmware,
}

/// Who the guest is afterwards.
#[derive(Debug, Clone)]
pub enum Who {
    /// The machine it was: it goes on, or boots.
    Same,
    /// The machine it was, which was elsewhere: the network is another one.
    Arrived,
    /// The same, and it goes on when its host says so.
    Moved(Arc<Arrival>),
    /// Another one.
    Clone {
        /// Id of the machine it was cloned from.
        parent: String,
        /// 1-based index in its fork.
        index: u32,
        /// The call of a program in its parent that returns in it.
        asked: Option<agent::AskedFor>,
    },
}

/// Which disk it gets.
pub enum DiskFrom {
    /// A new one over this manifest, in a new directory.
    New(Arc<Manifest>),
    /// The one in its directory, over this manifest.
    Kept(Arc<Manifest>),
}

/// A start's parameters.
pub struct Launch<'a> {
    /// The machine: it learns which QEMU is being started, so that the start can be ended.
    pub machine: &'a Machine,
    /// The machine's record; its `disk_number` names the disk's directory.
    pub record: &'a Record,
    /// What to start from.
    pub from: From,
    /// Who the guest is afterwards.
    pub who: Who,
    /// Its disk.
    pub disk: DiskFrom,
    /// What runs as init.
    pub init: InitKind,
    /// When the request came in: where timelines begin.
    pub requested: Instant,
}

/// A start that succeeded.
pub struct Launched {
    /// What is alive.
    pub live: Live,
    /// Its instants.
    pub timeline: Timeline,
    /// Its hardware.
    pub hardware: HardwareRecord,
}

struct Files {
    disk: Arc<CowDisk>,
    disk_inode: u64,
    disk_name: String,
    disk_dir: PathBuf,
    memory: Arc<Mapped>,
    placeholder: Option<Arc<Mapped>>,
    user_number: Option<u64>,
    registry: Arc<martlet_fuse::Registry>,
    /// The disk is new and goes away with a failed start.
    made_disk: bool,
    kept: bool,
}

impl Drop for Files {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        self.registry.remove_disk(&self.disk_name);
        if self.made_disk
            && let Err(error) = std::fs::remove_dir_all(&self.disk_dir)
        {
            tracing::warn!(dir = %self.disk_dir.display(), %error, "a disk of a failed start stays behind");
        }
    }
}

/// QEMU runs; it is killed unless the start succeeds.
struct Spawned<'a> {
    machine: &'a Machine,
    vm: Option<RunningVm>,
    files: Files,
    key: VmKey,
    run: Arc<Run>,
    console_begin_bytes: u64,
    /// Pages that earlier runs touched.
    trace: Option<Trace>,
    /// Pushes the first of them.
    _first: Option<Prefetcher>,
    plugged: Option<Plugged>,
    _left: Option<Ahead>,
}

impl Drop for Spawned<'_> {
    fn drop(&mut self) {
        self.machine.set_starting_pid(None);
        if let Some(vm) = &self.vm {
            // Best effort on a path that already reports its failure.
            let _ = vm.kill();
            let _ = vm.wait(Duration::from_secs(10));
            self.files.registry.clear_owner(vm.pid());
        }
    }
}

impl Spawned<'_> {
    fn vm(&self) -> &RunningVm {
        self.vm.as_ref().expect("taken only by the last step")
    }
}

impl Engine {
    /// Starts a virtual machine.
    pub(crate) fn launch(&self, launch: Launch<'_>) -> Result<Launched, Problem> {
        let since_ms = |at: Instant| at.saturating_duration_since(launch.requested).as_secs_f64() * 1e3;
        let hardware = self.hardware(&launch)?;
        let _launching = self.pool.launching();
        let _reserved = self.reserve_memory(&launch)?;
        let ahead = self.take_ahead(&launch, &hardware);
        crash::step("start");
        let files = self.files(&launch, ahead.as_ref())?;
        crash::step("start");
        let mut spawned = self.spawn(&launch, &hardware, files, ahead)?;
        crash::step("start");
        let agent = match self.has_agent(&launch) {
            true => Some(self.connect(&launch)?),
            false => None,
        };
        crash::step("start");
        let may_leave = agent.is_some() && self.may_leave(&launch);
        let learning = (may_leave && self.is_unknown(&launch, &spawned.files.memory.image))
            .then(|| spawned.files.memory.image.learn());
        let (starter, _starting) = self.use_starter(&launch, &spawned.files.memory).unzip();
        if let From::Snapshot(_, snapshot) = &launch.from {
            let memory = snapshot
                .memory
                .as_ref()
                .expect("a snapshot to restore has memory");
            let descriptor = self
                .store
                .blob(&memory.descriptor)
                .told_as("the snapshot's device state cannot be read")?;
            spawned.vm().load_descriptor(&descriptor).told()?;
        }
        let mut timeline = Timeline {
            load_ms: Some(since_ms(Instant::now())),
            ..Timeline::default()
        };
        crash::step("start");
        if let Who::Moved(arrival) = &launch.who {
            arrival.loaded()?;
        }
        let running = spawned.vm().cont().told()?;
        crash::step("start");
        timeline.first_instruction_ms = Some(since_ms(running));
        let (pid, memory_path) = (
            spawned.vm().pid(),
            self.dirs.memory_file(&spawned.files.memory.name),
        );
        let start = may_leave.then(|| StartWatch::begin(pid, memory_path.clone(), learning));
        // A machine that nobody could watch has no starter.
        let start = start.and_then(Result::ok);
        let trace = spawned.trace.take();
        let image = spawned.files.memory.image.clone();
        let by_trace = || trace.and_then(|trace| Prefetcher::start(image, trace, PREFETCH_BYTES).ok());
        let prefetcher = starter.or_else(by_trace);
        if let Some(agent) = &agent {
            self.confirm(&launch, agent, spawned.vm())
                .map_err(|p| problem::of_guest(spawned.vm(), self.with_last_words(p, spawned.vm())))?;
            crash::step("start");
            first_exec(agent).or_else(|error| Err(error).told_as(never_executed(spawned.vm())))?;
            timeline.first_exec_ms = Some(since_ms(Instant::now()));
        }
        crash::step("start");
        let is_resumed = agent.is_some() && matches!(launch.from, From::Snapshot(..));
        spawned.files.kept = true;
        let vm = spawned.vm.take().expect("nobody took it before");
        let live = Live {
            agent: Mutex::new(agent),
            console_begin_bytes: spawned.console_begin_bytes,
            disk: spawned.files.disk.clone(),
            disk_inode: spawned.files.disk_inode,
            memory: spawned.files.memory.clone(),
            placeholder: spawned.files.placeholder.clone(),
            user_number: spawned.files.user_number,
            memory_path,
            key: spawned.key,
            run: spawned.run.clone(),
            since: Instant::now(),
            ending: AtomicBool::new(false),
            seen_cpu: [AtomicU64::new(0), AtomicU64::new(0)],
            _prefetcher: prefetcher,
            start: is_resumed.then(|| Mutex::new(start.map(StartWatch::end).unwrap_or_default())),
            registry: self.registry.clone(),
            disk_name: spawned.files.disk_name.clone(),
            plugged: spawned.plugged.take(),
            vm,
        };
        let hardware = HardwareRecord {
            qemu_version: self.qemu()?.version().to_owned(),
            ..HardwareRecord::of(&hardware)
        };
        Ok(Launched {
            live,
            timeline,
            hardware,
        })
    }

    /// Does nobody know what a start of this snapshot touches, all of which is here?
    fn is_unknown(&self, launch: &Launch<'_>, image: &MemoryImage) -> bool {
        let From::Snapshot(id, snapshot) = &launch.from else {
            return false;
        };
        snapshot.starter().is_none() && !self.away.has(id) && image.stats().demand_pages == 0
    }

    /// Is this machine likely to be suspended and to leave this host? A fork's clones hardly ever are, and there are many of them.
    fn may_leave(&self, launch: &Launch<'_>) -> bool {
        let is_of_fork = matches!(launch.who, Who::Clone { .. }) && launch.record.member.is_some();
        // It goes on by now: that this cannot be told is no reason to end it.
        matches!(launch.from, From::Snapshot(..)) && !is_of_fork && self.has_elsewhere().unwrap_or_default()
    }

    /// The hardware of this start: the snapshot's, if this host can have it, else what new machines get here.
    fn hardware(&self, launch: &Launch<'_>) -> Result<compat::Hardware, Problem> {
        let qemu = self.qemu()?;
        let asked = launch.record.config.accel.map(to_compat);
        let From::Snapshot(id, snapshot) = &launch.from else {
            return Ok(qemu.new_hardware(asked));
        };
        let saved = snapshot.hardware.as_ref().ok_or_else(|| {
            Problem::new(
                ProblemCode::Damaged,
                format!("snapshot {} does not say what hardware it needs", id.short()),
            )
        })?;
        let saved = compat::Hardware {
            machine_type: saved.machine_type.clone(),
            cpu_model: saved.cpu_model.clone(),
            accel: if saved.accel == "kvm" {
                compat::Accel::Kvm
            } else {
                compat::Accel::Tcg
            },
            qemu_version: saved.qemu_version.clone(),
        };
        let offer = qemu.offer().told()?;
        compat::check(&saved, &offer, asked)
            .map_err(martlet_vm::VmError::from)
            .told_as(format!("snapshot {} cannot run on this host", id.short()))
            .map_err(|refused| match self.could(&HardwareRecord::of(&saved)) {
                // It is what was asked for that this host cannot.
                Ok(()) => refused,
                Err(_) => self.name_hosts_that_could(refused, &HardwareRecord::of(&saved)),
            })?;
        Ok(saved)
    }

    fn files(&self, launch: &Launch<'_>, ahead: Option<&Ahead>) -> Result<Files, Problem> {
        let record = launch.record;
        let (snapshot, manifest) = match &launch.from {
            From::Snapshot(id, snapshot) => {
                let memory = snapshot.memory.as_ref().ok_or_else(|| no_memory(id))?;
                (
                    Some(*id),
                    self.store
                        .manifest(&memory.manifest)
                        .told_as("the snapshot's memory cannot be read")?,
                )
            }
            From::Boot(_) | From::Firmware => (
                None,
                Arc::new(Manifest::zero(record.config.memory_bytes / PAGE_SIZE as u64)),
            ),
        };
        let memory = self.images.map(snapshot, manifest, None)?;
        self.dirs.create_machine(&record.id)?;
        crash::step("start");
        let disk_dir = self.dirs.disk(&record.id, record.disk_number);
        let (disk, made_disk) = match &launch.disk {
            DiskFrom::New(manifest) => (
                CowDisk::create(
                    &disk_dir,
                    self.pager.clone(),
                    manifest.clone(),
                    record.config.disk_bytes,
                )
                .told()?,
                true,
            ),
            DiskFrom::Kept(manifest) => (
                self.open_disk(&disk_dir, manifest, record.config.disk_bytes)?,
                false,
            ),
        };
        crash::step("start");
        let user_number = ahead.map(|ahead| ahead.number);
        let user = self.qemu_user(user_number.unwrap_or(record.number));
        let (uid, gid) = user
            .as_ref()
            .map_or_else(current_ids, |user| (user.uid, user.gid));
        let disk_name = record.disk_name();
        let placement = Placement {
            ino: None,
            uid,
            gid,
            mode: 0o600,
        };
        let disk_inode = self
            .registry
            .add_disk(&disk_name, disk.clone(), placement)
            .told()?;
        Ok(Files {
            disk,
            disk_inode,
            disk_name,
            disk_dir,
            memory,
            placeholder: None,
            user_number,
            registry: self.registry.clone(),
            made_disk,
            kept: false,
        })
    }

    /// Opens a disk that was in use until just now: who looked at the machine last may not have let go of it yet.
    fn open_disk(
        &self,
        dir: &Path,
        manifest: &Arc<Manifest>,
        size_bytes: u64,
    ) -> Result<Arc<CowDisk>, Problem> {
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        loop {
            match CowDisk::open(dir, self.pager.clone(), manifest.clone(), size_bytes) {
                Err(DiskError::InUse { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                opened => return opened.told(),
            }
        }
    }

    fn spawn<'a>(
        &self,
        launch: &Launch<'a>,
        hardware: &compat::Hardware,
        mut files: Files,
        ahead: Option<Ahead>,
    ) -> Result<Spawned<'a>, Problem> {
        let record = launch.record;
        let user = self.qemu_user(files.user_number.unwrap_or(record.number));
        let run_dir = self.run_dir(record);
        let boot = match &launch.from {
            From::Boot(boot) => Boot::Kernel {
                kernel: self.boot_file(&boot.kernel)?,
                initrd: Some(self.boot_file(&boot.initrd)?),
                cmdline: boot.cmdline.clone(),
            },
            From::Snapshot(..) | From::Firmware => Boot::Firmware,
        };
        let spec = MachineSpec {
            name: record.name.clone(),
            hardware: hardware.clone(),
            cpus: record.config.cpus,
            memory: Memory {
                path: self.dirs.memory_file(&files.memory.name),
                size_bytes: record.config.memory_bytes,
                free_page_reporting: true,
            },
            disks: vec![Disk {
                path: Some(self.dirs.disk_file(&files.disk_name)),
                read_only: false,
            }],
            boot,
            net: Some(net(record)),
            generation_id: identity::uuid(),
            run_dir,
            incoming: matches!(launch.from, From::Snapshot(..)),
        };
        // From here on it is this machine's: who kills the machine ends it.
        launch.machine.set_starting_pid(ahead.as_ref().map(Ahead::pid));
        let image = files.memory.image.clone();
        let (mut trace, mut first, mut left) = (None, None, None);
        let mut push_first = || (trace, first) = self.push_first(launch, &image).unzip();
        let bound = ahead.and_then(|ahead| match self.bind_ahead(ahead, &spec, &mut push_first) {
            Ok(bound) => Some(bound),
            Err(problem) => {
                tracing::warn!(%problem, machine = record.name, "a QEMU started ahead is of no use; another is started");
                launch.machine.set_starting_pid(None);
                None
            }
        });
        let (vm, console_begin_bytes) = match bound {
            Some(bound) => {
                files.placeholder = Some(bound.placeholder);
                left = Some(bound.left);
                (bound.vm, length(&spec.console_log()))
            }
            None => {
                run_dir::renew(&spec.run_dir, user.as_ref())
                    .map_err(|error| problem::io("make", &spec.run_dir, &error))?;
                let options = StartOptions {
                    user,
                    oom_score_adj: Some(OOM_SCORE),
                    env: Vec::new(),
                };
                let begin_bytes = length(&spec.console_log());
                let vm = RunningVm::start(self.qemu()?, &spec, &options, self.spawner.clone()).told()?;
                push_first();
                (vm, begin_bytes)
            }
        };
        let key = VmKey(self.next_key());
        self.registry.set_owner(vm.pid(), key);
        let snapshot = match launch.from {
            From::Snapshot(id, _) => Some(id),
            From::Boot(_) | From::Firmware => None,
        };
        let run = Run::new(self.stalls_file(&record.id), snapshot, launch.requested);
        self.stalls.watch(key, &run);
        launch.machine.set_starting_pid(Some(vm.pid()));
        let mut spawned = Spawned {
            machine: launch.machine,
            vm: Some(vm),
            files,
            key,
            run,
            console_begin_bytes,
            trace,
            _first: first,
            plugged: None,
            _left: left,
        };
        if let Some(tap) = &record.config.tap {
            spawned.vm().bind_tap(tap).told()?;
        }
        spawned.plugged = self.plug_in(record, &self.run_dir(record), Some(spawned.vm()))?;
        Ok(spawned)
    }

    /// The user that QEMU runs as: nobody's but this machine's. An ordinary user's QEMU runs as that user.
    pub(crate) fn qemu_user(&self, number: u64) -> Option<User> {
        let uid = identity::uid(number);
        self.is_root.then(|| User {
            uid,
            gid: uid,
            groups: [Some(QEMU_GID), self.kvm_gid].into_iter().flatten().collect(),
        })
    }

    fn has_agent(&self, launch: &Launch<'_>) -> bool {
        match &launch.from {
            From::Boot(_) => true,
            From::Snapshot(_, snapshot) => snapshot.agent,
            From::Firmware => false,
        }
    }

    /// All pages that earlier runs touched, and who pushes the first of them. QEMU must have the image open.
    fn push_first(&self, launch: &Launch<'_>, image: &Arc<MemoryImage>) -> Option<(Trace, Prefetcher)> {
        let From::Snapshot(id, _) = &launch.from else {
            return None;
        };
        if self.away.has(id) {
            return None; // what comes first is said there
        }
        let trace = self.trace(id)?;
        let first = &trace.pages()[..trace.pages().len().min(LOAD_PAGES)];
        let first = Trace::new(without_gaps(first));
        let first = Prefetcher::urgent(image.clone(), first, PREFETCH_BYTES).ok()?;
        Some((trace, first))
    }

    /// What is away of a snapshot is read from its starter, as far as that has it.
    fn use_starter(
        &self,
        launch: &Launch<'_>,
        memory: &Arc<Mapped>,
    ) -> Option<(Prefetcher, Option<Starting>)> {
        let From::Snapshot(id, _) = &launch.from else {
            return None;
        };
        let prefetcher = Prefetcher::of_starter(memory.image.clone(), self.starters.of(id)?).ok()?;
        Some((prefetcher, self.away.starting(id)))
    }

    /// Connects to the agent's channel, before the guest is there: a restored one then finds its host connected, as it
    /// was when it was saved, and does not have to open its end anew.
    fn connect(&self, launch: &Launch<'_>) -> Result<AgentClient, Problem> {
        let socket = self.run_dir(launch.record).join(AGENT_SOCKET);
        let epoch = u64::from_le_bytes(identity::random());
        AgentClient::connect(&socket, epoch, CONFIRM_TIMEOUT).told()
    }

    /// Makes the guest the machine it is to be, then lets its user code go. Nothing of it ran before.
    fn confirm(&self, launch: &Launch<'_>, client: &AgentClient, vm: &RunningVm) -> Result<(), Problem> {
        let booting = matches!(launch.from, From::Boot(_));
        let timeout = if booting { BOOT_TIMEOUT } else { CONFIRM_TIMEOUT };
        let start = match launch.who {
            Who::Same | Who::Arrived | Who::Moved(_) => agent::Start::Same,
            Who::Clone { .. } => agent::Start::Clone,
        };
        let greeted = match booting {
            true => client.hello_booting(timeout),
            false => client.hello(start, timeout),
        };
        heard(greeted, vm)?;
        client
            .identify(&self.identity(launch), timeout)
            .told_as("the guest did not take on its identity, so it was not started")?;
        crash::step("start");
        client
            .release(Some(now_unix_ns()))
            .told_as("the guest did not go on")?;
        if booting {
            self.start_command(launch, client)?;
        }
        Ok(())
    }

    fn identity(&self, launch: &Launch<'_>) -> agent::Identity {
        let record = launch.record;
        let booting = matches!(launch.from, From::Boot(_));
        let (parent_id, index, asked) = match &launch.who {
            Who::Same | Who::Arrived | Who::Moved(_) => (None, 0, None),
            Who::Clone { parent, index, asked } => (Some(parent.clone()), *index, asked.clone()),
        };
        let is_new = booting || parent_id.is_some();
        let moves = match launch.who {
            Who::Clone { .. } => true,
            Who::Same => booting,
            // A tap interface leads to a network that is not this host's: the guest is known there by its addresses.
            Who::Arrived | Who::Moved(_) => record.config.tap.is_none(),
        };
        agent::Identity {
            clone_id: record.id.clone(),
            generation: record.generation,
            parent_id,
            index,
            asked,
            name: record.name.clone(),
            realtime_unix_ns: now_unix_ns(),
            entropy: identity::random::<64>().to_vec(),
            hostname: is_new.then(|| record.hostname.clone()),
            machine_id: None,
            network: moves.then(|| agent::Network {
                interface: None,
                mac: (!booting).then(|| identity::mac_text(identity::mac(record.number))),
                address: Ipv4Addr::from(identity::address(record.number)),
                prefix: Net::PREFIX_LEN,
                // One with a list has another way out, and no other.
                gateway: (!record.config.has_list()).then_some(Net::GATEWAY),
                dns: (!record.config.has_list())
                    .then_some(Net::DNS)
                    .into_iter()
                    .collect(),
            }),
            family: record
                .member
                .as_ref()
                .map(|member| member.to_guest(&record.config)),
            policy: agent::IdentityPolicy {
                hostname: is_new,
                // An image's own init chooses its machine id when it boots.
                machine_id: is_new && !(booting && launch.init == InitKind::Systemd),
                boot_id: is_new && !booting,
                network: moves,
                tools: booting,
                hooks: !booting,
                ..agent::IdentityPolicy::default()
            },
        }
    }

    fn start_command(&self, launch: &Launch<'_>, client: &AgentClient) -> Result<(), Problem> {
        let config = &launch.record.config;
        if config.cmd.is_empty() {
            return Ok(());
        }
        let command = agent::Command {
            argv: config.cmd.clone(),
            env: config.env.clone(),
            cwd: config.workdir.clone(),
            user: config.user.clone(),
        };
        client
            .start_command(&command)
            .told_as("the machine's command could not be started")
    }

    /// Adds what QEMU and the console said last to a problem of a start.
    fn with_last_words(&self, problem: Problem, vm: &RunningVm) -> Problem {
        let console = vm.handle().stderr_log.with_file_name("console.log");
        let console = martlet_vm::process::tail(&console, 600);
        let words: Vec<String> = [("QEMU", vm.last_words()), ("console", console)]
            .into_iter()
            .filter(|(_, words)| !words.trim().is_empty())
            .map(|(who, words)| format!("{who}: {}", words.trim()))
            .collect();
        match (problem.cause.clone(), words.is_empty()) {
            (_, true) => problem,
            (Some(cause), false) => problem.cause(format!("{cause}; last words: {}", words.join("; "))),
            (None, false) => problem.cause(format!("last words: {}", words.join("; "))),
        }
    }
}

/// Has the agent answered? QEMU may have ended instead.
fn heard(greeted: Result<agent::HelloReply, AgentError>, vm: &RunningVm) -> Result<(), Problem> {
    match greeted {
        Ok(_) => Ok(()),
        Err(error) if !vm.is_alive() || vm.has_panicked() => Err(Problem::new(
            ProblemCode::GuestFailed,
            "the guest ended before its agent answered",
        )
        .cause(error)
        .remediation("`martlet verify` tells whether what it starts from is damaged")),
        Err(error @ AgentError::Timeout { .. }) => Err(error).told_as("the guest's agent does not answer"),
        Err(error) => Err(error).told(),
    }
}

/// Executes the least there is. A guest without `true` has answered too.
fn first_exec(agent: &AgentClient) -> Result<(), AgentError> {
    let command = agent::Command {
        argv: vec!["/bin/true".into()],
        ..agent::Command::default()
    };
    match agent.exec_wait(command, &[], 0, CONFIRM_TIMEOUT) {
        Ok(_) | Err(AgentError::Remote(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn never_executed(vm: &RunningVm) -> &'static str {
    match vm.end_reason() {
        Some(EndReason::GuestReset) => "the guest rebooted before it executed anything",
        Some(EndReason::GuestShutdown) => "the guest shut itself down before it executed anything",
        _ => "the guest does not execute commands",
    }
}

/// In order, and with what is between those near each other: a push is dearer than a page.
fn without_gaps(pages: &[u32]) -> Vec<u32> {
    let mut sorted = pages.to_vec();
    sorted.sort_unstable();
    let ends = sorted.iter().skip(1).map(Some).chain([None]);
    let runs = sorted.iter().zip(ends).map(|(page, next)| match next {
        Some(next) if next - page <= PUSH_GAP_PAGES => *page..*next,
        _ => *page..page.saturating_add(1),
    });
    runs.flatten().collect()
}

/// The network cards of a machine.
fn net(record: &Record) -> Net {
    let (number, config) = (record.number, &record.config);
    let forward = |port: &PortForward| Forward {
        host_port: port.host_port,
        guest_port: port.guest_port,
    };
    Net {
        address: Ipv4Addr::from(identity::address(number)),
        mac: identity::mac_text(identity::mac(number)),
        link: match config.tap {
            Some(_) => Link::Tap,
            None => Link::User {
                forwards: config.ports.iter().map(forward).collect(),
                outbound: config.outbound,
            },
        },
        family: record.member.as_ref().map(Member::card),
    }
}

/// Of a log that may not be there.
pub fn length(log: &Path) -> u64 {
    std::fs::symlink_metadata(log).map_or(0, |meta| meta.len())
}

/// A base was asked to be restored.
pub fn no_memory(id: &SnapshotId) -> Problem {
    Problem::new(
        ProblemCode::InvalidArgument,
        format!("snapshot {} has no memory: it is a base", id.short()),
    )
    .remediation("start a machine from it with `martlet run`")
}

/// User and group of this process.
pub fn current_ids() -> (u32, u32) {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").map_or((0, 0), |meta| (meta.uid(), meta.gid()))
}

/// Nanoseconds since 1970.
pub fn now_unix_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

/// Milliseconds since 1970.
pub fn now_unix_ms() -> u64 {
    now_unix_ns() / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_each_other_is_pushed_together() {
        assert_eq!(without_gaps(&[20, 1, 4, 9]), [1, 2, 3, 4, 9, 20]);
        assert_eq!(without_gaps(&[]), [0; 0]);
        assert_eq!(without_gaps(&[u32::MAX]), [0; 0], "no such page");
    }
}
