//! Remotes by name.

use crate::engine::Engine;
use crate::problem::{Tell, Told, problem};
use crate::realms::DEFAULT_REALM;
use martlet_api::{Problem, ProblemCode, RemoteAddRequest, RemoteInfo, RemoteSnapshot};
use martlet_source::{
    Cloud, Credentials, Directory, Login, Objects, Patience, Ref, Registry, Remote, SourceError, Throttled,
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
            Self::Changed { .. } | Self::TooLong { .. } => {
                (ProblemCode::Busy, "push again: only what is lacking is sent")
            }
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
    fn opened(&self, name: &str, bandwidth_bytes: Option<u64>) -> Result<Vec<Remote>, Problem> {
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
            .map(|realm| Remote::new(objects.clone(), realm))
            .collect())
    }

    /// A remote to push to.
    pub(crate) fn newest(&self, name: &str, bandwidth_bytes: Option<u64>) -> Result<Remote, Problem> {
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
        &self,
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

    /// The remotes of a realm.
    pub(crate) fn remotes_in(&self, realm: &str) -> Result<Vec<String>, Problem> {
        let remotes = self.known_remotes()?.into_iter();
        Ok(remotes
            .filter(|(_, known)| known.realm == realm)
            .map(|(name, _)| name)
            .collect())
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
        self.known_remote(name)?;
        self.change_remotes(|remotes| {
            remotes.remove(name);
            Ok(())
        })
    }

    /// Tries a remote out.
    pub fn remote_check(&self, name: &str) -> Result<RemoteInfo, Problem> {
        let known = self.known_remote(name)?;
        let objects = known.objects(false)?;
        martlet_source::check(&*objects).told()?;
        Ok(info(name, &known, &*objects))
    }

    /// What a remote has.
    pub fn remote_snapshots(&self, name: &str) -> Result<Vec<RemoteSnapshot>, Problem> {
        let here = self.store.snapshots();
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

fn info(name: &str, known: &Known, objects: &dyn Objects) -> RemoteInfo {
    RemoteInfo {
        name: name.to_owned(),
        address: known.address.clone(),
        writable: objects.is_writable(),
        realm: known.realm.clone(),
    }
}
