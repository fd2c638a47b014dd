//! Checkpoint, suspend, resume, fork, rollback, and the snapshots they make.

use crate::{ExitStatus, InitKind, MachineInfo, Probe, Problem, ProblemCode, PublishReport, Timeline};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Take a checkpoint; the machine goes on (or not, for suspend).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointRequest {
    /// Tag of the new snapshot, `NAME:tag`; a number when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// A note kept with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What becomes of the machine's memory while it is written.
    #[serde(default, skip_serializing_if = "CheckpointMethod::is_auto")]
    pub method: CheckpointMethod,
    /// First let the guest discard the blocks that its file systems do not use.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trim: bool,
    /// First let the guest write back its page cache and drop it. It reads its files anew afterwards.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drop_caches: bool,
}

/// How a machine that goes on leaves its memory to a checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointMethod {
    /// By handover where that is possible.
    #[default]
    Auto,
    /// What it has written is copied, most of it while it runs.
    Copy,
    /// A twin of its process keeps the pages as they are until they are written, and shares those that do not change. The pause
    /// does not depend on how fast the guest writes. Takes a daemon with CAP_SYS_ADMIN.
    Handover,
}

impl CheckpointMethod {
    /// Was nothing asked for?
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// What a checkpoint took and what it avoided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointReport {
    /// The snapshot.
    pub snapshot: String,
    /// Its reference, `name:tag`.
    pub reference: String,
    /// How long the guest was giving up what it was asked to, before it stood still.
    #[serde(default)]
    pub give_up_ms: f64,
    /// The guest stood still this long: from holding its user code to releasing it. After a suspend it does not go on;
    /// this is then how long it could not work before all of it was durable.
    pub pause_ms: f64,
    /// The virtual CPUs stood still this long, as part of `pause_ms`.
    pub stop_ms: f64,
    /// From request to durable.
    pub total_ms: f64,
    /// How its memory was left to it.
    #[serde(default)]
    pub method: CheckpointMethod,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Private memory looked at.
    pub private_bytes: u64,
    /// Written to the store, compressed, memory and disk and records.
    pub stored_bytes: u64,
    /// Uncompressed size of what was new.
    pub new_bytes: u64,
    /// What was not stored, and why not.
    pub avoided: Vec<Avoided>,
    /// What was published of a machine that was suspended and has a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<PublishReport>,
    /// Why it was not; that is tried again and again, until it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpublished: Option<Problem>,
}

/// Bytes that were not stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Avoided {
    /// The means.
    pub means: AvoidedMeans,
    /// How much.
    pub bytes: u64,
}

/// Why bytes were not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AvoidedMeans {
    /// Never touched since the image it started from.
    Clean,
    /// All zero.
    Zero,
    /// The guest reported the pages free.
    FreePageReporting,
    /// The guest discarded the disk blocks.
    Discard,
    /// The same as before, or stored already for another image.
    Duplicate,
}

/// Resume a suspended machine, in place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResumeRequest {
    /// Ask a service until it answers, and time the first response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
}

/// Fork a running machine, or a snapshot, into clones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForkRequest {
    /// How many clones.
    pub count: u32,
    /// Clones are called `PREFIX-1`, `PREFIX-2`, …; the machine's name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Fork even though the guest has no agent: clones keep the parent's identity and entropy.
    #[serde(default)]
    pub allow_agentless: bool,
    /// What becomes of the parent's memory while it is written.
    #[serde(default, skip_serializing_if = "CheckpointMethod::is_auto")]
    pub method: CheckpointMethod,
    /// Ask a service in each clone until it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// Hosts of the fleet that start the clones by turns, or only `auto`: whichever have room, or only `plugin:NAME`: wherever that
    /// allocator says. This host, when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<String>,
    /// Run this in each clone, and wait until it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CloneCommand>,
}

/// Which programs in a machine may fork it, by the calls of `martlet-guest`, and into what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForkPolicy {
    /// Users of the guest: `root`, numbers, or `any`.
    pub by: Vec<String>,
    /// Most processes in clones at the same time.
    #[serde(default = "fork_most")]
    pub most: u32,
    /// Hosts where the clones are started, as for [`ForkRequest::on`]; this one when empty.
    #[serde(default)]
    pub on: Vec<String>,
}

/// [`ForkPolicy::most`] when it is not said.
pub const FORK_MOST: u32 = 64;

fn fork_most() -> u32 {
    FORK_MOST
}

impl ForkPolicy {
    /// May a program of this user?
    pub fn allows(&self, uid: u32) -> bool {
        self.by
            .iter()
            .any(|user| user == "any" || (user == "root" && uid == 0) || user.parse() == Ok(uid))
    }

    /// Are these users?
    pub fn check(&self) -> Result<(), Problem> {
        let is_user =
            |user: &&String| !(["any", "root"].contains(&user.as_str()) || user.parse::<u32>().is_ok());
        match self.by.iter().find(is_user) {
            Some(user) => Err(Problem::new(
                ProblemCode::InvalidArgument,
                format!("{user:?} is no user of a guest that may fork it"),
            )
            .remediation("give `root`, a user's number, or `any`")),
            None => Ok(()),
        }
    }
}

/// What each clone of a fork is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CloneCommand {
    /// Program and arguments; `{id}` in them is the clone's index.
    pub argv: Vec<String>,
    /// It is killed when it has run for so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// Keep the clones when it has ended; else they are removed.
    #[serde(default)]
    pub keep: bool,
}

/// How the command in a clone ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CloneOutput {
    /// How.
    pub status: ExitStatus,
    /// What it wrote; what is no UTF-8 is replaced.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
    /// Was there more than is kept (256 KiB of each)?
    #[serde(default)]
    pub is_cut: bool,
}

/// What a fork did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ForkReport {
    /// The snapshot the clones share.
    pub snapshot: String,
    /// How long the parent stood still.
    pub pause_ms: f64,
    /// From request to the last clone's end.
    pub total_ms: f64,
    /// Bytes that went to other hosts before they could start clones.
    #[serde(default)]
    pub sent_bytes: u64,
    /// One result for each clone asked for.
    pub clones: Vec<CloneResult>,
}

/// How one clone fared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CloneResult {
    /// 1-based index in this fork.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The host that it is at, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The machine, if it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineInfo>,
    /// Its timeline.
    pub timeline: Timeline,
    /// How its command ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<CloneOutput>,
    /// Why it did not start, or did not do what it was to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// Go back to an earlier snapshot of the same machine, in place, as a new start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RollbackRequest {
    /// `name:tag` or snapshot id.
    pub to: String,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotInfo {
    /// Id, 64 hexadecimal digits.
    pub id: String,
    /// References that name it.
    pub references: Vec<String>,
    /// The snapshot before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Name of the machine or base it is of.
    pub machine: String,
    /// When.
    pub created_unix_ms: u64,
    /// Its note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Guest memory; 0 for a base.
    pub memory_bytes: u64,
    /// Disk size.
    pub disk_bytes: u64,
    /// Pages of memory and disk that are not zero, in bytes.
    pub used_bytes: u64,
    /// Bytes in the store that only this snapshot needs (compressed).
    pub unique_bytes: u64,
    /// Device state.
    pub descriptor_bytes: u64,
    /// Pages in its trace.
    pub trace_pages: u64,
    /// Versioned machine type; empty for a base.
    pub machine_type: String,
    /// CPU model; empty for a base.
    pub cpu_model: String,
    /// QEMU that saved it.
    pub qemu_version: String,
    /// What runs as init.
    pub init: InitKind,
    /// Who uses it now: machines and child snapshots.
    pub used_by: Vec<String>,
}

/// How two snapshots differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotDiff {
    /// From.
    pub from: String,
    /// To.
    pub to: String,
    /// Memory.
    pub memory: ImageDiff,
    /// Disk.
    pub disk: ImageDiff,
}

/// How two images differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageDiff {
    /// Bytes at the same place with the same content.
    pub same_bytes: u64,
    /// Bytes whose content changed.
    pub changed_bytes: u64,
    /// Bytes that were zero and are not.
    pub added_bytes: u64,
    /// Bytes that became zero.
    pub removed_bytes: u64,
}

/// Give a snapshot one more reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TagRequest {
    /// The new reference, `name:tag`.
    pub reference: String,
}
