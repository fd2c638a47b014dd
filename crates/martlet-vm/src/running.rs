//! A running QEMU, spoken to over QMP.
//!
//! ```text
//!   start(spec)                       ┌───────── stop ─────────┐
//!      │                              │                        ▼
//!      ├── spec.incoming = false ──► paused ◄── load ──┐    paused ── save_descriptor (any number of times)
//!      │                              │ cont           │       │ cont
//!      └── spec.incoming = true ───► incoming ─────────┘       ▼
//!                                                           running ──► ended (guest shut down, killed, failed)
//! ```
//!
//! That QEMU is at its end is noticed at once, by the end of its QMP connection, and every call that waits fails with
//! how it ended and its last words. The descriptor goes both ways through a memory file handed over with the command:
//! no path, and nothing on disk.

use crate::VmError;
use crate::hypervisor::Qemu;
use crate::process::{ChildState, LAST_WORDS_MAX, Limits, SpawnRequest, Spawner, User, tail};
use crate::qmp::{self, Message, QmpClient, QmpError};
use crate::spec::{MachineSpec, QMP_SOCKET, STDERR_LOG};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

mod bind;
mod descriptor_file;
mod family;
mod forward;
mod layout;
mod room;
mod tap;

use descriptor_file::DescriptorFile;
pub use layout::Layout;

/// Largest descriptor taken or loaded. A machine of ours has one of some 100 KiB.
pub const DESCRIPTOR_MAX_BYTES: u64 = 64 << 20;

const START_TIMEOUT: Duration = Duration::from_secs(30);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
const LOAD_TIMEOUT: Duration = Duration::from_secs(30);
const OPEN_FILES_MAX: u64 = 1024;

/// How to start a machine's process.
#[derive(Debug, Clone, Default)]
pub struct StartOptions {
    /// User that QEMU runs as; ours when absent.
    pub user: Option<User>,
    /// Preference of the kernel's out-of-memory killer.
    pub oom_score_adj: Option<i32>,
    /// Additional environment (a library path, for a QEMU that is not installed).
    pub env: Vec<(String, String)>,
}

/// What happens to a machine, as it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmEvent {
    /// The virtual CPUs run.
    Resumed(Instant),
    /// The virtual CPUs stand still.
    Stopped(Instant),
    /// The guest's kernel has panicked; QEMU is about to exit.
    Panicked,
    /// The guest (or we) asked for the end; QEMU is about to exit.
    ShuttingDown(EndReason),
    /// The connection to QEMU is at its end: it has exited, or soon will have.
    Ended,
}

/// Why QEMU is about to exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest rebooted; to be started anew.
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanic,
    /// We asked QEMU to quit, or a signal did.
    Host,
    /// Anything else.
    Other,
}

/// Plain facts about a running machine, from which [`RunningVm::adopt`] finds it again after our restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmHandle {
    /// QEMU's process.
    pub pid: u32,
    /// QMP socket.
    pub qmp_socket: PathBuf,
    /// What QEMU said.
    pub stderr_log: PathBuf,
    /// The guest's address, which forwards lead to.
    pub address: Option<Ipv4Addr>,
}

impl VmHandle {
    /// Of a QEMU whose sockets and logs are in `run_dir`, as [`MachineSpec`] names them.
    pub fn in_dir(pid: u32, run_dir: &Path, address: Option<Ipv4Addr>) -> Self {
        Self {
            pid,
            qmp_socket: run_dir.join(QMP_SOCKET),
            stderr_log: run_dir.join(STDERR_LOG),
            address,
        }
    }
}

/// A QEMU that answers. Dropping it leaves QEMU running.
pub struct RunningVm {
    handle: VmHandle,
    spawner: Arc<dyn Spawner>,
    qmp: Arc<QmpClient>,
    seen: Arc<Seen>,
}

/// What the events have told.
#[derive(Default)]
struct Seen {
    facts: Mutex<Facts>,
    changed: Condvar,
    /// Is the guest to run, as far as we say? Held while that changes.
    meant_to_run: Mutex<bool>,
}

#[derive(Default)]
struct Facts {
    ended: bool,
    panicked: bool,
    shutdown: Option<EndReason>,
    resumed: Option<Instant>,
    out_of_room: bool,
    migration: Option<String>,
    subscribers: Vec<Sender<VmEvent>>,
}

impl Seen {
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn meant_to_run(&self) -> MutexGuard<'_, bool> {
        self.meant_to_run.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn note(&self, message: Message) {
        let now = Instant::now();
        let mut facts = self.facts();
        let event = match message {
            Message::Closed => {
                facts.ended = true;
                Some(VmEvent::Ended)
            }
            Message::Event { name, data } => match name.as_str() {
                "RESUME" => {
                    facts.resumed = Some(now);
                    Some(VmEvent::Resumed(now))
                }
                "STOP" => Some(VmEvent::Stopped(now)),
                "BLOCK_IO_ERROR" => {
                    facts.out_of_room |= data["nospace"] == true && data["action"] == "stop";
                    None
                }
                "GUEST_PANICKED" => {
                    facts.panicked = true;
                    Some(VmEvent::Panicked)
                }
                "SHUTDOWN" => {
                    let reason = end_reason(&data);
                    facts.shutdown = Some(reason);
                    Some(VmEvent::ShuttingDown(reason))
                }
                "MIGRATION" => {
                    facts.migration = data["status"].as_str().map(String::from);
                    None
                }
                _ => None,
            },
        };
        if let Some(event) = event {
            facts
                .subscribers
                .retain(|s| s.send(event).is_ok() && event != VmEvent::Ended);
        }
        drop(facts);
        self.changed.notify_all();
    }
}

fn end_reason(data: &Value) -> EndReason {
    match data["reason"].as_str() {
        Some("guest-shutdown") => EndReason::GuestShutdown,
        Some("guest-reset") => EndReason::GuestReset,
        Some("guest-panic") => EndReason::GuestPanic,
        Some(reason) if reason.starts_with("host-") => EndReason::Host,
        _ => EndReason::Other,
    }
}

impl RunningVm {
    /// Starts QEMU and waits until it answers. The machine is paused, or waits for a descriptor. Its `run_dir` must
    /// exist and belong to the user QEMU runs as (see [`crate::process::own_directory`]).
    pub fn start(
        qemu: &Qemu,
        spec: &MachineSpec,
        options: &StartOptions,
        spawner: Arc<dyn Spawner>,
    ) -> Result<Self, VmError> {
        spec.check()?;
        for socket in [spec.qmp_socket(), spec.agent_socket(), spec.console_socket()] {
            match std::fs::remove_file(&socket) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(VmError::io(format!("remove {}", socket.display()))(e));
                }
                _ => {}
            }
        }
        let pid = spawner.spawn(&request(qemu, spec, options), Vec::new())?;
        let handle = VmHandle::in_dir(pid, &spec.run_dir, spec.net.as_ref().map(|net| net.address));
        let connected = Self::connect_to_new(handle, spawner.clone()).and_then(|vm| {
            if spec.incoming {
                // How loading goes; asked for now, because each byte of a command takes QEMU some microseconds.
                let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
                vm.command("starting", "migrate-set-capabilities", events)?;
            }
            Ok(vm)
        });
        if connected.is_err() {
            // Half a machine is of no use to anybody.
            spawner.signal(pid, libc::SIGKILL).ok();
        }
        connected
    }

    fn connect_to_new(handle: VmHandle, spawner: Arc<dyn Spawner>) -> Result<Self, VmError> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match Self::adopt(handle.clone(), spawner.clone()) {
                // Not listening yet.
                Err(VmError::Qmp {
                    source: QmpError::Socket(_),
                    ..
                }) if Instant::now() < deadline => {}
                Err(VmError::Qmp {
                    source: QmpError::Socket(_),
                    ..
                }) => {
                    return Err(VmError::Timeout {
                        what: "QEMU's start",
                        after_ms: START_TIMEOUT.as_millis() as u64,
                    });
                }
                other => return other,
            }
            if let ChildState::Ended { status, last_words } = spawner.state(handle.pid)? {
                return Err(VmError::Ended {
                    during: "starting",
                    status: status.to_string(),
                    last_words,
                });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes over a QEMU that runs already, for instance after our restart.
    pub fn adopt(handle: VmHandle, spawner: Arc<dyn Spawner>) -> Result<Self, VmError> {
        let seen = Arc::new(Seen::default());
        let noting = seen.clone();
        let qmp = QmpClient::connect(&handle.qmp_socket, COMMAND_TIMEOUT, move |message| {
            noting.note(message)
        });
        match qmp {
            Ok(qmp) => {
                let qmp = Arc::new(qmp);
                room::watch(seen.clone(), Arc::downgrade(&qmp)).map_err(VmError::io("watch a guest"))?;
                Ok(Self {
                    handle,
                    spawner,
                    qmp,
                    seen,
                })
            }
            Err(source @ QmpError::Socket(_)) => Err(VmError::Qmp {
                during: "connecting to QEMU",
                source,
            }),
            Err(source) => Err(failure(&handle, &*spawner, "connecting to QEMU", source)),
        }
    }

    /// Facts for [`RunningVm::adopt`].
    pub fn handle(&self) -> &VmHandle {
        &self.handle
    }

    /// QEMU's process.
    pub fn pid(&self) -> u32 {
        self.handle.pid
    }

    /// Everything that happens from now on. The channel closes after [`VmEvent::Ended`].
    pub fn events(&self) -> Receiver<VmEvent> {
        let (sender, receiver) = channel();
        let mut facts = self.seen.facts();
        if facts.ended {
            sender.send(VmEvent::Ended).expect("its receiver is still here");
        } else {
            facts.subscribers.push(sender);
        }
        receiver
    }

    /// Does QEMU still answer, as far as is known?
    pub fn is_alive(&self) -> bool {
        !self.seen.facts().ended
    }

    /// Has the guest's kernel panicked?
    pub fn has_panicked(&self) -> bool {
        self.seen.facts().panicked
    }

    /// Why it ended or is about to.
    pub fn end_reason(&self) -> Option<EndReason> {
        self.seen.facts().shutdown
    }

    /// Lets the virtual CPUs run. Returns when they do.
    pub fn cont(&self) -> Result<Instant, VmError> {
        let mut is_meant_to_run = self.seen.meant_to_run();
        *is_meant_to_run = true;
        self.seen.facts().resumed = None;
        self.command("resuming the guest", "cont", Value::Null)?;
        // The event precedes the answer, when it comes at all (a guest that runs already is not resumed).
        Ok(self.seen.facts().resumed.unwrap_or_else(Instant::now))
    }

    /// Stops the virtual CPUs. Returns when they stand still and all I/O is done.
    pub fn stop(&self) -> Result<(), VmError> {
        let mut is_meant_to_run = self.seen.meant_to_run();
        *is_meant_to_run = false;
        self.command("stopping the guest", "stop", Value::Null).map(drop)
    }

    /// The run state, in QEMU's words (`running`, `paused`, `inmigrate`, `guest-panicked`, …).
    pub fn status(&self) -> Result<String, VmError> {
        let answer = self.command("asking for the state", "query-status", Value::Null)?;
        Ok(answer["status"].as_str().unwrap_or_default().to_string())
    }

    /// The state of devices and CPUs; no memory. The guest must be stopped, and stays so.
    pub fn save_descriptor(&self) -> Result<Vec<u8>, VmError> {
        const DURING: &str = "saving the device state";
        let file = DescriptorFile::for_writing().map_err(VmError::io(DURING))?;
        let added =
            self.command_with_fds(DURING, "add-fd", json!({ "opaque": "descriptor" }), &[file.fd()])?;
        let set = added["fdset-id"].as_u64().unwrap_or_default();
        let saved = self.command(
            DURING,
            "xen-save-devices-state",
            json!({ "filename": format!("/dev/fdset/{set}"), "live": false }),
        );
        // Left behind, it would only cost QEMU a descriptor.
        self.command(DURING, "remove-fd", json!({ "fdset-id": set })).ok();
        saved?;
        file.written(DESCRIPTOR_MAX_BYTES).map_err(VmError::io(DURING))
    }

    /// Loads what [`RunningVm::save_descriptor`] gave into a machine started with `incoming`. The guest is then paused.
    /// A descriptor that QEMU rejects makes QEMU exit: this machine is then at its end.
    pub fn load_descriptor(&self, descriptor: &[u8]) -> Result<Duration, VmError> {
        const DURING: &str = "loading the device state";
        if descriptor.is_empty() || descriptor.len() as u64 > DESCRIPTOR_MAX_BYTES {
            let reason = format!(
                "{} bytes; 1 to {DESCRIPTOR_MAX_BYTES} are possible",
                descriptor.len()
            );
            return Err(VmError::BadDescriptor { reason });
        }
        let begun = Instant::now();
        let file = DescriptorFile::for_reading(descriptor).map_err(VmError::io(DURING))?;
        let given = self.ask(DURING, "getfd", json!({ "fdname": "state" }), &[file.fd()])?;
        let loading = self.ask(DURING, "migrate-incoming", json!({ "uri": "fd:state" }), &[])?;
        let loading = given.answer().and_then(|_| loading.answer());
        loading.and_then(|_| self.wait_for_load()).map_err(|e| match e {
            VmError::Ended { last_words, .. } => VmError::BadDescriptor { reason: last_words },
            other => other,
        })?;
        Ok(begun.elapsed())
    }

    fn wait_for_load(&self) -> Result<(), VmError> {
        let deadline = Instant::now() + LOAD_TIMEOUT;
        let mut facts = self.seen.facts();
        loop {
            match facts.migration.as_deref() {
                Some("completed") => return Ok(()),
                Some("failed") => {
                    drop(facts);
                    // QEMU writes the reason and exits; give it a moment to do so.
                    self.wait(Duration::from_secs(2))?;
                    return Err(VmError::BadDescriptor {
                        reason: self.last_words(),
                    });
                }
                _ if facts.ended => {
                    drop(facts);
                    let closed = QmpError::Closed("it exited".into());
                    return Err(failure(
                        &self.handle,
                        &*self.spawner,
                        "loading the device state",
                        closed,
                    ));
                }
                _ => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let after_ms = LOAD_TIMEOUT.as_millis() as u64;
                return Err(VmError::Timeout {
                    what: "loading the device state",
                    after_ms,
                });
            }
            facts = self
                .seen
                .changed
                .wait_timeout(facts, left)
                .unwrap_or_else(|e| e.into_inner())
                .0;
        }
    }

    /// Presses the power button. The guest may take its time, or ignore it.
    pub fn system_powerdown(&self) -> Result<(), VmError> {
        self.command("pressing the power button", "system_powerdown", Value::Null)
            .map(drop)
    }

    /// Ends QEMU, in order: files are closed, the guest is not asked.
    pub fn quit(&self) -> Result<(), VmError> {
        match self.command("quitting", "quit", Value::Null) {
            // It may be gone before it has answered.
            Err(VmError::Ended { .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Ends QEMU at once.
    pub fn kill(&self) -> Result<(), VmError> {
        Ok(self.spawner.signal(self.handle.pid, libc::SIGKILL)?)
    }

    /// Waits until QEMU has exited, or until the time is over.
    pub fn wait(&self, timeout: Duration) -> Result<ChildState, VmError> {
        Ok(self.spawner.wait(self.handle.pid, timeout)?)
    }

    /// The tail of what QEMU wrote to standard error.
    pub fn last_words(&self) -> String {
        tail(&self.handle.stderr_log, LAST_WORDS_MAX)
    }

    fn command(&self, during: &'static str, name: &str, arguments: Value) -> Result<Value, VmError> {
        self.command_with_fds(during, name, arguments, &[])
    }

    fn command_with_fds(
        &self,
        during: &'static str,
        name: &str,
        arguments: Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Value, VmError> {
        self.ask(during, name, arguments, fds)?.answer()
    }

    /// Sends a command whose answer is waited for later.
    fn ask(
        &self,
        during: &'static str,
        name: &str,
        arguments: Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Asked<'_>, VmError> {
        match self.qmp.ask(name, arguments, fds) {
            Ok(asked) => Ok(Asked {
                vm: self,
                during,
                asked,
            }),
            Err(source) => Err(failure(&self.handle, &*self.spawner, during, source)),
        }
    }
}

/// A command that was sent.
struct Asked<'a> {
    vm: &'a RunningVm,
    during: &'static str,
    asked: qmp::Asked<'a>,
}

impl Asked<'_> {
    /// Waits for its answer.
    fn answer(self) -> Result<Value, VmError> {
        let Self { vm, during, asked } = self;
        asked
            .answer(COMMAND_TIMEOUT)
            .map_err(|source| failure(&vm.handle, &*vm.spawner, during, source))
    }
}

/// A failed exchange, or the end of QEMU if that is what it was.
fn failure(handle: &VmHandle, spawner: &dyn Spawner, during: &'static str, source: QmpError) -> VmError {
    if source.is_lost()
        && let Ok(ChildState::Ended { status, last_words }) = spawner.wait(handle.pid, Duration::from_secs(2))
    {
        return VmError::Ended {
            during,
            status: status.to_string(),
            last_words,
        };
    }
    VmError::Qmp { during, source }
}

fn request(qemu: &Qemu, spec: &MachineSpec, options: &StartOptions) -> SpawnRequest {
    let mut argv = vec![qemu.path().display().to_string()];
    for dir in qemu.firmware_dirs() {
        argv.extend(["-L".into(), dir.display().to_string()]);
    }
    argv.extend(spec.args());
    SpawnRequest {
        tag: spec.name.clone(),
        argv,
        env: options.env.clone(),
        user: options.user.clone(),
        limits: Limits {
            open_files: Some(OPEN_FILES_MAX),
            address_space_bytes: None,
            core_bytes: Some(0),
        },
        cwd: Some(spec.run_dir.clone()),
        log: Some(spec.stderr_log()),
        oom_score_adj: options.oom_score_adj,
        traceable: true,
        refuse_huge_pages: true,
        fd_numbers: Vec::new(),
    }
}
