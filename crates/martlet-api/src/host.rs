//! Hosts that know each other.

use crate::MachineUsage;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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

/// How a host of the fleet is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostTop {
    /// Its name.
    pub name: String,
    /// Is it this one?
    pub is_this: bool,
    /// What it uses, if it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<HostUsage>,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a host uses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostUsage {
    /// Its memory, or what its control group may have of it.
    pub memory_total_bytes: u64,
    /// Of it, what can be had without ending anything, with free swap.
    pub memory_available_bytes: u64,
    /// Its processors.
    pub cpus: u32,
    /// One-minute load average.
    pub load: f64,
    /// Size of the store's packs.
    pub store_bytes: u64,
    /// How many clones it takes yet, if it has a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clones_left: Option<u32>,
    /// How many it takes of the same user, if it has a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clones_each: Option<u32>,
    /// How many live there, by user; of a host with such a limit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub clones_by_user: BTreeMap<String, u32>,
    /// Its machines. Their guests were not asked.
    pub machines: Vec<MachineUsage>,
}
