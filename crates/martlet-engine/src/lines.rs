//! Machines whose line is at a remote: published, acquired and gone on with.
//!
//! ```text
//!   suspend    saved here ──► pushed under the lease, which ends with it
//!   resume     lease acquired ──► what it consists of fetched (transfer.rs) ──► restored as the machine it is
//! ```
//!
//! What is in the way of publishing is in the way of nothing else: the machine is suspended here, and its heart
//! ([`crate::heart`]) publishes it when that can be done.

use crate::engine::{Engine, lock};
use crate::launch::{Who, now_unix_ms};
use crate::line::{Hold, Line, Presumed, presumed};
use crate::machine::{Machine, Operation, Record};
use crate::phase::{Phase, Verb};
use crate::problem::Told;
use crate::run::{planned_hardware, stage};
use crate::state::When;
use martlet_api::{
    CheckpointRequest, FetchRequest, LeaseHolder, LeaseInfo, LineRequest, MachineInfo, PointRequest, Problem,
    ProblemCode, Progress, ProgressSink, ProgressUnit, PublishReport, PublishRequest, PullRequest,
    ResumeFromRequest, RunRequest, Timeline, TransferPolicy,
};
use martlet_image::SnapshotId;
use martlet_source::{Lease, LeaseId, Ref, Remote, SourceError, Under};
use martlet_store::RefName;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A line of another host is looked at this often while it is waited for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Nobody is waited for longer.
const ASK_S_MAX: u32 = 24 * 60 * 60;
const DAY_S: u64 = 24 * 60 * 60;
const DAYS_MAX: u32 = 366;

/// Since when the last sign of a holder is the last one, by this host's clock.
#[derive(Default)]
pub struct Observed(Mutex<BTreeMap<LeaseId, (u32, Instant)>>);

impl Observed {
    fn seen(&self, lease: &LeaseId, beat: u32) -> Duration {
        let mut signs = lock(&self.0);
        let (last, since) = signs.entry(*lease).or_insert_with(|| (beat, Instant::now()));
        if *last != beat {
            (*last, *since) = (beat, Instant::now());
        }
        since.elapsed()
    }
}

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
        let line = Line {
            remote: request.remote,
            reference: reference.to_string(),
            hold: Hold::Free,
            version: 0,
            published: None,
            every_s: None,
        };
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
            martlet_source::push(&self.store, &remote, id, name, under, false, &mut told)
        };
        let report = |name: &RefName, found: &Ref, moved_bytes, side, released| PublishReport {
            snapshot: id.to_string(),
            remote: line.remote.clone(),
            reference: name.to_string(),
            version: found.version,
            moved_bytes,
            side,
            released,
        };
        let pushed = match (&line.hold, line.hold.lease()) {
            (Hold::Held { .. }, Some(lease)) if keep => push(&name, Under::Lease(&lease)),
            (Hold::Held { .. }, Some(lease)) => push(&name, Under::LastOf(&lease)),
            (Hold::Lost, _) => Err(lost(&line)),
            _ => {
                let found = remote.find_ref(&name).told()?;
                self.may_begin(&record, &line.remote, &name, found.as_ref())?;
                push(&name, Under::Nothing)
            }
        };
        let (moved_bytes, found) = match pushed {
            Ok((report, found)) => (report.sent_bytes, found.expect("it was no dry run")),
            Err(error @ SourceError::Lost { .. }) => {
                tracing::warn!(%error, machine = record.name, "its work goes beside its line");
                self.change_line(machine, |line| line.hold = Hold::Lost)?;
                let side = RefName::new(name.name(), &format!("side-{}", id.short())).told()?;
                let (pushed, found) = push(&side, Under::Nothing).told()?;
                let found = found.expect("it was no dry run");
                if !keep {
                    self.change_line(machine, |line| {
                        (line.hold, line.published) = (Hold::Free, Some(id));
                    })?;
                }
                return Ok(report(&side, &found, pushed.sent_bytes, true, true));
            }
            Err(error) => return Err(error).told(),
        };
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
        Ok(report(&name, &found, moved_bytes, false, !keep))
    }

    /// Goes on here with a machine whose line is at a remote.
    pub fn resume_from(
        self: &Arc<Self>,
        remote: &str,
        request: ResumeFromRequest,
        progress: ProgressSink<'_>,
    ) -> Result<MachineInfo, Problem> {
        let requested = Instant::now();
        let name = request.reference.parse::<RefName>().told()?;
        self.keeps_lines(remote)?;
        let on_line = self.all().into_iter().find(|machine| {
            let line = machine.record().line;
            line.is_some_and(|line| line.remote == remote && line.reference == name.to_string())
        });
        if let Some(machine) = on_line {
            let _operation = machine.begin("resume")?;
            return self.resume_line(&machine, &request, requested, progress);
        }
        let called = request.name.clone().unwrap_or_else(|| name.name().to_owned());
        martlet_api::names::check_name(&called)?;
        if self.find(&called).is_ok() {
            return Err(Problem::new(
                ProblemCode::AlreadyExists,
                format!("there is a machine {called} here already, which is on another line or on none"),
            )
            .remediation("choose another name: `--name NAME`"));
        }
        let acquired = self.acquire(remote, &name, &request, progress)?;
        let arrived = self.arrive(remote, &name, &called, &request, &acquired, progress);
        let machine = arrived.inspect_err(|_| self.release(remote, &name, &acquired))?;
        let begun = machine.begin("resume");
        let operation = begun.inspect_err(|_| self.release(remote, &name, &acquired))?;
        let begun = self.begin_on(&machine, &acquired, requested);
        if let Err(problem) = begun {
            self.release(remote, &name, &acquired);
            drop(operation);
            let _ = self.forget(&machine); // logged; it never ran here
            return Err(problem);
        }
        self.probe(&machine, request.probe.as_ref(), requested, progress)?;
        Ok(machine.info())
    }

    /// Goes on with a suspended machine that has a line, as the line is.
    pub(crate) fn resume_line(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        request: &ResumeFromRequest,
        requested: Instant,
        progress: ProgressSink<'_>,
    ) -> Result<MachineInfo, Problem> {
        let record = machine.record();
        record.phase.allow(Verb::Resume, &record.name)?;
        let line = self.line_of(&record)?;
        if line.hold == Hold::Lost {
            self.publish_newest(machine, false, progress)?; // beside the line
        }
        if let Some(lease) = line.hold.lease() {
            // It was never let go of, so it is where it was.
            let held = self
                .newest(&line.remote, None)?
                .is_held(&line.name().told()?, &lease.id);
            match held {
                Err(SourceError::Lost { .. }) => {
                    self.publish_newest(machine, false, progress)?;
                }
                Err(error) if !error.is_retryable() => return Err(error).told(),
                // One that cannot be asked has not said that it is lost.
                Ok(_) | Err(_) => {
                    let id = record.snapshot.expect("a suspended machine has a snapshot");
                    progress(stage("restoring"));
                    self.restore_in_place(machine, id, Who::Same, requested, Phase::Suspended)?;
                    self.probe(machine, request.probe.as_ref(), requested, progress)?;
                    return Ok(machine.info());
                }
            }
        }
        let name = line.name().told()?;
        let acquired = self.acquire(&line.remote, &name, request, progress)?;
        let fetched = self.fetch_line(&line.remote, &name, &record.name, request, &acquired, progress);
        fetched
            .and_then(|()| self.begin_on(machine, &acquired, requested))
            .inspect_err(|_| self.release(&line.remote, &name, &acquired))?;
        self.probe(machine, request.probe.as_ref(), requested, progress)?;
        Ok(machine.info())
    }

    /// Restores what was acquired as the machine that it is of.
    fn begin_on(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        acquired: &Ref,
        requested: Instant,
    ) -> Result<(), Problem> {
        let record = machine.record();
        // A guest that was here last has this host's network already.
        let who = match record.snapshot == Some(acquired.snapshot)
            && record.line.is_some_and(|line| line.version > 0)
        {
            true => Who::Same,
            false => Who::Arrived,
        };
        let hold = acquired.lease.as_ref().map_or(Hold::Free, Hold::of);
        // Known to be held before it runs, so that a successor goes on holding it.
        self.change_line(machine, |line| {
            (line.hold, line.version, line.published) = (hold, acquired.version, Some(acquired.snapshot));
        })?;
        let restored = self.restore_in_place(machine, acquired.snapshot, who, requested, Phase::Suspended);
        match restored {
            Ok(()) => self.start_heart(machine),
            Err(_) => self.change_line(machine, |line| line.hold = Hold::Free)?,
        }
        restored
    }

    /// What was acquired comes here, and the machine that it is of.
    fn arrive(
        self: &Arc<Self>,
        remote: &str,
        name: &RefName,
        called: &str,
        request: &ResumeFromRequest,
        acquired: &Ref,
        progress: ProgressSink<'_>,
    ) -> Result<Arc<Machine>, Problem> {
        self.fetch_line(remote, name, called, request, acquired, progress)?;
        let snapshot = self.store.snapshot(&acquired.snapshot).told()?;
        if snapshot.memory.is_none() {
            return Err(crate::launch::no_memory(&acquired.snapshot));
        }
        let known = self.all().into_iter().map(|machine| machine.record());
        if let Some(other) = known.into_iter().find(|known| known.id == snapshot.machine_id) {
            return Err(Problem::new(
                ProblemCode::AlreadyExists,
                format!(
                    "{name} is machine {} of this host, which is on another line or on none",
                    other.name
                ),
            )
            .remediation(format!(
                "`martlet rm {}` forgets it here, `martlet clone` starts another machine from {name}",
                other.name
            )));
        }
        let asked = RunRequest {
            from: acquired.snapshot.to_string(),
            ..RunRequest::default()
        };
        let config = self.configure(&asked, &snapshot)?;
        let record = Record {
            id: snapshot.machine_id.clone(),
            name: called.to_owned(),
            number: self.state.next("machine").told()?,
            from: format!("{name} of {remote}"),
            created_unix_ms: now_unix_ms(),
            phase: Phase::Suspended,
            hostname: snapshot.hostname.clone(),
            generation: snapshot.generation,
            snapshot: Some(acquired.snapshot),
            disk_base: acquired.snapshot,
            disk_number: 0,
            run_number: 0,
            running: None,
            agent: false,
            timeline: Timeline::default(),
            hardware: planned_hardware(&config, &snapshot),
            undo: None,
            awaited: false,
            line: Some(Line {
                remote: remote.to_owned(),
                reference: name.to_string(),
                hold: Hold::Free,
                version: 0,
                published: None,
                every_s: None,
            }),
            config,
        };
        let machine = self.add(record.clone())?;
        self.repin(&machine, &record);
        Ok(machine)
    }

    /// The snapshot of a line comes, its frames when they are read, if it is not here.
    fn fetch_line(
        self: &Arc<Self>,
        remote: &str,
        name: &RefName,
        called: &str,
        request: &ResumeFromRequest,
        acquired: &Ref,
        progress: ProgressSink<'_>,
    ) -> Result<(), Problem> {
        if self.store.snapshots().contains(&acquired.snapshot) {
            return Ok(());
        }
        progress(stage("fetching"));
        let reference = RefName::new(called, &format!("line-{}", acquired.version)).told()?;
        let (snapshot, reference) = (name.to_string(), Some(reference.to_string()));
        if request.policy == TransferPolicy::Baseline {
            let request = PullRequest {
                snapshot,
                reference,
                dry_run: false,
                bandwidth_bytes: None,
            };
            return self.pull(remote, request, progress).map(drop);
        }
        let request = FetchRequest {
            snapshot,
            reference,
            rest: request.policy == TransferPolicy::Adaptive,
        };
        self.fetch(remote, request).map(drop)
    }

    /// Acquires the lease on a line, from a holder that is silent for too long or lets go of it when it is asked.
    fn acquire(
        self: &Arc<Self>,
        remote: &str,
        name: &RefName,
        request: &ResumeFromRequest,
        progress: ProgressSink<'_>,
    ) -> Result<Ref, Problem> {
        let until = match request.check_out_days {
            Some(days) if days > DAYS_MAX => {
                return Err(Problem::new(
                    ProblemCode::InvalidArgument,
                    format!("a machine is checked out for at most {DAYS_MAX} days"),
                ));
            }
            days => days.map(|days| now_unix_s() + u64::from(days) * DAY_S),
        };
        let lease = || Lease::new(self.options.lease_s, until);
        let begun = Instant::now();
        let ask = Duration::from_secs(request.ask_s.unwrap_or(0).min(ASK_S_MAX).into());
        let mut asked = None;
        loop {
            let (at, found) = self.at_newest(remote, name)?;
            let Some(held) = found.lease.clone() else {
                match at.acquire(name, &found, lease(), None) {
                    Err(SourceError::Changed { .. }) => continue, // who was first holds it now, or published
                    acquired => return acquired.told(),
                }
            };
            let beat = at.last_beat(&held.id).told()?;
            let seen = self
                .observed
                .seen(&held.id, beat.as_ref().map_or(0, |beat| beat.number));
            let waits = match presumed(&held, &found.by, beat.as_ref(), seen, now_unix_s()) {
                Presumed::Gone => match at.acquire(name, &found, lease(), Some(&held.id)) {
                    Err(SourceError::Changed { .. }) => continue,
                    acquired => return acquired.told(),
                },
                Presumed::GoneAfter(left) => format!(
                    "{} is silent, and is taken to be gone in {} s",
                    found.by.host,
                    left.as_secs() + 1
                ),
                Presumed::There if begun.elapsed() < ask => {
                    if asked != Some(held.id) {
                        at.ask(&held.id).told()?;
                        asked = Some(held.id);
                    }
                    format!("waiting for {} to let go of it", found.by.host)
                }
                Presumed::There => return Err(is_held(remote, name, &held, &found)),
            };
            progress(stage(&waits));
            self.away.pause(LOOK_EVERY).map_err(|()| ending())?;
        }
    }

    /// Lets go of a line again that was acquired for nothing. If that fails it is silent, and counts as free after a while.
    fn release(self: &Arc<Self>, remote: &str, name: &RefName, acquired: &Ref) {
        let Some(lease) = &acquired.lease else { return };
        let released = self.newest(remote, None);
        let released = released.and_then(|remote| remote.release(name, &lease.id).told());
        if let Err(problem) = released {
            tracing::warn!(%problem, line = %name, "it is held until its lease runs out");
        }
    }

    /// Lets go of the line of a machine that is to be forgotten.
    pub(crate) fn let_go(self: &Arc<Self>, record: &Record) {
        let held = record
            .line
            .as_ref()
            .and_then(|line| Some((line, line.hold.lease()?)));
        let Some((line, lease)) = held else { return };
        let released = self.newest(&line.remote, None).and_then(|remote| {
            let name = line.name().told()?;
            remote.release(&name, &lease.id).told()
        });
        if let Err(problem) = released {
            tracing::warn!(%problem, machine = record.name, "its line is held until the lease runs out");
        }
    }

    /// A line as its remote shows it.
    pub fn lease(self: &Arc<Self>, remote: &str, reference: &str) -> Result<LeaseInfo, Problem> {
        let name = reference.parse::<RefName>().told()?;
        self.keeps_lines(remote)?;
        let (at, found) = self.find_remote(remote, &name, None)?;
        let held = match &found.lease {
            None => None,
            Some(lease) => {
                let here = self.all().into_iter().any(|machine| {
                    let line = machine.record().line;
                    line.is_some_and(|line| line.hold.is(&lease.id))
                });
                let beat = at.last_beat(&lease.id).told()?;
                Some(LeaseHolder {
                    lease: lease.id.to_string(),
                    host: found.by.host.clone(),
                    since_unix_ms: found.by.unix_s * 1000,
                    heard_unix_ms: beat.map(|beat| beat.by.unix_s * 1000),
                    lasts_s: lease.lasts_s,
                    until_unix_ms: lease.until_unix_s.map(|until| until * 1000),
                    asked_by: at.asked(&lease.id).told()?.map(|stamp| stamp.host),
                    here,
                })
            }
        };
        Ok(LeaseInfo {
            reference: name.to_string(),
            version: found.version,
            snapshot: found.snapshot.to_string(),
            held,
        })
    }

    /// Takes a line from its holder. What that has not published becomes a side branch.
    pub fn lease_break(self: &Arc<Self>, remote: &str, reference: &str) -> Result<(), Problem> {
        let name = reference.parse::<RefName>().told()?;
        let (at, found) = self.at_newest(remote, &name)?;
        match &found.lease {
            Some(lease) => at.release(&name, &lease.id).told(),
            None => Err(Problem::new(
                ProblemCode::WrongState,
                format!("nobody holds {name} at {remote}"),
            )),
        }
    }

    /// Asks who holds a line to suspend its machine, publish it and let go of it.
    pub fn lease_ask(self: &Arc<Self>, remote: &str, reference: &str) -> Result<LeaseInfo, Problem> {
        let name = reference.parse::<RefName>().told()?;
        let (at, found) = self.at_newest(remote, &name)?;
        if let Some(lease) = &found.lease {
            at.ask(&lease.id).told()?;
        }
        self.lease(remote, reference)
    }

    /// Has a name at a remote stand for an earlier version of it, by a new one, or a new name for a version of it.
    pub fn point(
        self: &Arc<Self>,
        remote: &str,
        reference: &str,
        request: PointRequest,
    ) -> Result<LeaseInfo, Problem> {
        let name = reference.parse::<RefName>().told()?;
        let (at, newest) = self.at_newest(remote, &name)?;
        let found = match request.version {
            None => newest,
            Some(version) => {
                let history = at.history(&name).told()?;
                let of_number = |found: &Ref| found.version == version && !found.is_removal();
                history.into_iter().find(of_number).ok_or_else(|| {
                    Problem::new(
                        ProblemCode::NotFound,
                        format!("{name} has no version {version} at {remote}"),
                    )
                    .remediation(format!("`martlet remote log {remote} {name}` lists them"))
                })?
            }
        };
        let to = match &request.branch {
            None => name,
            Some(branch) => {
                martlet_api::names::check_new_reference(branch)?;
                let branch = branch.parse::<RefName>().told()?;
                if at.find_ref(&branch).told()?.is_some() {
                    return Err(Problem::new(
                        ProblemCode::AlreadyExists,
                        format!("there is {branch} at {remote} already"),
                    ));
                }
                branch
            }
        };
        martlet_source::point(&at, &to, &found).told()?;
        self.lease(remote, &to.to_string())
    }

    /// A remote by the newest secret of its realm, and a name there. Under an older one nobody can hold a name: whoever was
    /// shut out by the newer one could go on with it.
    pub(crate) fn at_newest(
        self: &Arc<Self>,
        remote: &str,
        name: &RefName,
    ) -> Result<(Remote, Ref), Problem> {
        self.keeps_lines(remote)?;
        let at = self.newest(remote, None)?;
        if let Some(found) = at.find_ref(name).told()? {
            return Ok((at, found));
        }
        self.find_remote(remote, name, None)?; // it is not there at all
        Err(Problem::new(
            ProblemCode::WrongState,
            format!("{name} is at {remote} only under an older secret of its realm"),
        )
        .remediation(format!("`martlet pull {remote} {name}` and `push` it again")))
    }

    fn keeps_lines(&self, remote: &str) -> Result<(), Problem> {
        match self.peer(remote)? {
            None => Ok(()),
            Some(_) => Err(Problem::new(
                ProblemCode::InvalidArgument,
                format!("{remote} is a host, and hosts keep no lines"),
            )
            .remediation("keep them at a remote that both hosts can reach")),
        }
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

    pub(crate) fn line_of(&self, record: &Record) -> Result<Line, Problem> {
        record.line.clone().ok_or_else(|| {
            Problem::new(
                ProblemCode::WrongState,
                format!("machine {} has no line", record.name),
            )
            .remediation(format!(
                "`martlet publish {} --to REMOTE` begins one",
                record.name
            ))
        })
    }

    pub(crate) fn change_line(
        &self,
        machine: &Machine,
        change: impl FnOnce(&mut Line),
    ) -> Result<(), Problem> {
        self.update(machine, When::Now, |record| {
            if let Some(line) = &mut record.line {
                change(line);
            }
        })
    }

    /// A machine whose line others may go on with runs on it only when it was acquired.
    pub(crate) fn may_run(&self, record: &Record) -> Result<(), Problem> {
        match &record.line {
            Some(line) if line.hold == Hold::Free && line.published.is_some() => Err(Problem::new(
                ProblemCode::WrongState,
                format!(
                    "machine {} has let go of its line {} at {}, and may have gone on elsewhere",
                    record.name, line.reference, line.remote
                ),
            )
            .remediation(format!(
                "`martlet resume {}` acquires it and goes on as it is now",
                record.name
            ))),
            _ => Ok(()),
        }
    }
}

fn lost(line: &Line) -> SourceError {
    SourceError::Lost {
        place: line.remote.clone(),
        name: line.reference.clone(),
        version: 0,
        host: String::new(),
    }
}

fn is_held(remote: &str, name: &RefName, lease: &Lease, found: &Ref) -> Problem {
    let way_out = format!(
        "`martlet resume --from {remote} {name} --ask` has it let go; `martlet lease show {remote} {name}` says more, `martlet lease break {remote} {name}` takes it"
    );
    let words = match lease.until_unix_s {
        None => format!("{name} is held at {remote} by {}", found.by.host),
        Some(until) => format!(
            "{name} is checked out at {remote} by {}, for {} days more",
            found.by.host,
            until.saturating_sub(now_unix_s()).div_ceil(DAY_S)
        ),
    };
    Problem::new(ProblemCode::InUse, words).remediation(way_out)
}

fn ending() -> Problem {
    Problem::new(ProblemCode::Busy, "the daemon is ending")
}

fn now_unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// Does a machine's newest snapshot wait to be published?
pub(crate) fn is_unpublished(record: &Record) -> Option<SnapshotId> {
    let line = record.line.as_ref()?;
    let waits = record.phase == Phase::Suspended && line.hold != Hold::Free;
    record.snapshot.filter(|_| waits)
}
