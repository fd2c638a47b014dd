//! Hosts that know each other.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// This host is to be the first of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostInitRequest {
    /// What it is to be called by the others.
    pub name: String,
    /// Where they reach it: `ADDRESS:PORT`.
    pub address: String,
}

/// This host is to join a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostJoinRequest {
    /// The line that a host of the fleet gave out.
    pub invitation: String,
    /// What this host is to be called by the others.
    pub name: String,
    /// Where they reach it: `ADDRESS:PORT`.
    pub address: String,
}

/// What lets another host join. **A secret**, good once and for an hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostInvitationInfo {
    /// A line for `martlet host join`.
    pub invitation: String,
}

/// A host of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Its name.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// Is it this one?
    pub is_this: bool,
    /// Did it answer just now?
    pub answers: bool,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
