//! The heart of a line that is held: it gives signs of this host, hears who asks for the line, and publishes what waits.

use crate::engine::Engine;
use crate::line::{Hold, Line};
use crate::lines::is_unpublished;
use crate::machine::Machine;
use crate::phase::Phase;
use crate::problem::Told;
use martlet_api::{CheckpointRequest, Problem};
use martlet_source::{Lease, LeaseId, SourceError, Stamp};
use std::sync::{Arc, Weak};
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
        };
        let away = self.away.clone();
        let beat = move || {
            let mut published = Instant::now();
            while heart.beat(&mut published).is_some() {
                let pause = Duration::from_secs(heart.lease.lasts_s.into()) / SIGNS;
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

    fn sign(
        self: &Arc<Self>,
        line: &Line,
        id: &LeaseId,
    ) -> Result<Result<Option<Stamp>, SourceError>, Problem> {
        let (remote, name) = (self.newest(&line.remote, None)?, line.name().told()?);
        Ok(remote.is_held(&name, id).and_then(|_| remote.beat(id)))
    }
}

struct Heart {
    engine: Weak<Engine>,
    machine: Weak<Machine>,
    lease: Lease,
}

impl Heart {
    /// One beat. None when there is nothing to beat for any more.
    fn beat(&self, published: &mut Instant) -> Option<()> {
        let (engine, machine) = (self.engine.upgrade()?, self.machine.upgrade()?);
        let record = machine.record();
        let line = record.line.clone().filter(|line| line.hold.is(&self.lease.id))?;
        if machine.writing().forgotten {
            return None;
        }
        let asked = match engine.sign(&line, &self.lease.id) {
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
                return Some(());
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, machine = record.name, "there is no sign of its line");
                return Some(());
            }
            Err(problem) => {
                tracing::warn!(%problem, machine = record.name, "there is no sign of its line");
                return Some(());
            }
        };
        let done = match asked {
            Some(by) => let_go(&engine, &machine, &by),
            None if is_unpublished(&record).is_some() => publish(&engine, &machine, published),
            None => match line.every_s {
                Some(every_s) if published.elapsed() >= Duration::from_secs(every_s.into()) => {
                    publish(&engine, &machine, published)
                }
                _ => Ok(()),
            },
        };
        if let Err(problem) = done {
            tracing::warn!(%problem, machine = record.name, "its line is not published yet");
        }
        Some(())
    }
}

/// Another host wants the line.
fn let_go(engine: &Arc<Engine>, machine: &Arc<Machine>, by: &Stamp) -> Result<(), Problem> {
    let record = machine.record();
    if record.phase != Phase::Running {
        let operation = machine.begin("publish")?;
        return engine.publish_held(machine, &operation, &|_| ()).map(drop);
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
    engine.suspend(&record.name, request, &|_| ()).map(drop)
}

fn publish(engine: &Arc<Engine>, machine: &Arc<Machine>, published: &mut Instant) -> Result<(), Problem> {
    if machine.is_at_work() || !matches!(machine.record().phase, Phase::Running | Phase::Suspended) {
        return Ok(()); // at a later beat
    }
    let operation = machine.begin("publish")?;
    engine.publish_held(machine, &operation, &|_| ())?;
    *published = Instant::now();
    Ok(())
}
