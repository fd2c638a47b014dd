//! The agent proper: reads frames, does what the host asks.
//!
//! Short requests are answered by the reading thread itself, in the order in which they came; those that may wait for a
//! disk or a program have a thread each.

use crate::calls::Calls;
use crate::fault::{Result, failed, fault};
use crate::filesystems::{self, Freezer};
use crate::hold::{COMMAND_GROUP, EXEC_GROUP, Hold};
use crate::identity::{self, Places};
use crate::log::log;
use crate::outgoing::{Outgoing, Speech};
use crate::process::{self, Streams};
use crate::stream::Stream;
use crate::users::User;
use crate::workers::Workers;
use crate::{copy, exec, metrics, syscalls};
use martlet_agent_api::{
    Command, Control, Decoder, FEATURE_ASKS, FEATURE_QUIET, Finished, Frame, Hello, HelloReply, Kind,
    PROTOCOL, PROTOCOL_OLDEST, RemoteErrorKind, Reply, Request, Response, Start, from_payload, to_payload,
};
use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Longest that `Prepare` may keep the agent from anything else.
const PREPARE_MAX: Duration = Duration::from_secs(30);
/// User code gets this long between SIGTERM and SIGKILL.
const TERMINATE_GRACE: Duration = Duration::from_secs(5);
/// systemd takes these for poweroff.target and reboot.target.
const SYSTEMD_POWER_OFF: i32 = 34 + 4;
const SYSTEMD_REBOOT: i32 = 34 + 5;

/// Who is process 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// The image's own init.
    Image,
    /// The agent's other half, which only reaps orphans.
    Own,
}

/// How an agent is set up.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// Root of the cgroup v2 hierarchy.
    pub cgroups: Option<PathBuf>,
    /// Processes of the agent beside its own.
    pub own_processes: Vec<u32>,
    /// Start with user code held.
    pub held: bool,
    /// Who is process 1.
    pub init: Init,
    /// Where names and ids are kept.
    pub places: Places,
}

impl AgentOptions {
    /// In a guest that has booted by itself.
    pub fn service() -> Self {
        Self {
            cgroups: Some("/sys/fs/cgroup".into()),
            own_processes: Vec::new(),
            held: false,
            init: Init::Image,
            places: Places::default(),
        }
    }
}

/// The agent of this guest.
pub struct Agent {
    hold: Hold,
    init: Init,
    places: Places,
    freezer: Arc<Freezer>,
    streams: Mutex<HashMap<u32, Arc<Stream>>>,
    command: Mutex<OwnCommand>,
    identify: Mutex<()>,
    workers: Workers,
    calls: Arc<Calls>,
}

/// The machine's own command.
#[derive(Default)]
struct OwnCommand {
    wanted: Option<Command>,
    running: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// Sets up an agent; it answers once it is served a channel.
    pub fn new(options: AgentOptions) -> Arc<Self> {
        Arc::new(Self {
            hold: Hold::new(options.cgroups, &options.own_processes, options.held),
            init: options.init,
            places: options.places,
            freezer: Arc::default(),
            streams: Mutex::default(),
            command: Mutex::default(),
            identify: Mutex::default(),
            workers: Workers::default(),
            calls: Arc::default(),
        })
    }

    /// Whether user code runs.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Calls of programs in this guest.
    pub fn calls(&self) -> &Arc<Calls> {
        &self.calls
    }

    /// Answers the host until the channel ends, and says why it did.
    pub fn serve(self: &Arc<Self>, mut reader: impl Read, writer: Box<dyn Write + Send>) -> io::Error {
        let outgoing = Arc::new(Outgoing::new(writer));
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
                Ok(count) => decoder.push(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error,
            }
            while let Some(frame) = decoder.next_frame() {
                self.handle(frame, &outgoing);
            }
        }
    }

    fn handle(self: &Arc<Self>, frame: Frame, outgoing: &Arc<Outgoing>) {
        if frame.kind == Kind::Hello {
            return self.greet(&frame, outgoing);
        }
        if frame.epoch != outgoing.epoch() || frame.epoch == 0 {
            return; // meant for somebody else
        }
        let stream = || lock(&self.streams).get(&frame.stream).map(Arc::clone);
        match frame.kind {
            Kind::Request => match from_payload(&frame.payload, "Request") {
                Ok(request) => self.request(request, frame.stream, outgoing),
                Err(error) => {
                    let reply = Err(fault(RemoteErrorKind::Unsupported, error.to_string()));
                    reply_to(outgoing, Speech::Answer, frame.epoch, frame.stream, &reply);
                }
            },
            Kind::Data => {
                if let Some(stream) = stream() {
                    stream.accept_data(frame.flags, frame.payload);
                }
            }
            Kind::Credit => {
                if let (Some(stream), Ok(bytes)) = (stream(), frame.payload.try_into()) {
                    stream.accept_credit(u32::from_le_bytes(bytes));
                }
            }
            Kind::Control => {
                if let (Some(stream), Ok(control)) =
                    (stream(), from_payload::<Control>(&frame.payload, "Control"))
                {
                    stream.accept_control(control);
                }
            }
            Kind::Hello | Kind::HelloReply | Kind::Reply | Kind::Finished | Kind::Ask => {}
        }
    }

    fn greet(&self, frame: &Frame, outgoing: &Arc<Outgoing>) {
        let Ok(hello) = from_payload::<Hello>(&frame.payload, "Hello") else {
            return;
        };
        let new_epoch = frame.epoch != outgoing.epoch();
        if new_epoch {
            outgoing.set_epoch(frame.epoch);
            let old = std::mem::take(&mut *lock(&self.streams));
            old.into_values().for_each(|stream| stream.abandon());
            let answers = hello.features.iter().any(|feature| feature == FEATURE_ASKS);
            self.calls.set_host(answers.then(|| Arc::clone(outgoing)));
        }
        match hello.start {
            Start::Clone => self.hold.require_identity(),
            Start::Same if new_epoch => self.calls.interrupt(),
            Start::Same => {}
        }
        let protocol = hello.protocol.min(PROTOCOL);
        let spoken = protocol >= hello.protocol_oldest.max(PROTOCOL_OLDEST);
        let mut features = vec!["exec".to_owned(), "tar".to_owned()];
        if self.hold.is_possible() {
            features.extend(["hold".to_owned(), FEATURE_QUIET.to_owned()]);
        }
        let reply = HelloReply {
            protocol: if spoken { protocol } else { 0 },
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            features,
            held: self.hold.is_held(),
            boot_id: identity::boot_id(),
            new_epoch,
        };
        let payload = to_payload(&reply);
        let _ = outgoing.send(Speech::Answer, frame.epoch, Kind::HelloReply, 0, 0, &payload); // the host asks again
    }

    fn request(self: &Arc<Self>, request: Request, id: u32, outgoing: &Arc<Outgoing>) {
        let epoch = outgoing.epoch();
        let reply = match request {
            Request::Exec(_) | Request::ReadPath { .. } | Request::WritePath { .. } => {
                return self.open_stream(request, id, outgoing);
            }
            Request::Identify(_)
            | Request::Fstrim
            | Request::SyncFs
            | Request::DropCaches
            | Request::GrowRoot
            | Request::Shutdown { .. } => {
                let (agent, outgoing) = (Arc::clone(self), Arc::clone(outgoing));
                // The identity is put on while user code is held; all else takes its time, and is quiet then.
                let speech = match &request {
                    Request::Identify(_) => Speech::Answer,
                    _ => Speech::Report,
                };
                let started = self.workers.run({
                    let outgoing = Arc::clone(&outgoing);
                    move || {
                        let done = || reply_to(&outgoing, speech, epoch, id, &Ok(Response::Done));
                        if let Some(reply) = agent.slow_request(request, done) {
                            reply_to(&outgoing, speech, epoch, id, &reply);
                        }
                    }
                });
                match started {
                    Ok(()) => return,
                    Err(error) => Err(failed("cannot start a thread", error)),
                }
            }
            Request::Ping => Ok(Response::Done),
            Request::Metrics => Ok(Response::Metrics(metrics::collect())),
            Request::Prepare { timeout_ms } => {
                let timeout = Duration::from_millis(timeout_ms.into()).min(PREPARE_MAX);
                let prepared = self.hold.prepare(timeout).map(Response::Prepared);
                if prepared.is_ok() {
                    outgoing.set_quiet(true);
                }
                prepared
            }
            Request::Release {
                realtime_unix_ns,
                tell,
            } => {
                let released = self.release(realtime_unix_ns, tell);
                if released.is_ok() {
                    outgoing.set_quiet(false);
                }
                released
            }
            Request::FreezeFs { timeout_ms } => {
                let timeout = Duration::from_millis(timeout_ms.into());
                self.freezer
                    .freeze(timeout)
                    .map(|count| Response::FileSystems { count })
            }
            Request::ThawFs => Ok(Response::FileSystems {
                count: self.freezer.thaw(),
            }),
            Request::Answer { ask, reply } => {
                self.calls.answer(ask, reply);
                Ok(Response::Done)
            }
            Request::StartCommand(command) => self.start_command(command),
        };
        reply_to(outgoing, Speech::Answer, epoch, id, &reply);
    }

    /// `None`: it was answered already, by `answer_done`.
    fn slow_request(&self, request: Request, answer_done: impl FnOnce()) -> Option<Reply> {
        Some(match request {
            Request::Identify(identity) => {
                let _one_at_a_time = lock(&self.identify);
                let identified = identity::put_on(&identity, &self.places);
                if identified.complete {
                    if identity.parent_id.is_some() {
                        self.calls.become_clone(identity.asked.as_ref());
                    }
                    self.hold.identity_done();
                }
                Ok(Response::Identified(identified))
            }
            Request::Fstrim => filesystems::trim().map(|bytes| Response::Trimmed { bytes }),
            Request::SyncFs => {
                syscalls::sync();
                Ok(Response::Done)
            }
            Request::DropCaches => filesystems::drop_caches().map(|()| Response::Done),
            Request::GrowRoot => filesystems::grow_root().map(|size_bytes| Response::Grown { size_bytes }),
            Request::Shutdown { reboot } => {
                if self.hold.is_held() {
                    return Some(Err(fault(
                        RemoteErrorKind::State,
                        "user code is held; it cannot shut down",
                    )));
                }
                answer_done();
                self.shut_down(reboot);
                return None;
            }
            _ => Err(fault(
                RemoteErrorKind::Unsupported,
                "this request is answered at once",
            )),
        })
    }

    fn release(&self, realtime_unix_ns: Option<u64>, tell: bool) -> Reply {
        let held = self.hold.release(|| match realtime_unix_ns {
            Some(time) => syscalls::set_realtime(time).map_err(|error| failed("cannot set the clock", error)),
            None => Ok(()),
        })?;
        Ok(match tell {
            true => Response::Released {
                held_ms: held.as_secs_f64() * 1e3,
            },
            false => Response::Done,
        })
    }

    fn open_stream(self: &Arc<Self>, request: Request, id: u32, outgoing: &Arc<Outgoing>) {
        let epoch = outgoing.epoch();
        let stream = Stream::new(id, epoch, Arc::clone(outgoing));
        lock(&self.streams).insert(id, Arc::clone(&stream));
        let agent = Arc::clone(self);
        let started = self.workers.run({
            let outgoing = Arc::clone(outgoing);
            move || {
                if let Err(error) = agent.run_stream(request, id, &stream, &outgoing) {
                    agent.close_stream(id, &stream);
                    reply_to(&outgoing, Speech::Report, epoch, id, &Err(error));
                }
            }
        });
        if let Err(error) = started {
            lock(&self.streams).remove(&id);
            reply_to(
                outgoing,
                Speech::Answer,
                epoch,
                id,
                &Err(failed("cannot start a thread", error)),
            );
        }
    }

    fn run_stream(
        self: &Arc<Self>,
        request: Request,
        id: u32,
        stream: &Arc<Stream>,
        outgoing: &Outgoing,
    ) -> Result<()> {
        let epoch = outgoing.epoch();
        let work: Box<dyn FnOnce() -> Finished> = match request {
            Request::Exec(spec) => {
                // Until the command runs nothing can be held: what is half started could not be frozen.
                let permit = self.hold.permit_spawn()?;
                let running = exec::start(&spec, &self.places.etc, permit.group(EXEC_GROUP), stream)?;
                Box::new(move || exec::attend(running, stream))
            }
            Request::ReadPath { path } => {
                let path = copy::check_path(&path)?;
                fs::symlink_metadata(&path)
                    .map_err(|e| crate::fault::io_failed(format_args!("cannot read {path:?}"), &e))?;
                Box::new(move || copy::send(&path, stream))
            }
            Request::WritePath { path } => {
                let path = copy::check_path(&path)?;
                Box::new(move || copy::receive(&path, stream))
            }
            _ => {
                return Err(fault(
                    RemoteErrorKind::Unsupported,
                    "this request opens no stream",
                ));
            }
        };
        reply_to(outgoing, Speech::Report, epoch, id, &Ok(Response::Started));
        let finished = work();
        self.close_stream(id, stream);
        stream.finish(&finished);
        Ok(())
    }

    /// A new epoch may have given the number to another stream already.
    fn close_stream(&self, id: u32, stream: &Arc<Stream>) {
        let mut streams = lock(&self.streams);
        if streams.get(&id).is_some_and(|known| Arc::ptr_eq(known, stream)) {
            streams.remove(&id);
        }
    }

    /// Sets the machine's own command and starts it, at the release when held.
    pub fn start_command(self: &Arc<Self>, command: Command) -> Reply {
        if command.argv.is_empty() {
            return Err(fault(RemoteErrorKind::Invalid, "there is no command to run"));
        }
        let mut own = lock(&self.command);
        if own.running {
            return Err(fault(RemoteErrorKind::State, "the machine's command is running"));
        }
        let waiting = own.wanted.replace(command).is_some();
        drop(own);
        if waiting {
            return Ok(Response::Done); // it takes the place of the one that waits
        }
        if self.hold.is_held() {
            let agent = Arc::clone(self);
            self.hold.at_release(move || {
                if let Err(error) = agent.run_own_command() {
                    log(&error.message);
                }
            });
            return Ok(Response::Done);
        }
        self.run_own_command()
    }

    fn run_own_command(self: &Arc<Self>) -> Reply {
        let permit = self.hold.permit_spawn()?;
        let mut own = lock(&self.command);
        let Some(command) = own.wanted.take() else {
            return Ok(Response::Done);
        };
        let user = User::find(&self.places.etc, command.user.as_deref())?;
        let mut child = process::spawn(&command, &user, Streams::Console, permit.group(COMMAND_GROUP))?;
        own.running = true;
        drop((own, permit));
        let agent = Arc::clone(self);
        thread::spawn(move || {
            match child.wait() {
                Ok(status) => log(&format!("the machine's command ended: {status}")),
                Err(error) => log(&format!("the machine's command was lost: {error}")),
            }
            lock(&agent.command).running = false;
        });
        Ok(Response::Done)
    }

    /// The answer has been sent: from here on there is nobody to tell.
    fn shut_down(&self, reboot: bool) {
        if self.init == Init::Image {
            let signal = if reboot { SYSTEMD_REBOOT } else { SYSTEMD_POWER_OFF };
            if let Err(error) = syscalls::kill(1, signal) {
                log(&format!("cannot ask init to shut down: {error}"));
            }
            return;
        }
        let _ = syscalls::kill(-1, libc::SIGTERM); // ESRCH: there is nobody
        thread::sleep(Duration::from_millis(100));
        let steps = TERMINATE_GRACE.as_millis() / 50;
        for _ in 0..steps {
            if !user_processes_left() {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let _ = syscalls::kill(-1, libc::SIGKILL); // ESRCH: there is nobody
        syscalls::sync();
        let error = syscalls::reboot(!reboot);
        log(&format!("cannot end the guest: {error}"));
    }
}

fn user_processes_left() -> bool {
    let own = [1, std::process::id()];
    let Ok(entries) = fs::read_dir("/proc") else {
        return false;
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| !own.contains(pid))
        .any(crate::hold::is_user_process)
}

fn reply_to(outgoing: &Outgoing, speech: Speech, epoch: u64, stream: u32, reply: &Reply) {
    let payload = payload_of(reply);
    let _ = outgoing.send(speech, epoch, Kind::Reply, 0, stream, &payload); // an old epoch's host is gone
}

fn payload_of(reply: &Reply) -> Vec<u8> {
    let payload = to_payload(reply);
    if payload.len() <= martlet_agent_api::MAX_PAYLOAD_BYTES {
        return payload;
    }
    to_payload(&Reply::Err(fault(
        RemoteErrorKind::Failed,
        "the answer is too long",
    )))
}
