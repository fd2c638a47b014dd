//! Machines that are published on their lines.
//!
//! ```text
//!   suspend    saved here ──► pushed under the lease, which ends with it        the line is lost: pushed beside it
//!   publish    checkpoint ──► pushed under the lease, which goes on
//! ```
//!
//! What is in the way of publishing is in the way of nothing else: the machine is suspended here, and its heart
//! ([`crate::heart`]) publishes it when that can be done.

use crate::crash;
use crate::engine::Engine;
use crate::leases::is_held;
use crate::line::{Hold, Line};
use crate::machine::{Machine, Operation, Record};
use crate::phase::{Phase, Verb};
use crate::problem::Told;
use martlet_api::{
    CheckpointRequest, LineRequest, MachineInfo, Problem, ProblemCode, Progress, ProgressSink, ProgressUnit,
    PublishReport, PublishRequest,
};
use martlet_image::SnapshotId;
use martlet_source::{Lease, Ref, Remote, SourceError, Under};
use martlet_store::RefName;
use std::sync::Arc;

impl Engine {
    /// Gives a machine a line at a remote. Nothing is sent yet.
    pub fn set_line(self: &Arc<Self>, name: &str, request: LineRequest) -> Result<MachineInfo, Problem> {
        let machine = self.find(name)?;
        let _operation = machine.begin("line")?;
        let record = machine.record();
        if let Some(line) = &record.line
            && line.hold != Hold::Free
        {
            return Err(Problem::new(
                ProblemCode::WrongState,
                format!(
                    "machine {name} is on the line {} of {}",
                    line.reference, line.remote
                ),
            )
            .remediation(format!("`martlet suspend {name}` publishes it there first")));
        }
        let reference = match &request.reference {
            Some(reference) => {
                martlet_api::names::check_new_reference(reference)?;
                reference.parse::<RefName>().told()?
            }
            None => RefName::new(name, "latest").told()?,
        };
        self.keeps_lines(&request.remote)?;
        let found = self.newest(&request.remote, None)?.find_ref(&reference).told()?;
        self.may_begin(&machine.record(), &request.remote, &reference, found.as_ref())?;
        let line = Line::new(&request.remote, &reference);
        self.update_or_not(&machine, |record| record.line = Some(line))?;
        Ok(machine.info())
    }

    /// Publishes a machine's newest state: a new checkpoint of one that runs and goes on holding its line.
    pub fn publish(
        self: &Arc<Self>,
        name: &str,
        request: PublishRequest,
        progress: ProgressSink<'_>,
    ) -> Result<PublishReport, Problem> {
        let machine = self.find(name)?;
        let operation = machine.begin("publish")?;
        if let Some(every_s) = request.every_s {
            self.line_of(&machine.record())?;
            self.change_line(&machine, |line| line.every_s = (every_s > 0).then_some(every_s))?;
        }
        self.publish_held(&machine, &operation, progress)
    }

    /// The same, for a command that holds the machine already.
    pub(crate) fn publish_held(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        operation: &Operation,
        progress: ProgressSink<'_>,
    ) -> Result<PublishReport, Problem> {
        let record = machine.record();
        self.line_of(&record)?;
        let runs = record.phase == Phase::Running;
        if runs {
            self.checkpoint_held(machine, operation, CheckpointRequest::default(), progress)?;
        } else if record.phase != Phase::Suspended {
            record.phase.allow(Verb::Checkpoint, &record.name)?;
        }
        self.publish_newest(machine, runs, progress)
    }

    /// Publishes a machine's newest snapshot on its line, or beside it if that has gone on elsewhere; and keeps the line, or
    /// lets go of it.
    pub(crate) fn publish_newest(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        keep: bool,
        progress: ProgressSink<'_>,
    ) -> Result<PublishReport, Problem> {
        let record = machine.record();
        let line = self.line_of(&record)?;
        let id = record.snapshot.ok_or_else(|| {
            Problem::new(
                ProblemCode::WrongState,
                format!("machine {} has no snapshot yet", record.name),
            )
        })?;
        let (remote, name) = (self.newest(&line.remote, None)?, line.name().told()?);
        let mut told = |done: u64, total: u64| {
            progress(Progress {
                stage: format!("publishing {name}"),
                done,
                total: Some(total),
                unit: ProgressUnit::Bytes,
            });
        };
        let mut push = |name: &RefName, under: Under<'_>| {
            let pushed = martlet_source::push(&self.store, &remote, id, name, under, false, &mut told);
            pushed.map(|(report, found)| (report.sent_bytes, found.expect("it was no dry run")))
        };
        let pushed = match line.hold.lease() {
            Some(lease) if keep => push(&name, Under::Lease(&lease)),
            Some(lease) => push(&name, Under::LastOf(&lease)),
            None if line.hold == Hold::Lost => return self.publish_beside(machine, &remote, id, keep, push),
            None => {
                let found = remote.find_ref(&name).told()?;
                self.may_begin(&record, &line.remote, &name, found.as_ref())?;
                push(&name, Under::Nothing)
            }
        };
        let (moved_bytes, found) = match pushed {
            Err(error @ SourceError::Lost { .. }) => {
                tracing::warn!(%error, machine = record.name, "its line is lost");
                return self.publish_beside(machine, &remote, id, keep, push);
            }
            pushed => pushed.told()?,
        };
        crash::step("publish");
        let found = match (keep, &found.lease) {
            (true, None) => remote
                .acquire(&name, &found, Lease::new(self.options.lease_s, None), None)
                .told()?,
            _ => found,
        };
        let hold = found.lease.as_ref().map_or(Hold::Free, Hold::of);
        let begins = hold != Hold::Free && line.hold == Hold::Free;
        self.change_line(machine, |line| {
            (line.hold, line.version, line.published) = (hold, found.version, Some(id));
        })?;
        if begins {
            self.start_heart(machine);
        }
        Ok(PublishReport {
            snapshot: id.to_string(),
            remote: line.remote,
            reference: name.to_string(),
            version: found.version,
            moved_bytes,
            side: false,
            released: !keep,
        })
    }

    /// Publishes a snapshot of a machine whose line is lost: beside it, unless it is on it. It is when the daemon was killed
    /// after it had been published and let go of, and before that was known here.
    fn publish_beside(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        remote: &Remote,
        id: SnapshotId,
        keep: bool,
        mut push: impl FnMut(&RefName, Under<'_>) -> Result<(u64, Ref), SourceError>,
    ) -> Result<PublishReport, Problem> {
        let line = self.line_of(&machine.record())?;
        let name = line.name().told()?;
        let history = remote.history(&name).told()?;
        let on_line = history.into_iter().find(|found| found.snapshot == id);
        let side = on_line.is_none();
        let (called, moved_bytes, found) = match on_line {
            Some(found) => (name, 0, found),
            None => {
                let side = RefName::new(name.name(), &format!("side-{}", id.short())).told()?;
                let (moved_bytes, found) = push(&side, Under::Nothing).told()?;
                (side, moved_bytes, found)
            }
        };
        self.change_line(machine, |line| match keep {
            true => line.hold = Hold::Lost,
            false => (line.hold, line.published) = (Hold::Free, Some(id)),
        })?;
        Ok(PublishReport {
            snapshot: id.to_string(),
            remote: line.remote,
            reference: called.to_string(),
            version: found.version,
            moved_bytes,
            side,
            released: true,
        })
    }

    /// May a machine's line begin, or go on, with what a name is?
    fn may_begin(
        &self,
        record: &Record,
        remote: &str,
        name: &RefName,
        found: Option<&Ref>,
    ) -> Result<(), Problem> {
        let Some(found) = found else { return Ok(()) };
        if let Some(lease) = &found.lease {
            return Err(is_held(remote, name, lease, found));
        }
        let descends = match record.snapshot {
            None => false,
            Some(newest) => {
                let history = self.store.history(newest).told()?;
                history.iter().any(|(id, _)| *id == found.snapshot)
            }
        };
        match descends {
            true => Ok(()),
            false => Err(Problem::new(
                ProblemCode::AlreadyExists,
                format!(
                    "{name} at {remote} is something that machine {} does not come from",
                    record.name
                ),
            )
            .remediation("choose another name for its line: `--as NAME:TAG`")),
        }
    }
}
