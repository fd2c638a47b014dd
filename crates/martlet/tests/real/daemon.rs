//! A daemon with a state directory of its own, talked to by the command line.

use crate::deadline::Deadline;
use crate::fixture::Fixture;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// Longest that a test may take, also on a machine busy with other things.
const TEST_LIMIT: Duration = Duration::from_secs(1200);
/// Tests at a time: each has a guest or several.
const AT_A_TIME: usize = 2;

static AT_WORK: Mutex<usize> = Mutex::new(0);
static TURN: Condvar = Condvar::new();

/// The right to use the machine's processors.
struct Turn;

impl Turn {
    fn wait() -> Self {
        let at_work = AT_WORK.lock().unwrap_or_else(|error| error.into_inner());
        let mut at_work = TURN
            .wait_while(at_work, |at_work| *at_work >= AT_A_TIME)
            .unwrap_or_else(|error| error.into_inner());
        *at_work += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *AT_WORK.lock().unwrap_or_else(|error| error.into_inner()) -= 1;
        TURN.notify_one();
    }
}

/// A daemon of a test's own; whatever happens, nothing of it is left.
pub struct Daemon {
    state: tempfile::TempDir,
    env: Vec<(String, String)>,
    _deadline: Deadline,
    _turn: Option<Turn>,
}

impl Daemon {
    /// One whose store has what the fixture has.
    pub fn new(fixture: Fixture) -> Self {
        let daemon = Self::empty();
        fixture.copy_to(daemon.state_dir());
        daemon
    }

    /// One with nothing in its store.
    pub fn empty() -> Self {
        let turn = Turn::wait();
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        Self::in_new_dir(&test, TEST_LIMIT, Some(turn))
    }

    /// Another host for the same test, with nothing in its store.
    pub fn another(&self) -> Self {
        Self::with_limit("another host", TEST_LIMIT)
    }

    /// One for making a fixture, in the turn of the test that needs it.
    pub fn for_fixture(name: &str) -> Self {
        Self::with_limit(&format!("making fixture {name}"), TEST_LIMIT)
    }

    /// One with nothing in its store, for something that takes its own time and no turns.
    pub fn with_limit(what: &str, limit: Duration) -> Self {
        Self::in_new_dir(what, limit, None)
    }

    fn in_new_dir(what: &str, limit: Duration, turn: Option<Turn>) -> Self {
        let state = tempfile::Builder::new().prefix("mt-").tempdir().unwrap();
        let logs = ["martletd.log", "keeper.log"].map(|log| state.path().join(log));
        Self {
            _deadline: Deadline::new(what, limit, logs.to_vec()),
            state,
            env: Vec::new(),
            _turn: turn,
        }
    }

    /// An environment variable for every later command, and for the daemon that it may start.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// The API's socket.
    pub fn socket(&self) -> PathBuf {
        self.state.path().join("martletd.sock")
    }

    /// The command line with these arguments, not yet started; standard input is empty.
    pub fn command(&self, args: &[&str]) -> Command {
        let programs = Path::new(env!("CARGO_BIN_EXE_martlet")).parent().unwrap();
        for program in ["martletd", "martlet-agent"] {
            assert!(
                programs.join(program).exists(),
                "{program} is not built: run script/build first"
            );
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_martlet"));
        command
            .args(args)
            .env("MARTLET_STATE_DIR", self.state.path())
            .env("MARTLET_SOCKET", self.socket())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs the command line.
    pub fn call(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs the command line with this standard input.
    pub fn call_with_input(&self, args: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// Runs the command line, which must succeed; its standard output, trimmed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.call(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "martlet {args:?}: {:?}\n{stderr}",
            output.status
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Runs the command line, which must fail; its exit code and its standard error.
    #[track_caller]
    pub fn refused(&self, args: &[&str]) -> (i32, String) {
        let output = self.call(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "martlet {args:?} succeeded");
        (output.status.code().unwrap_or(-1), stderr)
    }

    /// Runs the command line with this standard input, which must succeed; its standard output, trimmed.
    #[track_caller]
    pub fn ok_with_input(&self, args: &[&str], input: &str) -> String {
        let output = self.call_with_input(args, input.as_bytes());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "martlet {args:?}: {stderr}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Runs the command line with this standard input, which must fail; the code of the problem.
    #[track_caller]
    pub fn fails_with_input(&self, args: &[&str], input: &str) -> String {
        let output = self.call_with_input(&[&["--json"], args].concat(), input.as_bytes());
        assert!(!output.status.success(), "martlet {args:?} succeeded");
        let problem: Value = serde_json::from_slice(&output.stderr).unwrap_or_default();
        let code = problem["code"].as_str().map(str::to_owned);
        code.unwrap_or_else(|| panic!("{args:?}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Runs the command line with `--json`, which must succeed.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[&["--json"], args].concat())).unwrap()
    }

    /// Runs a line of shell in a guest, which must succeed.
    #[track_caller]
    pub fn exec(&self, name: &str, line: &str) -> String {
        self.ok(&["exec", name, "--", "sh", "-c", line])
    }

    /// The daemon's process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        let holder = fs::read_to_string(self.state.path().join("martletd.lock")).ok()?;
        let pid = holder.strip_prefix("process ")?.split(',').next()?.parse().ok()?;
        // Not its directory: that is still there for a zombie, until somebody reaps it.
        fs::read_link(format!("/proc/{pid}/exe")).is_ok().then_some(pid)
    }

    /// Other processes that name the state directory and these words.
    pub fn processes(&self, words: &str) -> Vec<u64> {
        let own = self.state.path().to_string_lossy().into_owned();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| *pid != u64::from(std::process::id()))
            .filter(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                line.contains(&own) && line.contains(words)
            })
            .collect()
    }

    /// What is mounted on the state directory and below it.
    pub fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        points
            .filter(|point| Path::new(point).starts_with(self.state.path()))
            .map(str::to_owned)
            .collect()
    }

    /// Ends what is left by force: every process that names the state directory, then its mounts.
    fn sweep(&self) {
        // By force, so that its connection ends: whoever waits for an answer to a page fault cannot even be killed. And
        // without a look at it, which nobody would answer.
        for point in self.mounts() {
            let _ = Command::new("umount").args(["-f", "-l", "-c", &point]).status();
        }
        for pid in self.processes("") {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.pid().is_some() || self.socket().exists() {
            let machines = self.call(&["--json", "ps"]);
            let machines: Value = serde_json::from_slice(&machines.stdout).unwrap_or_default();
            for machine in machines.as_array().into_iter().flatten() {
                self.call(&["rm", "--force", machine["name"].as_str().unwrap_or_default()]);
            }
            self.call(&["daemon", "stop"]);
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.state.path().join("martletd.log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(30)..] {
                eprintln!("martletd: {line}");
            }
        }
        self.sweep();
    }
}
