//! Machines: named virtual machines.

use crate::{ForkPolicy, LineInfo};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Start a machine from a base (boots) or from a snapshot (restores under a new name and identity).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunRequest {
    /// Name; generated when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Base name, or snapshot `name:tag` or id.
    pub from: String,
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Guest memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Grow the root disk to this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Environment of the command.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Command to run instead of the base's.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// Host ports forwarded to the guest.
    #[serde(default)]
    pub ports: Vec<PortForward>,
    /// Accelerator; KVM where the CPU has it, else TCG.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accel: Option<Accel>,
    /// May the guest reach the outside by user-mode networking?
    #[serde(default)]
    pub outbound: bool,
    /// What the guest and its clones may reach, of TCP, and names that lead there: `192.0.2.7:443`, `192.0.2.0/24`, `pypi.org:443`, `*.debian.org`,
    /// `any`. They have a network of their own then (`family`), and no other way out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outbound_to: Vec<String>,
    /// How fast that goes for each of them, in bytes a second, both ways together; as fast as it can when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound_bytes_per_s: Option<u64>,
    /// A tap interface of the host that the guest's network leads to, instead of user-mode networking. It must exist,
    /// outlive its users, and be free; the guest's gateway, 10.77.0.2, is whoever has that address behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Give it and its clones a network of their own, across hosts.
    #[serde(default)]
    pub family: bool,
    /// Wait for the agent (default) or return as soon as QEMU runs.
    #[serde(default)]
    pub detach: bool,
    /// Start again from the last checkpoint when QEMU dies.
    #[serde(default)]
    pub restart: bool,
    /// Ask a service until it answers, and time the first response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// Start even though the snapshot's guest has no agent to give it a new identity.
    #[serde(default)]
    pub allow_agentless: bool,
    /// Which of its programs may fork it; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<ForkPolicy>,
}

/// An accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// Emulation.
    Tcg,
}

/// `127.0.0.1:host_port` reaches `guest_port` in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortForward {
    /// Port on the host's loopback; 0 picks a free one.
    pub host_port: u16,
    /// Port in the guest.
    pub guest_port: u16,
}

/// A question put to a service in the guest: connect, send, expect at least one byte back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Probe {
    /// Port in the guest; forwarded to a free host port when it is not yet.
    pub guest_port: u16,
    /// Sent after connecting; nothing is sent when empty.
    #[serde(default)]
    pub send: String,
    /// The answer must contain this.
    #[serde(default)]
    pub expect: String,
}

/// What a machine is doing. See `martlet-engine` for the transitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    /// QEMU is being started or the state loaded.
    Starting,
    /// The guest runs.
    Running,
    /// The guest stands still while its state is taken.
    Pausing,
    /// Its state is in its last snapshot, nothing runs.
    Suspended,
    /// Shut down; its disk is kept.
    Stopped,
    /// QEMU died or the guest failed; see `last_error`.
    Failed,
    /// Another host was told to go on with it and has not answered yet; it stands still.
    Given,
    /// Another host goes on with it, and still gets what it left here.
    Moved,
}

/// Four instants of a start, kept apart, each in milliseconds since the request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Timeline {
    /// QEMU started and the device state loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_ms: Option<f64>,
    /// The virtual CPUs run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_instruction_ms: Option<f64>,
    /// The guest has confirmed its identity and a first command has been executed in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_exec_ms: Option<f64>,
    /// The probed service has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_response_ms: Option<f64>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineInfo {
    /// Name.
    pub name: String,
    /// Id: 12 hexadecimal digits, never reused.
    pub id: String,
    /// State.
    pub state: MachineState,
    /// What it was started from.
    pub from: String,
    /// When it was created.
    pub created_unix_ms: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Root disk size.
    pub disk_bytes: u64,
    /// Address inside its network.
    pub address: String,
    /// MAC address.
    pub mac: String,
    /// Host name inside.
    pub hostname: String,
    /// Port forwards in force.
    pub ports: Vec<PortForward>,
    /// The host that goes on with it, or was told to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Which of its programs may fork it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<ForkPolicy>,
    /// The tap interface that its network leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Who it is in the network of its family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<FamilyInfo>,
    /// QEMU's process id while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Accelerator.
    pub accel: Accel,
    /// Versioned machine type.
    pub machine_type: String,
    /// CPU model.
    pub cpu_model: String,
    /// QEMU version.
    pub qemu_version: String,
    /// Has its agent answered?
    pub agent: bool,
    /// Generation: 0 at first boot, one more for each restore in its ancestry.
    pub generation: u64,
    /// Snapshot id of its newest checkpoint, or the snapshot it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Timeline of its last start.
    pub timeline: Timeline,
    /// Restarted from its last checkpoint when QEMU dies.
    pub restart: bool,
    /// The line that it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<LineInfo>,
    /// Why it failed, with QEMU's last words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Use of a machine's resources (`top`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineUsage {
    /// Name.
    pub name: String,
    /// State.
    pub state: MachineState,
    /// Host CPU since the last look, percent of one core.
    pub cpu_percent: f64,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Guest memory that is the machine's own.
    pub private_bytes: u64,
    /// Pages of images it has faulted in, in bytes.
    pub faulted_bytes: u64,
    /// Disk blocks it has written since its disk was last frozen.
    pub disk_written_bytes: u64,
    /// Load average and free memory as the guest sees them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestUsage>,
}

/// What the agent reports of its guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GuestUsage {
    /// One-minute load average.
    pub load: f64,
    /// MemAvailable.
    pub memory_available_bytes: u64,
    /// Bytes free in the root file system.
    pub disk_free_bytes: u64,
    /// Processes.
    pub processes: u64,
}

/// Shut a machine down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StopRequest {
    /// End it by force when it takes longer.
    #[serde(default = "StopRequest::default_timeout_ms")]
    pub timeout_ms: u64,
}

impl StopRequest {
    fn default_timeout_ms() -> u64 {
        Self::default().timeout_ms
    }
}

impl Default for StopRequest {
    fn default() -> Self {
        Self { timeout_ms: 30_000 }
    }
}

/// Give a machine another name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RenameRequest {
    /// The new name.
    pub name: String,
}

/// Who a machine is in the network of its family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FamilyInfo {
    /// Id of the family's parent.
    pub family: String,
    /// What the others call it: `parent`, or `clone-3`.
    pub name: String,
    /// Its address there.
    pub address: String,
}
