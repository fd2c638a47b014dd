//! Remotes: named places that keep snapshots.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A remote to be known by a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemoteAddRequest {
    /// What it is to be called here.
    pub name: String,
    /// Where it is: a directory's absolute path, `s3://BUCKET/PREFIX`, `http://…` or `https://…` (only to read).
    pub address: String,
    /// The S3 server, unless it is Amazon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The S3 region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Name of the access key; the daemon's environment says who it is, else (`AWS_ACCESS_KEY_ID` and so on).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// Its secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<String>,
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
}

/// A snapshot is to come from a remote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PullRequest {
    /// What the remote calls it, `NAME:TAG`.
    pub snapshot: String,
    /// What it is to be called here, if not the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
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
