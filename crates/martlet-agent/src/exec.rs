//! Commands for the host.
//!
//! A command is over when its process has ended and what it wrote has been read. Children it leaves behind may keep its
//! pipes open; nobody waits for them. A command whose stream is abandoned (a new epoch, above all: this is a clone, and
//! the parent's host asked for the command) goes on: its input ends, its output is read and thrown away.

use crate::fault::{Result, io_failed};
use crate::process::{self, Streams};
use crate::pty::{self, Pty};
use crate::stream::Stream;
use crate::syscalls;
use crate::users::User;
use martlet_agent_api::frame::FLAG_STDERR;
use martlet_agent_api::{Control, ExecSpec, Finished};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// A terminal hands on the last output a little after its last writer has ended.
const TERMINAL_DRAIN: Duration = Duration::from_millis(50);

/// How often a kernel that has no descriptors for processes is asked whether the command has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Little is needed: the buffers are on the heap.
const STACK_BYTES: usize = 128 * 1024;

/// A command that has been started.
pub struct Running {
    child: Child,
    channels: Channels,
    /// False once it has been waited for and its number may belong to somebody else.
    alive: Arc<AtomicBool>,
}

/// Starts a command whose input, signals and output go over `stream`.
pub fn start(spec: &ExecSpec, etc: &Path, cgroup: Option<File>, stream: &Stream) -> Result<Running> {
    let user = User::find(etc, spec.command.user.as_deref())?;
    let terminal = |error: &io::Error| io_failed("cannot open a terminal", error);
    let (child, mut channels) = match spec.tty {
        Some(size) => {
            let Pty { master, slave } = Pty::open(size).map_err(|e| terminal(&e))?;
            let copy = || master.try_clone().map_err(|e| terminal(&e));
            let channels = Channels {
                input: Some(copy()?),
                outputs: vec![(0, copy()?.into())],
                terminal: Some(copy()?),
            };
            (
                process::spawn(&spec.command, &user, Streams::Terminal(slave), cgroup)?,
                channels,
            )
        }
        None => {
            let mut child =
                process::spawn(&spec.command, &user, Streams::Pipes { stdin: spec.stdin }, cgroup)?;
            let stdout = child.stdout.take().map(|pipe| (0, OwnedFd::from(pipe)));
            let stderr = child.stderr.take().map(|pipe| (FLAG_STDERR, OwnedFd::from(pipe)));
            let input = child.stdin.take().map(|pipe| File::from(OwnedFd::from(pipe)));
            (
                child,
                Channels {
                    input,
                    outputs: stdout.into_iter().chain(stderr).collect(),
                    terminal: None,
                },
            )
        }
    };
    let group = -(child.id() as i32); // it leads a session, hence a group
    let alive = Arc::new(AtomicBool::new(true));
    handle_control(stream, group, channels.terminal.take(), Arc::clone(&alive));
    Ok(Running {
        child,
        channels,
        alive,
    })
}

/// The agent's ends of a command's pipes or terminal.
struct Channels {
    input: Option<File>,
    outputs: Vec<(u8, OwnedFd)>,
    terminal: Option<File>,
}

fn handle_control(stream: &Stream, group: i32, terminal: Option<File>, alive: Arc<AtomicBool>) {
    stream.set_control_handler(move |control| {
        if !alive.load(Ordering::Acquire) {
            return;
        }
        match (control, &terminal) {
            (Control::Resize(size), Some(terminal)) => drop(pty::resize(terminal, size)),
            (Control::Resize(_), None) => {}
            (Control::Signal(signal), _) => drop(syscalls::kill(group, signal)),
            (Control::Cancel, _) => drop(syscalls::kill(group, libc::SIGHUP)),
        }
    });
}

/// Moves the command's input and output until it is over.
pub fn attend(running: Running, stream: &Arc<Stream>) -> Finished {
    let Running {
        mut child,
        channels,
        alive,
    } = running;
    let is_terminal = channels.outputs.len() == 1;
    if let Some(input) = channels.input {
        // Not waited for: it ends with its stream.
        let stream = Arc::clone(stream);
        let feeder = thread::Builder::new()
            .name("exec-input".into())
            .stack_size(STACK_BYTES);
        let _ = feeder.spawn(move || feed(input, &stream, is_terminal)); // without it the command reads end of file
    }
    let drain = if is_terminal {
        TERMINAL_DRAIN
    } else {
        Duration::ZERO
    };
    match move_output(&mut child, &alive, channels.outputs, drain, stream) {
        Ok(status) => ended_as(status),
        Err(error) => Finished::Failed(io_failed("cannot learn how the command ended", &error)),
    }
}

/// Hands output on until the command has ended and nothing more is there.
fn move_output(
    child: &mut Child,
    alive: &AtomicBool,
    outputs: Vec<(u8, OwnedFd)>,
    drain: Duration,
    stream: &Stream,
) -> io::Result<ExitStatus> {
    let end = syscalls::open_process(child.id()).ok();
    let look_again = end.is_none().then_some(LOOK_AGAIN);
    let mut outputs: Vec<(u8, File)> = outputs
        .into_iter()
        .map(|(flags, output)| (flags, File::from(output)))
        .collect();
    let mut buffer = vec![0; 32 * 1024];
    let (mut status, mut wanted) = (None, true);
    loop {
        let mut fds: Vec<_> = outputs.iter().map(|(_, output)| output.as_fd()).collect();
        fds.extend(end.as_ref().filter(|_| status.is_none()).map(AsFd::as_fd));
        let ready = syscalls::wait_readable(&fds, status.map_or(look_again, |_| Some(drain)))?;
        if let Some(status) = status
            && !ready.contains(&true)
        {
            return Ok(status);
        }
        // What it wrote before its end is there now, and is looked for once more.
        if status.is_none() && (end.is_none() || ready.len() > outputs.len() && ready[outputs.len()]) {
            status = child.try_wait()?;
            alive.store(status.is_none(), Ordering::Release);
        }
        let mut ready = ready.into_iter();
        outputs.retain_mut(|(flags, output)| {
            if ready.next() != Some(true) {
                return true;
            }
            match output.read(&mut buffer) {
                Ok(0) => false,
                Ok(count) => {
                    wanted = wanted && stream.output(*flags, &buffer[..count]);
                    true
                }
                Err(error) => error.kind() == io::ErrorKind::Interrupted, // EIO: nobody has the terminal open any more
            }
        });
    }
}

fn ended_as(status: ExitStatus) -> Finished {
    match (status.code(), status.signal()) {
        (Some(code), _) => Finished::Exited(code),
        (None, signal) => Finished::Killed(signal.unwrap_or(libc::SIGKILL)),
    }
}

fn feed(mut input: File, stream: &Stream, is_terminal: bool) {
    const END_OF_TRANSMISSION: &[u8] = &[4];
    while let Some(bytes) = stream.next_input() {
        if input.write_all(&bytes).is_err() {
            // Go on taking input so that the host is not left waiting for credit.
            while stream.next_input().is_some() {}
            return;
        }
    }
    if is_terminal {
        let _ = input.write_all(END_OF_TRANSMISSION); // the command may be gone
    }
}
