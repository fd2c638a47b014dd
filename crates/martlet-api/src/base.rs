//! Bases: cold snapshots (disk, kernel, initramfs, no memory) that machines boot from.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Build a base from Debian packages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BaseBuildRequest {
    /// Name of the base.
    pub name: String,
    /// Debian packages beyond the minimal system.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Size of the root disk; sized from the content when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Debian suite: `bookworm`, `trixie`.
    pub suite: String,
    /// What runs as the image's init.
    pub init: InitKind,
    /// The smallest base there is: busybox and our agent, no Debian packages.
    #[serde(default)]
    pub tiny: bool,
}

/// What the agent starts once the root is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InitKind {
    /// The image's own init (systemd) is process 1.
    Systemd,
    /// The agent is process 1 and runs the machine's command, if any.
    Command,
    /// The disk boots by its own boot loader and has no agent.
    Firmware,
}

/// Import a disk or an OCI image as a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BaseImportRequest {
    /// Name of the base.
    pub name: String,
    /// Absolute path on the daemon's host: a raw or qcow2 disk, an OCI layout directory, or a `docker save` archive.
    pub path: String,
    /// Size of the root disk for OCI images; sized from the content when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Told from the content when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<InitKind>,
}

/// A base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BaseInfo {
    /// Name.
    pub name: String,
    /// Snapshot id.
    pub id: String,
    /// When it was made.
    pub created_unix_ms: u64,
    /// Size of the root disk as the guest sees it.
    pub disk_bytes: u64,
    /// Bytes of the disk that are not zero.
    pub used_bytes: u64,
    /// Bytes that only this base keeps in the store (compressed).
    pub stored_bytes: u64,
    /// What runs as init.
    pub init: InitKind,
    /// Where it came from: `debian bookworm + redis-server`, `oci:…`, `raw`, `qcow2`.
    pub origin: String,
    /// Version of the guest kernel, if it boots one of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Default command (from the OCI image), if any.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// Default environment, `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
}
