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
use std::io::{self, PipeReader, Read, Write};
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
    let pipes: Option<Vec<_>> = channels.outputs.iter().map(|_| io::pipe().ok()).collect();
    let (readers, exit_signals): (Vec<_>, Vec<_>) = pipes.unwrap_or_default().into_iter().unzip();
    let mut readers = readers.into_iter();
    let pumps: Vec<_> = channels
        .outputs
        .into_iter()
        .filter_map(|(flags, output)| {
            let (stream, exited) = (Arc::clone(stream), readers.next()?);
            let pump = thread::Builder::new()
                .name("exec-output".into())
                .stack_size(STACK_BYTES);
            pump.spawn(move || pump_output(output, flags, &exited, drain, &stream))
                .ok()
        })
        .collect();
    let status = child.wait();
    alive.store(false, Ordering::Release);
    drop(exit_signals);
    for pump in pumps {
        let _ = pump.join(); // a pump does not panic; if it did, its output has ended
    }
    match status {
        Ok(status) => ended_as(status),
        Err(error) => Finished::Failed(io_failed("cannot learn how the command ended", &error)),
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

/// Hands output on until it ends, or nothing more is there once `exited` is closed.
fn pump_output(output: OwnedFd, flags: u8, exited: &PipeReader, drain: Duration, stream: &Stream) {
    let mut output = File::from(output);
    let mut buffer = vec![0; 32 * 1024];
    let mut wanted = true;
    loop {
        match syscalls::wait_readable(output.as_fd(), Some(exited.as_fd()), None) {
            Ok(true) => {}
            Ok(false) => match syscalls::wait_readable(output.as_fd(), None, Some(drain)) {
                Ok(true) => {}
                Ok(false) | Err(_) => return,
            },
            Err(_) => return,
        }
        match output.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => wanted = wanted && stream.output(flags, &buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return, // EIO: the last user of the terminal has closed it
        }
    }
}
