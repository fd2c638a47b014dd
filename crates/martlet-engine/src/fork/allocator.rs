//! Allocation by a plug-in: a program that says which hosts start the clones, and for how long they may have them. It stands between a fork and
//! whoever manages the hosts (Slurm, …), so that Martlet knows none of those. What both say is in docs/allocators.md.
//!
//! ```text
//!   started ──asked──► granted: clones start, work ──────────────────► given back: its input ends, it exits, or is killed
//!                │          └── it says that it has ended, or exits ──► ended: all clones are ended ──► given back
//!                └── refuses, is silent, says what is no answer: no fork ─────────────────────────────► given back
//! ```
//!
//! What it says is bounded and checked. Its input ends with the daemon too, however that dies: that is the same as giving back.

use crate::engine::lock;
use martlet_api::{Problem, ProblemCode};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, geteuid, kill_process_group, waitid};
use serde::{Deserialize, Serialize};
use std::fs::{self, Metadata};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A line of a plug-in is not longer.
const LINE_BYTES_MAX: u64 = 256 << 10;
/// Of its words so many characters are passed on.
const WORDS_MAX: usize = 400;
/// It is killed when it has not exited so long after the allocation was given back.
const GRACE: Duration = Duration::from_secs(10);
/// What it said before its exit is read within this time.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A host as a plug-in is told of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Offered {
    pub name: String,
    pub cpus: u32,
    pub load: f64,
    pub memory_available_bytes: u64,
    /// How many clones it takes yet, if it has a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clones_left: Option<u32>,
}

/// What is asked of a plug-in.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Request {
    /// How many clones.
    pub count: u32,
    /// Memory of each.
    pub memory_bytes: u64,
    /// Processors of each.
    pub cpus: u32,
    /// Whose clones.
    pub machine: String,
    /// The guest's user whose program asks, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_uid: Option<u32>,
    /// Hosts that could run them.
    pub hosts: Vec<Offered>,
}

/// How many clones one host starts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Grant {
    pub host: String,
    pub count: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Asked<'a> {
    Allocate(&'a Request),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Granted(Vec<Grant>),
    Refused(String),
    Ended(String),
}

type OnEnd = Box<dyn FnOnce(String) + Send>;

#[derive(Default)]
struct State {
    /// Its input, while nothing is being written there.
    stdin: Option<ChildStdin>,
    answer: Option<Result<Vec<Grant>, String>>,
    /// There is nothing more to read.
    is_read: bool,
    has_exited: bool,
    /// Why the allocation has ended, if it was not given back.
    ended: Option<String>,
    is_given_back: bool,
    on_end: Option<OnEnd>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// An allocation that holds; it is given back when it is dropped.
pub(crate) struct Allocation {
    name: String,
    asked: u32,
    granted: u32,
    child: Child,
    shared: Arc<Shared>,
}

/// The program of a plug-in, if one of that name may be run.
pub(crate) fn find(dir: &Path, name: &str) -> Result<PathBuf, Problem> {
    martlet_api::names::check_name(name)?;
    let path = dir.join(name);
    let looked = fs::metadata(dir).and_then(|of_dir| Ok((of_dir, fs::metadata(&path)?)));
    let (of_dir, of_program) = looked.map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            let words = format!("there is no allocator {name} in {}", dir.display());
            Problem::new(ProblemCode::NotFound, words)
                .remediation("put the program there, or name its directory with MARTLET_ALLOCATORS in martletd's environment")
        }
        _ => crate::problem::io("look at", &path, &error),
    })?;
    let is_program = of_program.is_file() && of_program.mode() & 0o111 != 0;
    if !is_program || !is_safe(&of_dir) || !is_safe(&of_program) {
        let words = format!("{} is not run as an allocator", path.display());
        return Err(Problem::new(ProblemCode::PermissionDenied, words).remediation(
            "it and its directory have to be root's or the daemon's user's, writable by nobody else, and it executable",
        ));
    }
    Ok(path)
}

fn is_safe(of: &Metadata) -> bool {
    [0, geteuid().as_raw()].contains(&of.uid()) && of.mode() & 0o022 == 0
}

impl Allocation {
    /// Asks a plug-in; what it grants, and the allocation.
    pub(crate) fn ask(
        program: &Path,
        name: &str,
        request: &Request,
        within: Duration,
    ) -> Result<(Vec<Grant>, Self), Problem> {
        let failed = |error| {
            let words = format!("allocator {name} cannot be started");
            Problem::new(ProblemCode::Internal, words).cause(error)
        };
        // A group of its own: what it has started ends with it.
        let mut child = Command::new(program)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let stdin = child.stdin.take().expect("it was asked for");
        let stdout = child.stdout.take().expect("it was asked for");
        let mut allocation = Self {
            name: name.to_owned(),
            asked: request.count,
            granted: 0,
            child,
            shared: Arc::default(),
        };
        let line = serde_json::to_string(&Asked::Allocate(request)).expect("plain data");
        let (talking, waiting) = (allocation.shared.clone(), allocation.shared.clone());
        let pid = Pid::from_child(&allocation.child);
        let thread = |work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name("allocator".into());
            thread.spawn(work).map(drop).map_err(failed)
        };
        thread(Box::new(move || talking.talk(line, stdin, stdout)))?;
        thread(Box::new(move || waiting.wait_for_exit(pid)))?;
        let granted = allocation.answer(within)?;
        allocation.granted = check(name, &granted, request)?;
        Ok((granted, allocation))
    }

    /// What is done when it ends before it is given back; at once, when it has ended already.
    pub(crate) fn on_end(&self, act: impl FnOnce(Problem) + Send + 'static) {
        let name = self.name.clone();
        let act: OnEnd = Box::new(move |words| act(over(&name, words)));
        let mut state = lock(&self.shared.state);
        match state.ended.clone() {
            Some(words) => {
                drop(state);
                act(words);
            }
            None => state.on_end = Some(act),
        }
    }

    /// What is said of clones that it does not grant.
    pub(crate) fn lacks(&self) -> Problem {
        let words = format!(
            "allocator {} grants {} of {} clones",
            self.name, self.granted, self.asked
        );
        Problem::new(ProblemCode::NoSpace, words)
    }

    fn answer(&self, within: Duration) -> Result<Vec<Grant>, Problem> {
        let none = |state: &mut State| state.answer.is_none() && state.ended.is_none() && !state.is_read;
        let state = lock(&self.shared.state);
        let waited = self.shared.changed.wait_timeout_while(state, within, none);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        // Whoever says nothing more has exited, mostly, and that says more.
        let lasts = |state: &mut State| state.is_read && state.answer.is_none() && state.ended.is_none();
        let waited = self.shared.changed.wait_timeout_while(state, LAST_WORDS, lasts);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let name = &self.name;
        match (&state.answer, &state.ended) {
            (Some(Ok(granted)), _) if !granted.is_empty() => Ok(granted.clone()),
            (Some(Ok(_)), _) => Err(refused(name, "it grants nothing")),
            (Some(Err(words)), _) => Err(refused(name, words)),
            (None, Some(words)) => Err(no_answer(name, words)),
            (None, None) if state.is_read => Err(no_answer(name, "it says nothing")),
            (None, None) => {
                let words = format!("it says nothing within {} s", within.as_secs());
                Err(no_answer(name, words))
            }
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.is_given_back = true;
        drop(state.on_end.take());
        drop(state.stdin.take());
        let deadline = Instant::now() + GRACE;
        while !state.has_exited && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if !state.has_exited {
            tracing::warn!(allocator = self.name, "it does not exit, and is killed");
        }
        drop(state);
        // It was not waited for yet, so nobody else has its number.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL); // nobody may be left
        let _ = self.child.wait(); // it was killed
        tracing::info!(allocator = self.name, "the allocation was given back");
    }
}

impl Shared {
    fn talk(&self, line: String, mut stdin: ChildStdin, stdout: ChildStdout) {
        // Whether it was read is told by the answer.
        let _ = stdin.write_all(format!("{line}\n").as_bytes());
        {
            let mut state = lock(&self.state);
            if !state.is_given_back {
                state.stdin = Some(stdin);
            }
        }
        let mut lines = BufReader::new(stdout);
        while let Some(said) = next_line(&mut lines) {
            let is_first = lock(&self.state).answer.is_none();
            match (said, is_first) {
                (Ok(Said::Granted(granted)), true) => lock(&self.state).answer = Some(Ok(granted)),
                (Ok(Said::Refused(words)), true) => lock(&self.state).answer = Some(Err(shown(&words))),
                (Ok(Said::Ended(words)), _) => self.end(shown(&words)),
                (Ok(_), false) => self.end("it answered twice".into()),
                (Err(words), _) => {
                    self.end(words);
                    break;
                }
            }
            self.changed.notify_all();
        }
        lock(&self.state).is_read = true;
        self.changed.notify_all();
    }

    /// It stays a zombie until the allocation is dropped.
    fn wait_for_exit(&self, pid: Pid) {
        let how = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        let how = match how.ok().flatten() {
            Some(how) => match (how.exit_status(), how.terminating_signal()) {
                (Some(code), _) => format!("it exited with {code}"),
                (None, Some(signal)) => format!("it was killed by signal {signal}"),
                (None, None) => "it exited".into(),
            },
            None => "it exited".into(),
        };
        let state = lock(&self.state);
        let unread = |state: &mut State| !state.is_read;
        let waited = self.changed.wait_timeout_while(state, LAST_WORDS, unread);
        waited.unwrap_or_else(PoisonError::into_inner).0.has_exited = true;
        self.end(how);
    }

    fn end(&self, words: String) {
        let mut state = lock(&self.state);
        let words = state.ended.get_or_insert(words).clone();
        let act = state.on_end.take();
        drop(state);
        self.changed.notify_all();
        if let Some(act) = act {
            act(words);
        }
    }
}

/// What a plug-in says next, or why that is nothing; `None` at the end.
fn next_line(lines: &mut impl BufRead) -> Option<Result<Said, String>> {
    let mut line = Vec::new();
    let read = lines.take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
    match read {
        Ok(0) | Err(_) => None,
        Ok(_) if line.len() as u64 == LINE_BYTES_MAX => Some(Err("it says too much".into())),
        Ok(_) => Some(serde_json::from_slice(&line).map_err(|_| {
            let line = String::from_utf8_lossy(&line);
            format!("it says {:?}, which is no answer", shown(line.trim()))
        })),
    }
}

/// How many clones it grants, if that is what was asked for.
fn check(name: &str, granted: &[Grant], request: &Request) -> Result<u32, Problem> {
    let mut count = 0;
    for grant in granted {
        if !request.hosts.iter().any(|host| host.name == grant.host) {
            let words = format!(
                "it grants clones at {:?}, which is no host that it was told of",
                shown(&grant.host)
            );
            return Err(no_answer(name, words));
        }
        count += u64::from(grant.count);
    }
    match count {
        0 => Err(refused(name, "it grants nothing")),
        _ if count > request.count.into() => {
            let words = format!("it grants {count} clones where {} were asked for", request.count);
            Err(no_answer(name, words))
        }
        _ => Ok(count as u32),
    }
}

fn shown(words: &str) -> String {
    let plain = words.chars().filter(|c| !c.is_control());
    plain.take(WORDS_MAX).collect()
}

fn refused(name: &str, words: impl ToString) -> Problem {
    let message = format!("allocator {name} refuses");
    Problem::new(ProblemCode::NoSpace, message).cause(words.to_string())
}

fn no_answer(name: &str, words: impl ToString) -> Problem {
    let message = format!("allocator {name} does not answer as it should");
    Problem::new(ProblemCode::Internal, message)
        .cause(words.to_string())
        .remediation("what it wrote to its standard error is in martletd's log; docs/allocators.md says what it has to answer")
}

fn over(name: &str, words: impl ToString) -> Problem {
    let message = format!("the allocation by {name} has ended");
    Problem::new(ProblemCode::WrongState, message).cause(words.to_string())
}

#[cfg(test)]
#[path = "allocator_tests.rs"]
mod tests;
