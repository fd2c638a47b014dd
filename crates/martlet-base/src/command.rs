//! Running the host's programs: bounded output, killed as a group when the build is cancelled.

use crate::error::IoContext;
use crate::{BaseError, Job};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// No program we run answers with more on standard output than this.
const STDOUT_LIMIT_BYTES: u64 = 16 << 20;
/// Kept of standard error.
const LAST_WORDS_BYTES: usize = 4 << 10;
/// Time a cancelled program has to clean up after itself.
const GRACE: Duration = Duration::from_secs(5);

/// One run of a program.
pub(crate) struct Run {
    tool: String,
    package: &'static str,
    command: Command,
}

impl Run {
    /// `tool` is in Debian's `package`.
    pub(crate) fn new(tool: impl AsRef<OsStr>, package: &'static str) -> Self {
        let tool = tool.as_ref();
        let mut command = Command::new(tool);
        // Messages are parsed and shown: one language. Daemons often start without the sbin directories.
        command
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("PATH", search_path());
        command.stdin(Stdio::null()).process_group(0);
        Self {
            tool: tool.to_string_lossy().into_owned(),
            package,
            command,
        }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn current_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs it to its end; what it wrote to standard output.
    pub(crate) fn output(self, job: &Job) -> Result<Vec<u8>, BaseError> {
        self.watched(job, &mut |_| ())
    }

    /// Runs it to its end, showing each line of standard error to `line`.
    pub(crate) fn watched(mut self, job: &Job, line: &mut dyn FnMut(&str)) -> Result<Vec<u8>, BaseError> {
        job.check()?;
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Group(self.command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => BaseError::MissingTool {
                tool: self.tool.clone(),
                package: self.package,
            },
            _ => BaseError::Io {
                action: "start",
                path: (&self.tool).into(),
                source: error,
            },
        })?);
        let stdout = child.0.stdout.take().expect("standard output was asked for");
        let stderr = child.0.stderr.take().expect("standard error was asked for");
        let (lines, seen) = std::sync::mpsc::channel::<String>();
        let (status, answer, last_words) = std::thread::scope(|scope| {
            let answer = scope.spawn(move || {
                let mut bytes = Vec::new();
                stdout
                    .take(STDOUT_LIMIT_BYTES)
                    .read_to_end(&mut bytes)
                    .map(|_| bytes)
            });
            let last_words = scope.spawn(move || tail(stderr, &lines));
            let status = loop {
                while let Ok(text) = seen.try_recv() {
                    line(&text);
                }
                match child.0.try_wait().during("wait for", Path::new(&self.tool)) {
                    Ok(Some(status)) => break Ok(status),
                    Ok(None) if job.check().is_err() => {
                        child.end();
                        break Err(BaseError::Cancelled);
                    }
                    Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                    Err(error) => {
                        child.end();
                        break Err(error);
                    }
                }
            };
            (status, answer.join(), last_words.join())
        });
        let status: ExitStatus = status?;
        let last_words = last_words.unwrap_or_default();
        if !status.success() {
            return Err(BaseError::Tool {
                tool: self.tool,
                status: status.to_string(),
                last_words,
            });
        }
        answer
            .unwrap_or_else(|_| Ok(Vec::new()))
            .during("read the output of", Path::new(&self.tool))
    }
}

/// The end of what a program says on standard error, each line passed on as it comes.
fn tail(mut stderr: impl Read, lines: &std::sync::mpsc::Sender<String>) -> String {
    let (mut kept, mut line, mut buffer) = (VecDeque::new(), Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = stderr.read(&mut buffer) {
        for &byte in &buffer[..read] {
            kept.push_back(byte);
            if byte == b'\n' || byte == b'\r' {
                // The receiver lives as long as the child; a lost line is only a lost progress report.
                let _ = lines.send(String::from_utf8_lossy(&line).into_owned());
                line.clear();
            } else if line.len() < 512 {
                line.push(byte);
            }
        }
        kept.drain(..kept.len().saturating_sub(LAST_WORDS_BYTES));
    }
    String::from_utf8_lossy(kept.make_contiguous()).trim().to_owned()
}

/// A child that leads its own process group, so that what it started ends with it.
struct Group(Child);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself meanwhile.
            let _ = kill_process_group(pid, signal);
        }
    }

    /// Asks it to end, then makes it.
    fn end(&mut self) {
        self.signal(Signal::TERM);
        let asked = Instant::now();
        while asked.elapsed() < GRACE {
            if !matches!(self.0.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.signal(Signal::KILL);
        let _ = self.0.wait();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.end();
        }
    }
}

/// The environment's `PATH` and the places where Debian keeps its administration programs.
fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{PidfdFlags, pidfd_open};

    #[test]
    fn a_missing_tool_names_its_package() {
        let bench = Bench::new();
        let error = Run::new("no-such-tool", "some-package")
            .output(&bench.job())
            .unwrap_err();
        assert!(
            error.to_string().contains("apt-get install some-package"),
            "{error}"
        );
    }

    #[test]
    fn last_words_and_lines_are_kept() {
        let bench = Bench::new();
        let mut lines = Vec::new();
        let error = Run::new("sh", "dash")
            .args(["-c", "echo one >&2; echo two >&2; exit 3"])
            .watched(&bench.job(), &mut |line| lines.push(line.to_owned()))
            .unwrap_err();
        assert!(
            matches!(&error, BaseError::Tool { last_words, .. } if last_words == "one\ntwo"),
            "{error}"
        );
        assert!(lines.len() <= 2);
    }

    #[test]
    fn cancelling_ends_grandchildren_too() {
        let bench = Bench::new();
        let pid_file = bench.dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
        let grandchild = std::thread::scope(|scope| {
            let canceller = scope.spawn(|| {
                let pid = loop {
                    match std::fs::read_to_string(&pid_file) {
                        Ok(text) if text.ends_with('\n') => break text.trim().parse().unwrap(),
                        _ => std::thread::sleep(Duration::from_millis(2)),
                    }
                };
                let grandchild = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
                bench.cancel.store(true, std::sync::atomic::Ordering::Relaxed);
                grandchild
            });
            let error = Run::new("sh", "dash")
                .args(["-c", &script])
                .output(&bench.job())
                .unwrap_err();
            assert!(matches!(error, BaseError::Cancelled));
            canceller.join().unwrap()
        });
        // A killed process closes its files, for which the run waits, a little before it counts as ended.
        let patience = Timespec::try_from(Duration::from_secs(60)).unwrap();
        let ended = poll(&mut [PollFd::new(&grandchild, PollFlags::IN)], Some(&patience)).unwrap();
        assert_eq!(ended, 1, "the grandchild still runs");
    }
}
