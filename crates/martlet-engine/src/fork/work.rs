//! Commands in clones: one for each, or one over many inputs; their ends and outputs are in the fork's results.

use super::Family;
use super::task::{Done, News};
use crate::engine::Engine;
use crate::problem::Told;
use martlet_agent_api::Finished;
use martlet_api::{CloneCommand, CloneOutput, CloneResult, ExecRequest, ExitStatus, Problem, ProblemCode};
use martlet_vm::agent::AgentError;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Of each of a command's two outputs so much is kept.
const OUTPUT_BYTES: usize = 256 << 10;
/// A command that has no time limit.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// In the words of a command: the clone's index.
const ID: &str = "{id}";
/// In the words of a command over inputs: the input.
const INPUT: &str = "{}";

/// Why a command has no output.
enum Failed {
    /// It was not there, or did not end: its clone is well.
    Command(Problem),
    /// Its clone is not.
    Clone(Problem),
}

impl Engine {
    /// Runs the command in a clone, to its end.
    pub(crate) fn work(
        self: &Arc<Self>,
        name: &str,
        index: u32,
        command: &CloneCommand,
    ) -> Result<CloneOutput, Problem> {
        let argv = filled(&command.argv, ID, &index.to_string());
        self.run_in(name, argv, command.timeout_s)
            .map_err(|failed| match failed {
                Failed::Command(problem) | Failed::Clone(problem) => problem,
            })
    }

    /// Runs the command in a clone for one input after the other, until there are none.
    pub(crate) fn work_off(
        self: &Arc<Self>,
        family: &Family,
        clone: &CloneResult,
        argv: &[String],
        timeout_s: Option<u64>,
        each: &(dyn Fn(News) + Sync),
    ) -> Result<(), Problem> {
        let argv = filled(argv, ID, &clone.index.to_string());
        let mut done = None;
        loop {
            each(News {
                wants_input: true,
                done: done.take(),
                is_over: false,
                ..News::last(clone.clone())
            });
            let lives = || {
                self.find(&clone.name)
                    .is_ok_and(|machine| machine.live().is_some())
            };
            let Some(input) = family.inboxes.take(clone.index, lives) else {
                return match lives() {
                    true => Ok(()),
                    false => Err(Problem::new(
                        ProblemCode::GuestFailed,
                        format!("{} has ended before its work was done", clone.name),
                    )),
                };
            };
            let begun = Instant::now();
            let outcome = match self.run_in(&clone.name, with_input(&argv, &input.text), timeout_s) {
                Ok(output) => Ok(output),
                Err(Failed::Command(problem)) => Err(problem),
                Err(Failed::Clone(problem)) => return Err(problem),
            };
            done = Some(Done {
                number: input.number,
                took_ms: begun.elapsed().as_secs_f64() * 1e3,
                outcome,
            });
        }
    }

    fn run_in(
        self: &Arc<Self>,
        name: &str,
        argv: Vec<String>,
        timeout_s: Option<u64>,
    ) -> Result<CloneOutput, Failed> {
        let request = ExecRequest {
            argv,
            ..ExecRequest::default()
        };
        let started = self.exec(name, request).map_err(Failed::Clone)?;
        let exec = started.map_err(Failed::Command)?;
        let limit = timeout_s.map_or(LONGEST, Duration::from_secs);
        let outcome = match exec.wait(&[], OUTPUT_BYTES, limit) {
            Err(AgentError::Timeout { .. }) => {
                let words = format!(
                    "the command in {name} had not ended after {} s, and was killed",
                    limit.as_secs()
                );
                return Err(Failed::Command(
                    Problem::new(ProblemCode::GuestFailed, words)
                        .remediation("give it more time: --timeout SECONDS"),
                ));
            }
            outcome => outcome.told().map_err(Failed::Clone)?,
        };
        let status = match outcome.status {
            Finished::Exited(code) => ExitStatus::Code(code),
            Finished::Killed(signal) => ExitStatus::Signal(signal),
            Finished::Copied | Finished::Failed(_) => {
                let words = format!("the agent in {name} does not say how the command has ended");
                return Err(Failed::Command(Problem::new(ProblemCode::GuestFailed, words)));
            }
        };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(CloneOutput {
            status,
            stdout: text(outcome.stdout),
            stderr: text(outcome.stderr),
            is_cut: outcome.truncated,
        })
    }
}

fn filled(argv: &[String], what: &str, with: &str) -> Vec<String> {
    argv.iter().map(|word| word.replace(what, with)).collect()
}

/// The input stands where it is wanted, or last.
fn with_input(argv: &[String], input: &str) -> Vec<String> {
    match argv.iter().any(|word| word.contains(INPUT)) {
        true => filled(argv, INPUT, input),
        false => argv.iter().cloned().chain([input.to_owned()]).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_stands_where_it_is_wanted_or_last() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(with_input(&words("echo a"), "{}"), words("echo a {}"));
        assert_eq!(with_input(&words("cp {} {}.bak"), "f"), words("cp f f.bak"));
    }
}
