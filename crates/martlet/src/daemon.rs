//! The daemon from outside: which socket, is it there, start it, stop it.

use crate::client::Client;
use crate::failure::{Failure, Outcome};
use martlet_api::{EXIT_TAKEN, Paths, Problem, ProblemCode, SYSTEM_SOCKET, VersionInfo};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a daemon may take to open its store and serve.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two attempts at it while another daemon comes or goes.
const TAKEN_INTERVAL: Duration = Duration::from_millis(200);
/// A daemon that was started on demand ends when it has had nothing to do for this long; this variable says otherwise.
const IDLE_EXIT: (&str, &str) = ("MARTLET_IDLE_EXIT", "600");
/// How long it may take to end: it lets requests that have begun come to their answer.
const STOP_TIMEOUT: Duration = Duration::from_secs(90);
/// How long one that was killed may take to be gone.
const DYING_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How much of a dead daemon's log is shown.
const LOG_LINES: usize = 8;
const LOG_TAIL_BYTES: u64 = 8 << 10;

/// A daemon's place; it need not run.
pub struct Daemon {
    /// Its socket.
    pub socket: PathBuf,
    /// Where it keeps its state, if it is started from here.
    state_dir: PathBuf,
}

impl Daemon {
    /// The daemon to talk to: the one asked for, else the user's own, else the system-wide one when it answers.
    pub fn find(socket: Option<PathBuf>) -> Self {
        let paths = Paths::of_this_user();
        let state_dir = std::env::var_os("MARTLET_STATE_DIR").map_or(paths.state_dir, PathBuf::from);
        let socket = socket.unwrap_or_else(|| {
            let system = Path::new(SYSTEM_SOCKET);
            match !answers(&paths.socket) && answers(system) {
                true => system.to_path_buf(),
                false => paths.socket,
            }
        });
        Self { socket, state_dir }
    }

    /// Does somebody answer on the socket?
    pub fn answers(&self) -> bool {
        answers(&self.socket)
    }

    /// A client of the daemon, which is started first when it is not there.
    pub fn client(&self) -> Outcome<Client> {
        let deadline = Instant::now() + DYING_TIMEOUT;
        loop {
            if !self.answers() {
                let idle_exit = std::env::var(IDLE_EXIT.0);
                self.start(idle_exit.as_deref().unwrap_or(IDLE_EXIT.1))?;
            }
            // A daemon that is dying still takes connections, and answers none. It is asked for something harmless,
            // because a request with an effect could not be repeated.
            if matches!(self.version(), Ok(Some(_))) || Instant::now() > deadline {
                return Client::new(&self.socket);
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Its version, if it is there.
    pub fn version(&self) -> Outcome<Option<VersionInfo>> {
        if !self.answers() {
            return Ok(None);
        }
        let answer = Client::new(&self.socket)?.get("/version")?;
        let version = serde_json::from_value(answer);
        version.map(Some).map_err(|error| {
            Problem::new(ProblemCode::Internal, "that is no martletd")
                .cause(error)
                .into()
        })
    }

    /// Starts one that ends after so many seconds without anything to do (0: never), and waits until it answers. Another
    /// one that is just coming is as good; one that is just going is waited for.
    pub fn start(&self, idle_exit_s: &str) -> Outcome {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match self.try_start(idle_exit_s, deadline) {
                Err(Unstarted::Taken(_)) if self.answers() => return Ok(()),
                Err(Unstarted::Taken(_)) if Instant::now() < deadline => std::thread::sleep(TAKEN_INTERVAL),
                Err(Unstarted::Taken(failure) | Unstarted::Failed(failure)) => return Err(failure),
                Ok(()) => return Ok(()),
            }
        }
    }

    fn try_start(&self, idle_exit_s: &str, deadline: Instant) -> Result<(), Unstarted> {
        let program = program();
        let (mut log, log_path) = self.open_log()?;
        let begin = log.seek(SeekFrom::End(0)).unwrap_or(0);
        let spawned = log.try_clone().and_then(|log| {
            let mut command = Command::new(&program);
            command
                .arg("--socket")
                .arg(&self.socket)
                .arg("--state-dir")
                .arg(&self.state_dir)
                .args(["--idle-exit", idle_exit_s]);
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            crate::process::detach(&mut command).current_dir("/").spawn()
        });
        let mut child = spawned.map_err(|error| {
            Failure::from(
                Problem::new(
                    ProblemCode::MissingDependency,
                    format!("cannot start {}", program.display()),
                )
                .cause(error)
                .remediation("install martletd beside martlet or in a directory of PATH"),
            )
        })?;
        while !self.answers() {
            if let Ok(Some(status)) = child.try_wait() {
                let what = format!("the daemon ended at once: {status}");
                let failure = died(&log_path, log, begin, &what);
                return Err(match status.code() == Some(EXIT_TAKEN.into()) {
                    true => Unstarted::Taken(failure),
                    false => Unstarted::Failed(failure),
                });
            }
            if Instant::now() > deadline {
                return Err(slow(&mut child, &log_path, log, begin).into());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Asks it to end and waits until it has. Machines go on.
    pub fn stop(&self) -> Outcome<bool> {
        let Some(version) = self.version()? else {
            return Ok(false);
        };
        let has_ended = crate::process::terminate(version.pid, STOP_TIMEOUT).map_err(|error| {
            Failure::io(format!("cannot end the daemon (process {})", version.pid), error)
        })?;
        if !has_ended {
            return Err(Problem::new(ProblemCode::Busy, "the daemon does not end")
                .cause(format!("process {} still has requests to answer", version.pid))
                .into());
        }
        Ok(true)
    }

    fn open_log(&self) -> Outcome<(File, PathBuf)> {
        let path = self.state_dir.join("martletd.log");
        let opened = fs::create_dir_all(&self.state_dir).and_then(|()| {
            OpenOptions::new()
                .create(true)
                .append(true)
                .read(true)
                .open(&path)
        });
        match opened {
            Ok(file) => Ok((file, path)),
            Err(error) => {
                let mut failure =
                    Failure::io(format!("cannot open the daemon's log {}", path.display()), error);
                failure.problem.remediation =
                    Some("choose a state directory you may write to with MARTLET_STATE_DIR".into());
                Err(failure.exit_with(1))
            }
        }
    }
}

/// Why a daemon was not started.
enum Unstarted {
    /// Another one has the state directory.
    Taken(Failure),
    /// Anything else.
    Failed(Failure),
}

impl From<Failure> for Unstarted {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// Beside this program, else from PATH.
fn program() -> PathBuf {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("martletd")));
    beside
        .filter(|path| path.exists())
        .unwrap_or_else(|| "martletd".into())
}

fn died(path: &Path, log: File, begin: u64, what: &str) -> Failure {
    let words = last_words(log, begin);
    let problem = Problem::new(ProblemCode::Internal, what).remediation(format!(
        "see {}; `martlet doctor` checks what the daemon needs",
        path.display()
    ));
    if words.is_empty() {
        problem.into()
    } else {
        problem.cause(words).into()
    }
}

fn slow(child: &mut Child, path: &Path, log: File, begin: u64) -> Failure {
    let what = format!(
        "the daemon (process {}) does not answer after {START_TIMEOUT:?}",
        child.id()
    );
    died(path, log, begin, &what)
}

/// The end of what was logged since `begin`.
fn last_words(mut log: File, begin: u64) -> String {
    let end = log.seek(SeekFrom::End(0)).unwrap_or(0);
    let from = begin.max(end.saturating_sub(LOG_TAIL_BYTES));
    let mut bytes = Vec::new();
    if log.seek(SeekFrom::Start(from)).is_ok() {
        let _ = log.read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().map(plain).collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// The message of a line of a JSON log.
fn plain(line: &str) -> String {
    let message = serde_json::from_str::<serde_json::Value>(line)
        .ok()
        .and_then(|entry| {
            entry
                .get("message")
                .or_else(|| entry.get("fields")?.get("message"))?
                .as_str()
                .map(String::from)
        });
    message.unwrap_or_else(|| line.to_string())
}
