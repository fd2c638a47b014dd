//! After the daemon's death: its machines are found again, and served on.
//!
//! QEMU processes are the keeper's children and their memory and disks are files of a mount whose connection the keeper
//! holds too, so nothing of a running machine ends with the daemon. First the files are put back under the numbers that
//! the kernel knows, then the connection is served (what went unanswered is answered), then QEMU and the agent
//! are connected to again.

use crate::engine::{Engine, lock};
use crate::identity;
use crate::live::Live;
use crate::machine::{Machine, Record, RunningRecord};
use crate::phase::Phase;
use crate::problem::Told;
use crate::state::When;
use martlet_agent_api::Start;
use martlet_api::Problem;
use martlet_disk::CowDisk;
use martlet_fuse::Placement;
use martlet_image::{Manifest, PAGE_SIZE};
use martlet_pager::VmKey;
use martlet_vm::agent::AgentClient;
use martlet_vm::running::VmHandle;
use martlet_vm::{ChildState, RunningVm};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

/// An agent answers a new connection within this time.
const AGENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Files of a machine, served again.
struct Refiled {
    disk: Arc<CowDisk>,
    disk_name: String,
    memory: Arc<crate::mapped::Mapped>,
}

impl Engine {
    /// Loads all records. With `adopt`, the files of machines whose QEMU still lives are put back under their numbers.
    pub(crate) fn load_machines(self: &Arc<Self>, adopt: bool) -> Result<(), Problem> {
        for record in self.state.machines::<Record>().told()? {
            let machine = Machine::new(record.clone());
            self.repin(&machine, &record);
            lock(&self.machines).insert(record.name.clone(), machine.clone());
            let Some(running) = record.running.as_ref().filter(|_| record.phase.is_live()) else {
                if record.phase.is_live() {
                    self.lost(&machine, "the daemon ended while it was starting");
                }
                continue;
            };
            let lives = matches!(self.spawner.state(running.pid), Ok(ChildState::Running));
            let refiled = match (lives, adopt) {
                (true, true) => self
                    .refile(&record, running)
                    .and_then(|files| self.readopt(&record, running, files)),
                (true, false) => Err(Problem::new(
                    martlet_api::ProblemCode::Internal,
                    "its images are not mounted any more",
                )),
                (false, _) => Err(Problem::new(
                    martlet_api::ProblemCode::HypervisorFailed,
                    "QEMU ended while no daemon was there",
                )),
            };
            match refiled {
                Ok(live) => drop(machine.set_live(Some(Arc::new(live)))),
                Err(problem) => {
                    let words = martlet_vm::process::tail(&self.dirs.run(&record.id).join("qemu.log"), 1000);
                    let _ = self.spawner.signal(running.pid, libc::SIGKILL);
                    self.lost(
                        &machine,
                        &format!("{}; QEMU's last words: {}", problem.message, words.trim()),
                    );
                }
            }
        }
        self.end_strays();
        Ok(())
    }

    /// QEMUs that no record knows: starts that the daemon's death cut short.
    fn end_strays(&self) {
        let known: Vec<u32> = self
            .all()
            .iter()
            .filter_map(|machine| machine.record().running)
            .map(|r| r.pid)
            .collect();
        for child in self.keeper.children().unwrap_or_default() {
            if !known.contains(&child.pid) {
                let _ = self.spawner.signal(child.pid, libc::SIGKILL);
            }
        }
    }

    fn lost(&self, machine: &Arc<Machine>, why: &str) {
        let why = why.to_owned();
        tracing::warn!(machine = machine.record().name, why, "a machine is lost");
        if let Err(problem) = self.update(machine, When::Now, |record| {
            record.phase = Phase::Failed { why };
            record.running = None;
        }) {
            tracing::error!(%problem, "its loss could not be recorded");
        }
    }

    fn refile(&self, record: &Record, running: &RunningRecord) -> Result<Refiled, Problem> {
        let manifest = match running.mapped {
            Some(id) => {
                let snapshot = self.store.snapshot(&id).told()?;
                let memory = snapshot.memory.ok_or_else(|| crate::launch::no_memory(&id))?;
                self.store.manifest(&memory.manifest).told()?
            }
            None => Arc::new(Manifest::zero(record.config.memory_bytes / PAGE_SIZE as u64)),
        };
        let memory = self.images.map(
            running.mapped,
            manifest,
            Some((running.memory_inode, running.memory_name.clone())),
        )?;
        let below = self.disk_manifest(&record.disk_base)?;
        let disk = CowDisk::open(
            &self.dirs.disk(&record.id, record.disk_number),
            self.pager.clone(),
            below,
        )
        .told()?;
        let user = self.qemu_user(record.number);
        let (uid, gid) = user.map_or_else(crate::launch::current_ids, |user| (user.uid, user.gid));
        let disk_name = format!("{}-{}", record.id, record.disk_number);
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
        })
    }

    fn readopt(&self, record: &Record, running: &RunningRecord, files: Refiled) -> Result<Live, Problem> {
        let run = self.dirs.run(&record.id);
        let handle = VmHandle {
            pid: running.pid,
            qmp_socket: run.join("qmp.sock"),
            stderr_log: run.join("qemu.log"),
            address: Some(Ipv4Addr::from(identity::address(record.number))),
        };
        let vm = RunningVm::adopt(handle, self.spawner.clone()).told()?;
        let key = VmKey(self.next_key());
        self.registry.set_owner(running.pid, key);
        Ok(Live {
            vm,
            agent: None,
            disk: files.disk,
            disk_inode: running.disk_inode,
            memory_path: self.dirs.memory_file(&files.memory.name),
            memory: files.memory,
            key,
            since: Instant::now(),
            ending: AtomicBool::new(false),
            seen_cpu: [AtomicU64::new(0), AtomicU64::new(0)],
            _prefetcher: None,
            registry: self.registry.clone(),
            disk_name: files.disk_name,
        })
    }

    /// With the images served again, guests can answer: agents are connected to, and what stood still for a checkpoint
    /// that nobody will finish goes on.
    pub(crate) fn reconnect_machines(self: &Arc<Self>) {
        for machine in self.all() {
            let Some(live) = machine.set_live(None) else {
                continue;
            };
            let record = machine.record();
            let Ok(mut live) = Arc::try_unwrap(live) else {
                continue;
            };
            if let Err(error) = live.vm.cont() {
                tracing::warn!(%error, machine = record.name, "QEMU does not go on");
            }
            if record.agent {
                live.agent = self.reconnect_agent(&record);
            }
            let live = Arc::new(live);
            machine.set_live(Some(live.clone()));
            if let Err(problem) = self.update(&machine, When::Now, |record| record.phase = Phase::Running) {
                tracing::error!(%problem, machine = record.name, "that it runs could not be recorded");
            }
            self.watch(&machine, &live);
            tracing::info!(machine = record.name, pid = live.vm.pid(), "found again");
        }
    }

    fn reconnect_agent(&self, record: &Record) -> Option<AgentClient> {
        let socket = self.dirs.run(&record.id).join("agent.sock");
        let connect = || {
            let agent = AgentClient::connect(&socket, u64::from_le_bytes(identity::random()), AGENT_TIMEOUT)?;
            let reply = agent.hello(Start::Same, AGENT_TIMEOUT)?;
            if reply.held {
                agent.release(Some(crate::launch::now_unix_ns()))?;
            }
            Ok::<_, martlet_vm::agent::AgentError>(agent)
        };
        match connect() {
            Ok(agent) => Some(agent),
            Err(error) => {
                tracing::warn!(%error, machine = record.name, "its agent does not answer");
                None
            }
        }
    }
}
