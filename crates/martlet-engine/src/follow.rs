//! Lines that are followed: what others publish on them comes here before anybody asks for it, so that the machine goes on
//! here at once.
//!
//! ```text
//!   the line has another version ──► is it likely to be wanted here (foresee.rs)? ──► pulled as NAME:followed-VERSION
//! ```

use crate::engine::Engine;
use crate::foresee::{Acquired, foresee, looked_back};
use crate::launch::now_unix_ms;
use crate::problem::Told;
use crate::remotes::host_name;
use martlet_api::{FollowInfo, FollowRequest, ForeseenHost, Problem, ProblemCode, PullRequest};
use martlet_image::SnapshotId;
use martlet_source::Ref;
use martlet_store::RefName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Setting in the state database: what is followed, by `REMOTE NAME:TAG`.
const FOLLOWED: &str = "followed";
/// A line is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// After a failure it waits this long,
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// and this long when what is new is not likely to be wanted: another time of day has to come.
const FORESEE_AGAIN: Duration = Duration::from_secs(10 * 60);
/// What is as likely as this is worth its bytes.
const LIKELY: f64 = 0.25;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Followed {
    remote: String,
    reference: String,
    /// Only when it is likely to be wanted here next.
    when_likely: bool,
    /// The newest version that came.
    version: u32,
    moved_bytes: u64,
}

impl Followed {
    fn key(&self) -> String {
        format!("{} {}", self.remote, self.reference)
    }
}

impl Engine {
    /// From now on, what is published on a line comes here.
    pub fn follow(self: &Arc<Self>, remote: &str, request: FollowRequest) -> Result<(), Problem> {
        let name = request.reference.parse::<RefName>().told()?;
        self.at_newest(remote, &name)?;
        let followed = Followed {
            remote: remote.to_owned(),
            reference: name.to_string(),
            when_likely: request.when_likely,
            version: 0,
            moved_bytes: 0,
        };
        let key = followed.key();
        let begins = self
            .state
            .edit_setting(FOLLOWED, |all: &mut BTreeMap<String, Followed>| {
                match all.get_mut(&key) {
                    Some(known) => {
                        known.when_likely = followed.when_likely;
                        false
                    }
                    None => all.insert(key.clone(), followed).is_none(),
                }
            })
            .told()?;
        if begins {
            self.start_following(key);
        }
        Ok(())
    }

    /// What is published on a line comes no more. What has come stays.
    pub fn unfollow(&self, remote: &str, reference: &str) -> Result<(), Problem> {
        let name = reference.parse::<RefName>().told()?;
        let key = format!("{remote} {name}");
        let was = self
            .state
            .edit_setting(FOLLOWED, |all: &mut BTreeMap<String, Followed>| all.remove(&key));
        was.told()?.map(drop).ok_or_else(|| {
            Problem::new(
                ProblemCode::NotFound,
                format!("{name} at {remote} is not followed"),
            )
            .remediation("`martlet follow ls` lists what is")
        })
    }

    /// The lines that are followed, and who is likely to go on with them.
    pub fn follows(self: &Arc<Self>) -> Result<Vec<FollowInfo>, Problem> {
        let followed = self.followed()?.into_values();
        Ok(followed.map(|followed| self.follow_info(followed)).collect())
    }

    /// One whose remote cannot be asked says so.
    fn follow_info(self: &Arc<Self>, followed: Followed) -> FollowInfo {
        let look = || {
            let name = followed.reference.parse::<RefName>().told()?;
            let (at, newest) = self.at_newest(&followed.remote, &name)?;
            let history = acquisitions(at.history(&name).told()?);
            Ok::<_, Problem>((newest, history))
        };
        let (newest, history, problem) = match look() {
            Ok((newest, history)) => (Some(newest), history, None),
            Err(problem) => (None, Vec::new(), Some(problem.to_string())),
        };
        let (right, foreseen) = looked_back(&history);
        let next = foresee(&history, now_unix_ms() / 1000).into_iter();
        FollowInfo {
            version: newest.as_ref().map_or(followed.version, |newest| newest.version),
            here: newest.is_some_and(|newest| self.is_all_here(&newest.snapshot)),
            remote: followed.remote,
            reference: followed.reference,
            when_likely: followed.when_likely,
            moved_bytes: followed.moved_bytes,
            next: next
                .map(|foreseen| ForeseenHost {
                    host: foreseen.host,
                    likely: foreseen.likely,
                })
                .collect(),
            right,
            foreseen,
            problem,
        }
    }

    pub(crate) fn recover_follows(self: &Arc<Self>) -> Result<(), Problem> {
        for key in self.followed()?.into_keys() {
            self.start_following(key);
        }
        Ok(())
    }

    /// Is any line followed here?
    pub(crate) fn follows_any(&self) -> bool {
        self.followed().is_ok_and(|followed| !followed.is_empty())
    }

    fn followed(&self) -> Result<BTreeMap<String, Followed>, Problem> {
        Ok(self.state.setting(FOLLOWED).told()?.unwrap_or_default())
    }

    fn is_all_here(&self, id: &SnapshotId) -> bool {
        self.store.snapshots().contains(id) && !self.away.has(id)
    }

    fn start_following(self: &Arc<Self>, key: String) {
        let (engine, away): (Weak<Self>, _) = (Arc::downgrade(self), self.away.clone());
        let look = move || {
            while let Some(engine) = engine.upgrade() {
                let pause = match engine.look_at(&key) {
                    Ok(Some(pause)) => pause,
                    Ok(None) => return,
                    Err(problem) => {
                        tracing::warn!(%problem, line = key, "it cannot be followed now");
                        LOOK_AGAIN
                    }
                };
                drop(engine);
                if away.pause(pause).is_err() {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("follow".into()).spawn(look) {
            tracing::warn!(%error, "a line is not followed until the daemon starts again");
        }
    }

    /// Gets what is new of a line. When it is to be looked at again; `None` when it is not followed any more.
    fn look_at(self: &Arc<Self>, key: &str) -> Result<Option<Duration>, Problem> {
        let Some(followed) = self.followed()?.remove(key) else {
            return Ok(None);
        };
        let name = followed.reference.parse::<RefName>().told()?;
        let (at, newest) = self.at_newest(&followed.remote, &name)?;
        if newest.version <= followed.version {
            return Ok(Some(LOOK_EVERY));
        }
        if !self.is_all_here(&newest.snapshot) {
            if followed.when_likely {
                let foreseen = foresee(&acquisitions(at.history(&name).told()?), now_unix_ms() / 1000);
                let host = host_name();
                if !foreseen
                    .iter()
                    .any(|one| one.host == host && one.likely >= LIKELY)
                {
                    return Ok(Some(FORESEE_AGAIN));
                }
            }
            let called = |version: u32| RefName::new(name.name(), &format!("followed-{version}")).told();
            let request = PullRequest {
                snapshot: name.to_string(),
                reference: Some(called(newest.version)?.to_string()),
                dry_run: false,
                bandwidth_bytes: None,
            };
            let report = self.pull(&followed.remote, request, &|_| ())?;
            if followed.version > 0 {
                let _ = self.snapshot_remove(&called(followed.version)?.to_string()); // its user has, or uses it
            }
            self.note(key, |followed| followed.moved_bytes += report.moved_bytes)?;
        }
        self.note(key, |followed| followed.version = newest.version)?;
        Ok(Some(LOOK_EVERY))
    }

    fn note(&self, key: &str, change: impl FnOnce(&mut Followed)) -> Result<(), Problem> {
        self.state
            .edit_setting(FOLLOWED, |all: &mut BTreeMap<String, Followed>| {
                if let Some(followed) = all.get_mut(key) {
                    change(followed);
                }
            })
            .told()
    }
}

/// Who acquired a line and when, from its versions, of which the newest is the first.
fn acquisitions(history: Vec<Ref>) -> Vec<Acquired> {
    let mut acquired = Vec::new();
    let mut held = None;
    for version in history.into_iter().rev() {
        let lease = version.lease.map(|lease| lease.id);
        if lease.is_some() && lease != held {
            acquired.push(Acquired {
                host: version.by.host,
                unix_s: version.by.unix_s,
            });
        }
        held = lease;
    }
    acquired
}
