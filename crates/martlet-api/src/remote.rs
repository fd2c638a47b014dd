//! Remotes: named places that keep snapshots.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A remote to be known by a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemoteAddRequest {
    /// What it is to be called here.
    pub name: String,
    /// Where it is: a directory's absolute path, `s3://BUCKET/PREFIX`, `oci://HOST/REPOSITORY`, `http://…` or `https://…` (only to read).
    pub address: String,
    /// The S3 server, unless it is Amazon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The S3 region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// S3 access key, or user of the registry. Without one, a bucket is asked as the daemon's environment says
    /// (`AWS_ACCESS_KEY_ID` and so on), and a registry as nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its secret, or password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Realm that what is pushed to it is sealed in; `default`, else, which is made when it is first needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub realm: Option<String>,
}

/// A remote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemoteInfo {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: String,
    /// Can snapshots be pushed to it?
    pub writable: bool,
    /// Realm that what it keeps is sealed in.
    pub realm: String,
}

/// A snapshot as a remote calls it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemoteSnapshot {
    /// `NAME:TAG`.
    pub reference: String,
    /// Id of the snapshot.
    pub snapshot: String,
    /// How often the name has been given another snapshot, and once more.
    pub version: u32,
    /// Is the snapshot here, too?
    pub here: bool,
}

/// A snapshot is to go to a remote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PushRequest {
    /// The snapshot: `NAME:TAG`, or its id.
    pub snapshot: String,
    /// What the remote is to call it, `NAME:TAG`, if not as here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Only say what would go.
    #[serde(default)]
    pub dry_run: bool,
    /// No more than so many bytes in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes: Option<u64>,
}

/// A snapshot is to come from a remote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PullRequest {
    /// What the remote calls it, `NAME:TAG`.
    pub snapshot: String,
    /// What it is to be called here, if not the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Only say what would come.
    #[serde(default)]
    pub dry_run: bool,
    /// No more than so many bytes in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes: Option<u64>,
}

/// A snapshot is to come from a remote, its frames when they are read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FetchRequest {
    /// What the remote calls it, `NAME:TAG`.
    pub snapshot: String,
    /// What it is to be called here, if not the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Have the rest come, too, while nothing is read.
    #[serde(default)]
    pub rest: bool,
}

/// A snapshot of which not all is here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AwaySnapshot {
    /// Its id.
    pub snapshot: String,
    /// Its names.
    pub references: Vec<String>,
    /// The remote that has the rest.
    pub remote: String,
    /// Does the rest come without being read?
    pub rest: bool,
    /// Frames and blobs that it consists of.
    pub objects: u64,
    /// Of these, how many are not here.
    pub missing_objects: u64,
    /// Those that came because they were read.
    pub read_objects: u64,
    /// What those took.
    pub read_bytes: u64,
    /// How long reads waited for them, together.
    pub waited_ms: f64,
    /// The longest wait.
    pub waited_max_ms: f64,
    /// What came without being read, since the daemon started.
    pub rest_bytes: u64,
}

/// What a push or pull did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TransferReport {
    /// Id of the snapshot.
    pub snapshot: String,
    /// What it is called there (push) or here (pull).
    pub reference: String,
    /// Objects that moved: frames, manifests and the like.
    pub objects: u64,
    /// Bytes that moved.
    pub moved_bytes: u64,
    /// Nothing moved, it was only asked.
    pub dry_run: bool,
}

/// What nobody needs is to go from a remote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemoteGcRequest {
    /// So many versions of each name stay whole; at least one does.
    pub keep_versions: u32,
    /// Only say what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a collection at a remote did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemoteGcReport {
    /// Packs removed.
    pub packs: u64,
    /// What they took.
    pub freed_bytes: u64,
    /// Packs that are there.
    pub kept_packs: u64,
    /// What they take.
    pub kept_bytes: u64,
    /// Of these, packs that go with a later collection, if nothing comes to need them.
    pub condemned_packs: u64,
    /// Pushes that have to end before that. What a push that was killed has left counts for a week.
    pub waiting_for: Vec<PendingPush>,
    /// Nothing went, it was only asked.
    pub dry_run: bool,
}

/// What a name stood for at a remote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemoteVersion {
    /// 1 is the first.
    pub version: u32,
    /// Id of the snapshot; absent if the name was taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Host that pushed it.
    pub host: String,
    /// When, by that host's clock.
    pub pushed_unix_ms: u64,
    /// Did somebody hold the name from then on?
    #[serde(default)]
    pub held: bool,
}

/// A push that has begun, and has perhaps been killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PendingPush {
    /// The host that pushes.
    pub host: String,
    /// When it began, by that host's clock.
    pub began_unix_ms: u64,
}

/// Fill a carried disk with what is most likely to be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CarryRequest {
    /// A directory on it: absolute. It becomes a remote, if it is none.
    pub dir: String,
    /// Machines or snapshots, the most wanted first.
    pub sources: Vec<String>,
    /// No more than so much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Realm that a new remote is of; the default one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub realm: Option<String>,
}

/// What was put on a carried disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CarryReport {
    /// What was asked for.
    pub source: String,
    /// Id of its snapshot.
    pub snapshot: String,
    /// The remote that the disk is.
    pub remote: String,
    /// What was put there.
    pub moved_bytes: u64,
    /// What there was no room for.
    pub left_bytes: u64,
}
