//! Tokens: what lets a person use a host from afar, as far as a role goes.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// What a token allows. Each role has what those before it have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// To look: lists, figures, logs.
    Read,
    /// To use machines and snapshots, with all that is in them.
    Run,
    /// All that the daemon's socket allows.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Run => "run",
            Self::Admin => "admin",
        })
    }
}

/// A person is to have a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenCreateRequest {
    /// What it is to be called.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// It is good for so many days.
    pub days: u32,
}

/// A new token. **A secret**, which is not kept and cannot be shown again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenLine {
    /// A line for `martlet login`.
    pub token: String,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenInfo {
    /// What it is called.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// When it was made.
    pub created_unix_ms: u64,
    /// It is good until then.
    pub expires_unix_ms: u64,
    /// When it was last used, to the minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_unix_ms: Option<u64>,
}
