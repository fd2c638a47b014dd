//! Which daemon answers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What `/version` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionInfo {
    /// Version of the daemon.
    pub version: String,
    /// Version of the API; the first part of every path.
    pub api: String,
    /// The daemon's process.
    pub pid: u32,
    /// Where it keeps its state.
    pub state_dir: String,
}
