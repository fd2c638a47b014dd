//! Realms: who has a realm's secrets can read and write what its remotes keep.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A realm to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RealmCreateRequest {
    /// What it is to be called here.
    pub name: String,
}

/// A realm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RealmInfo {
    /// What it is called here.
    pub name: String,
    /// What its newest secret is known by; the same on every host that has it, and no secret.
    pub id: String,
    /// How many secrets it has: one, and one more with each rotation.
    pub secrets: u32,
    /// Remotes whose snapshots are sealed in it.
    pub remotes: Vec<String>,
}

/// A realm to be joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RealmJoinRequest {
    /// The line that another host gave out.
    pub invitation: String,
    /// What the realm is to be called here, if not as there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What lets another host join a realm. **A secret.**
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RealmInvitation {
    /// The realm.
    pub name: String,
    /// A line for `martlet realm join`.
    pub invitation: String,
}
