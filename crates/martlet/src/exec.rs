//! A command in a guest, joined with this terminal.
//!
//! ```text
//!   stdin thread ──data──►┐
//!   signals, resizes ─────┴► writing task ──► daemon ──► reading task ──► stdout, stderr, exit status
//! ```
//!
//! Each direction goes on while the other waits, so that a command that reads nothing can still write. Signals
//! overtake input that is waiting. The terminal is put back whatever happens, because its guard lives in this frame.

use crate::client::Client;
use crate::failure::{EXEC_FAILED, Failure, Outcome};
use crate::terminal::{self, RawMode};
use martlet_api::{ExecFrame, ExecRequest, ExitStatus, Problem, ProblemCode};
use std::io::{self, IsTerminal, Read, Write};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, channel, unbounded_channel};

type Frame = (ExecFrame, Vec<u8>);

const INPUT_BYTES: usize = 32 << 10;
const QUEUE: usize = 8;
/// A command that ignores so many SIGINT or SIGTERM is left alone.
const PATIENCE: u32 = 3;

/// Runs a command; answers with its exit status.
pub fn run(client: &Client, name: &str, request: ExecRequest) -> Outcome<u8> {
    if request.tty.is_some() && request.stdin && !io::stdin().is_terminal() {
        let problem = Problem::new(ProblemCode::InvalidArgument, "standard input is not a terminal")
            .remediation("leave out --tty, or run it from a terminal");
        return Err(Failure::from(problem).exit_with(EXEC_FAILED));
    }
    client
        .runtime
        .block_on(session(client, name, request))
        .map_err(|failure| match failure.exit_code {
            126 | 127 => failure,
            _ => failure.exit_with(EXEC_FAILED),
        })
}

async fn session(client: &Client, name: &str, request: ExecRequest) -> Outcome<u8> {
    let path = format!("/v1/machines/{name}/exec");
    let connection = client.upgrade(&path, "martlet-exec", &request).await?;
    let (reader, writer) = tokio::io::split(connection);
    let (frames, mut from_guest) = channel(QUEUE);
    tokio::spawn(read_frames(reader, frames));
    let (input, input_queue) = channel(QUEUE);
    let (control, control_queue) = unbounded_channel();
    tokio::spawn(write_frames(writer, input_queue, control_queue));
    let _raw = match request.tty.is_some() && request.stdin {
        true => Some(RawMode::enter().map_err(|error| Failure::io("cannot set up the terminal", error))?),
        false => None,
    };
    if request.stdin {
        std::thread::spawn(move || read_stdin(&input));
    }
    let mut asked_to_end = 0;
    let mut signals = Signals::new(request.tty.is_some())?;
    loop {
        tokio::select! {
            frame = from_guest.recv() => match frame {
                Some((ExecFrame::Exit, payload)) => return exit_status(&payload),
                Some((ExecFrame::Problem, payload)) => return Err(not_executed(&payload)),
                Some((kind, payload)) => if show(kind, &payload).is_err() {
                    return Ok(128 + libc::SIGPIPE as u8); // nobody reads what the command writes
                },
                None => return Err(Failure::new(ProblemCode::Internal, "the connection to the command was lost")),
            },
            number = signals.next() => {
                if matches!(number, libc::SIGINT | libc::SIGTERM) {
                    asked_to_end += 1;
                    if asked_to_end == PATIENCE {
                        return Ok(128 + number as u8); // the daemon hangs up on the command
                    }
                }
                let frame = match number {
                    libc::SIGWINCH => terminal::size().map(|size| {
                        (ExecFrame::Resize, serde_json::to_vec(&size).expect("a size is plain data"))
                    }),
                    number => Some((ExecFrame::Signal, vec![number as u8])),
                };
                if let Some(frame) = frame {
                    let _ = control.send(frame); // the reader tells when the connection is gone
                }
            }
        }
    }
}

/// Signals that are the command's business.
struct Signals(Vec<(i32, Signal)>);

impl Signals {
    fn new(tty: bool) -> Outcome<Self> {
        let mut numbers = vec![
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGHUP,
            libc::SIGQUIT,
            libc::SIGUSR1,
            libc::SIGUSR2,
        ];
        if tty {
            numbers.push(libc::SIGWINCH);
        }
        let listen = |number| signal(SignalKind::from_raw(number)).map(|signal| (number, signal));
        let signals: io::Result<_> = numbers.into_iter().map(listen).collect();
        Ok(Self(signals.map_err(|error| {
            Failure::io("cannot listen for signals", error)
        })?))
    }

    async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

fn read_stdin(queue: &Sender<Frame>) {
    let mut buffer = vec![0; INPUT_BYTES];
    loop {
        let frame = match io::stdin().lock().read(&mut buffer) {
            Ok(length) if length > 0 => (ExecFrame::Stdin, buffer[..length].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            _ => (ExecFrame::StdinEnd, Vec::new()),
        };
        let last = frame.0 == ExecFrame::StdinEnd;
        if queue.blocking_send(frame).is_err() || last {
            return;
        }
    }
}

async fn write_frames(
    mut writer: impl AsyncWriteExt + Unpin,
    mut input: Receiver<Frame>,
    mut control: UnboundedReceiver<Frame>,
) {
    let mut input_open = true;
    loop {
        let (kind, payload) = tokio::select! {
            biased;
            Some(frame) = control.recv() => frame,
            frame = input.recv(), if input_open => match frame {
                Some(frame) => frame,
                None => {
                    input_open = false;
                    continue;
                }
            },
            else => return,
        };
        // What TLS could not send at once it keeps until it is asked.
        if writer.write_all(&kind.encode(&payload)).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
}

async fn read_frames(mut reader: impl AsyncReadExt + Unpin, queue: Sender<Frame>) {
    loop {
        let mut header = [0; ExecFrame::HEADER_LEN];
        if reader.read_exact(&mut header).await.is_err() {
            return;
        }
        let Some((kind, length)) = ExecFrame::decode_header(header) else {
            return;
        };
        let mut payload = vec![0; length];
        if reader.read_exact(&mut payload).await.is_err() || queue.send((kind, payload)).await.is_err() {
            return;
        }
    }
}

fn show(kind: ExecFrame, payload: &[u8]) -> io::Result<()> {
    match kind {
        ExecFrame::Stderr => io::stderr().write_all(payload),
        _ => {
            let mut out = io::stdout().lock();
            out.write_all(payload)?;
            out.flush()
        }
    }
}

fn exit_status(payload: &[u8]) -> Outcome<u8> {
    match serde_json::from_slice(payload) {
        Ok(ExitStatus::Code(code)) => Ok(code as u8),
        Ok(ExitStatus::Signal(signal)) => Ok((128 + signal) as u8),
        Err(_) => Err(Failure::new(
            ProblemCode::Internal,
            "the command's exit status was not understood",
        )),
    }
}

/// The command could not be started in the guest: shells have numbers for that.
fn not_executed(payload: &[u8]) -> Failure {
    let problem = serde_json::from_slice(payload)
        .unwrap_or_else(|_| Problem::new(ProblemCode::Internal, "the daemon's answer was not understood"));
    let exit_code = match problem.code {
        ProblemCode::NotFound => 127,
        ProblemCode::PermissionDenied => 126,
        _ => EXEC_FAILED,
    };
    Failure::from(problem).exit_with(exit_code)
}
