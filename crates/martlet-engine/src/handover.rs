//! Handing a running machine over to a fresh process: the old one stands still for good and holds the pages that are not
//! in the store yet, so the guest pauses no longer however much it has written.
//!
//! ```text
//!  prepared ───────────► still ─────────► loaded ─────────► recorded ──► goes on ──► settled
//!   a QEMU started        disk frozen,     device state,     whose        agent,      pages are in the
//!   ahead maps an         pages found,     ports            machine       user code   store, the old
//!   image of its own      laid over it                      it is                     process ends
//!      └──────────────────────┴────────────────┴─ any failure: the new process ends, the old one goes on
//! ```
//!
//! Until it is recorded whose machine it is, the old process is; from then on the new one, also to a daemon that starts
//! after a crash. What the guest cannot see does not change: its disk, its agent's channel with every command in it. What
//! QEMU's user-mode network keeps in its process does not go along: connections end, forwards are bound again. A tap
//! interface is plugged in at the new process, and connections through it go on.

use crate::console::Consoles;
use crate::crash;
use crate::engine::{Engine, lock};
use crate::identity;
use crate::launch::length;
use crate::live::Live;
use crate::machine::{Machine, Record};
use crate::mapped::Mapped;
use crate::pool::Shape;
use crate::predecessor::Predecessor;
use crate::problem::{self, Told};
use crate::run_dir;
use martlet_api::{CheckpointMethod, Problem, ProblemCode};
use martlet_fuse::Placement;
use martlet_image::SnapshotId;
use martlet_pager::{Unsaved, VmKey};
use martlet_vm::spec::{AGENT_SOCKET, CONSOLE_LOG, Forward};
use martlet_vm::{RunningVm, Spawner};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Processes that a machine was handed over from and whose pages could not be stored. Each holds memory.
const PREDECESSORS_MAX: usize = 4;
/// A process that is not needed has ended within this time.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// The process that a machine is handed over to. It ends when it is dropped before the machine is its.
pub(crate) struct Successor {
    vm: Option<RunningVm>,
    pid: u32,
    spawner: Arc<dyn Spawner>,
    pub(crate) memory: Arc<Mapped>,
    placeholder: Arc<Mapped>,
    user_number: u64,
    disk_name: String,
    disk_inode: u64,
    key: VmKey,
    agent: UnixStream,
    run_number: u64,
    run_dir: PathBuf,
    registry: Arc<martlet_fuse::Registry>,
    is_owner: bool,
}

impl Drop for Successor {
    fn drop(&mut self) {
        if self.is_owner {
            return;
        }
        // It has run nothing.
        let _ = self.spawner.signal(self.pid, libc::SIGKILL);
        let _ = self.spawner.wait(self.pid, END_TIMEOUT);
        let _ = self.spawner.forget(self.pid);
        self.registry.clear_owner(self.pid);
        self.registry.remove_disk(&self.disk_name);
        let _ = std::fs::remove_dir_all(&self.run_dir); // removed by the next one, else
    }
}

impl Engine {
    /// A process that the machine can be handed over to. It maps an image that shows what the machine's does, for what is
    /// to be laid over it.
    pub(crate) fn successor(&self, record: &Record, live: &Live) -> Result<Successor, Problem> {
        if lock(&live.predecessors).len() >= PREDECESSORS_MAX {
            return Err(Problem::new(
                ProblemCode::NoSpace,
                format!("{PREDECESSORS_MAX} checkpoints of machine {} could not be written; their pages are still in memory", record.name),
            )
            .remediation(format!(
                "make room in the store, then `martlet checkpoint {}`, which writes them",
                record.name
            )));
        }
        let shape = Shape::new(&record.hardware.to_compat(), &record.config);
        let mut ahead = match self.pool.take(&shape) {
            Some(ahead) => ahead,
            None => self.start_ahead(&shape)?,
        };
        let run_number = record.run_number + 1;
        let run_dir = self.dirs.run(&record.id, run_number);
        run_dir::take(&run_dir, &ahead.run_dir)
            .map_err(|error| problem::io("move", &ahead.run_dir, &error))?;
        crash::step("handover");
        let address = Ipv4Addr::from(identity::address(record.number));
        ahead.vm().bind_place(&run_dir, Some(address));
        let memory = self
            .images
            .map_alone(live.memory.below(), live.memory.image.manifest(), None)?;
        let placeholder = ahead.placeholder.clone();
        let shown = [&placeholder, &memory].map(|mapped| self.dirs.memory_file(&mapped.name));
        ahead.vm().bind_memory(&shown[0], &shown[1]).told()?;
        crash::step("handover");
        let user_number = ahead.number;
        let user = self.qemu_user(user_number);
        let (uid, gid) = user.map_or_else(crate::launch::current_ids, |user| (user.uid, user.gid));
        let placement = Placement {
            ino: None,
            uid,
            gid,
            mode: 0o600,
        };
        let disk_name = Record {
            run_number,
            ..record.clone()
        }
        .disk_name();
        // The same disk as another file: to the kernel it is this user's, and nothing of it is cached.
        let disk_inode = self
            .registry
            .add_disk(&disk_name, live.disk.clone(), placement)
            .told()?;
        let agent_socket = run_dir.join(AGENT_SOCKET);
        let agent = UnixStream::connect(&agent_socket)
            .map_err(|error| problem::io("connect to", &agent_socket, &error));
        let bound = ahead.vm().bind_disk(0, &self.dirs.disk_file(&disk_name), false);
        let agent = match bound.told().and(agent) {
            Ok(agent) => agent,
            Err(problem) => {
                self.registry.remove_disk(&disk_name);
                return Err(problem);
            }
        };
        crash::step("handover");
        let key = VmKey(self.next_key());
        self.registry.set_owner(ahead.pid(), key);
        Ok(Successor {
            pid: ahead.pid(),
            vm: Some(ahead.into_vm()),
            spawner: self.spawner.clone(),
            memory,
            placeholder,
            user_number,
            disk_name,
            disk_inode,
            key,
            agent,
            run_number,
            run_dir,
            registry: self.registry.clone(),
            is_owner: false,
        })
    }

    /// The machine, whose process stands still, goes on in the other one. Returns what is alive of it, and the socket of
    /// its agent. On failure its process is what it was, and still stands.
    pub(crate) fn hand_over(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        old: &Arc<Live>,
        mut successor: Successor,
        unsaved: Unsaved,
        descriptor: &[u8],
    ) -> Result<(Arc<Live>, UnixStream), Problem> {
        let before = machine.record();
        let goes_on = self.go_on_in(machine, &before, old, &mut successor, unsaved, descriptor);
        goes_on.inspect_err(|_| {
            drop(successor);
            if machine.record().run_number != before.run_number
                && let Err(problem) = self.update(machine, crate::state::When::Now, |record| {
                    record.running = before.running.clone().filter(|_| !old.is_ending());
                    record.run_number = before.run_number;
                })
            {
                tracing::error!(%problem, "that a machine was not handed over could not be recorded");
            }
            if !old.is_ending() {
                self.connect_again(&old.vm, &before);
            }
        })
    }

    fn go_on_in(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        before: &Record,
        old: &Arc<Live>,
        successor: &mut Successor,
        unsaved: Unsaved,
        descriptor: &[u8],
    ) -> Result<(Arc<Live>, UnixStream), Problem> {
        let agent_socket = successor
            .agent
            .try_clone()
            .map_err(|error| problem::io("connect to", &successor.run_dir, &error))?;
        if !successor.memory.image.lay(unsaved) {
            return Err(Problem::new(
                ProblemCode::Internal,
                "memory was read before it was there",
            ));
        }
        crash::step("handover");
        let old_dir = self.run_dir(before);
        run_dir::carry_logs(&old_dir, &successor.run_dir)
            .map_err(|error| problem::io("copy the logs to", &successor.run_dir, &error))?;
        let said_bytes = length(&old_dir.join(CONSOLE_LOG)).saturating_sub(old.console_begin_bytes);
        let console_begin_bytes = length(&successor.run_dir.join(CONSOLE_LOG)).saturating_sub(said_bytes);
        let vm = successor.vm.as_ref().expect("it is there until it is taken");
        crash::step("handover");
        if let Some(tap) = &before.config.tap {
            old.vm.unbind_tap().told()?;
            vm.bind_tap(tap).told()?;
        }
        for port in &before.config.ports {
            // One that is not there any more is not missed.
            let _ = old.vm.remove_forward(port.host_port);
            vm.add_forward(Forward {
                host_port: port.host_port,
                guest_port: port.guest_port,
            })
            .told()?;
        }
        crash::step("handover");
        self.stalls.watch(successor.key, &old.run);
        vm.load_descriptor(descriptor).told()?;
        crash::step("handover");
        let live = Arc::new(Live {
            vm: successor.vm.take().expect("it was there above"),
            agent: Mutex::new(old.agent()),
            disk: old.disk.clone(),
            disk_inode: successor.disk_inode,
            memory_path: self.dirs.memory_file(&successor.memory.name),
            memory: successor.memory.clone(),
            placeholder: Some(successor.placeholder.clone()),
            key: successor.key,
            run: old.run.clone(),
            console_begin_bytes,
            since: old.since,
            ending: AtomicBool::new(false),
            seen_cpu: [AtomicU64::new(0), AtomicU64::new(0)],
            _prefetcher: None,
            registry: self.registry.clone(),
            user_number: Some(successor.user_number),
            disk_name: successor.disk_name.clone(),
            consoles: Consoles::default(),
            predecessors: Mutex::default(),
        });
        let predecessor = Predecessor::new(old.clone(), before.run_number, old_dir, self.spawner.clone());
        let mut running = live.to_record();
        running.predecessors = old.to_record().predecessors;
        running.predecessors.push(predecessor.to_record());
        // `kill` waits for nobody.
        not_ended(old, &before.name)?;
        self.update_or_not(machine, |record| {
            record.running = Some(running);
            record.run_number = successor.run_number;
        })?;
        crash::step("handover");
        live.vm.cont().told()?;
        crash::step("handover");
        successor.is_owner = true;
        {
            let mut predecessors = lock(&live.predecessors);
            predecessors.append(&mut lock(&old.predecessors));
            predecessors.push(predecessor);
        }
        machine.set_live(Some(live.clone()));
        if let Err(problem) = not_ended(old, &before.name) {
            self.stop_live(machine);
            return Err(problem);
        }
        self.watch(machine, &live);
        crash::step("handover");
        Ok((live, agent_socket))
    }

    /// Forwards the machine's ports, those that are not, and plugs its tap interface in again.
    pub(crate) fn connect_again(&self, vm: &RunningVm, record: &Record) {
        if let Some(tap) = &record.config.tap {
            // It is not plugged in when the attempt failed before it was pulled out.
            let _ = vm.unbind_tap();
            if let Err(error) = vm.bind_tap(tap) {
                tracing::warn!(%error, machine = record.name, "a machine has no network any more");
            }
        }
        for port in &record.config.ports {
            let forward = Forward {
                host_port: port.host_port,
                guest_port: port.guest_port,
            };
            let _ = vm.remove_forward(port.host_port);
            if let Err(error) = vm.add_forward(forward) {
                tracing::warn!(%error, machine = record.name, "a port is not forwarded any more");
            }
        }
    }

    /// All that was unsaved is in the store, in the snapshot that the record names already: no predecessor is needed.
    pub(crate) fn settle(
        &self,
        live: &Live,
        id: SnapshotId,
        method: CheckpointMethod,
    ) -> Result<(), Problem> {
        crash::step("handover");
        let snapshot = self.store.snapshot(&id).told()?;
        let memory = snapshot.memory.ok_or_else(|| crate::launch::no_memory(&id))?;
        let manifest = self.store.manifest(&memory.manifest).told()?;
        match method {
            CheckpointMethod::Handover => self.images.settle(&live.memory, id, manifest),
            _ => self.images.settle_alone(&live.memory, id, manifest),
        }
        let predecessors = std::mem::take(&mut *lock(&live.predecessors));
        crash::step("handover");
        predecessors.into_iter().for_each(Predecessor::end);
        crash::step("handover");
        Ok(())
    }
}

/// Has nobody ended the machine meanwhile?
fn not_ended(old: &Live, name: &str) -> Result<(), Problem> {
    match old.is_ending() {
        false => Ok(()),
        true => Err(Problem::new(
            ProblemCode::WrongState,
            format!("machine {name} was ended while it was handed over"),
        )),
    }
}
