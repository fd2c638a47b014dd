//! The engine behind the API. Verbs pass straight through; sessions are turned from what the agent's client offers into
//! what the server serves.

use martlet_agent_api::{Finished, TtySize as GuestTtySize};
use martlet_api::*;
use martlet_engine::{Engine, Tell};
use martlet_vm::agent::{AgentExec, ExecEvent as GuestEvent, ExecInput as GuestInput};
use martletd::control::{Answer, Control, ExecEvent, ExecInput, ExecSession, LogSource};
use martletd::metrics::Metric;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

/// Events of a command that wait for the client; the guest is slowed down by its credit beyond that.
const EVENTS_WAITING: usize = 16;
/// Between two looks at a silent command's connection.
const SILENCE: Duration = Duration::from_secs(3600);

/// The engine, as the server needs it. Dropping it ends serving; machines go on.
pub struct EngineControl(pub Arc<Engine>);

impl Drop for EngineControl {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Control for EngineControl {
    fn base_build(&self, request: BaseBuildRequest, progress: ProgressSink<'_>) -> Answer<BaseInfo> {
        self.0.base_build(request, progress)
    }
    fn base_import(&self, request: BaseImportRequest, progress: ProgressSink<'_>) -> Answer<BaseInfo> {
        self.0.base_import(request, progress)
    }
    fn bases(&self) -> Answer<Vec<BaseInfo>> {
        self.0.bases()
    }
    fn base(&self, name: &str) -> Answer<BaseInfo> {
        self.0.base(name)
    }
    fn base_remove(&self, name: &str, force: bool) -> Answer<()> {
        self.0.base_remove(name, force)
    }

    fn run(&self, user: &User, request: RunRequest, progress: ProgressSink<'_>) -> Answer<MachineInfo> {
        self.0.run(user, request, progress)
    }
    fn machines(&self) -> Answer<Vec<MachineInfo>> {
        Ok(self.0.machines())
    }
    fn machine(&self, name: &str) -> Answer<MachineInfo> {
        self.0.machine(name)
    }
    fn pool(&self) -> Answer<PoolUsage> {
        Ok(self.0.pool())
    }

    fn usage(&self) -> Answer<Vec<MachineUsage>> {
        self.0.usage()
    }
    fn stop(&self, name: &str, timeout_ms: u64) -> Answer<MachineInfo> {
        self.0.stop(name, timeout_ms)
    }
    fn kill(&self, name: &str) -> Answer<MachineInfo> {
        self.0.kill(name)
    }
    fn start(&self, name: &str, progress: ProgressSink<'_>) -> Answer<MachineInfo> {
        self.0.start(name, progress)
    }
    fn remove(&self, name: &str, force: bool) -> Answer<()> {
        self.0.remove(name, force)
    }
    fn rename(&self, name: &str, new: &str) -> Answer<MachineInfo> {
        self.0.rename(name, new)
    }

    fn exec(&self, name: &str, request: ExecRequest) -> Answer<ExecSession> {
        let (sender, events) = sync_channel(EVENTS_WAITING);
        let AgentExec { input, output } = match self.0.exec(name, request)? {
            Ok(started) => started,
            Err(refused) => {
                let _ = sender.send(ExecEvent::Problem(refused)); // there is room for one
                return Ok(ExecSession {
                    input: Box::new(NoInput),
                    events,
                });
            }
        };
        let pump = move || {
            loop {
                match output.next(SILENCE) {
                    Ok(None) => {}
                    Ok(Some(event)) => {
                        let last = matches!(event, GuestEvent::Exit(_));
                        if !send(&sender, event) || last {
                            return;
                        }
                    }
                    Err(error) => {
                        let _ = sender.send(ExecEvent::Problem(error.tell()));
                        return;
                    }
                }
            }
        };
        std::thread::Builder::new()
            .name("exec".into())
            .spawn(pump)
            .map_err(|error| Problem::new(ProblemCode::Internal, "no thread for the command").cause(error))?;
        Ok(ExecSession {
            input: Box::new(Input(input)),
            events,
        })
    }
    fn get_path(&self, name: &str, path: &str, tar: &mut (dyn Write + Send)) -> Answer<()> {
        self.0.get_path(name, path, tar)
    }
    fn put_path(&self, name: &str, path: &str, tar: &mut (dyn Read + Send)) -> Answer<()> {
        self.0.put_path(name, path, tar)
    }
    fn logs(&self, name: &str) -> Answer<LogSource> {
        Ok(LogSource {
            path: self.0.console_log(name)?,
            carried_max_bytes: martlet_engine::LOG_CARRIED_BYTES,
        })
    }
    fn console(&self, name: &str) -> Answer<UnixStream> {
        self.0.console(name)
    }

    fn checkpoint(
        &self,
        name: &str,
        r: CheckpointRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<CheckpointReport> {
        self.0.checkpoint(name, r, progress)
    }
    fn suspend(
        &self,
        name: &str,
        r: CheckpointRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<CheckpointReport> {
        self.0.suspend(name, r, progress)
    }
    fn resume(&self, name: &str, request: ResumeRequest, progress: ProgressSink<'_>) -> Answer<MachineInfo> {
        self.0.resume(name, request, progress)
    }
    fn fork(
        &self,
        user: &User,
        source: &str,
        request: ForkRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<ForkReport> {
        self.0.fork(user, source, request, progress)
    }

    fn map(
        &self,
        user: &User,
        source: &str,
        request: MapRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<MapReport> {
        self.0.map(user, source, request, progress)
    }
    fn rollback(
        &self,
        name: &str,
        request: RollbackRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<MachineInfo> {
        self.0.rollback(name, request, progress)
    }
    fn move_to(&self, name: &str, request: MoveRequest, progress: ProgressSink<'_>) -> Answer<MoveReport> {
        self.0.move_to(name, request, progress)
    }

    fn snapshots(&self) -> Answer<Vec<SnapshotInfo>> {
        self.0.snapshots()
    }
    fn snapshot(&self, reference: &str) -> Answer<SnapshotInfo> {
        self.0.snapshot(reference)
    }
    fn log(&self, source: &str) -> Answer<Vec<SnapshotInfo>> {
        self.0.log(source)
    }
    fn explain(&self, source: &str, top: usize) -> Answer<Explanation> {
        self.0.explain(source, top)
    }
    fn diff(&self, from: &str, to: &str) -> Answer<SnapshotDiff> {
        self.0.diff(from, to)
    }
    fn tag(&self, reference: &str, new: &str) -> Answer<SnapshotInfo> {
        self.0.tag(reference, new)
    }
    fn snapshot_remove(&self, reference: &str) -> Answer<()> {
        self.0.snapshot_remove(reference)
    }
    fn remote_add(&self, request: RemoteAddRequest) -> Answer<RemoteInfo> {
        self.0.remote_add(request)
    }
    fn remotes(&self) -> Answer<Vec<RemoteInfo>> {
        self.0.remotes()
    }
    fn remote_remove(&self, name: &str) -> Answer<()> {
        self.0.remote_remove(name)
    }
    fn remote_check(&self, name: &str) -> Answer<RemoteInfo> {
        self.0.remote_check(name)
    }
    fn remote_snapshots(&self, name: &str) -> Answer<Vec<RemoteSnapshot>> {
        self.0.remote_snapshots(name)
    }
    fn remote_gc(
        &self,
        name: &str,
        request: &RemoteGcRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<RemoteGcReport> {
        self.0.remote_gc(name, request, progress)
    }
    fn remote_forget(&self, name: &str, reference: &str) -> Answer<()> {
        self.0.remote_forget(name, reference)
    }
    fn remote_history(&self, name: &str, reference: &str) -> Answer<Vec<RemoteVersion>> {
        self.0.remote_history(name, reference)
    }
    fn set_line(&self, name: &str, request: LineRequest) -> Answer<MachineInfo> {
        self.0.set_line(name, request)
    }
    fn publish(
        &self,
        name: &str,
        request: PublishRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<PublishReport> {
        self.0.publish(name, request, progress)
    }
    fn resume_from(
        &self,
        remote: &str,
        request: ResumeFromRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<MachineInfo> {
        self.0.resume_from(remote, request, progress)
    }
    fn lease(&self, remote: &str, reference: &str) -> Answer<LeaseInfo> {
        self.0.lease(remote, reference)
    }
    fn lease_break(&self, remote: &str, reference: &str) -> Answer<()> {
        self.0.lease_break(remote, reference)
    }
    fn lease_ask(&self, remote: &str, reference: &str) -> Answer<LeaseInfo> {
        self.0.lease_ask(remote, reference)
    }
    fn point(&self, remote: &str, reference: &str, request: PointRequest) -> Answer<LeaseInfo> {
        self.0.point(remote, reference, request)
    }
    fn carry(&self, request: CarryRequest, progress: ProgressSink<'_>) -> Answer<Vec<CarryReport>> {
        self.0.carry(request, progress)
    }
    fn follow(&self, remote: &str, request: FollowRequest) -> Answer<()> {
        self.0.follow(remote, request)
    }
    fn unfollow(&self, remote: &str, reference: &str) -> Answer<()> {
        self.0.unfollow(remote, reference)
    }
    fn follows(&self) -> Answer<Vec<FollowInfo>> {
        self.0.follows()
    }
    fn is_at_work(&self) -> bool {
        self.0.is_at_work()
    }
    fn host_init(&self, request: HostInitRequest) -> Answer<Vec<HostInfo>> {
        self.0.host_init(request)
    }
    fn host_invite(&self) -> Answer<HostInvitationInfo> {
        self.0.host_invite()
    }
    fn host_join(&self, request: HostJoinRequest) -> Answer<Vec<HostInfo>> {
        self.0.host_join(request)
    }
    fn hosts(&self) -> Answer<Vec<HostInfo>> {
        self.0.hosts()
    }
    fn host_top(&self) -> Answer<Vec<HostTop>> {
        self.0.host_top()
    }
    fn host_remove(&self, name: &str) -> Answer<()> {
        self.0.host_remove(name)
    }
    fn token_create(&self, request: &TokenCreateRequest) -> Answer<TokenLine> {
        self.0.token_create(request)
    }
    fn tokens(&self) -> Answer<Vec<TokenInfo>> {
        self.0.tokens()
    }
    fn token_remove(&self, name: &str) -> Answer<()> {
        self.0.token_remove(name)
    }
    fn token(&self, secret: &str) -> Answer<TokenInfo> {
        self.0.token(secret)
    }
    fn note(&self, caller: &str, action: &str, object: &str, outcome: &str) -> Answer<()> {
        self.0.note_in_audit(caller, action, object, outcome)
    }
    fn realm_create(&self, name: &str) -> Answer<RealmInfo> {
        self.0.realm_create(name)
    }
    fn realms(&self) -> Answer<Vec<RealmInfo>> {
        self.0.realms()
    }
    fn realm_share(&self, name: &str) -> Answer<RealmInvitation> {
        self.0.realm_share(name)
    }
    fn realm_join(&self, request: &RealmJoinRequest) -> Answer<RealmInfo> {
        self.0.realm_join(request)
    }
    fn realm_rotate(&self, name: &str) -> Answer<RealmInfo> {
        self.0.realm_rotate(name)
    }
    fn push(&self, remote: &str, request: PushRequest, progress: ProgressSink<'_>) -> Answer<TransferReport> {
        self.0.push(remote, request, progress)
    }
    fn pull(&self, remote: &str, request: PullRequest, progress: ProgressSink<'_>) -> Answer<TransferReport> {
        self.0.pull(remote, request, progress)
    }
    fn fetch(&self, remote: &str, request: FetchRequest) -> Answer<TransferReport> {
        self.0.fetch(remote, request)
    }
    fn snapshots_away(&self) -> Answer<Vec<AwaySnapshot>> {
        self.0.snapshots_away()
    }
    fn gc(&self, dry_run: bool, progress: ProgressSink<'_>) -> Answer<GcReport> {
        self.0.gc(dry_run, progress)
    }
    fn verify(&self, repair_from: Vec<String>, progress: ProgressSink<'_>) -> Answer<VerifyReport> {
        self.0.verify(repair_from, progress)
    }
    fn df(&self) -> Answer<StoreUsage> {
        self.0.df()
    }
    fn doctor(&self) -> Answer<Vec<Check>> {
        let serving = match self.0.is_serving() {
            true => Check::ok("images", "the mount is served"),
            false => Check::fail(
                "images",
                "the mount is not served",
                "restart the daemon: `martlet daemon stop`, then any command",
            ),
        };
        let keeper = match self.0.keeper_children() {
            Ok(count) => Check::ok("keeper", format!("keeps {count} processes")),
            Err(problem) => Check::fail(
                "keeper",
                problem.message,
                "restart the daemon: `martlet daemon stop`, then any command",
            ),
        };
        Ok(vec![serving, keeper])
    }
    fn metrics(&self) -> Answer<Vec<Metric>> {
        let facts = self.0.facts();
        let outbound = self.0.went_out();
        let mut metrics = vec![
            Metric::gauge(
                "store_pack_bytes",
                "Size of the store's packs.",
                facts.pack_bytes as f64,
            ),
            Metric::gauge(
                "store_garbage_bytes",
                "Bytes in packs that nothing refers to.",
                facts.garbage_bytes as f64,
            ),
            Metric::counter(
                "pager_hits_total",
                "Frames found in the cache of decoded frames.",
                facts.pager_hits as f64,
            ),
            Metric::counter(
                "pager_fetches_total",
                "Frames fetched from the store.",
                facts.pager_fetches as f64,
            ),
            Metric::counter(
                "pager_fetched_bytes_total",
                "Bytes in them, decompressed.",
                facts.pager_fetched_bytes as f64,
            ),
            Metric::counter(
                "multicast_sent_bytes_total",
                "Bytes on the wire of frames that were sent to several hosts at once.",
                facts.multicast_sent_bytes as f64,
            ),
            Metric::gauge("snapshots", "Snapshots in the store.", facts.snapshots as f64),
            Metric::counter(
                "family_frames_refused_total",
                "Frames of guests that cannot truly have sent them, or sent too many.",
                self.0.family_frames_refused() as f64,
            ),
            Metric::counter(
                "outbound_refused_total",
                "Connections and names that guests asked for and that are not on their lists; of machines that run.",
                outbound.refused as f64,
            ),
            Metric::counter(
                "outbound_bytes_total",
                "What went through guests' connections to what is on their lists, both ways; of machines that run.",
                outbound.bytes as f64,
            ),
        ];
        for (state, count) in facts.machines {
            metrics
                .push(Metric::gauge("machines", "Machines, by state.", count as f64).label("state", state));
        }
        Ok(metrics)
    }
}

/// Was it taken? Not when nobody listens any more.
fn send(sender: &SyncSender<ExecEvent>, event: GuestEvent) -> bool {
    let event = match event {
        GuestEvent::Stdout(bytes) => ExecEvent::Stdout(bytes),
        GuestEvent::Stderr(bytes) => ExecEvent::Stderr(bytes),
        GuestEvent::Exit(Finished::Exited(code)) => ExecEvent::Exit(ExitStatus::Code(code)),
        GuestEvent::Exit(Finished::Killed(signal)) => ExecEvent::Exit(ExitStatus::Signal(signal)),
        GuestEvent::Exit(Finished::Copied) => ExecEvent::Exit(ExitStatus::Code(0)),
        GuestEvent::Exit(Finished::Failed(error)) => {
            ExecEvent::Problem(martlet_vm::agent::AgentError::Remote(error).tell())
        }
    };
    sender.send(event).is_ok()
}

struct Input(GuestInput);

impl ExecInput for Input {
    fn stdin(&mut self, bytes: &[u8]) -> Answer<()> {
        self.0.write_all(bytes).map_err(Tell::tell)
    }
    fn stdin_end(&mut self) -> Answer<()> {
        self.0.close().map_err(Tell::tell)
    }
    fn resize(&mut self, size: TtySize) -> Answer<()> {
        self.0
            .resize(GuestTtySize {
                rows: size.rows,
                cols: size.cols,
            })
            .map_err(Tell::tell)
    }
    fn signal(&mut self, signal: i32) -> Answer<()> {
        self.0.signal(signal).map_err(Tell::tell)
    }
}

/// Of a command that was never started.
struct NoInput;

impl ExecInput for NoInput {
    fn stdin(&mut self, _: &[u8]) -> Answer<()> {
        Ok(())
    }
    fn stdin_end(&mut self) -> Answer<()> {
        Ok(())
    }
    fn resize(&mut self, _: TtySize) -> Answer<()> {
        Ok(())
    }
    fn signal(&mut self, _: i32) -> Answer<()> {
        Ok(())
    }
}
