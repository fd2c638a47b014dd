//! An engine in memory, for tests of the server and of the command line: machines are entries of a map, commands a
//! few lines of code. Some names ask for trouble, as the constants say.

#![allow(dead_code, unused_imports)] // each test binary uses a part of it

mod programs;
mod served;

use martlet_api::*;
use martletd::control::*;
use martletd::metrics::Metric;
use programs::{Input, command};
pub use served::Served;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex};

/// Checkpoints of it wait until the test opens the gate.
pub const GATED: &str = "gated";
/// Everything with it ends in this problem.
pub const TROUBLES: [(&str, ProblemCode); 6] = [
    ("busy", ProblemCode::Busy),
    ("alien", ProblemCode::Incompatible),
    ("rotten", ProblemCode::Damaged),
    ("full", ProblemCode::NoSpace),
    ("mute", ProblemCode::GuestFailed),
    ("buggy", ProblemCode::Internal),
];

#[derive(Default)]
pub struct Fake {
    pub machines: Mutex<BTreeMap<String, MachineInfo>>,
    /// Files of the guests, by path.
    pub files: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Tar streams that were put, with the directory they were put in.
    pub put: Mutex<Vec<(String, Vec<u8>)>>,
    /// Signals that commands got.
    pub signals: Mutex<Vec<i32>>,
    /// Checkpoints that came to their end.
    pub checkpoints: AtomicU32,
    /// Opened by the test.
    pub gate: Mutex<Option<Receiver<()>>>,
    /// Told when a gated checkpoint has begun.
    pub begun: Mutex<Option<Sender<()>>>,
    pub log: Mutex<PathBuf>,
    /// Tokens, by secret.
    pub tokens: Mutex<BTreeMap<String, TokenInfo>>,
    /// What was noted: caller, action, object, outcome.
    pub notes: Mutex<Vec<[String; 4]>>,
    /// The guest's end of the last console.
    pub console: Mutex<Option<UnixStream>>,
}

pub fn machine(name: &str, state: MachineState) -> MachineInfo {
    MachineInfo {
        name: name.into(),
        id: "0123456789ab".into(),
        state,
        host: None,
        from: "debian".into(),
        created_unix_ms: 1,
        cpus: 1,
        memory_bytes: 512 << 20,
        disk_bytes: 1 << 30,
        address: "10.77.0.17".into(),
        mac: "52:4d:00:00:00:01".into(),
        hostname: name.into(),
        tap: None,
        family: None,
        fork: None,
        ports: vec![PortForward {
            host_port: 8080,
            guest_port: 80,
        }],
        pid: Some(42),
        accel: Accel::Tcg,
        machine_type: "pc-q35-7.2".into(),
        cpu_model: "qemu64".into(),
        qemu_version: "10.0.2".into(),
        agent: true,
        generation: 0,
        snapshot: None,
        timeline: Timeline {
            load_ms: Some(41.5),
            first_instruction_ms: Some(44.0),
            ..Timeline::default()
        },
        restart: false,
        line: None,
        last_error: None,
    }
}

fn not_found(what: &str, name: &str) -> Problem {
    Problem::new(ProblemCode::NotFound, format!("there is no {what} called {name}"))
        .cause("it was never there")
        .remediation("see `martlet ps`")
}

fn stage(stage: &str, done: u64) -> Progress {
    Progress {
        stage: stage.into(),
        done,
        total: Some(2),
        unit: ProgressUnit::Items,
    }
}

impl Fake {
    /// With these machines, running.
    pub fn with(names: &[&str]) -> Arc<Self> {
        let fake = Self::default();
        for name in names {
            fake.machines
                .lock()
                .unwrap()
                .insert((*name).into(), machine(name, MachineState::Running));
        }
        Arc::new(fake)
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut MachineInfo)) -> Answer<MachineInfo> {
        let mut machines = self.machines.lock().unwrap();
        let machine = machines.get_mut(name).ok_or_else(|| not_found("machine", name))?;
        change(machine);
        Ok(machine.clone())
    }

    fn trouble(&self, name: &str) -> Answer<()> {
        match TROUBLES.iter().find(|(trouble, _)| *trouble == name) {
            Some((_, ProblemCode::Internal)) => panic!("a bug in the engine"),
            Some((_, code)) => {
                Err(Problem::new(*code, format!("{name} does not work")).cause("it is like that"))
            }
            None => Ok(()),
        }
    }

    fn save(&self, name: &str, r: CheckpointRequest, progress: ProgressSink<'_>) -> Answer<CheckpointReport> {
        self.trouble(name)?;
        self.machine(name)?;
        progress(stage("holding the guest", 0));
        if name == GATED {
            self.begun.lock().unwrap().as_ref().unwrap().send(()).unwrap();
            self.gate.lock().unwrap().as_ref().unwrap().recv().unwrap();
        }
        progress(stage("storing pages", 1));
        self.checkpoints.fetch_add(1, Ordering::SeqCst);
        Ok(CheckpointReport {
            give_up_ms: 0.0,
            snapshot: "ab".repeat(32),
            reference: format!("{name}:{}", r.tag.unwrap_or("1".into())),
            pause_ms: 12.5,
            stop_ms: 3.0,
            total_ms: 250.0,
            method: CheckpointMethod::Copy,
            memory_bytes: 512 << 20,
            private_bytes: 100 << 20,
            stored_bytes: 20 << 20,
            new_bytes: 60 << 20,
            avoided: vec![Avoided {
                means: AvoidedMeans::FreePageReporting,
                bytes: 300 << 20,
            }],
            published: None,
            unpublished: None,
        })
    }
}

pub fn snapshot(reference: &str) -> SnapshotInfo {
    SnapshotInfo {
        id: "cd".repeat(32),
        references: vec![reference.into()],
        parent: None,
        machine: "web".into(),
        created_unix_ms: 1,
        note: Some("before\x1b[2J".into()),
        memory_bytes: 512 << 20,
        disk_bytes: 1 << 30,
        used_bytes: 100 << 20,
        unique_bytes: 5 << 20,
        descriptor_bytes: 78_000,
        trace_pages: 10,
        machine_type: "pc-q35-7.2".into(),
        cpu_model: "qemu64".into(),
        qemu_version: "10.0.2".into(),
        init: InitKind::Systemd,
        used_by: vec!["web".into()],
    }
}

fn base(name: &str) -> BaseInfo {
    BaseInfo {
        name: name.into(),
        id: "ef".repeat(32),
        created_unix_ms: 1,
        disk_bytes: 1 << 30,
        used_bytes: 300 << 20,
        stored_bytes: 100 << 20,
        init: InitKind::Systemd,
        origin: "debian bookworm".into(),
        kernel: None,
        cmd: vec![],
        env: vec![],
    }
}

impl Control for Fake {
    fn base_build(&self, r: BaseBuildRequest, progress: ProgressSink<'_>) -> Answer<BaseInfo> {
        progress(stage("installing packages", 1));
        Ok(base(&r.name))
    }
    fn base_import(&self, r: BaseImportRequest, _: ProgressSink<'_>) -> Answer<BaseInfo> {
        Ok(base(&r.name))
    }
    fn bases(&self) -> Answer<Vec<BaseInfo>> {
        Ok(vec![base("debian")])
    }
    fn base(&self, name: &str) -> Answer<BaseInfo> {
        if name == "debian" {
            Ok(base(name))
        } else {
            Err(not_found("base", name))
        }
    }
    fn base_remove(&self, name: &str, force: bool) -> Answer<()> {
        let in_use = Problem::new(ProblemCode::InUse, format!("base {name} is used by web"));
        if force {
            Ok(())
        } else {
            Err(in_use.remediation("martlet rm web"))
        }
    }
    fn run(&self, _: &User, r: RunRequest, progress: ProgressSink<'_>) -> Answer<MachineInfo> {
        let name = r.name.unwrap_or("made-up".into());
        if r.from != "debian" {
            return Err(not_found("base", &r.from));
        }
        progress(stage("starting QEMU", 0));
        progress(stage("waiting for the agent", 1));
        let mut machines = self.machines.lock().unwrap();
        if machines.contains_key(&name) {
            return Err(Problem::new(
                ProblemCode::AlreadyExists,
                format!("machine {name} exists"),
            ));
        }
        let made = MachineInfo {
            ports: r.ports,
            ..machine(&name, MachineState::Running)
        };
        machines.insert(name, made.clone());
        Ok(made)
    }
    fn machines(&self) -> Answer<Vec<MachineInfo>> {
        Ok(self.machines.lock().unwrap().values().cloned().collect())
    }
    fn machine(&self, name: &str) -> Answer<MachineInfo> {
        self.change(name, |_| ())
    }
    fn pool(&self) -> Answer<PoolUsage> {
        Ok(PoolUsage {
            size: 2,
            ready: 1,
            memory_bytes: 36 << 20,
        })
    }

    fn usage(&self) -> Answer<Vec<MachineUsage>> {
        let usage = |machine: &MachineInfo| MachineUsage {
            name: machine.name.clone(),
            state: machine.state,
            cpu_percent: 12.0,
            memory_bytes: machine.memory_bytes,
            private_bytes: 1 << 20,
            faulted_bytes: 2 << 20,
            disk_written_bytes: 0,
            guest: None,
        };
        Ok(self.machines.lock().unwrap().values().map(usage).collect())
    }
    fn stop(&self, name: &str, _: u64) -> Answer<MachineInfo> {
        self.change(name, |machine| machine.state = MachineState::Stopped)
    }
    fn kill(&self, name: &str) -> Answer<MachineInfo> {
        self.stop(name, 0)
    }
    fn start(&self, name: &str, _: ProgressSink<'_>) -> Answer<MachineInfo> {
        self.change(name, |machine| machine.state = MachineState::Running)
    }
    fn remove(&self, name: &str, force: bool) -> Answer<()> {
        let machine = self.machine(name)?;
        if machine.state == MachineState::Running && !force {
            return Err(
                Problem::new(ProblemCode::WrongState, format!("machine {name} is running"))
                    .remediation(format!("martlet stop {name}, or martlet rm --force {name}")),
            );
        }
        self.machines.lock().unwrap().remove(name);
        Ok(())
    }
    fn rename(&self, name: &str, new: &str) -> Answer<MachineInfo> {
        self.change(name, |machine| machine.name = new.into())
    }
    fn exec(&self, name: &str, request: ExecRequest) -> Answer<ExecSession> {
        self.machine(name)?;
        let (events, received) = sync_channel(4);
        let (to_command, commands) = channel();
        std::thread::spawn(move || command(&request, &commands, &events));
        Ok(ExecSession {
            input: Box::new(Input(to_command)),
            events: received,
        })
    }
    fn get_path(&self, name: &str, path: &str, tar: &mut (dyn Write + Send)) -> Answer<()> {
        self.machine(name)?;
        let failed = |error: std::io::Error| Problem::new(ProblemCode::Internal, error.to_string());
        let files = self.files.lock().unwrap();
        let own = Path::new(path).file_name().unwrap_or_default();
        let mut builder = tar::Builder::new(tar);
        if let Some(content) = files.get(path) {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder
                .append_data(&mut header, own, &content[..])
                .map_err(failed)?;
        } else {
            let below: Vec<_> = files
                .iter()
                .filter_map(|(p, c)| Some((p.strip_prefix(path)?.strip_prefix('/')?, c)))
                .collect();
            if below.is_empty() {
                return Err(not_found("file", path));
            }
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            builder
                .append_data(&mut header, own, std::io::empty())
                .map_err(failed)?;
            for (rest, content) in below {
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                header.set_mode(0o644);
                builder
                    .append_data(&mut header, Path::new(own).join(rest), &content[..])
                    .map_err(failed)?;
            }
        }
        builder.into_inner().map(drop).map_err(failed)
    }
    fn put_path(&self, name: &str, path: &str, tar: &mut (dyn Read + Send)) -> Answer<()> {
        self.machine(name)?;
        let mut bytes = Vec::new();
        tar.read_to_end(&mut bytes)
            .map_err(|error| Problem::new(ProblemCode::Internal, error.to_string()))?;
        self.put.lock().unwrap().push((path.into(), bytes));
        Ok(())
    }
    fn logs(&self, name: &str) -> Answer<LogSource> {
        self.machine(name)?;
        Ok(LogSource {
            path: self.log.lock().unwrap().clone(),
            carried_max_bytes: 0,
        })
    }
    fn console(&self, name: &str) -> Answer<UnixStream> {
        self.machine(name)?;
        let (ours, theirs) = UnixStream::pair().unwrap();
        *self.console.lock().unwrap() = Some(theirs);
        Ok(ours)
    }
    fn checkpoint(
        &self,
        name: &str,
        r: CheckpointRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<CheckpointReport> {
        self.save(name, r, progress)
    }
    fn suspend(
        &self,
        name: &str,
        r: CheckpointRequest,
        progress: ProgressSink<'_>,
    ) -> Answer<CheckpointReport> {
        let report = self.save(name, r, progress)?;
        self.change(name, |machine| machine.state = MachineState::Suspended)?;
        Ok(report)
    }
    fn resume(&self, name: &str, _: ResumeRequest, progress: ProgressSink<'_>) -> Answer<MachineInfo> {
        self.start(name, progress)
    }
    fn fork(&self, _: &User, source: &str, r: ForkRequest, progress: ProgressSink<'_>) -> Answer<ForkReport> {
        progress(stage("starting clones", 0));
        let prefix = r
            .prefix
            .unwrap_or_else(|| source.split(':').next().unwrap().into());
        let clones = (1..=r.count).map(|index| {
            let name = format!("{prefix}-{index}");
            let fails = index == 3;
            CloneResult {
                index,
                machine: (!fails).then(|| machine(&name, MachineState::Running)),
                host: None,
                output: None,
                timeline: Timeline {
                    first_exec_ms: (!fails).then_some(77.0),
                    ..Timeline::default()
                },
                problem: fails.then(|| Problem::new(ProblemCode::GuestFailed, "the agent did not confirm")),
                name,
            }
        });
        let clones = clones.collect();
        Ok(ForkReport {
            snapshot: "ab".repeat(32),
            pause_ms: 10.0,
            total_ms: 100.0,
            sent_bytes: 0,
            clones,
        })
    }
    fn map(&self, _: &User, _: &str, r: MapRequest, progress: ProgressSink<'_>) -> Answer<MapReport> {
        progress(stage("working", 0));
        let outputs = r.inputs.into_iter().map(|input| MapOutput {
            output: Some(CloneOutput {
                status: ExitStatus::Code(0),
                stdout: format!("{input}\n"),
                stderr: String::new(),
                is_cut: false,
            }),
            input,
            clone: Some("web-1".into()),
            host: None,
            took_ms: 5.0,
            problem: None,
        });
        Ok(MapReport {
            snapshot: "ab".repeat(32),
            pause_ms: 10.0,
            total_ms: 100.0,
            outputs: outputs.collect(),
            clones: Vec::new(),
        })
    }
    fn rollback(&self, name: &str, _: RollbackRequest, _: ProgressSink<'_>) -> Answer<MachineInfo> {
        self.machine(name)
    }
    fn move_to(&self, name: &str, request: MoveRequest, _: ProgressSink<'_>) -> Answer<MoveReport> {
        Ok(MoveReport {
            machine: self.machine(name)?.name,
            host: request.host,
            rounds: Vec::new(),
            pause_ms: 40.0,
            saved_ms: 10.0,
            first_exec_ms: None,
            sent_bytes: 4096,
            left_objects: 0,
            total_ms: 100.0,
        })
    }
    fn snapshots(&self) -> Answer<Vec<SnapshotInfo>> {
        Ok(vec![snapshot("web:1")])
    }
    fn snapshot(&self, reference: &str) -> Answer<SnapshotInfo> {
        if reference.starts_with("web:") {
            Ok(snapshot(reference))
        } else {
            Err(not_found("snapshot", reference))
        }
    }
    fn log(&self, source: &str) -> Answer<Vec<SnapshotInfo>> {
        Ok(vec![snapshot(&format!("{source}:1"))])
    }
    fn explain(&self, source: &str, top: usize) -> Answer<Explanation> {
        Ok(Explanation {
            machine: source.into(),
            stalls: top as u64,
            ..Explanation::default()
        })
    }
    fn diff(&self, from: &str, to: &str) -> Answer<SnapshotDiff> {
        let memory = ImageDiff {
            same_bytes: 1 << 20,
            ..ImageDiff::default()
        };
        Ok(SnapshotDiff {
            from: from.into(),
            to: to.into(),
            memory,
            disk: ImageDiff::default(),
        })
    }
    fn tag(&self, _: &str, new: &str) -> Answer<SnapshotInfo> {
        Ok(snapshot(new))
    }
    fn snapshot_remove(&self, reference: &str) -> Answer<()> {
        Err(
            Problem::new(ProblemCode::InUse, format!("snapshot {reference} is in use"))
                .cause("machine web uses it"),
        )
    }
    fn remote_add(&self, request: RemoteAddRequest) -> Answer<RemoteInfo> {
        Ok(RemoteInfo {
            name: request.name,
            address: request.address,
            writable: true,
            realm: "default".into(),
        })
    }
    fn remotes(&self) -> Answer<Vec<RemoteInfo>> {
        Ok(vec![self.remote_check("disk")?])
    }
    fn remote_remove(&self, _: &str) -> Answer<()> {
        Ok(())
    }
    fn remote_check(&self, name: &str) -> Answer<RemoteInfo> {
        Ok(RemoteInfo {
            name: name.into(),
            address: "/media/disk".into(),
            writable: true,
            realm: "default".into(),
        })
    }
    fn remote_snapshots(&self, _: &str) -> Answer<Vec<RemoteSnapshot>> {
        Ok(vec![RemoteSnapshot {
            reference: "web:1".into(),
            snapshot: "ab".repeat(32),
            version: 1,
            here: true,
        }])
    }
    fn remote_gc(&self, _: &str, request: &RemoteGcRequest, _: ProgressSink<'_>) -> Answer<RemoteGcReport> {
        Ok(RemoteGcReport {
            dry_run: request.dry_run,
            freed_bytes: 1 << 20,
            ..RemoteGcReport::default()
        })
    }
    fn remote_forget(&self, _: &str, _: &str) -> Answer<()> {
        Ok(())
    }
    fn remote_history(&self, _: &str, _: &str) -> Answer<Vec<RemoteVersion>> {
        Ok(vec![RemoteVersion {
            version: 1,
            snapshot: Some("ab".repeat(32)),
            host: "there".into(),
            pushed_unix_ms: 1,
            held: false,
        }])
    }
    fn set_line(&self, name: &str, request: LineRequest) -> Answer<MachineInfo> {
        self.change(name, |machine| {
            machine.line = Some(LineInfo {
                remote: request.remote,
                reference: request
                    .reference
                    .unwrap_or_else(|| format!("{}:latest", machine.name)),
                state: LineState::Free,
                version: 0,
                published: false,
                every_s: None,
            });
        })?;
        self.machine(name)
    }
    fn publish(&self, name: &str, _: PublishRequest, progress: ProgressSink<'_>) -> Answer<PublishReport> {
        progress(stage("publishing", 1));
        let line = self
            .machine(name)?
            .line
            .ok_or_else(|| Problem::new(ProblemCode::WrongState, format!("machine {name} has no line")))?;
        Ok(PublishReport {
            snapshot: "ab".repeat(32),
            remote: line.remote,
            reference: line.reference,
            version: 1,
            moved_bytes: 1,
            side: false,
            released: false,
        })
    }
    fn resume_from(&self, _: &str, r: ResumeFromRequest, progress: ProgressSink<'_>) -> Answer<MachineInfo> {
        self.start(r.reference.split(':').next().unwrap(), progress)
    }
    fn lease(&self, _: &str, reference: &str) -> Answer<LeaseInfo> {
        Ok(LeaseInfo {
            reference: reference.into(),
            version: 1,
            snapshot: "ab".repeat(32),
            held: None,
        })
    }
    fn lease_break(&self, _: &str, _: &str) -> Answer<()> {
        Ok(())
    }
    fn lease_ask(&self, remote: &str, reference: &str) -> Answer<LeaseInfo> {
        self.lease(remote, reference)
    }
    fn point(&self, remote: &str, reference: &str, _: PointRequest) -> Answer<LeaseInfo> {
        self.lease(remote, reference)
    }
    fn carry(&self, _: CarryRequest, _: ProgressSink<'_>) -> Answer<Vec<CarryReport>> {
        Ok(Vec::new())
    }
    fn follow(&self, _: &str, _: FollowRequest) -> Answer<()> {
        Ok(())
    }
    fn unfollow(&self, _: &str, _: &str) -> Answer<()> {
        Ok(())
    }
    fn follows(&self) -> Answer<Vec<FollowInfo>> {
        Ok(Vec::new())
    }
    fn is_at_work(&self) -> bool {
        false
    }
    fn host_init(&self, request: HostInitRequest) -> Answer<Vec<HostInfo>> {
        Ok(vec![HostInfo {
            name: request.name,
            address: request.address,
            is_this: true,
            answers: true,
            problem: None,
        }])
    }
    fn host_invite(&self) -> Answer<HostInvitationInfo> {
        Ok(HostInvitationInfo {
            invitation: "martlet-host:…".into(),
        })
    }
    fn host_join(&self, request: HostJoinRequest) -> Answer<Vec<HostInfo>> {
        self.host_init(HostInitRequest {
            name: request.name,
            address: request.address,
        })
    }
    fn hosts(&self) -> Answer<Vec<HostInfo>> {
        Ok(Vec::new())
    }
    fn host_top(&self) -> Answer<Vec<HostTop>> {
        let usage = HostUsage {
            memory_total_bytes: 8 << 30,
            memory_available_bytes: 3 << 30,
            cpus: 4,
            load: 0.52,
            store_bytes: 5 << 30,
            machines: self.usage()?,
            ..HostUsage::default()
        };
        let top = |name: &str, usage, problem: Option<&str>| HostTop {
            name: name.into(),
            is_this: name == "desk",
            usage,
            problem: problem.map(Into::into),
        };
        Ok(vec![
            top("desk", Some(usage), None),
            top(
                "couch",
                None,
                Some("couch (192.0.2.8:7077) cannot be reached: not within 3000 ms"),
            ),
        ])
    }
    fn host_remove(&self, _: &str) -> Answer<()> {
        Ok(())
    }
    fn token_create(&self, request: &TokenCreateRequest) -> Answer<TokenLine> {
        self.tokens.lock().unwrap().insert(
            format!("secret-of-{}", request.name),
            TokenInfo {
                name: request.name.clone(),
                role: request.role,
                created_unix_ms: 0,
                expires_unix_ms: u64::from(request.days) * 86_400_000,
                used_unix_ms: None,
            },
        );
        Ok(TokenLine {
            token: "martlet-token:…".into(),
        })
    }
    fn tokens(&self) -> Answer<Vec<TokenInfo>> {
        Ok(self.tokens.lock().unwrap().values().cloned().collect())
    }
    fn token_remove(&self, name: &str) -> Answer<()> {
        self.tokens.lock().unwrap().retain(|_, token| token.name != name);
        Ok(())
    }
    fn token(&self, secret: &str) -> Answer<TokenInfo> {
        let tokens = self.tokens.lock().unwrap();
        let denied = || Problem::new(ProblemCode::PermissionDenied, "no such token").remediation("log in");
        let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
        let is_good = |token: &&TokenInfo| u128::from(token.expires_unix_ms) > now.unwrap().as_millis();
        tokens.get(secret).filter(is_good).cloned().ok_or_else(denied)
    }
    fn note(&self, caller: &str, action: &str, object: &str, outcome: &str) -> Answer<()> {
        let note = [caller, action, object, outcome].map(String::from);
        self.notes.lock().unwrap().push(note);
        Ok(())
    }
    fn realm_create(&self, name: &str) -> Answer<RealmInfo> {
        Ok(RealmInfo {
            name: name.into(),
            id: "0123456789abcdef".into(),
            secrets: 1,
            remotes: vec!["disk".into()],
        })
    }
    fn realms(&self) -> Answer<Vec<RealmInfo>> {
        Ok(vec![self.realm_create("default")?])
    }
    fn realm_share(&self, name: &str) -> Answer<RealmInvitation> {
        Ok(RealmInvitation {
            name: name.into(),
            invitation: "martlet-realm:…".into(),
        })
    }
    fn realm_join(&self, request: &RealmJoinRequest) -> Answer<RealmInfo> {
        self.realm_create(request.name.as_deref().unwrap_or("default"))
    }
    fn realm_rotate(&self, name: &str) -> Answer<RealmInfo> {
        self.realm_create(name)
    }
    fn push(&self, _: &str, request: PushRequest, _: ProgressSink<'_>) -> Answer<TransferReport> {
        Ok(transfer(request.snapshot, request.dry_run))
    }
    fn pull(&self, _: &str, request: PullRequest, _: ProgressSink<'_>) -> Answer<TransferReport> {
        Ok(transfer(request.snapshot, request.dry_run))
    }
    fn fetch(&self, _: &str, request: FetchRequest) -> Answer<TransferReport> {
        Ok(transfer(request.snapshot, false))
    }
    fn snapshots_away(&self) -> Answer<Vec<AwaySnapshot>> {
        Ok(Vec::new())
    }
    fn gc(&self, dry_run: bool, _: ProgressSink<'_>) -> Answer<GcReport> {
        Ok(GcReport {
            dry_run,
            freed_bytes: 1 << 20,
            ..GcReport::default()
        })
    }
    fn verify(&self, repair_from: Vec<String>, _: ProgressSink<'_>) -> Answer<VerifyReport> {
        let frame = DamagedFrame {
            id: "aa".repeat(32),
            pack: "0001.pack".into(),
            reason: "its hash does not match".into(),
            hurts: vec!["web:1".into()],
            repaired: !repair_from.is_empty(),
        };
        Ok(VerifyReport {
            checked: 10,
            checked_bytes: 1 << 20,
            damaged: vec![frame],
            repaired: 0,
            away: 0,
        })
    }
    fn df(&self) -> Answer<StoreUsage> {
        Ok(StoreUsage {
            packs: 1,
            pack_bytes: 1 << 20,
            referenced_bytes: 10 << 20,
            ..StoreUsage::default()
        })
    }
    fn doctor(&self) -> Answer<Vec<Check>> {
        Ok(vec![
            Check::ok("keeper", "answers"),
            Check::fail("qemu", "the command line's own check wins", ""),
        ])
    }
    fn metrics(&self) -> Answer<Vec<Metric>> {
        Ok(vec![Metric::gauge(
            "machines",
            "Machines.",
            self.machines.lock().unwrap().len() as f64,
        )])
    }
}

fn transfer(reference: String, dry_run: bool) -> TransferReport {
    TransferReport {
        snapshot: "ab".repeat(32),
        reference,
        objects: 1000,
        moved_bytes: 10 << 20,
        dry_run,
    }
}
