//! What the server needs of the engine: one method for each verb of the API.
//!
//! Methods block (page faults, QMP and capture are latency-bound system calls), so the server calls them on its
//! pool of blocking threads. A call that has begun is never cut short because the client went away: a half-made
//! checkpoint helps nobody. Arguments have passed [`crate::check`];
//! whether the things they name exist is for the implementation to say.

use crate::metrics::Metric;
use martlet_api::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;

/// Answer of every verb.
pub type Answer<T> = Result<T, Problem>;

/// Everything the API can ask for.
pub trait Control: Send + Sync + 'static {
    /// Builds a base from Debian packages.
    fn base_build(&self, request: BaseBuildRequest, progress: ProgressSink<'_>) -> Answer<BaseInfo>;
    /// Makes a base of a disk or an OCI image.
    fn base_import(&self, request: BaseImportRequest, progress: ProgressSink<'_>) -> Answer<BaseInfo>;
    /// All bases.
    fn bases(&self) -> Answer<Vec<BaseInfo>>;
    /// One base.
    fn base(&self, name: &str) -> Answer<BaseInfo>;
    /// Removes a base; `force` also when machines were started from it.
    fn base_remove(&self, name: &str, force: bool) -> Answer<()>;

    /// Starts a new machine from a base or a snapshot.
    fn run(&self, user: &User, request: RunRequest, progress: ProgressSink<'_>) -> Answer<MachineInfo>;
    /// All machines.
    fn machines(&self) -> Answer<Vec<MachineInfo>>;
    /// One machine.
    fn machine(&self, name: &str) -> Answer<MachineInfo>;
    /// What machines use.
    fn usage(&self) -> Answer<Vec<MachineUsage>>;
    /// What is started ahead.
    fn pool(&self) -> Answer<PoolUsage>;
    /// Shuts a machine down; ends it by force when it takes longer than this.
    fn stop(&self, name: &str, timeout_ms: u64) -> Answer<MachineInfo>;
    /// Ends a machine at once.
    fn kill(&self, name: &str) -> Answer<MachineInfo>;
    /// Boots a stopped machine from its disk.
    fn start(&self, name: &str, progress: ProgressSink<'_>) -> Answer<MachineInfo>;
    /// Forgets a machine and its disk; `force` also while it runs.
    fn remove(&self, name: &str, force: bool) -> Answer<()>;
    /// Gives a machine another name.
    fn rename(&self, name: &str, new: &str) -> Answer<MachineInfo>;

    /// Starts a command in the guest.
    fn exec(&self, name: &str, request: ExecRequest) -> Answer<ExecSession>;
    /// Writes a file or directory of the guest as a tar stream. A directory's entries begin with its last path
    /// component, a file is one entry.
    fn get_path(&self, name: &str, path: &str, tar: &mut (dyn Write + Send)) -> Answer<()>;
    /// Unpacks a tar stream into a directory of the guest.
    fn put_path(&self, name: &str, path: &str, tar: &mut (dyn Read + Send)) -> Answer<()>;
    /// Where the console log of a machine is kept.
    fn logs(&self, name: &str) -> Answer<LogSource>;
    /// Connects to the serial console.
    fn console(&self, name: &str) -> Answer<UnixStream>;

    /// Takes a checkpoint; the machine goes on.
    fn checkpoint(
        &self,
        name: &str,
        r: CheckpointRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<CheckpointReport>;
    /// Takes a checkpoint; the machine does not go on.
    fn suspend(
        &self,
        name: &str,
        r: CheckpointRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<CheckpointReport>;
    /// Goes on from a suspended machine's last snapshot.
    fn resume(&self, name: &str, request: ResumeRequest, progress: ProgressSink<'_>) -> Answer<MachineInfo>;
    /// Starts clones of a running machine or of a snapshot. One clone's failure is in the report and not an error.
    fn fork(
        &self,
        user: &User,
        source: &str,
        request: ForkRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<ForkReport>;
    /// Runs a command over inputs in clones of a running machine or of a snapshot.
    fn map(
        &self,
        user: &User,
        source: &str,
        request: MapRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<MapReport>;
    /// Goes back to an earlier snapshot of the same machine.
    fn rollback(
        &self,
        name: &str,
        request: RollbackRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<MachineInfo>;
    /// Has another host go on with a machine.
    fn move_to(&self, name: &str, request: MoveRequest, progress: ProgressSink<'_>) -> Answer<MoveReport>;

    /// All snapshots.
    fn snapshots(&self) -> Answer<Vec<SnapshotInfo>>;
    /// One snapshot.
    fn snapshot(&self, reference: &str) -> Answer<SnapshotInfo>;
    /// A machine's or snapshot's ancestry, newest first.
    fn log(&self, source: &str) -> Answer<Vec<SnapshotInfo>>;
    /// What a machine's, or a snapshot's, last start waited for; of the longest stalls so many.
    fn explain(&self, source: &str, top: usize) -> Answer<Explanation>;
    /// How two snapshots differ.
    fn diff(&self, from: &str, to: &str) -> Answer<SnapshotDiff>;
    /// Gives a snapshot one more reference, `name:tag`.
    fn tag(&self, reference: &str, new: &str) -> Answer<SnapshotInfo>;
    /// Removes a reference, and its snapshot when no reference is left.
    fn snapshot_remove(&self, reference: &str) -> Answer<()>;
    /// Gives a place that keeps snapshots a name.
    fn remote_add(&self, request: RemoteAddRequest) -> Answer<RemoteInfo>;
    /// All remotes.
    fn remotes(&self) -> Answer<Vec<RemoteInfo>>;
    /// Forgets a remote.
    fn remote_remove(&self, name: &str) -> Answer<()>;
    /// Tries a remote out.
    fn remote_check(&self, name: &str) -> Answer<RemoteInfo>;
    /// What a remote has.
    fn remote_snapshots(&self, name: &str) -> Answer<Vec<RemoteSnapshot>>;
    /// Removes what no snapshot of a remote needs.
    fn remote_gc(
        &self,
        name: &str,
        request: &RemoteGcRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<RemoteGcReport>;
    /// Takes a name away at a remote.
    fn remote_forget(&self, name: &str, reference: &str) -> Answer<()>;
    /// What a name stood for at a remote.
    fn remote_history(&self, name: &str, reference: &str) -> Answer<Vec<RemoteVersion>>;
    /// Gives a machine a line at a remote.
    fn set_line(&self, name: &str, request: LineRequest) -> Answer<MachineInfo>;
    /// Publishes a machine's newest state on its line.
    fn publish(
        &self,
        name: &str,
        request: PublishRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<PublishReport>;
    /// Goes on here with a machine whose line is at a remote.
    fn resume_from(
        &self,
        remote: &str,
        request: ResumeFromRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<MachineInfo>;
    /// Who holds a line.
    fn lease(&self, remote: &str, reference: &str) -> Answer<LeaseInfo>;
    /// Takes a line from its holder.
    fn lease_break(&self, remote: &str, reference: &str) -> Answer<()>;
    /// Asks the holder of a line to let go of it.
    fn lease_ask(&self, remote: &str, reference: &str) -> Answer<LeaseInfo>;
    /// Has a name at a remote stand for an earlier version of it, or another name for it.
    fn point(&self, remote: &str, reference: &str, request: PointRequest) -> Answer<LeaseInfo>;
    /// Fills a carried disk with what is most likely to be read.
    fn carry(&self, request: CarryRequest, progress: ProgressSink<'_>) -> Answer<Vec<CarryReport>>;
    /// From now on, what is published on a line comes here.
    fn follow(&self, remote: &str, request: FollowRequest) -> Answer<()>;
    /// It comes no more.
    fn unfollow(&self, remote: &str, reference: &str) -> Answer<()>;
    /// The lines that are followed.
    fn follows(&self) -> Answer<Vec<FollowInfo>>;
    /// Is there something to do without being asked?
    fn is_at_work(&self) -> bool;
    /// Makes a fleet of which this is the first host.
    fn host_init(&self, request: HostInitRequest) -> Answer<Vec<HostInfo>>;
    /// A line by which one more host can join.
    fn host_invite(&self) -> Answer<HostInvitationInfo>;
    /// Joins the fleet of another host.
    fn host_join(&self, request: HostJoinRequest) -> Answer<Vec<HostInfo>>;
    /// The hosts of the fleet.
    fn hosts(&self) -> Answer<Vec<HostInfo>>;
    /// How each host of the fleet is.
    fn host_top(&self) -> Answer<Vec<HostTop>>;
    /// Has a host be none of the fleet any more.
    fn host_remove(&self, name: &str) -> Answer<()>;
    /// Makes a token by which a person uses this host.
    fn token_create(&self, request: &TokenCreateRequest) -> Answer<TokenLine>;
    /// All tokens.
    fn tokens(&self) -> Answer<Vec<TokenInfo>>;
    /// Has a token be good for nothing any more.
    fn token_remove(&self, name: &str) -> Answer<()>;
    /// Whose token this is, if it is good.
    fn token(&self, secret: &str) -> Answer<TokenInfo>;
    /// Notes in the audit log what somebody did, or wanted to do.
    fn note(&self, caller: &str, action: &str, object: &str, outcome: &str) -> Answer<()>;
    /// Makes a realm.
    fn realm_create(&self, name: &str) -> Answer<RealmInfo>;
    /// All realms.
    fn realms(&self) -> Answer<Vec<RealmInfo>>;
    /// What lets another host join a realm.
    fn realm_share(&self, name: &str) -> Answer<RealmInvitation>;
    /// Joins a realm of another host.
    fn realm_join(&self, request: &RealmJoinRequest) -> Answer<RealmInfo>;
    /// Gives a realm a new secret.
    fn realm_rotate(&self, name: &str) -> Answer<RealmInfo>;
    /// Sends a snapshot to a remote.
    fn push(&self, remote: &str, request: PushRequest, progress: ProgressSink<'_>) -> Answer<TransferReport>;
    /// Gets a snapshot from a remote.
    fn pull(&self, remote: &str, request: PullRequest, progress: ProgressSink<'_>) -> Answer<TransferReport>;
    /// Gets a snapshot from a remote but for its frames.
    fn fetch(&self, remote: &str, request: FetchRequest) -> Answer<TransferReport>;
    /// Snapshots of which not all is here.
    fn snapshots_away(&self) -> Answer<Vec<AwaySnapshot>>;
    /// Frees what nothing refers to.
    fn gc(&self, dry_run: bool, progress: ProgressSink<'_>) -> Answer<GcReport>;
    /// Reads everything and compares it with its hash; mends from the stores in these directories.
    fn verify(&self, repair_from: Vec<String>, progress: ProgressSink<'_>) -> Answer<VerifyReport>;
    /// Where the space goes.
    fn df(&self) -> Answer<StoreUsage>;
    /// How the daemon itself is: its mount, its keeper, its state directory.
    fn doctor(&self) -> Answer<Vec<Check>>;
    /// The engine's metrics, without the `martlet_` prefix.
    fn metrics(&self) -> Answer<Vec<Metric>>;
}

/// A command that runs in a guest.
pub struct ExecSession {
    /// What goes to it.
    pub input: Box<dyn ExecInput>,
    /// What comes from it; the last event is [`ExecEvent::Exit`] or [`ExecEvent::Problem`].
    pub events: Receiver<ExecEvent>,
}

/// What goes to a running command. Dropping it ends its input; the command goes on.
pub trait ExecInput: Send {
    /// Writes to its standard input; blocks while the guest does not read.
    fn stdin(&mut self, bytes: &[u8]) -> Answer<()>;
    /// Ends its standard input.
    fn stdin_end(&mut self) -> Answer<()>;
    /// Its terminal has another size now.
    fn resize(&mut self, size: TtySize) -> Answer<()>;
    /// Sends it a signal.
    fn signal(&mut self, signal: i32) -> Answer<()>;
}

/// What comes from a running command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// Bytes of its standard output, or of its terminal.
    Stdout(Vec<u8>),
    /// Bytes of its standard error.
    Stderr(Vec<u8>),
    /// It ended.
    Exit(ExitStatus),
    /// It could not be started, or was lost.
    Problem(Problem),
}

/// A console log on disk that may still grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSource {
    /// The file.
    pub path: PathBuf,
    /// When a machine goes on in another process, its log does in another file: that begins with this much of the end of
    /// the one before, at most.
    pub carried_max_bytes: u64,
}
