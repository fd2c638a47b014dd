//! A machine's line: the one history of it that is published at a remote, and the lease to go on with it.

use crate::Probe;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a machine stands to its line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LineInfo {
    /// The remote that keeps it.
    pub remote: String,
    /// What it is called there.
    pub reference: String,
    /// Who may go on with it.
    pub state: LineState,
    /// The version that was published last from here, or came from there; 0: none yet.
    pub version: u32,
    /// Is the machine's newest snapshot published?
    pub published: bool,
    /// While it runs it is published so often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_s: Option<u32>,
}

/// Who may go on with a line, as far as is known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LineState {
    /// Whoever acquires its lease.
    Free,
    /// This host.
    Held,
    /// Another one, or nobody: the lease was broken, or ran out. Work from here becomes a side branch.
    Lost,
}

/// Give a machine a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LineRequest {
    /// The remote that is to keep it.
    pub remote: String,
    /// What it is to be called there; `MACHINE:latest` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// Publish a machine's newest state: a new checkpoint of one that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublishRequest {
    /// From now on, do so this often while it runs; 0: no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_s: Option<u32>,
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublishReport {
    /// Id of the snapshot.
    pub snapshot: String,
    /// The remote.
    pub remote: String,
    /// What it is called there. A side branch has another tag than the line.
    pub reference: String,
    /// Its version there.
    pub version: u32,
    /// What was sent.
    pub moved_bytes: u64,
    /// The line had gone on without this machine.
    pub side: bool,
    /// May others go on with it now?
    pub released: bool,
}

/// When the state of a machine comes that goes on here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransferPolicy {
    /// All of it before the start.
    Baseline,
    /// What is read, when it is read.
    Demand,
    /// What is read, when it is read, and the rest behind.
    #[default]
    Adaptive,
}

/// Go on here with a machine whose line is at a remote.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResumeFromRequest {
    /// What its line is called there.
    pub reference: String,
    /// What the machine is to be called here; as there when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What comes when.
    #[serde(default)]
    pub policy: TransferPolicy,
    /// If somebody holds it, ask for it, and wait so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask_s: Option<u32>,
    /// Keep it so many days without a sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_out_days: Option<u32>,
    /// Ask a service until it answers, and time the first response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
}

/// A line as its remote shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseInfo {
    /// What it is called.
    pub reference: String,
    /// Its newest version.
    pub version: u32,
    /// Id of the snapshot.
    pub snapshot: String,
    /// Who holds it; absent: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<LeaseHolder>,
}

/// Who holds a line. Times are by that host's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseHolder {
    /// Which lease it is.
    pub lease: String,
    /// The host that put the newest version.
    pub host: String,
    /// When it did.
    pub since_unix_ms: u64,
    /// Its last sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_unix_ms: Option<u64>,
    /// Silent for so long it counts as gone.
    pub lasts_s: u32,
    /// Checked out until then: it gives no sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_unix_ms: Option<u64>,
    /// The host that has asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<String>,
    /// Is it this host?
    pub here: bool,
}

/// Have a name at a remote stand for one of its earlier versions, by a new one; or have another name stand for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PointRequest {
    /// The version; the newest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// The other name, which must be free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// Have what others publish on a line come here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FollowRequest {
    /// What the line is called at the remote.
    pub reference: String,
    /// Only when it is likely to be wanted here next.
    #[serde(default)]
    pub when_likely: bool,
}

/// A line that is followed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FollowInfo {
    /// The remote that keeps it.
    pub remote: String,
    /// What it is called there.
    pub reference: String,
    /// Does it come only when it is likely to be wanted here next?
    pub when_likely: bool,
    /// Its newest version.
    pub version: u32,
    /// Is all of that here?
    pub here: bool,
    /// What has come because it is followed.
    pub moved_bytes: u64,
    /// The hosts that may go on with it next, the likeliest first.
    pub next: Vec<ForeseenHost>,
    /// How often the likeliest was the one,
    pub right: u32,
    /// of the times when one was foreseen.
    pub foreseen: u32,
    /// Why its remote cannot be asked; what else is said is of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A host that may go on with a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ForeseenHost {
    /// Its name.
    pub host: String,
    /// How likely it is, of 1.
    pub likely: f64,
}
