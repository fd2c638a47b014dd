//! The engine: owner of the store, the mount, the keeper and every machine.

use crate::arrivals::Arrivals;
use crate::away::Away;
use crate::dirs::Dirs;
use crate::family_network::Numbers;
use crate::fork::{Calls, Children, Flocks, Tickets};
use crate::host_memory::Promised;
use crate::hosts::Fellowship;
use crate::lines::Observed;
use crate::machine::{Machine, Record};
use crate::mapped::Images;
use crate::multicast::{Groups, Members, MulticastOptions};
use crate::pool::Pool;
use crate::problem::{self, Told};
use crate::stalls::Stalls;
use crate::starter::Starters;
use crate::state::{State, When};
use bytes::Bytes;
use martlet_api::{Problem, ProblemCode};
use martlet_base::Tools;
use martlet_fuse::{MountOptions, Negotiated, Readahead, Registry, Server};
use martlet_image::{FrameId, SnapshotId, Trace};
use martlet_pager::{FrameSource, Pager, SourceError};
use martlet_store::{RealFiles, Store, StoreError};
use martlet_vm::{KeeperClient, KeeperProgram, Qemu, Spawner};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// When a daemon starts, its and the keeper's logs lose their older part if they are larger.
const SERVICE_LOG_BYTES: u64 = 8 << 20;
/// Decoded frames kept in memory. Small: what guests map is in the kernel's page cache.
const CACHE_BYTES: usize = 8 << 20;
/// Threads that answer page faults.
const FUSE_THREADS: usize = 4;
/// Name under which the keeper holds the FUSE connection.
pub(crate) const FUSE_FD: &str = "fuse";
const NEGOTIATED: &str = "fuse-negotiated";
/// File numbers that one life of the daemon may give. Each life has its own, because the kernel may still have pages of a
/// file that an earlier one showed under its number.
const INODES_PER_LIFE: u64 = 1 << 32;

/// Where the engine lives and what it works with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The state directory.
    pub state_dir: PathBuf,
    /// Program that is a keeper when called with `keeper --socket PATH`.
    pub keeper: PathBuf,
    /// The statically linked guest agent.
    pub agent: PathBuf,
    /// QEMU, when not the distribution's.
    pub qemu: Option<PathBuf>,
    /// QEMUs started ahead of the restores that will use them.
    pub pool_size: usize,
    /// The holder of a machine's line may be silent for so long.
    pub lease_s: u32,
    /// Machines of other hosts of the fleet may go on here.
    pub takes_machines: bool,
    /// No more clones than these live here at the same time.
    pub clones_max: Option<u32>,
    /// How many of the same user may, if there is a limit.
    pub clones_each: Option<u32>,
    /// Where the programs of allocators are.
    pub allocators: PathBuf,
    /// How frames of forks are sent to several hosts at once, if they are.
    pub multicast: Option<MulticastOptions>,
}

/// See the crate's documentation.
pub struct Engine {
    pub(crate) dirs: Dirs,
    pub(crate) options: Options,
    pub(crate) store: Arc<Store>,
    pub(crate) away: Arc<Away>,
    pub(crate) starters: Starters,
    pub(crate) fellowship: Fellowship,
    pub(crate) observed: Observed,
    pub(crate) arrivals: Arrivals,
    pub(crate) flocks: Flocks,
    pub(crate) switch: martlet_switch::Switch,
    pub(crate) family_numbers: Numbers,
    pub(crate) promised_memory: Promised,
    pub(crate) groups: Groups,
    pub(crate) members: Members,
    pub(crate) calls: Calls,
    pub(crate) tickets: Tickets,
    pub(crate) children: Children,
    pub(crate) stalls: Arc<Stalls>,
    pub(crate) pager: Arc<Pager>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) images: Images,
    pub(crate) state: State,
    pub(crate) keeper: Arc<KeeperClient>,
    pub(crate) keeper_program: KeeperProgram,
    /// The FUSE connection, to be given to another keeper.
    pub(crate) connection: Mutex<Option<OwnedFd>>,
    pub(crate) spawner: Arc<dyn Spawner>,
    pub(crate) is_root: bool,
    pub(crate) kvm_gid: Option<u32>,
    pub(crate) machines: Mutex<BTreeMap<String, Arc<Machine>>>,
    /// Held while clones that live are counted and one more begins to; taken before `machines`.
    pub(crate) counting: Mutex<()>,
    pub(crate) pool: Arc<Pool>,
    qemu: OnceLock<Qemu>,
    next_key: AtomicU64,
    server: Mutex<Option<Server>>,
}

/// The store as the pager sees it.
struct Frames {
    store: Arc<Store>,
    away: Arc<Away>,
}

impl FrameSource for Frames {
    fn frame(&self, id: &FrameId) -> Result<Bytes, SourceError> {
        self.store.frame(id).map_err(|error| match error {
            StoreError::NotFound(_) => SourceError::Missing { frame: *id },
            StoreError::Io { source, .. } => SourceError::Io {
                frame: *id,
                kind: source.kind(),
                reason: source.to_string(),
            },
            other => SourceError::Damaged {
                frame: *id,
                reason: other.to_string(),
            },
        })
    }

    fn is_far(&self) -> bool {
        self.away.is_any()
    }

    fn prepare(&self, frames: &[FrameId]) {
        self.away.prepare(frames);
    }

    fn waited(&self, frame: &FrameId) {
        self.away.waited_for(frame);
    }
}

impl Engine {
    /// Opens the state directory, takes over what a predecessor left running, and serves.
    pub fn open(options: Options) -> Result<Arc<Self>, Problem> {
        let dirs = Dirs::create(&options.state_dir)?;
        let is_root = owner_of_this_process() == 0;
        if is_root && let Some(blocked) = dirs.blocked_at() {
            return Err(Problem::new(
                ProblemCode::PermissionDenied,
                format!(
                    "QEMU, which runs unprivileged, cannot reach the state directory: {} is closed to others",
                    blocked.display()
                ),
            )
            .remediation(format!(
                "choose another with --state-dir, or `chmod o+x {}`",
                blocked.display()
            )));
        }
        let _ = std::fs::remove_dir_all(dirs.work());
        let dirs = Dirs::create(&dirs.state)?;
        martlet_base::clear_abandoned(&dirs.cache());
        let store =
            Arc::new(Store::open(&dirs.store(), Arc::new(RealFiles)).told_as("the store cannot be opened")?);
        let away = Away::new(store.clone())
            .map_err(|error| problem::io("start a thread for", &dirs.state, &error))?;
        let state = State::open(&dirs.database(), Arc::new(RealFiles))
            .told_as("the state database cannot be opened")?;
        dirs.close_database()?;
        let pager = Pager::new(
            Arc::new(Frames {
                store: store.clone(),
                away: away.clone(),
            }),
            CACHE_BYTES,
        );
        let registry = Registry::new();
        let stalls = Stalls::new().map_err(|error| problem::io("start a thread for", &dirs.state, &error))?;
        registry.set_reads(stalls.clone());
        for log in ["martletd.log", "keeper.log"] {
            let _ = martlet_vm::process::trim(&dirs.state.join(log), SERVICE_LOG_BYTES); // one that cannot be trimmed grows on
        }
        let socket = dirs.keeper_socket();
        let keeper_program = KeeperProgram {
            program: options.keeper.clone(),
            args: vec!["keeper".into(), "--socket".into(), socket.display().to_string()],
            socket,
            log: dirs.state.join("keeper.log"),
        };
        let keeper = Arc::new(
            KeeperClient::connect_or_start(&keeper_program)
                .map_err(martlet_vm::VmError::from)
                .told_as("the keeper cannot be started")?,
        );
        let engine = Arc::new(Self {
            images: Images::new(registry.clone(), pager.clone()),
            spawner: keeper.clone(),
            kvm_gid: group_of(Path::new("/dev/kvm")),
            pool: Pool::new(options.pool_size),
            dirs,
            options,
            store,
            away,
            starters: Starters::default(),
            fellowship: Fellowship::default(),
            observed: Observed::default(),
            arrivals: Arrivals::default(),
            flocks: Flocks::default(),
            switch: martlet_switch::Switch::default(),
            family_numbers: Numbers::default(),
            promised_memory: Promised::default(),
            groups: Groups::default(),
            members: Members::default(),
            calls: Calls::default(),
            tickets: Tickets::default(),
            children: Children::default(),
            stalls,
            pager,
            registry,
            state,
            keeper,
            keeper_program,
            connection: Mutex::default(),
            is_root,
            machines: Mutex::default(),
            counting: Mutex::default(),
            qemu: OnceLock::new(),
            next_key: AtomicU64::new(1),
            server: Mutex::default(),
        });
        engine.remove_half_boot_files();
        engine.recover_host()?;
        engine.recover_away()?;
        engine.recover()?;
        engine.recover_lines();
        engine.recover_moved();
        engine.recover_follows()?;
        engine.recover_children();
        engine.pool.fill(Arc::downgrade(&engine));
        Ok(engine)
    }

    /// Loads the machines of a predecessor and serves its FUSE connection, or mounts anew.
    fn recover(self: &Arc<Self>) -> Result<(), Problem> {
        let held = self
            .keeper
            .get_fd(FUSE_FD)
            .map_err(martlet_vm::VmError::from)
            .told()?;
        let negotiated: Option<Negotiated> = self.state.setting(NEGOTIATED).told()?;
        let adopted = held.zip(negotiated).filter(|_| is_mounted(&self.dirs.mount()));
        let life = self.state.next("life").told()?;
        self.registry.reserve(life * INODES_PER_LIFE);
        let found = self.load_machines(adopted.is_some())?;
        let server = match adopted {
            Some((fd, negotiated)) => {
                *lock(&self.connection) = fd.try_clone().ok();
                Server::start(fd, self.registry.clone(), Some(negotiated), FUSE_THREADS).told()?
            }
            None => self.mount()?,
        };
        match Readahead::of(&self.dirs.mount()) {
            Ok(readahead) => self.registry.set_readahead(readahead),
            Err(error) => tracing::debug!(%error, "who reads an image in order is served as guests are"),
        }
        *lock(&self.server) = Some(server);
        self.keep_the_keeper();
        self.reconnect_machines(found);
        Ok(())
    }

    fn mount(&self) -> Result<Server, Problem> {
        let dir = self.dirs.mount();
        let options = MountOptions {
            allow_other: self.is_root,
        };
        let fd = martlet_fuse::mount(&dir, options).map_err(|error| {
            problem::io("mount the images on", &dir, &error).remediation("`martlet doctor` checks FUSE")
        })?;
        self.keeper
            .put_fd(FUSE_FD, fd.as_fd())
            .map_err(martlet_vm::VmError::from)
            .told()?;
        *lock(&self.connection) = fd.try_clone().ok();
        let server = Server::start(fd, self.registry.clone(), None, FUSE_THREADS).told()?;
        self.state.put_setting(NEGOTIATED, &server.negotiated()).told()?;
        Ok(server)
    }

    /// Ends serving. With machines still alive the mount and the keeper stay for a successor; without, nothing does.
    pub fn close(&self) {
        self.pool.close();
        let live = self
            .all()
            .iter()
            .any(|machine| machine.live().is_some() || machine.is_at_work());
        let Some(server) = lock(&self.server).take() else {
            return;
        };
        self.away.stop();
        self.stalls.keep();
        self.stop_waiting_for_fleet();
        if live {
            server.stop();
            return;
        }
        if let Err(error) = martlet_fuse::unmount(&self.dirs.mount()) {
            tracing::warn!(%error, "the mount stays behind");
        }
        server.stop();
        if let Err(error) = self.keeper.remove_fd(FUSE_FD).and_then(|()| self.keeper.exit()) {
            tracing::warn!(%error, "the keeper did not end");
        }
        // Not before a successor that guests wait for.
        if let Err(error) = self.store.compact() {
            tracing::warn!(%error, "the store's index stays as large as it is");
        }
    }

    /// QEMU, looked for when it is first needed: a host without one can still list, verify and collect.
    pub(crate) fn qemu(&self) -> Result<&Qemu, Problem> {
        if let Some(qemu) = self.qemu.get() {
            return Ok(qemu);
        }
        let found = Qemu::discover(self.options.qemu.as_deref()).told()?;
        Ok(self.qemu.get_or_init(|| found))
    }

    /// Programs and directories that base builds need.
    pub(crate) fn tools(&self) -> Tools {
        Tools {
            agent: self.options.agent.clone(),
            cache_dir: self.dirs.cache(),
        }
    }

    /// Sockets and logs of a machine.
    pub(crate) fn run_dir(&self, record: &Record) -> PathBuf {
        self.dirs.run(&record.id)
    }

    pub(crate) fn next_key(&self) -> u64 {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    /// All machines, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Machine>> {
        lock(&self.machines).values().cloned().collect()
    }

    /// The machine of this name.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Machine>, Problem> {
        martlet_api::names::check_name(name)?;
        lock(&self.machines).get(name).cloned().ok_or_else(|| {
            Problem::new(ProblemCode::NotFound, format!("there is no machine {name}"))
                .remediation("`martlet ps` lists them")
        })
    }

    /// Adds a machine under its name, which must be free.
    pub(crate) fn add(&self, record: Record) -> Result<Arc<Machine>, Problem> {
        let _counting = lock(&self.counting);
        let mut machines = lock(&self.machines);
        if machines.contains_key(&record.name) {
            return Err(Problem::new(
                ProblemCode::AlreadyExists,
                format!("there is a machine {} already", record.name),
            )
            .remediation(format!(
                "choose another name, or `martlet rm --force {}` first",
                record.name
            )));
        }
        if record.is_clone {
            self.check_clones(machines.values(), &record.user)?;
        }
        self.state.put_machine(&record.id, &record, When::Now).told()?;
        let machine = Machine::new(record.clone());
        machines.insert(record.name, machine.clone());
        Ok(machine)
    }

    /// Changes a machine's record and keeps it. What has happened is true also when it cannot be kept.
    pub(crate) fn update(
        &self,
        machine: &Machine,
        when: When,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), Problem> {
        let written = machine.writing();
        let record = machine.change(change);
        if written.forgotten {
            // Whoever did that has had the last word, and what is starting must not run.
            return Err(Problem::new(
                ProblemCode::NotFound,
                format!("there is no machine {} any more", record.name),
            ));
        }
        self.repin(machine, &record);
        self.state
            .put_machine(&record.id, &record, when)
            .told_as(format!("the record of machine {} cannot be written", record.name))
    }

    /// The same, durable at once; a change that cannot be kept is not made.
    pub(crate) fn update_or_not(
        &self,
        machine: &Machine,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), Problem> {
        let before = machine.record();
        self.update(machine, When::Now, change).inspect_err(|_| {
            self.repin(machine, &machine.change(|record| *record = before));
        })
    }

    /// Pins what a machine needs of the store: garbage collection keeps it.
    pub(crate) fn repin(&self, machine: &Machine, record: &Record) {
        let mapped = record.running.as_ref().and_then(|running| running.mapped);
        let user = format!("machine {}", record.name);
        let needed = [Some(record.disk_base), record.snapshot, mapped];
        let pins = needed
            .into_iter()
            .flatten()
            .filter_map(|id| self.store.pin(id, &user).ok())
            .collect();
        machine.set_pins(pins);
    }

    /// The pages that earlier runs of a snapshot touched here, in order; for its first run here, those that the run touched
    /// which it was taken of.
    pub(crate) fn trace(&self, snapshot: &SnapshotId) -> Option<Trace> {
        let bytes = match self.state.trace(&snapshot.to_string()).ok().flatten() {
            Some(bytes) => bytes.into(),
            None => {
                let memory = self.store.snapshot(snapshot).ok()?.memory?;
                self.store.blob(&memory.trace?).ok()?
            }
        };
        Trace::decode(&bytes).ok()
    }

    /// Has serving ended for good?
    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.server).is_none()
    }

    /// Is the mount being served?
    pub fn is_serving(&self) -> bool {
        lock(&self.server).as_ref().is_some_and(Server::is_serving)
    }
}

/// A lock whose data stays usable after a panic elsewhere: each critical section leaves it whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn owner_of_this_process() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").map_or(u32::MAX, |meta| meta.uid())
}

fn group_of(path: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path)
        .ok()
        .map(|meta| meta.gid())
        .filter(|gid| *gid != 0)
}

fn is_mounted(dir: &Path) -> bool {
    martlet_fuse::mounts_at(dir).is_ok_and(|count| count > 0)
}
