//! Where a machine's time went: reads of its memory and disk that it had to wait for.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The reads of a machine's run that this host answered, from its last start on. What the kernel had already is not
/// read and not counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The machine.
    pub machine: String,
    /// Id of the snapshot that it started from; absent if it booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// When it was asked to start.
    pub began_unix_ms: u64,
    /// Reads answered.
    pub reads: u64,
    /// What was read.
    pub read_bytes: u64,
    /// Reads that waited: for what was not here, or for this host longer than a millisecond.
    pub stalls: u64,
    /// How long those waited, together. Several may wait at the same time.
    pub waited_ms: f64,
    /// Of all reads, the part that did not wait: their content was here already, or had come ahead of them. 0 to 1.
    pub hit_ratio: f64,
    /// Who answered. Their reads and bytes add up to those above.
    pub sources: Vec<ReadSource>,
    /// What was waited for, of the stalls that are remembered; the most first.
    pub waited_for: Vec<WaitedFor>,
    /// Length of a step of the timeline.
    pub step_ms: u64,
    /// From the start on, step by step, to the last in which anything waited.
    pub timeline: Vec<StallStep>,
    /// The longest of all stalls, the longest first. Of very many only the longest are remembered.
    pub longest: Vec<Stall>,
}

/// Who answered reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReadSource {
    /// `local store`, `remote NAME` or `host NAME`.
    pub source: String,
    /// Reads answered.
    pub reads: u64,
    /// What was read.
    pub read_bytes: u64,
    /// What came from there for these reads, as it came.
    pub came_bytes: u64,
    /// Reads that waited.
    pub stalls: u64,
    /// How long they waited, together.
    pub waited_ms: f64,
    /// The longest wait.
    pub waited_max_ms: f64,
}

/// Stalls of one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WaitedFor {
    /// `disk`; of memory a region of the guest's kernel (`Kernel code`), `page of the disk`, or `memory` where no more is known.
    pub what: String,
    /// How many.
    pub stalls: u64,
    /// How long they waited, together.
    pub waited_ms: f64,
}

/// Stalls that ended within one step of a timeline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StallStep {
    /// How many.
    pub stalls: u64,
    /// How long they waited, together.
    pub waited_ms: f64,
}

/// A read that waited.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Stall {
    /// When it began, after the start.
    pub at_ms: f64,
    /// What was read.
    pub part: MachinePart,
    /// Where in the memory image or disk.
    pub offset_bytes: u64,
    /// How much.
    pub size_bytes: u64,
    /// Of memory: the guest-physical address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_address: Option<u64>,
    /// Of memory: where on the disk the same page is, most often because it is cached there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_on_disk_bytes: Option<u64>,
    /// Of memory: the region as the guest's kernel calls it, for example `Kernel code`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Who answered.
    pub source: String,
    /// How long it waited.
    pub late_ms: f64,
}

impl Stall {
    /// What was read, as far as that is known; see [`WaitedFor`].
    pub fn what(&self) -> &str {
        match (self.part, &self.region, self.same_on_disk_bytes) {
            (MachinePart::Disk, _, _) => "disk",
            (MachinePart::Memory, Some(region), _) => region,
            (MachinePart::Memory, None, Some(_)) => "page of the disk",
            (MachinePart::Memory, None, None) => "memory",
        }
    }
}

/// What of a machine was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MachinePart {
    /// Its memory.
    Memory,
    /// Its disk.
    Disk,
}
