//! QEMUs started ahead: most of a restore's time is the start of its process, which needs not wait for the request.
//!
//! ```text
//!   wanted ──► starting ──► ready ── take ──► bound to a machine (bind.rs)
//!   shape       (filler)      │
//!                             └── another shape is wanted, or the daemon ends ──► killed
//! ```
//!
//! A QEMU started ahead has all that cannot be given to it later: machine type, processors, memory size, a network that
//! may or may not lead outside. Memory, disk, ports and the place of its sockets are bound when a machine takes it
//! (`RunningVm::bind_memory`). The pool holds QEMUs of the shape that was asked for last, because the next restore is
//! most likely one of the same. It is filled again when no start is under way: it must not compete with one.

use crate::engine::{Engine, lock};
use crate::family_network::Member;
use crate::host_memory::has_room_ahead;
use crate::identity;
use crate::machine::{Config, Machine};
use crate::mapped::Mapped;
use crate::problem::{self, Told};
use martlet_api::{PoolUsage, Problem};
use martlet_image::{Manifest, PAGE_SIZE};
use martlet_vm::compat::{Accel, Hardware};
use martlet_vm::process::own_directory;
use martlet_vm::running::StartOptions;
use martlet_vm::spec::{Boot, Disk, Link, MachineSpec, Memory, Net};
use martlet_vm::{RunningVm, usage};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

/// Preference of the kernel's out-of-memory killer: rather one that runs nothing yet than a machine.
const OOM_SCORE: i32 = 500;

/// What a QEMU is called until it is a machine's.
const NAME: &str = "ahead";
/// How the directories of those begin that wait. No machine's id does.
pub const AHEAD: &str = "ahead-";

/// What a QEMU started ahead must have in common with the machine that takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Versioned machine type.
    pub machine_type: String,
    /// CPU model.
    pub cpu_model: String,
    /// Accelerator.
    pub accel: Accel,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory.
    pub memory_bytes: u64,
    /// May the guest reach the outside?
    pub outbound: bool,
    /// Does its network lead to a tap interface?
    pub tap: bool,
    /// Has it a card for the network of its family?
    pub family: bool,
}

impl Shape {
    /// That of a machine with this hardware.
    pub fn new(hardware: &Hardware, config: &Config) -> Self {
        Self {
            machine_type: hardware.machine_type.clone(),
            cpu_model: hardware.cpu_model.clone(),
            accel: hardware.accel,
            cpus: config.cpus,
            memory_bytes: config.memory_bytes,
            outbound: config.outbound,
            tap: config.tap.is_some(),
            family: config.family,
        }
    }
}

/// A QEMU that waits for a machine. Dropping it ends it.
pub struct Ahead {
    vm: Option<RunningVm>,
    shape: Shape,
    /// The number that the id of its user follows from.
    pub number: u64,
    /// The file that its memory maps meanwhile.
    pub placeholder: Arc<Mapped>,
    /// Its sockets and logs, in a directory of their own.
    pub run_dir: PathBuf,
}

impl Ahead {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.vm.as_ref().expect("it is there until it is taken").pid()
    }

    /// Is it of this shape, and alive?
    fn fits(&self, shape: &Shape) -> bool {
        self.shape == *shape && self.vm.as_ref().is_some_and(RunningVm::is_alive)
    }

    /// The QEMU.
    pub fn vm(&mut self) -> &mut RunningVm {
        self.vm.as_mut().expect("it is there until it is taken")
    }

    /// The same, leaving what is to be removed.
    pub fn take_vm(&mut self) -> RunningVm {
        self.vm.take().expect("it is there until it is taken")
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Some(vm) = &self.vm {
            // It runs nothing that could be lost.
            let _ = vm.kill();
            let _ = vm.wait(Duration::from_secs(5));
        }
        if let Some(home) = self.run_dir.parent() {
            let _ = std::fs::remove_dir_all(home); // what is left is removed at the next start
        }
    }
}

/// See the module's documentation.
pub struct Pool {
    size: usize,
    inner: Mutex<Inner>,
    changed: Condvar,
    filler: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Inner {
    wanted: Option<Shape>,
    ready: Vec<Ahead>,
    launching: usize,
    closed: bool,
}

/// A start under way: the pool waits.
pub struct Launching<'a>(&'a Pool);

impl Drop for Launching<'_> {
    fn drop(&mut self) {
        lock(&self.0.inner).launching -= 1;
        self.0.changed.notify_all();
    }
}

impl Pool {
    /// Of `size` QEMUs, when it is filled.
    pub fn new(size: usize) -> Arc<Self> {
        Arc::new(Self {
            size,
            inner: Mutex::default(),
            changed: Condvar::new(),
            filler: Mutex::default(),
        })
    }

    /// A QEMU of this shape, if one is ready; the next ones are to be like it.
    pub fn take(&self, shape: &Shape) -> Option<Ahead> {
        let mut inner = lock(&self.inner);
        inner.wanted = Some(shape.clone());
        let at = inner.ready.iter().position(|ahead| ahead.fits(shape))?;
        Some(inner.ready.swap_remove(at))
    }

    /// QEMUs of this shape will be of use.
    pub fn want(&self, shape: Shape) {
        lock(&self.inner).wanted = Some(shape);
        self.changed.notify_all();
    }

    /// A start begins.
    pub fn launching(&self) -> Launching<'_> {
        lock(&self.inner).launching += 1;
        Launching(self)
    }

    /// What it holds, and what that costs.
    pub fn usage(&self) -> PoolUsage {
        let inner = lock(&self.inner);
        let pids = inner
            .ready
            .iter()
            .filter_map(|ahead| Some(ahead.vm.as_ref()?.pid()));
        PoolUsage {
            size: self.size as u64,
            ready: inner.ready.len() as u64,
            memory_bytes: pids.filter_map(usage::of).map(|usage| usage.private_bytes).sum(),
        }
    }

    /// Starts filling it.
    pub fn fill(self: &Arc<Self>, engine: Weak<Engine>) {
        if self.size == 0 {
            return;
        }
        let pool = self.clone();
        let filler = std::thread::Builder::new().name("pool".into()).spawn(move || {
            while let Some(shape) = pool.next() {
                let Some(engine) = engine.upgrade() else { return };
                match engine.start_ahead(&shape) {
                    Ok(mut ahead) => {
                        engine.lay_out(&mut ahead);
                        lock(&pool.inner).ready.push(ahead);
                        // It is asked for this once, which takes a while: the first start from a snapshot need not wait then.
                        let _ = engine.qemu().map(|qemu| qemu.offer());
                    }
                    Err(problem) => {
                        tracing::warn!(%problem, "no QEMU can be started ahead");
                        // Not again and again: only once it is wanted again.
                        lock(&pool.inner).wanted = None;
                    }
                }
            }
        });
        match filler {
            Ok(filler) => *lock(&self.filler) = Some(filler),
            Err(error) => tracing::warn!(%error, "no QEMU is started ahead"),
        }
    }

    /// Waits until one has to be started; its shape. None when all is over.
    fn next(&self) -> Option<Shape> {
        let mut inner = lock(&self.inner);
        loop {
            if inner.closed {
                return None;
            }
            if let (Some(wanted), 0) = (inner.wanted.clone(), inner.launching) {
                let (fit, other): (Vec<_>, Vec<_>) = std::mem::take(&mut inner.ready)
                    .into_iter()
                    .partition(|ahead| ahead.fits(&wanted));
                inner.ready = fit;
                if !other.is_empty() {
                    drop(inner);
                    drop(other); // waits for their ends
                    inner = lock(&self.inner);
                    continue;
                }
                if inner.ready.len() < self.size && has_room_ahead() {
                    return Some(wanted);
                }
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends those that are ready: their memory is needed.
    pub fn empty(&self) {
        let ready = std::mem::take(&mut lock(&self.inner).ready);
        drop(ready); // waits for their ends
    }

    /// Ends all of them, and filling.
    pub fn close(&self) {
        lock(&self.inner).closed = true;
        self.changed.notify_all();
        if let Some(filler) = lock(&self.filler).take() {
            let _ = filler.join(); // it has panicked, then
        }
        self.empty();
    }
}

impl Engine {
    /// Lays it out like a machine of its shape that runs.
    fn lay_out(&self, ahead: &mut Ahead) {
        let of_shape = |machine: &Arc<Machine>| {
            let record = machine.record();
            let shape = Shape::new(&record.hardware.to_compat(), &record.config);
            machine.live().filter(|_| shape == ahead.shape)
        };
        let layout = self.all().iter().find_map(of_shape).map(|live| live.vm.layout());
        if let Some(Err(error)) = layout.map(|layout| ahead.vm().lay_out(&layout?)) {
            tracing::debug!(%error, "a QEMU that was started ahead is not laid out");
        }
    }

    /// Starts one.
    pub(crate) fn start_ahead(&self, shape: &Shape) -> Result<Ahead, Problem> {
        let number = self.state.take("machine", 1).told()?;
        let user = self.qemu_user(number);
        let home = format!("{AHEAD}{}", &identity::machine_id()[AHEAD.len()..]);
        self.dirs.create_machine(&home)?;
        let run_dir = self.dirs.run(&home);
        own_directory(&run_dir, user.as_ref()).map_err(|error| problem::io("make", &run_dir, &error))?;
        let zeros = Manifest::zero(shape.memory_bytes / PAGE_SIZE as u64);
        let mut ahead = Ahead {
            vm: None,
            shape: shape.clone(),
            number,
            placeholder: self.images.map(None, Arc::new(zeros), None)?,
            run_dir: run_dir.clone(),
        };
        let spec = MachineSpec {
            name: NAME.into(),
            hardware: Hardware {
                machine_type: shape.machine_type.clone(),
                cpu_model: shape.cpu_model.clone(),
                accel: shape.accel,
                qemu_version: self.qemu()?.version().to_owned(),
            },
            cpus: shape.cpus,
            memory: Memory {
                path: self.dirs.memory_file(&ahead.placeholder.name),
                size_bytes: shape.memory_bytes,
                free_page_reporting: true,
            },
            disks: vec![Disk {
                path: None,
                read_only: false,
            }],
            boot: Boot::Firmware,
            net: Some(Net {
                address: identity::address(number).into(),
                mac: identity::mac_text(identity::mac(number)),
                link: match shape.tap {
                    true => Link::Tap,
                    false => Link::User {
                        forwards: Vec::new(),
                        outbound: shape.outbound,
                    },
                },
                // The device state that is loaded says which it is.
                family: shape.family.then(Member::any_card),
            }),
            generation_id: identity::uuid(),
            run_dir,
            incoming: true,
        };
        let options = StartOptions {
            user,
            oom_score_adj: Some(OOM_SCORE),
            env: Vec::new(),
        };
        ahead.vm = Some(RunningVm::start(self.qemu()?, &spec, &options, self.spawner.clone()).told()?);
        Ok(ahead)
    }
}
