//! Remotes by name.

use crate::engine::Engine;
use crate::problem::{Tell, Told, problem};
use crate::realms::DEFAULT_REALM;
use crate::seen::SeenRefs;
use martlet_api::{
    PendingPush, Problem, ProblemCode, Progress, ProgressSink, ProgressUnit, RemoteAddRequest,
    RemoteGcReport, RemoteGcRequest, RemoteInfo, RemoteSnapshot, RemoteVersion,
};
use martlet_image::SnapshotId;
use martlet_source::{
    Cloud, Credentials, Directory, GcOptions, Login, Objects, Patience, Ref, Registry, Remote, SourceError,
    Throttled,
};
use martlet_store::RefName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use url::Url;

/// Setting in the state database.
const REMOTES: &str = "remotes";

/// A remote as it is remembered.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    address: String,
    endpoint: Option<String>,
    region: Option<String>,
    user: Option<String>,
    secret: Option<String>,
    realm: String,
}

impl Known {
    /// The place itself. Nothing is asked of it yet. A directory is made one only if it is to be `made`.
    fn objects(&self, made: bool) -> Result<Arc<dyn Objects>, Problem> {
        if self.address.starts_with('/') {
            let dir = Path::new(&self.address);
            return Ok(Arc::new(if made {
                Directory::new(dir)
            } else {
                Directory::existing(dir)
            }));
        }
        let url = parse(&self.address)?;
        let patience = Patience::default();
        let cloud = match url.scheme() {
            "s3" => {
                let endpoint = self.endpoint.as_deref().map(parse).transpose()?;
                let credentials = self.login().map(|(user, secret)| Credentials {
                    access_key_id: user,
                    secret_access_key: secret,
                });
                let region = self.region.as_deref();
                Cloud::bucket(&url, endpoint.as_ref(), region, credentials.as_ref(), patience)
            }
            "http" | "https" => Cloud::web(&url, patience),
            "oci" | "oci+http" => {
                let login = self.login().map(|(user, password)| Login { user, password });
                return Ok(Arc::new(Registry::new(&url, login, patience).told()?));
            }
            _ => return Err(bad_address(&self.address, "no remote is addressed so")),
        };
        Ok(Arc::new(cloud.told()?))
    }
}

impl Known {
    fn login(&self) -> Option<(String, String)> {
        self.user.clone().zip(self.secret.clone())
    }
}

fn parse(address: &str) -> Result<Url, Problem> {
    Url::parse(address).map_err(|error| bad_address(address, error))
}

fn bad_address(address: &str, reason: impl std::fmt::Display) -> Problem {
    Problem::new(
        ProblemCode::InvalidArgument,
        format!("{address:?} is no address of a remote: {reason}"),
    )
    .remediation(
        "a directory's absolute path, s3://BUCKET/PREFIX, oci://HOST/REPOSITORY, http://HOST/PATH or https://HOST/PATH is one",
    )
}

impl Tell for SourceError {
    fn tell(self) -> Problem {
        let retry = self.is_retryable();
        let (code, remedy) = match self {
            Self::Store(error) => return error.tell(),
            Self::NoSnapshot { .. } => (
                ProblemCode::NotFound,
                "`martlet remote ls NAME` lists what it has",
            ),
            Self::NotFound { .. } | Self::Incomplete { .. } => (
                ProblemCode::Damaged,
                "push the snapshot again from a host that has it",
            ),
            Self::Wrong { .. } => (
                ProblemCode::Damaged,
                "nothing of it was taken; `martlet remote check NAME` tries the remote out",
            ),
            Self::Refused { .. } => (
                ProblemCode::PermissionDenied,
                "check the remote's credentials and rights",
            ),
            Self::ReadOnly { .. } | Self::BadAddress { .. } => (ProblemCode::InvalidArgument, ""),
            Self::Held { .. } => (
                ProblemCode::InUse,
                "`martlet lease show REMOTE NAME` says since when; `martlet lease ask` has it let go",
            ),
            Self::Lost { .. } => (
                ProblemCode::WrongState,
                "`martlet publish` keeps what was done here as a side branch",
            ),
            Self::Changed { .. } | Self::TooLong { .. } => {
                (ProblemCode::Busy, "do it again: only what is lacking is moved")
            }
            Self::RolledBack { .. } => (
                ProblemCode::Damaged,
                "an old copy may have been put in its place; if that was you, `martlet remote rm` and `add` it again",
            ),
            Self::Collecting { .. } => (ProblemCode::Busy, "try again when it has ended"),
            Self::Scattered { .. } => (ProblemCode::InvalidArgument, "push it to a new place"),
            Self::Full { .. } => (ProblemCode::NoSpace, "make room there; what was sent is kept"),
            Self::Unavailable { .. } => (
                ProblemCode::Busy,
                "see whether it can be reached, and do it again: it goes on where it was",
            ),
        };
        Problem {
            retry,
            ..problem(code, &self, remedy)
        }
    }
}

impl Engine {
    fn known_remotes(&self) -> Result<BTreeMap<String, Known>, Problem> {
        Ok(self.state.setting(REMOTES).told()?.unwrap_or_default())
    }

    fn known_remote(&self, name: &str) -> Result<Known, Problem> {
        self.known_remotes()?.remove(name).ok_or_else(|| {
            Problem::new(ProblemCode::NotFound, format!("there is no remote {name}"))
                .remediation("`martlet remote ls` lists those there are")
        })
    }

    /// A remote as each secret of its realm shows it, the newest first: to that one is pushed.
    pub(crate) fn opened(
        self: &Arc<Self>,
        name: &str,
        bandwidth_bytes: Option<u64>,
    ) -> Result<Vec<Remote>, Problem> {
        let known = self.known_remote(name)?;
        let mut objects = known.objects(false)?;
        if let Some(bytes) = bandwidth_bytes {
            let bytes = NonZeroU64::new(bytes).ok_or_else(|| {
                Problem::new(
                    ProblemCode::InvalidArgument,
                    "at 0 bytes per second nothing moves",
                )
            })?;
            objects = Arc::new(Throttled::new(objects, bytes));
        }
        let realms = self.realm(&known.realm)?;
        Ok(realms
            .into_iter()
            .map(|realm| {
                let seen = SeenRefs::new(self, name, &realm.id());
                Remote::new(objects.clone(), realm)
                    .with_seen(Arc::new(seen))
                    .with_host(host_name())
            })
            .collect())
    }

    /// A remote to push to.
    pub(crate) fn newest(
        self: &Arc<Self>,
        name: &str,
        bandwidth_bytes: Option<u64>,
    ) -> Result<Remote, Problem> {
        let opened = self.opened(name, bandwidth_bytes)?.into_iter().next();
        opened.ok_or_else(|| {
            Problem::new(
                ProblemCode::Internal,
                format!("the realm of {name} has no secret"),
            )
        })
    }

    /// A remote as it has a snapshot of this name.
    pub(crate) fn find_remote(
        self: &Arc<Self>,
        name: &str,
        reference: &RefName,
        bandwidth_bytes: Option<u64>,
    ) -> Result<(Remote, Ref), Problem> {
        let opened = self.opened(name, bandwidth_bytes)?;
        let place = opened.first().map(Remote::place).unwrap_or_default();
        for remote in opened {
            if let Some(found) = remote.find_ref(reference).told()? {
                return Ok((remote, found));
            }
        }
        Err(SourceError::NoSnapshot {
            place,
            name: reference.to_string(),
        }
        .tell())
    }

    /// A remote as it has a version of a name that stands for a snapshot: the newest one may stand for another since.
    pub(crate) fn find_version(
        self: &Arc<Self>,
        name: &str,
        reference: &RefName,
        id: &SnapshotId,
    ) -> Result<(Remote, Ref), Problem> {
        for remote in self.opened(name, None)? {
            let history = remote.history(reference).told()?;
            if let Some(found) = history.into_iter().find(|found| found.snapshot == *id) {
                return Ok((remote, found));
            }
        }
        Err(Problem::new(
            ProblemCode::Damaged,
            format!(
                "remote {name} has no version of {reference} any more that is snapshot {}",
                id.short()
            ),
        )
        .remediation("push it there again from a host that has it"))
    }

    /// The remotes of a realm.
    pub(crate) fn remotes_in(&self, realm: &str) -> Result<Vec<String>, Problem> {
        let remotes = self.known_remotes()?.into_iter();
        Ok(remotes
            .filter(|(_, known)| known.realm == realm)
            .map(|(name, _)| name)
            .collect())
    }

    /// The remotes that are directories of this host: a carried disk is one.
    pub(crate) fn directories(&self) -> Result<Vec<String>, Problem> {
        let remotes = self.known_remotes()?.into_iter();
        let directories = remotes.filter(|(_, known)| known.address.starts_with('/'));
        Ok(directories.map(|(name, _)| name).collect())
    }

    /// The remote that a directory is.
    pub(crate) fn directory_at(&self, dir: &str) -> Result<Option<String>, Problem> {
        let mut remotes = self.known_remotes()?.into_iter();
        Ok(remotes
            .find(|(_, known)| known.address == dir)
            .map(|(name, _)| name))
    }

    fn change_remotes(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Known>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let changed = self.state.change_setting(REMOTES, |remotes: Option<_>| {
            let mut remotes = remotes.unwrap_or_default();
            change(&mut remotes)?;
            Ok(remotes)
        });
        changed.told()?
    }

    /// Gives a place a name. It is tried out before.
    pub fn remote_add(&self, request: RemoteAddRequest) -> Result<RemoteInfo, Problem> {
        martlet_api::names::check_name(&request.name)?;
        let known = Known {
            address: request.address,
            endpoint: request.endpoint,
            region: request.region,
            user: request.user,
            secret: request.secret,
            realm: request.realm.unwrap_or_else(|| DEFAULT_REALM.into()),
        };
        self.realm(&known.realm)?;
        let objects = known.objects(true)?;
        let info = info(&request.name, &known, &*objects);
        if self.peer(&request.name)?.is_some() {
            return Err(Problem::new(
                ProblemCode::AlreadyExists,
                format!("a host of the fleet is called {}", request.name),
            )
            .remediation("choose another name"));
        }
        if !self.known_remotes()?.contains_key(&request.name) {
            martlet_source::check(&*objects).told()?;
        }
        self.change_remotes(|remotes| match remotes.entry(request.name) {
            Entry::Vacant(entry) => {
                entry.insert(known);
                Ok(())
            }
            Entry::Occupied(entry) => Err(Problem::new(
                ProblemCode::AlreadyExists,
                format!("there is a remote {} already", entry.key()),
            )
            .remediation(format!("`martlet remote rm {}` forgets it", entry.key()))),
        })?;
        Ok(info)
    }

    /// Is there any?
    pub(crate) fn has_remotes(&self) -> Result<bool, Problem> {
        Ok(!self.known_remotes()?.is_empty())
    }

    /// All remotes.
    pub fn remotes(&self) -> Result<Vec<RemoteInfo>, Problem> {
        let remotes = self.known_remotes()?;
        remotes
            .iter()
            .map(|(name, known)| Ok(info(name, known, &*known.objects(false)?)))
            .collect()
    }

    /// Forgets a remote; what it keeps stays there.
    pub fn remote_remove(&self, name: &str) -> Result<(), Problem> {
        let known = self.known_remote(name)?;
        let coming = self.coming_from(name)?;
        if !coming.is_empty() {
            return Err(Problem::new(
                ProblemCode::InUse,
                format!("not all has come from {name} of {}", coming.join(", ")),
            )
            .remediation(
                "`martlet pull` gets the rest, `martlet rmi` does without it; `martlet away` lists them",
            ));
        }
        self.change_remotes(|remotes| {
            remotes.remove(name);
            Ok(())
        })?;
        // What is added by this name later is another place.
        for realm in self.realm(&known.realm)? {
            self.state
                .remove_setting(&SeenRefs::setting(name, &realm.id()))
                .told()?;
        }
        Ok(())
    }

    /// Tries a remote out.
    pub fn remote_check(&self, name: &str) -> Result<RemoteInfo, Problem> {
        let known = self.known_remote(name)?;
        let objects = known.objects(false)?;
        martlet_source::check(&*objects).told()?;
        Ok(info(name, &known, &*objects))
    }

    /// Removes what no snapshot of a remote needs, but for the newest `keep_versions` of each name.
    pub fn remote_gc(
        self: &Arc<Self>,
        name: &str,
        request: &RemoteGcRequest,
        progress: ProgressSink<'_>,
    ) -> Result<RemoteGcReport, Problem> {
        let options = GcOptions {
            keep_versions: request.keep_versions as usize,
            dry_run: request.dry_run,
        };
        let mut sum = RemoteGcReport {
            dry_run: request.dry_run,
            ..RemoteGcReport::default()
        };
        for remote in self.opened(name, None)? {
            let mut told = |done: u64, total: u64| {
                progress(Progress {
                    stage: format!("removing packs of {name}"),
                    done,
                    total: Some(total),
                    unit: ProgressUnit::Items,
                });
            };
            let report = martlet_source::gc(&remote, options, &mut told).told()?;
            sum.packs += report.packs;
            sum.freed_bytes += report.freed_bytes;
            sum.kept_packs += report.kept_packs;
            sum.kept_bytes += report.kept_bytes;
            sum.condemned_packs += report.condemned_packs;
            sum.waiting_for
                .extend(report.waiting_for.into_iter().map(|stamp| PendingPush {
                    host: stamp.host,
                    began_unix_ms: stamp.unix_s * 1000,
                }));
        }
        Ok(sum)
    }

    /// Takes a name away at a remote. Its bytes go with the next collection.
    pub fn remote_forget(self: &Arc<Self>, name: &str, reference: &str) -> Result<(), Problem> {
        let reference = reference.parse::<RefName>().told()?;
        let (remote, _) = self.find_remote(name, &reference, None)?;
        remote.remove_ref(&reference).told()
    }

    /// What a name stood for at a remote, the newest first.
    pub fn remote_history(
        self: &Arc<Self>,
        name: &str,
        reference: &str,
    ) -> Result<Vec<RemoteVersion>, Problem> {
        let reference = reference.parse::<RefName>().told()?;
        let (remote, _) = self.find_remote(name, &reference, None)?;
        let history = remote.history(&reference).told()?;
        let version = |found: Ref| RemoteVersion {
            version: found.version,
            snapshot: (!found.is_removal()).then(|| found.snapshot.to_string()),
            host: found.by.host.clone(),
            pushed_unix_ms: found.by.unix_s * 1000,
            held: found.lease.is_some(),
        };
        Ok(history.into_iter().map(version).collect())
    }

    /// What a remote has.
    pub fn remote_snapshots(self: &Arc<Self>, name: &str) -> Result<Vec<RemoteSnapshot>, Problem> {
        let here = self.store.snapshots();
        if let Some(peer) = self.peer(name)? {
            let refs = peer.refs().told()?.into_iter();
            let snapshots = refs.map(|(reference, id)| RemoteSnapshot {
                reference: reference.to_string(),
                snapshot: id.to_string(),
                version: 1,
                here: here.contains(&id),
            });
            return Ok(snapshots.collect());
        }
        let mut refs = BTreeMap::new();
        for remote in self.opened(name, None)? {
            for (reference, found) in remote.refs().told()? {
                refs.entry(reference).or_insert(found); // sealed anew since
            }
        }
        let snapshots = refs.into_iter().map(|(reference, found)| RemoteSnapshot {
            reference: reference.to_string(),
            snapshot: found.snapshot.to_string(),
            version: found.version,
            here: here.contains(&found.snapshot),
        });
        Ok(snapshots.collect())
    }
}

/// What others are told who pushed.
pub(crate) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

fn info(name: &str, known: &Known, objects: &dyn Objects) -> RemoteInfo {
    RemoteInfo {
        name: name.to_owned(),
        address: known.address.clone(),
        writable: objects.is_writable(),
        realm: known.realm.clone(),
    }
}
