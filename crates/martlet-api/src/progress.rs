//! Progress of long operations: server-sent events, `progress` until one `result` or `error`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One step of a long operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// What is being done, for people: "installing packages".
    pub stage: String,
    /// Done so far, in `unit`s.
    pub done: u64,
    /// All there is to do, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// What is counted.
    pub unit: ProgressUnit,
}

/// What a progress counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProgressUnit {
    /// Bytes.
    Bytes,
    /// Things (packages, clones, frames).
    Items,
    /// Nothing countable: a stage that is just under way.
    None,
}

/// Where an operation reports its progress. `&|p| …` closures are sinks; `&|_| ()` ignores.
pub type ProgressSink<'a> = &'a (dyn Fn(Progress) + Send + Sync);
