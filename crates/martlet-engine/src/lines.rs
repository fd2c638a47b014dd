//! Machines whose line is at a remote: acquired and gone on with.
//!
//! ```text
//!   lease acquired ──► what it consists of fetched (transfer.rs) ──► restored as the machine it is ──► its heart beats
//!                      signs are given meanwhile (heart.rs)
//! ```

use crate::engine::{Engine, lock};
use crate::family_network::Member;
use crate::heart::Signs;
use crate::identity;
use crate::launch::{Who, now_unix_ms};
use crate::leases::is_held;
use crate::line::{Hold, Line, Presumed, presumed};
use crate::machine::{Machine, Record};
use crate::phase::{Phase, Verb};
use crate::problem::Told;
use crate::run::{planned_hardware, stage};
use crate::state::When;
use martlet_api::{
    FetchRequest, MachineInfo, Problem, ProblemCode, ProgressSink, PullRequest, ResumeFromRequest,
    RunRequest, Timeline, TransferPolicy, User,
};
use martlet_image::SnapshotId;
use martlet_source::{Lease, LeaseId, Ref, Remote, SourceError};
use martlet_store::RefName;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

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

/// What was acquired of a line.
struct Acquired {
    snapshot: SnapshotId,
    version: u32,
    lease: Lease,
}

impl Engine {
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
        let _signs = self.give_signs(remote, &name, &acquired.lease);
        let let_go = |_: &Problem| self.release(remote, &name, &acquired.lease.id);
        let arrived = self.arrive(remote, &name, &called, &request, &acquired, progress);
        let machine = arrived.inspect_err(let_go)?;
        let _operation = machine.begin("resume").inspect_err(let_go)?;
        if let Err(problem) = self.begin_on(&machine, &acquired, requested) {
            let_go(&problem);
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
        let _signs = self.give_signs(&line.remote, &name, &acquired.lease);
        let fetched = self.fetch_line(&line.remote, &name, &record.name, request, &acquired, progress);
        fetched
            .and_then(|()| self.begin_on(machine, &acquired, requested))
            .inspect_err(|_| self.release(&line.remote, &name, &acquired.lease.id))?;
        self.probe(machine, request.probe.as_ref(), requested, progress)?;
        Ok(machine.info())
    }

    /// Restores what was acquired as the machine that it is of.
    fn begin_on(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        acquired: &Acquired,
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
        let hold = Hold::of(&acquired.lease);
        // Known to be held before it runs, so that a successor goes on holding it.
        self.change_line(machine, |line| {
            (line.hold, line.version, line.published) = (hold, acquired.version, Some(acquired.snapshot));
        })?;
        let restored = self.restore_in_place(machine, acquired.snapshot, who, requested, Phase::Suspended);
        match &restored {
            Ok(()) => self.start_heart(machine),
            // What has happened is true also when it cannot be kept, and why it has is what counts.
            Err(_) => drop(self.change_line(machine, |line| line.hold = Hold::Free)),
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
        acquired: &Acquired,
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
        if !identity::is_machine_id(&snapshot.machine_id) {
            // It would be the name of a directory.
            return Err(Problem::new(
                ProblemCode::Damaged,
                format!("{name} at {remote} is of no machine that there can be"),
            )
            .remediation(format!(
                "`martlet clone {remote} {name}` starts another machine from it"
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
            running: None,
            agent: false,
            timeline: Timeline::default(),
            hardware: planned_hardware(&config, &snapshot),
            undo: None,
            awaited: false,
            line: Some(Line::new(remote, name)),
            given: None,
            is_clone: false,
            user: User::default(),
            kin: None,
            member: Member::founder(&snapshot.machine_id, &config),
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
        acquired: &Acquired,
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
    ) -> Result<Acquired, Problem> {
        let until = match request.check_out_days {
            Some(days) if days > DAYS_MAX => {
                return Err(Problem::new(
                    ProblemCode::InvalidArgument,
                    format!("a machine is checked out for at most {DAYS_MAX} days"),
                ));
            }
            days => days.map(|days| now_unix_ms() / 1000 + u64::from(days) * DAY_S),
        };
        // `None` when somebody was first.
        let try_it = |at: &Remote, found: &Ref, broken: Option<&LeaseId>| {
            let lease = Lease::new(self.options.lease_s, until);
            match at.acquire(name, found, lease.clone(), broken) {
                Err(SourceError::Changed { .. }) => Ok(None),
                acquired => acquired.told().map(|acquired| {
                    Some(Acquired {
                        snapshot: acquired.snapshot,
                        version: acquired.version,
                        lease,
                    })
                }),
            }
        };
        let begun = Instant::now();
        let ask = Duration::from_secs(request.ask_s.unwrap_or(0).min(ASK_S_MAX).into());
        let mut asked = None;
        loop {
            let (at, found) = self.at_newest(remote, name)?;
            let Some(held) = &found.lease else {
                match try_it(&at, &found, None)? {
                    Some(acquired) => return Ok(acquired),
                    None => continue,
                }
            };
            let beat = at.last_beat(&held.id).told()?;
            let seen = self
                .observed
                .seen(&held.id, beat.as_ref().map_or(0, |beat| beat.number));
            let waits = match presumed(held, &found.by, beat.as_ref(), seen, now_unix_ms() / 1000) {
                Presumed::Gone => match try_it(&at, &found, Some(&held.id))? {
                    Some(acquired) => return Ok(acquired),
                    None => continue,
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
                Presumed::There => return Err(is_held(remote, name, held, &found)),
            };
            progress(stage(&waits));
            self.away.pause(LOOK_EVERY).map_err(|()| ending())?;
        }
    }

    /// Acquires the free line of a suspended machine, which is what the line is then. Nothing of it runs here: signs are given as
    /// long as what is returned lives.
    pub(crate) fn acquire_for(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        request: &ResumeFromRequest,
        progress: ProgressSink<'_>,
    ) -> Result<(LeaseId, Signs), Problem> {
        let record = machine.record();
        let line = self.line_of(&record)?;
        let name = line.name().told()?;
        let acquired = self.acquire(&line.remote, &name, request, progress)?;
        let signs = self.give_signs(&line.remote, &name, &acquired.lease);
        let fetched = self.fetch_line(&line.remote, &name, &record.name, request, &acquired, progress);
        let held = fetched.and_then(|()| {
            self.update_or_not(machine, |record| {
                (record.snapshot, record.disk_base) = (Some(acquired.snapshot), acquired.snapshot);
                if let Some(line) = &mut record.line {
                    line.hold = Hold::of(&acquired.lease);
                    (line.version, line.published) = (acquired.version, Some(acquired.snapshot));
                }
            })
        });
        held.inspect_err(|_| self.release(&line.remote, &name, &acquired.lease.id))?;
        Ok((acquired.lease.id, signs))
    }

    /// Lets go of what [`Engine::acquire_for`] has acquired.
    pub(crate) fn release_for(self: &Arc<Self>, machine: &Arc<Machine>, lease: &LeaseId) {
        let Ok(line) = self.line_of(&machine.record()) else {
            return;
        };
        if let Ok(name) = line.name() {
            self.release(&line.remote, &name, lease);
        }
        let _ = self.change_line(machine, |line| line.hold = Hold::Free); // as true when it cannot be kept
    }

    /// Lets go of a line, as far as that can be done: else it is silent, and counts as free after a while.
    pub(crate) fn release(self: &Arc<Self>, remote: &str, name: &RefName, lease: &LeaseId) {
        let released = self.newest(remote, None);
        if let Err(problem) = released.and_then(|remote| remote.release(name, lease).told()) {
            tracing::warn!(%problem, line = %name, "it is held until its lease runs out");
        }
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

    pub(crate) fn keeps_lines(&self, remote: &str) -> Result<(), Problem> {
        match self.peer(remote)? {
            None => Ok(()),
            Some(_) => Err(Problem::new(
                ProblemCode::InvalidArgument,
                format!("{remote} is a host, and hosts keep no lines"),
            )
            .remediation("keep them at a remote that both hosts can reach")),
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

fn ending() -> Problem {
    Problem::new(ProblemCode::Busy, "the daemon is ending")
}
