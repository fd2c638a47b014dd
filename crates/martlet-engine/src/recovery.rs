//! After the daemon's death: its machines are found again, and served on.
//!
//! ```text
//!   records ──► refiled ──────────────► served ─────────────► reconnected
//!               files are back under    requests that went    QMP, then the agent; what stood still
//!               the kernel's numbers    unanswered are        for a checkpoint that nobody will
//!                                       answered now          finish goes on
//! ```
//!
//! QEMU processes are the keeper's children and their memory and disks are files of a mount whose connection the keeper
//! holds too, so nothing of a running machine ends with the daemon. The order matters: a QEMU that waits for a page
//! answers nobody, so nothing is asked of it before its page faults are served. What was half done is taken back:
//! a restore to what the machine was before, a checkpoint to the running machine, a first start to nothing (in the
//! background: to a failed one).

use crate::engine::{Engine, lock};
use crate::identity;
use crate::live::Live;
use crate::machine::{Machine, Record, RunningRecord};
use crate::mapped::Mapped;
use crate::phase::Phase;
use crate::pool::Shape;
use crate::problem::Told;
use crate::stalls::Run;
use crate::state::When;
use martlet_agent_api::Start;
use martlet_api::{Problem, ProblemCode};
use martlet_disk::CowDisk;
use martlet_fuse::Placement;
use martlet_image::{Manifest, PAGE_SIZE};
use martlet_pager::VmKey;
use martlet_vm::agent::{AgentClient, AgentError};
use martlet_vm::running::VmHandle;
use martlet_vm::spec::{AGENT_SOCKET, STDERR_LOG};
use martlet_vm::{ChildState, RunningVm};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// An agent answers a new connection within this time, or is asked again.
const AGENT_TIMEOUT: Duration = Duration::from_secs(10);
/// The daemon serves after this time at the latest, though not every machine has answered.
const CONNECT_PATIENCE: Duration = Duration::from_secs(8);

/// Files of a machine, served again.
struct Refiled {
    disk: Arc<CowDisk>,
    disk_name: String,
    memory: Arc<Mapped>,
    placeholder: Option<Arc<Mapped>>,
}

/// A machine whose QEMU lives and whose files are served again.
pub(crate) struct Found {
    machine: Arc<Machine>,
    files: Refiled,
}

impl Engine {
    /// Loads all records. With `adopt`, the files of machines whose QEMU still lives are put back under their numbers.
    pub(crate) fn load_machines(self: &Arc<Self>, adopt: bool) -> Result<Vec<Found>, Problem> {
        let mut machines = Vec::new();
        for record in self.state.machines::<Record>().told()? {
            tracing::info!(machine = record.name, phase = ?record.phase, awaited = record.awaited, "on record");
            let machine = Machine::new(record.clone());
            self.repin(&machine, &record);
            lock(&self.machines).insert(record.name.clone(), machine.clone());
            let stands = matches!(record.phase, Phase::Given { .. }) && record.running.is_some();
            if !record.phase.is_live() && !stands {
                continue;
            }
            match self.find_again(&record, adopt) {
                Ok(files) => {
                    self.keep_again(&record);
                    machines.push(Found { machine, files });
                }
                Err(problem) => self.lost(&machine, &problem),
            }
        }
        self.end_strays();
        self.remove_leftovers();
        Ok(machines)
    }

    /// Has the keeper's successor, should it need one, keep a machine's processes too.
    fn keep_again(&self, record: &Record) {
        let log = self.run_dir(record).join(STDERR_LOG);
        for pid in record.running.iter().map(|running| running.pid) {
            if let Err(error) = self.keeper.adopt(pid, &record.name, &log) {
                tracing::warn!(%error, machine = record.name, pid, "its process is not kept");
            }
        }
    }

    fn find_again(&self, record: &Record, adopt: bool) -> Result<Refiled, Problem> {
        let gone = |why: &str| Problem::new(ProblemCode::HypervisorFailed, why);
        let Some(running) = &record.running else {
            return Err(gone("the daemon ended while the machine was starting"));
        };
        match self.spawner.state(running.pid) {
            Ok(ChildState::Running) if adopt => self.refile(record, running),
            Ok(ChildState::Running) => Err(gone("its images are not mounted any more")),
            Ok(ChildState::Ended { status, .. }) => {
                Err(gone(&format!("QEMU {status} while no daemon was there")))
            }
            Err(_) => Err(gone("QEMU ended, and so did the keeper that would know why")),
        }
    }

    /// Ends QEMUs that no record knows, of starts that the daemon's death cut short; their processes.
    fn end_strays(&self) {
        let running = self
            .all()
            .into_iter()
            .filter_map(|machine| machine.record().running);
        let known: Vec<u32> = running.map(|running| running.pid).collect();
        let children = self.keeper.children().unwrap_or_default().into_iter();
        for pid in children.map(|child| child.pid).filter(|pid| !known.contains(pid)) {
            let _ = self.spawner.signal(pid, libc::SIGKILL);
        }
    }

    /// A machine cannot go on: it is what it was before the restore that was under way, else it has failed.
    fn lost(&self, machine: &Arc<Machine>, problem: &Problem) {
        let record = machine.record();
        for pid in record.running.iter().map(|running| running.pid) {
            let _ = self.spawner.signal(pid, libc::SIGKILL);
        }
        let words = martlet_vm::process::tail(&self.run_dir(&record).join(STDERR_LOG), 1000);
        let why = match (&problem.cause, words.trim()) {
            (Some(cause), _) => format!("{}: {cause}", problem.message),
            (None, "") => problem.message.clone(),
            (None, words) => format!("{}; QEMU's last words: {words}", problem.message),
        };
        tracing::warn!(machine = record.name, why, "a machine is lost");
        let taken_back = match record.undo {
            Some(_) => self.undo(machine),
            // All of it is in its newest snapshot, and another host says whose it is.
            None if record.phase.host().is_some() => {
                self.update(machine, When::Now, |record| record.running = None)
            }
            None => self.update(machine, When::Now, |record| {
                record.phase = Phase::Failed { why };
                record.running = None;
            }),
        };
        if let Err(problem) = taken_back {
            tracing::error!(%problem, "its loss could not be recorded");
        }
    }

    fn refile(&self, record: &Record, running: &RunningRecord) -> Result<Refiled, Problem> {
        let zeros = || Arc::new(Manifest::zero(record.config.memory_bytes / PAGE_SIZE as u64));
        let manifest = match running.mapped {
            Some(id) => {
                let snapshot = self.store.snapshot(&id).told()?;
                let memory = snapshot.memory.ok_or_else(|| crate::launch::no_memory(&id))?;
                self.store.manifest(&memory.manifest).told()?
            }
            None => zeros(),
        };
        let shown = Some((running.memory_inode, running.memory_name.clone()));
        let memory = self.images.map(running.mapped, manifest, shown)?;
        let placeholder = running.placeholder.clone();
        let placeholder = placeholder
            .map(|shown| self.images.map(None, zeros(), Some(shown)))
            .transpose()?;
        let below = self.disk_manifest(&record.disk_base)?;
        let disk = CowDisk::open(
            &self.dirs.disk(&record.id, record.disk_number),
            self.pager.clone(),
            below,
            record.config.disk_bytes,
        )
        .told()?;
        let user = self.qemu_user(running.user_number.unwrap_or(record.number));
        let (uid, gid) = user.map_or_else(crate::launch::current_ids, |user| (user.uid, user.gid));
        let disk_name = record.disk_name();
        let placement = Placement {
            ino: Some(running.disk_inode),
            uid,
            gid,
            mode: 0o600,
        };
        self.registry
            .add_disk(&disk_name, disk.clone(), placement)
            .told()?;
        Ok(Refiled {
            disk,
            disk_name,
            memory,
            placeholder,
        })
    }

    /// With the images served again, machines can answer: QEMU and agents are connected to. All at once, and those that
    /// take their time are not waited for: nobody can be served, and nothing that hangs be killed, before this returns.
    pub(crate) fn reconnect_machines(self: &Arc<Self>, found: Vec<Found>) {
        let (connecting, connected) = channel::<()>();
        for Found { machine, files } in found {
            let (engine, connecting) = (self.clone(), connecting.clone());
            let reconnect = move || {
                let _connecting = connecting;
                // Whatever else is asked of it has to wait, but to be killed.
                let Ok(_operation) = machine.begin("recovery") else {
                    return;
                };
                if let Err(problem) = engine.reconnect(&machine, files) {
                    engine.lost(&machine, &problem);
                }
            };
            if let Err(error) = std::thread::Builder::new()
                .name("recovery".into())
                .spawn(reconnect)
            {
                tracing::error!(%error, "a machine is not connected to");
            }
        }
        drop(connecting);
        // It ends when the last of them has connected.
        let _ = connected.recv_timeout(CONNECT_PATIENCE);
    }

    fn reconnect(self: &Arc<Self>, machine: &Arc<Machine>, files: Refiled) -> Result<(), Problem> {
        let record = machine.record();
        let running = record.running.as_ref().expect("it was found by it");
        let key = VmKey(self.next_key());
        self.registry.set_owner(running.pid, key);
        let run = Run::go_on(self.stalls_file(&record.id), running.mapped);
        self.stalls.watch(key, &run);
        machine.set_starting_pid(Some(running.pid));
        let vm = self.reconnect_qemu(&record, running.pid).inspect_err(|_| {
            self.registry.remove_disk(&files.disk_name);
        });
        machine.set_starting_pid(None);
        let vm = vm?;
        let plugged = self.plug_in(&record, &self.run_dir(&record), None);
        let plugged = plugged.unwrap_or_else(|problem| {
            tracing::error!(%problem, machine = record.name, "its family does not reach it");
            None
        });
        let live = Arc::new(Live {
            vm,
            agent: Mutex::default(),
            disk: files.disk,
            disk_inode: running.disk_inode,
            memory_path: self.dirs.memory_file(&files.memory.name),
            memory: files.memory,
            placeholder: files.placeholder,
            user_number: running.user_number,
            key,
            run,
            console_begin_bytes: running.console_begin_bytes,
            since: Instant::now(),
            ending: AtomicBool::new(false),
            seen_cpu: [AtomicU64::new(0), AtomicU64::new(0)],
            _prefetcher: None,
            start: None,
            registry: self.registry.clone(),
            disk_name: files.disk_name,
            plugged,
        });
        machine.set_live(Some(live.clone()));
        let stands = record.phase.host().is_some();
        if !stands {
            self.update(machine, When::Now, |record| record.phase = Phase::Running)?;
        }
        self.watch(machine, &live);
        tracing::info!(machine = record.name, pid = live.vm.pid(), "found again");
        if stands {
            return Ok(()); // until it is known whose it is
        }
        let hardware = record.hardware.to_compat();
        self.pool.want(Shape::new(&hardware, &record.config));
        while record.agent && live.vm.is_alive() {
            match self.connect_agent(&record) {
                Ok(agent) => {
                    self.take_calls(machine, &agent);
                    *lock(&live.agent) = Some(agent);
                    break;
                }
                Err(error) => tracing::warn!(%error, machine = record.name, "its agent does not answer yet"),
            }
        }
        Ok(())
    }

    /// Connects to a QEMU and lets its guest go on, however long it takes: as long as its process lives it may come to
    /// it yet.
    fn reconnect_qemu(&self, record: &Record, pid: u32) -> Result<RunningVm, Problem> {
        let address = Ipv4Addr::from(identity::address(record.number));
        let handle = VmHandle::in_dir(pid, &self.run_dir(record), Some(address));
        loop {
            let connected = RunningVm::adopt(handle.clone(), self.spawner.clone());
            let stands = record.phase.host().is_some();
            let goes_on = |vm: RunningVm| match stands {
                true => Ok(vm),
                false => vm.cont().map(|_| vm),
            };
            match connected.and_then(goes_on) {
                Err(error) if error.is_retryable() => {
                    tracing::warn!(%error, machine = record.name, pid, "QEMU does not answer yet");
                }
                connected => return connected.told(),
            }
        }
    }

    /// Connects to a machine's agent. What it held for a checkpoint that nobody will finish goes on.
    pub(crate) fn connect_agent(&self, record: &Record) -> Result<AgentClient, AgentError> {
        let socket = self.run_dir(record).join(AGENT_SOCKET);
        let agent = AgentClient::connect(&socket, u64::from_le_bytes(identity::random()), AGENT_TIMEOUT)?;
        let reply = agent.hello(Start::Same, AGENT_TIMEOUT)?;
        if reply.held {
            agent.release(Some(crate::launch::now_unix_ns()))?;
        }
        Ok(agent)
    }
}
