//! The messages: JSON in the payloads of frames. Unknown fields are ignored and new ones have defaults.

use crate::guest::GuestReply;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The host's first word on a connection; the frame's epoch is from now on the only one that counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Newest protocol that the host speaks.
    pub protocol: u32,
    /// Oldest protocol that the host speaks.
    pub protocol_oldest: u32,
    /// Why the host connects.
    pub start: Start,
    /// Optional abilities, by name.
    #[serde(default)]
    pub features: Vec<String>,
}

/// Why the host connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// First boot, or the same machine with the same identity goes on (resumed, or a new connection).
    Same,
    /// The guest is a clone: [`Request::Release`] is refused until [`Request::Identify`] has succeeded.
    Clone,
}

/// Feature of an agent that says nothing of itself while it holds user code: after [`Response::Prepared`] the channel is
/// empty until the host asks for something.
pub const FEATURE_QUIET: &str = "quiet";

/// Feature of a host that answers [`crate::guest::Ask`].
pub const FEATURE_ASKS: &str = "asks";

/// The agent's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloReply {
    /// Protocol that both speak; 0 when there is none, and then nothing else is answered.
    pub protocol: u32,
    /// Version of the agent.
    pub agent_version: String,
    /// Optional abilities, by name.
    #[serde(default)]
    pub features: Vec<String>,
    /// Is user code held now?
    pub held: bool,
    /// The guest's boot id.
    #[serde(default)]
    pub boot_id: String,
    /// The agent did not know this epoch: nothing that was begun under it before goes on.
    #[serde(default)]
    pub new_epoch: bool,
}

/// What the host asks. Each is answered by one [`Reply`] on the same stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum Request {
    /// Are you there?
    Ping,
    /// Hold user code: nothing but the agent runs after [`Response::Prepared`].
    Prepare {
        /// Give up, and let go of everything again, after this long.
        timeout_ms: u32,
    },
    /// Let user code go on.
    Release {
        /// Step the clock to this first.
        #[serde(default)]
        realtime_unix_ns: Option<u64>,
        /// Answer with [`Response::Released`], not with [`Response::Done`]. (An agent that does not know this does not.)
        #[serde(default)]
        tell: bool,
    },
    /// Become somebody else (or, at first boot, somebody).
    Identify(Box<Identity>),
    /// Run a command; the stream stays open until [`Finished`].
    Exec(ExecSpec),
    /// Send a file or directory as a tar stream.
    ReadPath {
        /// Absolute.
        path: String,
    },
    /// Unpack a tar stream into a directory, which is made if absent.
    WritePath {
        /// Absolute.
        path: String,
    },
    /// How is the guest?
    Metrics,
    /// Discard unused blocks of every file system on a disk.
    Fstrim,
    /// Write dirty pages of all file systems to their disks.
    SyncFs,
    /// Forget all pages of files that are neither dirty nor mapped.
    DropCaches,
    /// Freeze the file systems on disks.
    FreezeFs {
        /// They thaw by themselves after this long.
        timeout_ms: u32,
    },
    /// Thaw them.
    ThawFs,
    /// End the guest in an orderly way.
    Shutdown {
        /// Boot again.
        reboot: bool,
    },
    /// Set the machine's own command, in place of the base's. Starts at once, or at the release when held.
    StartCommand(Command),
    /// Grow the root file system to the size of its disk.
    GrowRoot,
    /// What a program in the guest had asked.
    Answer {
        /// Number of the ask.
        ask: u32,
        /// For the program.
        reply: GuestReply,
    },
}

/// Answer to a [`Request`].
pub type Reply = Result<Response, RemoteError>;

/// The agent could not do it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    /// What kind of failure.
    pub kind: RemoteErrorKind,
    /// For people.
    pub message: String,
}

/// Kinds of failure in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemoteErrorKind {
    /// No such program, file or user.
    NotFound,
    /// It is there, and may not be used or executed.
    Denied,
    /// User code is held, or the guest is not in the state that the request needs.
    State,
    /// The guest cannot do this at all.
    Unsupported,
    /// The request makes no sense.
    Invalid,
    /// It was tried and did not work.
    #[serde(other)]
    Failed,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "response")]
pub enum Response {
    /// Done, nothing to tell.
    Done,
    /// User code is held.
    Prepared(Prepared),
    /// User code goes on.
    Released {
        /// It was held this long, by the guest's clock, which stands still while its processors do.
        held_ms: f64,
    },
    /// The identity was put on, or not: see [`Identified::complete`].
    Identified(Identified),
    /// The stream is open.
    Started,
    /// Answer to [`Request::Metrics`].
    Metrics(Metrics),
    /// Answer to [`Request::Fstrim`].
    Trimmed {
        /// Bytes discarded.
        bytes: u64,
    },
    /// Answer to [`Request::FreezeFs`] and [`Request::ThawFs`].
    FileSystems {
        /// How many.
        count: u32,
    },
    /// Answer to [`Request::GrowRoot`].
    Grown {
        /// Size of the root file system now.
        size_bytes: u64,
    },
}

/// User code is held.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// How long it took to hold it.
    pub hold_ms: f64,
    /// How many groups of processes were frozen.
    pub groups: u32,
}

/// Who a machine is, and what makes it differ from the one it was cloned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Id of the machine.
    pub clone_id: String,
    /// 0 at first boot, one more for each restore in its ancestry.
    pub generation: u64,
    /// Id of the machine it was cloned from.
    #[serde(default)]
    pub parent_id: Option<String>,
    /// 1-based index in its fork.
    #[serde(default)]
    pub index: u32,
    /// Name of the machine.
    pub name: String,
    /// The time, in nanoseconds since 1970.
    pub realtime_unix_ns: u64,
    /// Random bytes for the kernel, from the host's generator: at least [`Identity::ENTROPY_BYTES`].
    pub entropy: Vec<u8>,
    /// Host name; the old one stays when absent.
    #[serde(default)]
    pub hostname: Option<String>,
    /// 32 hexadecimal digits; made from fresh random bytes when absent.
    #[serde(default)]
    pub machine_id: Option<String>,
    /// Addresses; the old ones stay when absent.
    #[serde(default)]
    pub network: Option<Network>,
    /// Its place in the network of its family.
    #[serde(default)]
    pub family: Option<FamilyNetwork>,
    /// Which steps to take.
    #[serde(default)]
    pub policy: IdentityPolicy,
    /// In a clone that a program in the guest has asked for.
    #[serde(default)]
    pub asked: Option<AskedFor>,
}

/// By what call the parent was forked, and what is answered to it here. All other calls of the parent fail here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedFor {
    /// Number of the ask in the parent.
    pub ask: u32,
    /// For the program.
    pub reply: GuestReply,
}

impl Identity {
    /// Fewest random bytes that an agent accepts.
    pub const ENTROPY_BYTES: usize = 64;
}

/// How the MAC addresses of families' network cards begin, and of no other cards.
pub const FAMILY_MAC: [u8; 4] = [0x52, 0x4e, 0x4d, 0];

/// The second network card, and who is at the other end of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyNetwork {
    /// Its addresses. The interface is the one whose MAC address begins with [`FAMILY_MAC`].
    pub network: Network,
    /// Bytes of a packet.
    pub mtu: u16,
    /// Lines for `/etc/hosts`.
    pub hosts: String,
}

/// A network interface's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Interface; the first Ethernet one when absent.
    #[serde(default)]
    pub interface: Option<String>,
    /// `52:54:00:…`; the old one stays when absent.
    #[serde(default)]
    pub mac: Option<String>,
    /// Address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix: u8,
    /// Default route.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// Name servers; `/etc/resolv.conf` is left alone when empty.
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
}

/// Which identity steps to take. Clock, entropy and network fail the whole; the others are reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IdentityPolicy {
    /// Step CLOCK_REALTIME.
    pub clock: bool,
    /// Reseed the kernel's generator.
    pub entropy: bool,
    /// Set the host name.
    pub hostname: bool,
    /// New `/etc/machine-id`.
    pub machine_id: bool,
    /// New boot id.
    pub boot_id: bool,
    /// MAC address, address, neighbours.
    pub network: bool,
    /// Remove systemd's saved random seed.
    pub random_seed: bool,
    /// Make new SSH host keys where there are some. Off by default: it takes seconds of CPU in an emulated guest.
    pub ssh_host_keys: bool,
    /// Offer the command `martlet-guest` and its libraries below `/run/martlet`.
    pub tools: bool,
    /// Run `/etc/martlet/hooks.d`.
    pub hooks: bool,
    /// Each hook is killed after this long.
    pub hook_timeout_ms: u32,
}

impl Default for IdentityPolicy {
    fn default() -> Self {
        Self {
            clock: true,
            entropy: true,
            hostname: true,
            machine_id: true,
            boot_id: true,
            network: true,
            random_seed: true,
            ssh_host_keys: false,
            tools: false,
            hooks: true,
            hook_timeout_ms: 10_000,
        }
    }
}

/// How the identity was put on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Identified {
    /// Did every step hold that must? Only then can the clone be released.
    pub complete: bool,
    /// Every step, in order.
    pub steps: Vec<Step>,
    /// The boot id now.
    pub boot_id: String,
    /// The machine id now.
    pub machine_id: String,
    /// The host name now.
    pub hostname: String,
}

/// One step of putting on an identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What.
    pub name: String,
    /// How it went.
    pub outcome: Outcome,
    /// How long it took.
    pub took_ms: f64,
}

/// How a step went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done.
    Done,
    /// Not needed, or not wanted.
    Skipped(String),
    /// It did not work.
    Failed(String),
}

/// A program and its surroundings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` when absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// User name or number, optionally `:group`; root when absent.
    #[serde(default)]
    pub user: Option<String>,
}

/// A command to run for the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// What to run.
    pub command: Command,
    /// Give it a terminal of this size.
    #[serde(default)]
    pub tty: Option<TtySize>,
    /// Will input follow? Otherwise it reads end of file.
    #[serde(default)]
    pub stdin: bool,
}

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtySize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// Said by the host to a running stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// The terminal has a new size.
    Resize(TtySize),
    /// Send this signal to the command's process group.
    Signal(i32),
    /// Nobody waits for this stream any more: hang up on the command, end the copy.
    Cancel,
}

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finished {
    /// The command exited with this code.
    Exited(i32),
    /// This signal ended the command.
    Killed(i32),
    /// All files were copied.
    Copied,
    /// It broke off.
    Failed(RemoteError),
}

/// How the guest is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// One-minute load average.
    pub load: f64,
    /// MemTotal.
    pub memory_total_bytes: u64,
    /// MemAvailable.
    pub memory_available_bytes: u64,
    /// Size of the root file system.
    pub disk_total_bytes: u64,
    /// Bytes free in it.
    pub disk_free_bytes: u64,
    /// Processes.
    pub processes: u64,
    /// Seconds since boot.
    pub uptime_s: f64,
}

/// A payload that is not the message it should be.
#[derive(Debug, thiserror::Error)]
#[error("not a {expected}: {source}")]
pub struct MessageError {
    expected: &'static str,
    source: serde_json::Error,
}

/// Reads a message from a payload. `expected` names it in the error.
pub fn from_payload<T: DeserializeOwned>(payload: &[u8], expected: &'static str) -> Result<T, MessageError> {
    serde_json::from_slice(payload).map_err(|source| MessageError { expected, source })
}

/// The payload of a message.
///
/// # Panics
/// Never: these types have only string keys and plain values.
pub fn to_payload<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages have string keys only")
}
