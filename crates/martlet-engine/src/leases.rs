//! Who holds a line, and how it is got from them; and lines that go back or branch, which want one that nobody holds.

use crate::engine::Engine;
use crate::launch::now_unix_ms;
use crate::problem::Told;
use martlet_api::{LeaseHolder, LeaseInfo, PointRequest, Problem, ProblemCode};
use martlet_source::{Lease, Ref};
use martlet_store::RefName;
use std::sync::Arc;

const DAY_S: u64 = 24 * 60 * 60;

impl Engine {
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
}

pub(crate) fn is_held(remote: &str, name: &RefName, lease: &Lease, found: &Ref) -> Problem {
    let way_out = format!(
        "`martlet resume --from {remote} {name} --ask` has it let go; `martlet lease show {remote} {name}` says more, `martlet lease break {remote} {name}` takes it"
    );
    let words = match lease.until_unix_s {
        None => format!("{name} is held at {remote} by {}", found.by.host),
        Some(until) => format!(
            "{name} is checked out at {remote} by {}, for {} days more",
            found.by.host,
            until.saturating_sub(now_unix_ms() / 1000).div_ceil(DAY_S)
        ),
    };
    Problem::new(ProblemCode::InUse, words).remediation(way_out)
}
