//! Holding user code with the cgroup v2 freezer.
//!
//! ```text
//!             Prepare                Hello(clone)
//!  Running ───────────► Held ─────────────────────► AwaitingIdentity
//!     ▲                  │ ▲                               │
//!     └───── Release ────┘ └────── Identify succeeded ─────┘
//!  (a guest booted with martlet.hold=1 starts in Held, with its init still behind the gate)
//! ```
//!
//! The agent has a cgroup of its own; every other cgroup at the top of the hierarchy is frozen, process 1 included, and
//! user processes at the very top are moved down first. What the agent starts (commands) is in frozen cgroups too, and
//! none is started while held. If the host never comes back, the guest stays held: that is the point.

use crate::fault::{Result, failed, fault};
use crate::log::log;
use crate::syscalls;
use martlet_agent_api::{Prepared, RemoteErrorKind};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The agent's cgroup, the only one that is never frozen.
const OWN_GROUP: &str = "martlet-agent";
/// User processes found at the top of the hierarchy.
const USER_GROUP: &str = "martlet-user";
/// Commands for the host.
pub const EXEC_GROUP: &str = "martlet-exec";
/// The machine's own command.
pub const COMMAND_GROUP: &str = "martlet-command";

/// All is frozen within this time, or something waits for what is frozen already.
const FIRST_ATTEMPT: Duration = Duration::from_millis(500);
/// How often a group is asked whether it is frozen by now.
const FROZEN_POLL: Duration = Duration::from_micros(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Held,
    AwaitingIdentity,
}

type Gate = Box<dyn FnOnce() + Send>;

struct State {
    phase: Phase,
    /// What was frozen, open for thawing: a guest that was just restored finds nothing as fast.
    frozen: Vec<File>,
    /// When it began to be held, by a clock that goes on in a clone where it stopped.
    since: Instant,
    /// What waits for the first release: the image's init, the machine's command.
    gates: Vec<Gate>,
}

/// Whether user code runs.
pub struct Hold {
    /// Root of the cgroup v2 hierarchy; none where the agent cannot hold anything.
    cgroups: Option<PathBuf>,
    /// Processes of the agent.
    own: Vec<u32>,
    state: Mutex<State>,
}

/// While this lives nothing can be held: for starting a process.
pub struct SpawnPermit<'a> {
    _state: MutexGuard<'a, State>,
    hold: &'a Hold,
}

impl SpawnPermit<'_> {
    /// Opens a group for a new process to join.
    pub fn group(&self, name: &str) -> Option<File> {
        let dir = self.hold.cgroups.as_ref()?.join(name);
        let opened =
            make_group(&dir).and_then(|()| File::options().write(true).open(dir.join("cgroup.procs")));
        opened
            .map_err(|error| log(&format!("cannot use the cgroup {name}: {error}")))
            .ok()
    }
}

impl Hold {
    /// `own` are the processes of the agent beside the calling one. Puts the agent into its own group.
    pub fn new(cgroups: Option<PathBuf>, own: &[u32], held: bool) -> Self {
        let cgroups = cgroups.filter(|root| syscalls::is_cgroup2(root));
        let own = own.iter().copied().chain([std::process::id()]).collect();
        // A former agent may have ended in the middle of a hold: then this one goes on with it.
        let held = held || cgroups.as_deref().is_some_and(any_frozen);
        let phase = if held { Phase::Held } else { Phase::Running };
        let hold = Self {
            cgroups,
            own,
            state: Mutex::new(State {
                phase,
                frozen: Vec::new(),
                since: Instant::now(),
                gates: Vec::new(),
            }),
        };
        if let Some(root) = &hold.cgroups
            && let Err(error) = hold.join_own_group(root)
        {
            log(&format!("cannot have a cgroup of my own: {error}"));
        }
        hold
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is user code held?
    pub fn is_held(&self) -> bool {
        self.lock().phase != Phase::Running
    }

    /// Can this guest be held at all?
    pub fn is_possible(&self) -> bool {
        self.cgroups.is_some()
    }

    /// A process may be started while the permit lives; refused while held.
    pub fn permit_spawn(&self) -> Result<SpawnPermit<'_>> {
        let state = self.lock();
        match state.phase {
            Phase::Running => Ok(SpawnPermit {
                _state: state,
                hold: self,
            }),
            Phase::Held | Phase::AwaitingIdentity => Err(fault(
                RemoteErrorKind::State,
                "user code is held; nothing can be started before the release",
            )),
        }
    }

    /// Runs `gate` at the release, or now when nothing is held.
    pub fn at_release(&self, gate: impl FnOnce() + Send + 'static) {
        let mut state = self.lock();
        if state.phase == Phase::Running {
            drop(state);
            gate();
        } else {
            state.gates.push(Box::new(gate));
        }
    }

    /// The host says that this is a clone: no release without an identity.
    pub fn require_identity(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Held {
            state.phase = Phase::AwaitingIdentity;
        }
    }

    /// The identity was put on.
    pub fn identity_done(&self) {
        let mut state = self.lock();
        if state.phase == Phase::AwaitingIdentity {
            state.phase = Phase::Held;
        }
    }

    /// Holds user code; nothing is held when it fails.
    pub fn prepare(&self, timeout: Duration) -> Result<Prepared> {
        let started = Instant::now();
        let mut state = self.lock();
        if state.phase != Phase::Running {
            return Ok(Prepared::default());
        }
        let Some(root) = &self.cgroups else {
            return Err(fault(
                RemoteErrorKind::Unsupported,
                "the guest has no cgroup v2 hierarchy at /sys/fs/cgroup",
            ));
        };
        match self.freeze_all(root, started + timeout) {
            Ok(groups) => {
                let count = groups.len() as u32;
                let opened: io::Result<Vec<File>> = groups.iter().map(|group| freezer(group)).collect();
                state.frozen = opened.unwrap_or_default(); // they are looked for, else
                (state.phase, state.since) = (Phase::Held, started);
                Ok(Prepared {
                    hold_ms: started.elapsed().as_secs_f64() * 1e3,
                    groups: count,
                })
            }
            Err(error) => {
                self.thaw_all(root);
                Err(error)
            }
        }
    }

    /// Lets user code go on after `before` has run; refused to a clone without its identity. How long it was held.
    pub fn release(&self, before: impl FnOnce() -> Result<()>) -> Result<Duration> {
        let mut state = self.lock();
        if state.phase == Phase::AwaitingIdentity {
            return Err(fault(
                RemoteErrorKind::State,
                "this clone has not taken its identity; it stays held",
            ));
        }
        before()?;
        let mut held = Duration::ZERO;
        if state.phase == Phase::Held {
            if let Some(root) = &self.cgroups
                && !thaw(&std::mem::take(&mut state.frozen))
            {
                self.thaw_all(root);
            }
            state.phase = Phase::Running;
            held = state.since.elapsed();
        }
        let gates = std::mem::take(&mut state.gates);
        drop(state);
        for gate in gates {
            gate();
        }
        Ok(held)
    }

    fn join_own_group(&self, root: &Path) -> io::Result<()> {
        let dir = root.join(OWN_GROUP);
        make_group(&dir)?;
        let members = pids(&dir)?;
        for pid in self.own.iter().filter(|pid| !members.contains(pid)) {
            fs::write(dir.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }

    /// Freezes all user code, in several attempts: a process may wait in the kernel for another one that is frozen already
    /// (an automount's, a user-space file system's), which must go on for a moment before both can be frozen.
    fn freeze_all(&self, root: &Path, deadline: Instant) -> Result<Vec<PathBuf>> {
        let mut patience = FIRST_ATTEMPT;
        loop {
            let attempt = deadline.min(Instant::now() + patience);
            match self.freeze_attempt(root, attempt) {
                Err(_) if Instant::now() < deadline => {
                    self.thaw_all(root);
                    thread::sleep(patience / 4);
                    patience *= 2;
                }
                ended => return ended,
            }
        }
    }

    fn freeze_attempt(&self, root: &Path, deadline: Instant) -> Result<Vec<PathBuf>> {
        let cannot = |error: io::Error| failed("cannot hold user code", error);
        self.join_own_group(root).map_err(cannot)?;
        // User code that is not frozen yet may make groups and move processes: go round until there is nothing new.
        let mut frozen: Vec<PathBuf> = Vec::new();
        loop {
            let moved = self.empty_root(root).map_err(cannot)?;
            let groups = user_groups(root).map_err(cannot)?;
            let new: Vec<_> = groups
                .into_iter()
                .filter(|group| !frozen.contains(group))
                .collect();
            if new.is_empty() && !moved {
                return Ok(frozen);
            }
            if moved && Instant::now() >= deadline {
                let message =
                    "processes stay at the top of the cgroup hierarchy, where they cannot be frozen";
                return Err(fault(RemoteErrorKind::Failed, message));
            }
            for group in new {
                set_frozen(&group, true).map_err(cannot)?;
                frozen.push(group);
            }
            for group in &frozen {
                while !is_frozen(group) {
                    if Instant::now() >= deadline {
                        let name = group.file_name().unwrap_or_default();
                        let message = format!("{name:?} did not freeze in time: {}", in_the_way(group));
                        return Err(fault(RemoteErrorKind::Failed, message));
                    }
                    thread::sleep(FROZEN_POLL);
                }
            }
        }
    }

    /// Moves user processes out of the hierarchy's top, which cannot be frozen; were there any?
    fn empty_root(&self, root: &Path) -> io::Result<bool> {
        let at_top = pids(root)?
            .into_iter()
            .filter(|pid| !self.own.contains(pid) && is_user_process(*pid));
        let users: Vec<u32> = at_top.collect();
        let dir = root.join(USER_GROUP);
        if !users.is_empty() {
            make_group(&dir)?;
        }
        for pid in &users {
            let _ = fs::write(dir.join("cgroup.procs"), pid.to_string()); // it may have ended; looked at again
        }
        Ok(!users.is_empty())
    }

    fn thaw_all(&self, root: &Path) {
        for group in user_groups(root).unwrap_or_default() {
            if let Err(error) = set_frozen(&group, false) {
                log(&format!("cannot thaw {group:?}: {error}"));
            }
        }
    }
}

fn make_group(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn user_groups(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut groups = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.file_name() != OWN_GROUP {
            groups.push(entry.path());
        }
    }
    Ok(groups)
}

fn any_frozen(root: &Path) -> bool {
    let wanted = |group: &PathBuf| {
        fs::read_to_string(group.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
    };
    user_groups(root).is_ok_and(|groups| groups.iter().any(wanted))
}

fn freezer(group: &Path) -> io::Result<File> {
    File::options().write(true).open(group.join("cgroup.freeze"))
}

/// Thaws groups; false if there are none, or not all of them could be.
fn thaw(groups: &[File]) -> bool {
    // One that was removed has nobody in it, and says so: then all are gone through.
    !groups.is_empty() && groups.iter().all(|mut group| group.write_all(b"0").is_ok())
}

fn set_frozen(group: &Path, frozen: bool) -> io::Result<()> {
    match freezer(group).and_then(|mut file| file.write_all(if frozen { b"1" } else { b"0" })) {
        // Removed since it was listed: nobody was in it.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn is_frozen(group: &Path) -> bool {
    match fs::read_to_string(group.join("cgroup.events")) {
        Ok(events) => events.lines().any(|line| line == "frozen 1"),
        Err(_) => !group.exists(),
    }
}

/// Processes of a group, and of those below it, that wait in the kernel where they cannot be frozen.
fn in_the_way(group: &Path) -> String {
    let mut found = Vec::new();
    let mut groups = vec![group.to_owned()];
    while let Some(group) = groups.pop() {
        for pid in pids(&group).unwrap_or_default() {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // `PID (NAME) STATE …`, where the name may hold anything.
            let Some((name, rest)) = stat.rsplit_once(')') else {
                continue;
            };
            if rest.trim_start().starts_with('D') {
                let name = name.split_once('(').map_or("", |(_, name)| name);
                let place = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
                found.push(format!("{name} ({pid}) waits in {place}"));
            }
        }
        groups.extend(user_groups(&group).unwrap_or_default());
    }
    match found.is_empty() {
        true => "nothing in it waits for a device; it may only be slow".into(),
        false => found.join(", "),
    }
}

fn pids(group: &Path) -> io::Result<Vec<u32>> {
    let text = fs::read_to_string(group.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Can it run user code? Kernel threads and those that have ended have no program. (One `readlink` each: there are many
/// kernel threads, and the guest stands still meanwhile.)
pub fn is_user_process(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_is_not_released_before_its_identity() {
        let hold = Hold::new(None, &[], true);
        let (opened, gate) = std::sync::mpsc::channel();
        hold.at_release(move || opened.send(()).unwrap());
        hold.require_identity();
        assert_eq!(hold.release(|| Ok(())).unwrap_err().kind, RemoteErrorKind::State);
        assert_eq!(
            hold.permit_spawn().err().map(|error| error.kind),
            Some(RemoteErrorKind::State)
        );
        hold.identity_done();
        assert!(
            hold.release(|| Err(failed("the clock", "no"))).is_err(),
            "a failed clock keeps it held"
        );
        assert!(hold.is_held() && gate.try_recv().is_err());
        hold.release(|| Ok(())).unwrap();
        gate.try_recv().unwrap();
        assert!(hold.permit_spawn().is_ok());
    }

    #[test]
    fn a_guest_without_cgroups_says_so() {
        let hold = Hold::new(Some("/proc".into()), &[], false);
        assert_eq!(
            hold.prepare(Duration::ZERO).unwrap_err().kind,
            RemoteErrorKind::Unsupported
        );
        assert!(!hold.is_held());
    }

    #[test]
    fn kernel_threads_are_told_apart() {
        assert!(is_user_process(std::process::id()));
        assert!(!is_user_process(u32::MAX));
    }
}
