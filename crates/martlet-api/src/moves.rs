//! Machines that another host goes on with.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Have another host of the fleet go on with a machine: a running one while it runs, a suspended one as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoveRequest {
    /// The host.
    pub host: String,
    /// The tap interface of that host that the network of a machine at a tap interface leads to; of the same name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
}

/// What went to another host while the machine ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MoveRound {
    /// How long it took.
    pub ms: f64,
    /// What was sent.
    pub sent_bytes: u64,
    /// Guest memory that had been written again by its end; absent where it was not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest_bytes: Option<u64>,
}

/// How a machine came to another host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MoveReport {
    /// The machine.
    pub machine: String,
    /// The host that goes on with it.
    pub host: String,
    /// What went before, in order. Those that sent nothing made the pause shorter.
    pub rounds: Vec<MoveRound>,
    /// It stood still for so long: from its last instruction here to its first one there.
    pub pause_ms: f64,
    /// As part of that, until all of it was durable here.
    pub saved_ms: f64,
    /// From the other host's being told to go on to the first command that its guest executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_exec_ms: Option<f64>,
    /// What was sent before it went on there; the rest followed.
    pub sent_bytes: u64,
    /// Objects that the other host still lacks, and gets behind; 0: it depends on nobody.
    pub left_objects: u64,
    /// From request to the end.
    pub total_ms: f64,
}
