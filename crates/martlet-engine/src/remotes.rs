//! Remotes by name, and snapshots that go to them and come from them.

use crate::engine::Engine;
use crate::problem::{Tell, Told, problem};
use martlet_api::{
    Problem, ProblemCode, Progress, ProgressSink, ProgressUnit, PullRequest, PushRequest, RemoteAddRequest,
    RemoteInfo, RemoteSnapshot, TransferReport,
};
use martlet_source::{Cloud, Credentials, Directory, Objects, Patience, Realm, Remote, SourceError};
use martlet_store::RefName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use url::Url;

/// Settings in the state database.
const REMOTES: &str = "remotes";
const REALM: &str = "realm default";

/// A remote as it is remembered.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    address: String,
    endpoint: Option<String>,
    region: Option<String>,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
}

impl Known {
    /// The place itself. Nothing is asked of it yet.
    fn objects(&self) -> Result<Arc<dyn Objects>, Problem> {
        if self.address.starts_with('/') {
            return Ok(Arc::new(Directory::new(Path::new(&self.address))));
        }
        let url = parse(&self.address)?;
        let patience = Patience::default();
        let cloud = match url.scheme() {
            "s3" => {
                let endpoint = self.endpoint.as_deref().map(parse).transpose()?;
                let credentials = match (&self.access_key_id, &self.secret_access_key) {
                    (Some(id), Some(secret)) => Some(Credentials {
                        access_key_id: id.clone(),
                        secret_access_key: secret.clone(),
                    }),
                    _ => None,
                };
                let region = self.region.as_deref();
                Cloud::bucket(&url, endpoint.as_ref(), region, credentials.as_ref(), patience)
            }
            "http" | "https" => Cloud::web(&url, patience),
            _ => return Err(bad_address(&self.address, "no remote is addressed so")),
        };
        Ok(Arc::new(cloud.told()?))
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
    .remediation("a directory's absolute path, s3://BUCKET/PREFIX, http://HOST/PATH or https://HOST/PATH is one")
}

impl Tell for SourceError {
    fn tell(self) -> Problem {
        let retry = self.is_retryable();
        let (code, remedy) = match self {
            Self::Store(error) => return error.tell(),
            Self::NoSnapshot { .. } => (ProblemCode::NotFound, "`martlet remote ls NAME` lists what it has"),
            Self::NotFound { .. } | Self::Incomplete { .. } => {
                (ProblemCode::Damaged, "push the snapshot again from a host that has it")
            }
            Self::Wrong { .. } => (
                ProblemCode::Damaged,
                "nothing of it was taken; `martlet remote check NAME` tries the remote out",
            ),
            Self::Refused { .. } => (ProblemCode::PermissionDenied, "check the remote's credentials and rights"),
            Self::ReadOnly { .. } | Self::BadAddress { .. } => (ProblemCode::InvalidArgument, ""),
            Self::Changed { .. } | Self::TooLong { .. } => {
                (ProblemCode::Busy, "do it again: only what is lacking is moved")
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

    fn remote(&self, name: &str) -> Result<Remote, Problem> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let remote = Remote::new(self.known_remote(name)?.objects()?, self.realm()?);
        Ok(remote.with_host(host.trim()))
    }

    /// The realm of what leaves this host, made when something first does.
    fn realm(&self) -> Result<Realm, Problem> {
        let secret = match self.state.setting::<[u8; 32]>(REALM).told()? {
            Some(secret) => secret,
            None => {
                let secret = crate::identity::random::<32>();
                self.state.put_setting(REALM, &secret).told()?;
                secret
            }
        };
        Ok(Realm::new(&secret))
    }

    /// Gives a place a name. It is tried out before.
    pub fn remote_add(&self, request: RemoteAddRequest) -> Result<RemoteInfo, Problem> {
        martlet_api::names::check_name(&request.name)?;
        let mut remotes = self.known_remotes()?;
        if remotes.contains_key(&request.name) {
            return Err(Problem::new(
                ProblemCode::AlreadyExists,
                format!("there is a remote {} already", request.name),
            )
            .remediation(format!("`martlet remote rm {}` forgets it", request.name)));
        }
        let known = Known {
            address: request.address,
            endpoint: request.endpoint,
            region: request.region,
            access_key_id: request.access_key_id,
            secret_access_key: request.secret_access_key,
        };
        let objects = known.objects()?;
        martlet_source::check(&*objects).told()?;
        let info = info(&request.name, &known, &*objects);
        remotes.insert(request.name, known);
        self.state.put_setting(REMOTES, &remotes).told()?;
        Ok(info)
    }

    /// All remotes.
    pub fn remotes(&self) -> Result<Vec<RemoteInfo>, Problem> {
        let remotes = self.known_remotes()?;
        remotes
            .iter()
            .map(|(name, known)| Ok(info(name, known, &*known.objects()?)))
            .collect()
    }

    /// Forgets a remote; what it keeps stays there.
    pub fn remote_remove(&self, name: &str) -> Result<(), Problem> {
        self.known_remote(name)?;
        let mut remotes = self.known_remotes()?;
        remotes.remove(name);
        self.state.put_setting(REMOTES, &remotes).told()
    }

    /// Tries a remote out.
    pub fn remote_check(&self, name: &str) -> Result<RemoteInfo, Problem> {
        let known = self.known_remote(name)?;
        let objects = known.objects()?;
        martlet_source::check(&*objects).told()?;
        Ok(info(name, &known, &*objects))
    }

    /// What a remote has.
    pub fn remote_snapshots(&self, name: &str) -> Result<Vec<RemoteSnapshot>, Problem> {
        let here = self.store.snapshots();
        let refs = self.remote(name)?.refs().told()?;
        let snapshots = refs.into_iter().map(|(reference, found)| RemoteSnapshot {
            reference: reference.to_string(),
            snapshot: found.snapshot.to_string(),
            version: found.version,
            here: here.contains(&found.snapshot),
        });
        Ok(snapshots.collect())
    }

    /// Sends a snapshot to a remote, which then has a name for it.
    pub fn push(
        &self,
        remote: &str,
        request: PushRequest,
        progress: ProgressSink<'_>,
    ) -> Result<TransferReport, Problem> {
        let (id, _) = self.snapshot_named(&request.snapshot)?;
        let reference = match request.reference {
            Some(reference) => reference.parse::<RefName>().told()?,
            None => self.reference_of(&request.snapshot, &id)?,
        };
        let remote = self.remote(remote)?;
        let mut told = |done: u64, total: u64| {
            progress(Progress {
                stage: format!("pushing {reference}"),
                done,
                total: Some(total),
                unit: ProgressUnit::Bytes,
            });
        };
        let pushed = martlet_source::push(&self.store, &remote, id, &reference, request.dry_run, &mut told);
        let (report, _) = pushed.told()?;
        Ok(TransferReport {
            snapshot: id.to_string(),
            reference: reference.to_string(),
            objects: report.sent_objects,
            moved_bytes: report.sent_bytes,
            dry_run: request.dry_run,
        })
    }

    /// The name that a snapshot was asked for by, or the first that it has.
    fn reference_of(&self, asked: &str, id: &martlet_image::SnapshotId) -> Result<RefName, Problem> {
        let names = self.store.refs_to(id);
        let asked = asked.parse::<RefName>().ok().filter(|asked| names.contains(asked));
        asked.or_else(|| names.into_iter().next()).ok_or_else(|| {
            Problem::new(
                ProblemCode::InvalidArgument,
                format!("snapshot {} has no name that the remote could call it by", id.short()),
            )
            .remediation("say what it is to be called: `--as NAME:TAG`")
        })
    }

    /// Gets a snapshot from a remote.
    pub fn pull(
        &self,
        remote: &str,
        request: PullRequest,
        progress: ProgressSink<'_>,
    ) -> Result<TransferReport, Problem> {
        let name = request.snapshot.parse::<RefName>().told()?;
        let called = match &request.reference {
            Some(reference) => {
                martlet_api::names::check_new_reference(reference)?;
                reference.parse::<RefName>().told()?
            }
            None => name.clone(),
        };
        let remote = self.remote(remote)?;
        if let Some(there) = self.store.refs().get(&called) {
            let found = remote.find_ref(&name).told()?;
            if found.is_some_and(|found| found.snapshot != *there) {
                return Err(Problem::new(
                    ProblemCode::AlreadyExists,
                    format!("{called} is another snapshot here"),
                )
                .remediation("choose another name: `--as NAME:TAG`"));
            }
        }
        let mut told = |done: u64, total: u64| {
            progress(Progress {
                stage: format!("pulling {name}"),
                done,
                total: Some(total),
                unit: ProgressUnit::Items,
            });
        };
        let pulled = martlet_source::pull(&self.store, &remote, &name, &called, false, &mut told);
        let (report, found) = pulled.told()?;
        Ok(TransferReport {
            snapshot: found.snapshot.to_string(),
            reference: called.to_string(),
            objects: report.got_objects,
            moved_bytes: report.got_bytes,
            dry_run: false,
        })
    }
}

fn info(name: &str, known: &Known, objects: &dyn Objects) -> RemoteInfo {
    RemoteInfo {
        name: name.to_owned(),
        address: known.address.clone(),
        writable: objects.is_writable(),
    }
}
