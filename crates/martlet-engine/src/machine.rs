//! A machine: its durable record, the guard that lets one command at a time work on it, and what is alive of it.

use crate::engine::lock;
use crate::family_network::Member;
use crate::line::Line;
use crate::live::Live;
use crate::phase::{Phase, Verb};
use crate::problem::out_of_room;
use martlet_api::{Accel, ForkPolicy, MachineInfo, PortForward, Problem, ProblemCode, Timeline, User};
use martlet_image::SnapshotId;
use martlet_store::Pin;
use martlet_vm::compat;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What is remembered of a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Id: 12 hexadecimal digits, never reused; also the name of its directory.
    pub id: String,
    /// Name.
    pub name: String,
    /// Number: address, MAC address and user id follow from it.
    pub number: u64,
    /// What it was started from, as its user wrote it.
    pub from: String,
    /// When it was created.
    pub created_unix_ms: u64,
    /// Phase.
    pub phase: Phase,
    /// What its user asked for.
    pub config: Config,
    /// Host name inside.
    pub hostname: String,
    /// 0 at first boot, one more for each restore in its ancestry.
    pub generation: u64,
    /// Newest snapshot of its line, or the one it came from.
    pub snapshot: Option<SnapshotId>,
    /// The snapshot whose disk lies below its own, and whose kernel it boots: the base at first, then its newest.
    pub disk_base: SnapshotId,
    /// Number of its newest disk directory: each restore makes a new one.
    pub disk_number: u64,
    /// What it takes to find the running VM again.
    pub running: Option<RunningRecord>,
    /// Does its guest have an agent?
    pub agent: bool,
    /// Timeline of its last start.
    pub timeline: Timeline,
    /// The hardware of its last start.
    pub hardware: HardwareRecord,
    /// While a restore is under way: what the machine is again if it does not succeed.
    #[serde(default)]
    pub undo: Option<Undo>,
    /// While its first start is under way and a command waits for it: if that does not succeed, it is forgotten.
    #[serde(default)]
    pub awaited: bool,
    /// The line that it is on.
    #[serde(default)]
    pub line: Option<Line>,
    /// The snapshot by which another host gave it to this one last.
    #[serde(default)]
    pub given: Option<SnapshotId>,
    /// It was made by a fork.
    #[serde(default)]
    pub is_clone: bool,
    /// Who had it started.
    #[serde(default)]
    pub user: User,
    /// Who it is in the network of its family.
    #[serde(default)]
    pub member: Option<Member>,
    /// Of a clone that a program in its parent called for.
    #[serde(default)]
    pub kin: Option<Kin>,
}

/// Which processes a clone is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kin {
    /// Id of the parent.
    pub family: String,
    /// How many processes all clones have.
    pub size: u32,
    /// Number of this one's first.
    pub first: u32,
    /// How many it has.
    pub processes: u32,
    /// When it is ended.
    pub until_unix_ms: Option<u64>,
}

impl Kin {
    /// Numbers of its processes.
    pub fn ids(&self) -> std::ops::Range<u32> {
        self.first..self.first + self.processes
    }
}

impl Record {
    /// Name of its disk's file.
    pub fn disk_name(&self) -> String {
        format!("{}-{}", self.id, self.disk_number)
    }
}

/// What a machine was before a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// Its phase.
    pub phase: Phase,
    /// Its snapshot.
    pub snapshot: Option<SnapshotId>,
    /// The snapshot below its disk.
    pub disk_base: SnapshotId,
    /// Its disk.
    pub disk_number: u64,
}

/// What its user asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Root disk size.
    pub disk_bytes: u64,
    /// Environment of the command.
    pub env: BTreeMap<String, String>,
    /// Command to run instead of the base's.
    pub cmd: Vec<String>,
    /// Port forwards, host ports filled in.
    pub ports: Vec<PortForward>,
    /// Accelerator asked for.
    pub accel: Option<Accel>,
    /// May the guest reach the outside?
    pub outbound: bool,
    /// What the guest, and its clones, may reach by their family's network.
    #[serde(default)]
    pub outbound_to: Vec<String>,
    /// How fast each of them, both ways together.
    #[serde(default)]
    pub outbound_bytes_per_s: Option<u64>,
    /// Have it and its clones a network of their own?
    #[serde(default)]
    pub family: bool,
    /// The host's tap interface that its network leads to, instead of user-mode networking.
    #[serde(default)]
    pub tap: Option<String>,
    /// Start again from the last checkpoint when QEMU dies.
    pub restart: bool,
    /// Working directory of the command.
    #[serde(default)]
    pub workdir: Option<String>,
    /// User of the command.
    #[serde(default)]
    pub user: Option<String>,
    /// May its programs fork it?
    #[serde(default)]
    pub fork: Option<ForkPolicy>,
}

/// The virtual hardware of a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardwareRecord {
    /// Accelerator.
    pub accel: Accel,
    /// Versioned machine type.
    pub machine_type: String,
    /// CPU model.
    pub cpu_model: String,
    /// QEMU version.
    pub qemu_version: String,
}

/// An accelerator as the hypervisor is told.
pub fn to_compat(accel: Accel) -> compat::Accel {
    match accel {
        Accel::Kvm => compat::Accel::Kvm,
        Accel::Tcg => compat::Accel::Tcg,
    }
}

impl HardwareRecord {
    /// As the hypervisor tells.
    pub fn of(hardware: &compat::Hardware) -> Self {
        Self {
            accel: match hardware.accel {
                compat::Accel::Kvm => Accel::Kvm,
                compat::Accel::Tcg => Accel::Tcg,
            },
            machine_type: hardware.machine_type.clone(),
            cpu_model: hardware.cpu_model.clone(),
            qemu_version: hardware.qemu_version.clone(),
        }
    }

    /// As the hypervisor is told.
    pub fn to_compat(&self) -> compat::Hardware {
        compat::Hardware {
            machine_type: self.machine_type.clone(),
            cpu_model: self.cpu_model.clone(),
            accel: to_compat(self.accel),
            qemu_version: self.qemu_version.clone(),
        }
    }
}

/// What it takes to find a running VM again after the daemon's death.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunningRecord {
    /// QEMU's process.
    pub pid: u32,
    /// The snapshot whose memory it maps; `None`: zeros.
    pub mapped: Option<SnapshotId>,
    /// Name of the memory image's file.
    pub memory_name: String,
    /// Its inode.
    pub memory_inode: u64,
    /// Number and name of the file that its free-page reports go to, when QEMU was started ahead.
    #[serde(default)]
    pub placeholder: Option<(u64, String)>,
    /// The number that QEMU's user follows from, when it is not the machine's.
    #[serde(default)]
    pub user_number: Option<u64>,
    /// Inode of the disk.
    pub disk_inode: u64,
    /// Length of the console's log when it was started.
    #[serde(default)]
    pub console_begin_bytes: u64,
}

/// The command of what nobody has asked for.
pub const BEHIND: &str = "publish --every";
/// No command waits longer for that.
const BEHIND_MAX: Duration = Duration::from_secs(20);

/// A machine.
pub struct Machine {
    record: Mutex<Record>,
    writing: Mutex<Written>,
    live: Mutex<Option<Arc<Live>>>,
    at_work: Mutex<Option<&'static str>>,
    pins: Mutex<Vec<Pin>>,
    starting_pid: Mutex<Option<u32>>,
    early_ends: AtomicU32,
}

/// What became of its record in the database. Whoever changes that holds this, so that the last change made is the last
/// one written, and nothing is written of a machine that was forgotten.
#[derive(Default)]
pub struct Written {
    /// There is no record any more.
    pub forgotten: bool,
}

/// The right to work on a machine; dropped when the command ends.
pub struct Operation {
    machine: Arc<Machine>,
}

impl Drop for Operation {
    fn drop(&mut self) {
        *lock(&self.machine.at_work) = None;
    }
}

impl Machine {
    /// A machine of which nothing is alive yet.
    pub fn new(record: Record) -> Arc<Self> {
        Arc::new(Self {
            record: Mutex::new(record),
            writing: Mutex::default(),
            live: Mutex::new(None),
            at_work: Mutex::new(None),
            pins: Mutex::default(),
            starting_pid: Mutex::default(),
            early_ends: AtomicU32::new(0),
        })
    }

    /// A copy of its record.
    pub fn record(&self) -> Record {
        lock(&self.record).clone()
    }

    /// For changing its record in memory and in the database.
    pub fn writing(&self) -> MutexGuard<'_, Written> {
        lock(&self.writing)
    }

    /// Changes its record in memory and returns a copy to be persisted.
    pub fn change(&self, change: impl FnOnce(&mut Record)) -> Record {
        let mut record = lock(&self.record);
        change(&mut record);
        record.clone()
    }

    /// What is alive of it.
    pub fn live(&self) -> Option<Arc<Live>> {
        lock(&self.live).clone()
    }

    /// Sets what is alive of it; what was before is returned.
    pub fn set_live(&self, live: Option<Arc<Live>>) -> Option<Arc<Live>> {
        std::mem::replace(&mut lock(&self.live), live)
    }

    /// The QEMU of a start under way, so that it can be ended from outside.
    pub fn starting_pid(&self) -> Option<u32> {
        *lock(&self.starting_pid)
    }

    /// Sets the QEMU of a start under way.
    pub fn set_starting_pid(&self, pid: Option<u32>) {
        *lock(&self.starting_pid) = pid;
    }

    /// It has ended by itself; how often it has done so now, each time soon after its start.
    pub fn count_end(&self, soon: bool) -> u32 {
        if !soon {
            self.early_ends.store(0, Ordering::Relaxed);
        }
        self.early_ends.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Is a command at work on it?
    pub fn is_at_work(&self) -> bool {
        lock(&self.at_work).is_some()
    }

    /// Sets what garbage collection must keep for it.
    pub fn set_pins(&self, pins: Vec<Pin>) {
        *lock(&self.pins) = pins;
    }

    /// Waits until its state is taken, if that is being done.
    pub fn wait_while_pausing(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while matches!(lock(&self.record).phase, Phase::Pausing) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What is alive of it, for a verb that its phase allows.
    pub fn live_for(&self, verb: Verb) -> Result<Arc<Live>, Problem> {
        let record = self.record();
        record.phase.allow(verb, &record.name)?;
        let live = self.live().ok_or_else(|| {
            Problem::new(
                ProblemCode::Busy,
                format!("QEMU of machine {} has not answered yet", record.name),
            )
            .cause("the daemon was started again and is still connecting to it")
            .remediation(format!(
                "try again in a moment; `martlet kill {}` ends it if it hangs",
                record.name
            ))
        })?;
        match live.vm.is_out_of_room() {
            true => Err(out_of_room(format!("machine {} stands still", record.name))),
            false => Ok(live),
        }
    }

    /// Claims the machine for a command; a second command is refused, naming the first. What goes on behind is short, and
    /// is waited for.
    pub fn begin(self: &Arc<Self>, command: &'static str) -> Result<Operation, Problem> {
        let begun = Instant::now();
        let mut at_work = lock(&self.at_work);
        while *at_work == Some(BEHIND) && command != BEHIND && begun.elapsed() < BEHIND_MAX {
            drop(at_work);
            std::thread::sleep(Duration::from_millis(5));
            at_work = lock(&self.at_work);
        }
        if let Some(other) = *at_work {
            let name = lock(&self.record).name.clone();
            return Err(Problem::new(
                ProblemCode::Busy,
                format!("machine {name} is busy: `{other}` is at work on it"),
            )
            .remediation("try again when it has ended"));
        }
        *at_work = Some(command);
        Ok(Operation {
            machine: self.clone(),
        })
    }

    /// The machine as the API shows it.
    pub fn info(&self) -> MachineInfo {
        let record = self.record();
        let address = crate::identity::address(record.number)
            .map(|byte| byte.to_string())
            .join(".");
        MachineInfo {
            state: record.phase.state(),
            host: record.phase.host().map(str::to_owned),
            last_error: match record.phase {
                Phase::Failed { why } => Some(why),
                _ => None,
            },
            address,
            mac: crate::identity::mac_text(crate::identity::mac(record.number)),
            name: record.name,
            id: record.id,
            from: record.from,
            created_unix_ms: record.created_unix_ms,
            cpus: record.config.cpus,
            memory_bytes: record.config.memory_bytes,
            disk_bytes: record.config.disk_bytes,
            hostname: record.hostname,
            ports: record.config.ports,
            fork: record.config.fork,
            tap: record.config.tap,
            family: record.member.as_ref().map(Member::info),
            pid: record.running.map(|running| running.pid),
            accel: record.hardware.accel,
            machine_type: record.hardware.machine_type,
            cpu_model: record.hardware.cpu_model,
            qemu_version: record.hardware.qemu_version,
            agent: record.agent,
            generation: record.generation,
            snapshot: record.snapshot.map(|id| id.to_string()),
            timeline: record.timeline,
            restart: record.config.restart,
            line: record.line.map(|line| line.info(record.snapshot)),
        }
    }
}
