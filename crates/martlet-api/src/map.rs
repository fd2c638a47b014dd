//! A command over many inputs, in clones.

use crate::{CheckpointMethod, CloneOutput, CloneResult, Problem};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Run a command for each input, in clones of a running machine or a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MapRequest {
    /// How many clones; as many as the hosts have processors when absent, never more than inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Hosts of the fleet where they start, as for [`crate::ForkRequest::on`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<String>,
    /// Clones are called `PREFIX-1`, `PREFIX-2`, …; the machine's name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// What becomes of the parent's memory while it is written.
    #[serde(default, skip_serializing_if = "CheckpointMethod::is_auto")]
    pub method: CheckpointMethod,
    /// Program and arguments. `{}` in them is the input, or it is added as the last; `{id}` is the clone's number.
    pub argv: Vec<String>,
    /// What it is to be run for.
    pub inputs: Vec<String>,
    /// It is killed when it has run for so long over one input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
}

/// What a map did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MapReport {
    /// The snapshot that the clones shared.
    pub snapshot: String,
    /// How long the parent stood still.
    pub pause_ms: f64,
    /// From the request to the last output.
    pub total_ms: f64,
    /// For each input, in their order.
    pub outputs: Vec<MapOutput>,
    /// What became of each clone.
    pub clones: Vec<CloneResult>,
}

/// What a command did with one input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MapOutput {
    /// The input.
    pub input: String,
    /// The clone that did it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone: Option<String>,
    /// The host of that clone; none is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// How long it took there.
    #[serde(default)]
    pub took_ms: f64,
    /// How it ended and what it wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<CloneOutput>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}
