//! Commands as a user gives them, and what they answer.

use crate::Daemon;
use serde_json::Value;
use std::io::Write;
use std::process::{Command, Stdio};

/// A command that takes longer hangs.
const LIMIT_S: &str = "300";
/// Exit status of `timeout` when it was longer.
const HUNG: i32 = 124;

/// What a command answered.
#[derive(Debug)]
pub struct Answer {
    pub is_ok: bool,
    pub stdout: Vec<u8>,
    /// Code of the problem, as the API has it.
    pub code: String,
    /// The problem in full.
    pub words: String,
    /// The problem says what to do about it.
    pub has_way_out: bool,
}

impl Answer {
    /// The standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_default()
    }
}

/// Runs the command line.
pub fn call(daemon: &Daemon, args: &[&str]) -> Answer {
    call_with_input(daemon, args, Vec::new())
}

/// Runs the command line with this standard input.
pub fn call_with_input(daemon: &Daemon, args: &[&str], input: Vec<u8>) -> Answer {
    let martlet = daemon.command(&[&["--json"], args].concat());
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", LIMIT_S]);
    command.arg(martlet.get_program()).args(martlet.get_args());
    command.envs(
        martlet
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("timeout is one of the core programs");
    let mut stdin = child.stdin.take().expect("it is a pipe");
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().expect("it is a child of this process");
    let _ = writer.join();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let problem = stderr
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str(line).ok());
    let problem: Value = problem.unwrap_or_else(|| problem_of_clone(&output.stdout));
    let status = output.status.code();
    Answer {
        is_ok: output.status.success(),
        stdout: output.stdout,
        code: match problem["code"].as_str() {
            _ if status == Some(HUNG) => "hangs".into(),
            Some(code) => code.into(),
            None => format!("exit {}", status.unwrap_or(-1)),
        },
        has_way_out: problem["remediation"].is_string(),
        words: match stderr.trim() {
            "" => problem.to_string(),
            words => words.to_owned(),
        },
    }
}

/// A fork tells in its report of the clones that did not start.
fn problem_of_clone(report: &[u8]) -> Value {
    let report: Value = serde_json::from_slice(report).unwrap_or_default();
    let mut clones = report["clones"].as_array().into_iter().flatten();
    let failed = clones.find(|clone| clone["problem"].is_object());
    failed.map(|clone| clone["problem"].clone()).unwrap_or_default()
}
