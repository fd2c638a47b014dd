//! The heart of a line that is held: it gives signs of this host, hears who asks for the line, and publishes what waits.

use crate::engine::{Engine, lock};
use crate::line::Hold;
use crate::machine::{BEHIND, Machine};
use crate::phase::Phase;
use crate::problem::Told;
use martlet_api::{CheckpointRequest, Problem};
use martlet_source::{Lease, LeaseId, SourceError, Stamp};
use martlet_store::RefName;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// So many signs are given while a lease lasts.
const SIGNS: u32 = 4;

impl Engine {
    /// Starts the heart of a machine's line, if it is held.
    pub(crate) fn start_heart(self: &Arc<Self>, machine: &Arc<Machine>) {
        let record = machine.record();
        let Some(lease) = record.line.and_then(|line| line.hold.lease()) else {
            return;
        };
        let heart = Heart {
            engine: Arc::downgrade(self),
            machine: Arc::downgrade(machine),
            lease,
            publishing: Arc::new(Mutex::new(Instant::now())),
        };
        let away = self.away.clone();
        let beat = move || {
            while let Some(pause) = heart.beat() {
                if away.pause(pause).is_err() {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("heart".into()).spawn(beat) {
            tracing::warn!(%error, machine = record.name, "its line counts as free after a while");
        }
    }

    /// The hearts of all lines that are held.
    pub(crate) fn recover_lines(self: &Arc<Self>) {
        for machine in self.all() {
            self.start_heart(&machine);
        }
    }

    /// Is a line held here?
    pub(crate) fn holds_lines(&self) -> bool {
        let held = |machine: &Arc<Machine>| {
            let line = machine.record().line;
            line.is_some_and(|line| matches!(line.hold, Hold::Held { .. }))
        };
        self.all().iter().any(held)
    }

    /// Gives signs for a lease that no machine has a heart for yet, until what is returned is dropped.
    pub(crate) fn give_signs(self: &Arc<Self>, remote: &str, name: &RefName, lease: &Lease) -> Signs {
        let signs = Signs(Arc::default());
        let (ended, engine, away) = (signs.0.clone(), Arc::downgrade(self), self.away.clone());
        let called = name;
        let (remote, name, lease) = (remote.to_owned(), name.clone(), lease.clone());
        let give = move || {
            while let Some(engine) = engine.upgrade().filter(|_| !ended.load(Relaxed)) {
                match engine.sign(&remote, &name, &lease.id) {
                    Ok(Err(SourceError::Lost { .. })) => return, // whoever waits finds that out
                    Ok(_) => {}
                    Err(problem) => tracing::warn!(%problem, line = %name, "there is no sign of it"),
                }
                drop(engine);
                if away.pause(pause_between_signs(&lease)).is_err() {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("signs".into()).spawn(give) {
            tracing::warn!(%error, line = %called, "it counts as free after a while");
        }
        signs
    }

    fn sign(
        self: &Arc<Self>,
        remote: &str,
        name: &RefName,
        id: &LeaseId,
    ) -> Result<Result<Option<Stamp>, SourceError>, Problem> {
        let remote = self.newest(remote, None)?;
        Ok(remote.is_held(name, id).and_then(|_| remote.beat(id)))
    }
}

fn pause_between_signs(lease: &Lease) -> Duration {
    Duration::from_secs(lease.lasts_s.into()) / SIGNS
}

/// See [`Engine::give_signs`].
pub(crate) struct Signs(Arc<AtomicBool>);

impl Drop for Signs {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

struct Heart {
    engine: Weak<Engine>,
    machine: Weak<Machine>,
    lease: Lease,
    /// Held while it is published; when that was done last.
    publishing: Arc<Mutex<Instant>>,
}

impl Heart {
    /// One beat, and the pause after it. None when there is nothing to beat for any more.
    fn beat(&self) -> Option<Duration> {
        let (engine, machine) = (self.engine.upgrade()?, self.machine.upgrade()?);
        let record = machine.record();
        let line = record.line.clone().filter(|line| line.hold.is(&self.lease.id))?;
        if machine.writing().forgotten {
            return None;
        }
        let pause = pause_between_signs(&self.lease);
        let pause = line
            .every_s
            .map_or(pause, |every_s| pause.min(Duration::from_secs(every_s.into())));
        let name = line.name().ok()?;
        let asked = match engine.sign(&line.remote, &name, &self.lease.id) {
            Ok(Ok(asked)) => asked,
            Ok(Err(error @ SourceError::Lost { .. })) => {
                // Unless it was let go of meanwhile.
                if machine
                    .record()
                    .line
                    .is_some_and(|line| line.hold.is(&self.lease.id))
                    && !machine.is_at_work()
                {
                    tracing::warn!(%error, machine = record.name, "its line is lost");
                    let _ = engine.change_line(&machine, |line| line.hold = Hold::Lost); // found out again
                    return None;
                }
                return Some(pause);
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, machine = record.name, "there is no sign of its line");
                return Some(pause);
            }
            Err(problem) => {
                tracing::warn!(%problem, machine = record.name, "there is no sign of its line");
                return Some(pause);
            }
        };
        // Signs are given also while bytes go.
        let Ok(published) = self.publishing.try_lock().map(|published| *published) else {
            return Some(pause);
        };
        let is_due = line
            .every_s
            .is_some_and(|every_s| published.elapsed() >= Duration::from_secs(every_s.into()));
        // What was suspended and could not be published waits for that.
        let waits = record.phase == Phase::Suspended;
        if asked.is_none() && !waits && !is_due {
            return Some(pause);
        }
        let publishing = self.publishing.clone();
        let work = move || {
            let mut published = lock(&publishing);
            let done = match &asked {
                Some(by) => let_go(&engine, &machine, by),
                None => publish(&engine, &machine),
            };
            match done {
                Ok(true) => *published = Instant::now(),
                Ok(false) => {} // at a later beat
                Err(problem) => {
                    tracing::warn!(%problem, machine = machine.record().name, "its line is not published yet");
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("publish".into()).spawn(work) {
            tracing::warn!(%error, machine = record.name, "its line is not published yet");
        }
        Some(pause)
    }
}

/// Another host wants the line.
fn let_go(engine: &Arc<Engine>, machine: &Arc<Machine>, by: &Stamp) -> Result<bool, Problem> {
    let record = machine.record();
    if record.phase != Phase::Running {
        let operation = machine.begin("publish")?;
        return engine.publish_held(machine, &operation, &|_| ()).map(|_| true);
    }
    tracing::info!(
        machine = record.name,
        by = by.host,
        "suspended, as it was asked for"
    );
    let request = CheckpointRequest {
        note: Some(format!("{} asked for it", by.host)),
        ..CheckpointRequest::default()
    };
    engine.suspend(&record.name, request, &|_| ()).map(|_| true)
}

/// Was it published? Commands wait only while the state is taken and while the line changes, not while the bytes go.
fn publish(engine: &Arc<Engine>, machine: &Arc<Machine>) -> Result<bool, Problem> {
    let runs = match machine.record().phase {
        Phase::Running => true,
        Phase::Suspended => false,
        _ => return Ok(false),
    };
    let Ok(operation) = machine.begin(BEHIND) else {
        return Ok(false);
    };
    if runs {
        let saved = engine.checkpoint_held(machine, &operation, CheckpointRequest::default(), &|_| ())?;
        let before = engine.line_of(&machine.record())?.behind;
        // Those that went before have served their purpose; one that somebody uses by now goes another time.
        let used = before
            .into_iter()
            .filter(|name| engine.snapshot_remove(name).is_err());
        let behind: Vec<String> = used.chain([saved.reference]).collect();
        engine.change_line(machine, |line| line.behind = behind)?;
    }
    drop(operation);
    let record = machine.record();
    let Some(id) = record.snapshot else {
        return Ok(false);
    };
    let remote = engine.newest(&engine.line_of(&record)?.remote, None)?;
    martlet_source::upload(&engine.store, &remote, id, &mut |_, _| ()).told()?;
    let Ok(_operation) = machine.begin(BEHIND) else {
        return Ok(false);
    };
    let now = machine.record();
    if now.snapshot == record.snapshot && now.phase == record.phase && now.line == record.line {
        engine.publish_newest(machine, runs, &|_| ())?;
        return Ok(true);
    }
    Ok(false)
}
