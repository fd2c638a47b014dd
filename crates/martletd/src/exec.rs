//! Commands in a guest over an upgraded connection.
//!
//! ```text
//!   client ──frames──► reading task ──► input thread ──► ExecInput      (blocks while the guest does not read)
//!   client ◄─frames─── writing task ◄── event thread ◄── ExecSession.events
//! ```
//!
//! The engine's side blocks, so each direction has a thread of its own, and a short queue between. When the client goes
//! away the command gets SIGHUP, as it would from a terminal that is closed, and its output is read and dropped so
//! that it never hangs on us.

use crate::control::{ExecEvent, ExecInput, ExecSession};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use martlet_api::{ExecFrame, Problem, ProblemCode, TtySize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{Receiver, Sender, channel};

const SIGHUP: i32 = 1;
/// Frames waiting in each direction.
const QUEUE: usize = 16;

type Frame = (ExecFrame, Vec<u8>);

/// Serves a session once the client has switched protocols.
pub async fn serve(upgrade: OnUpgrade, session: ExecSession) {
    let (to_guest, input_queue) = channel(QUEUE);
    let (event_queue, from_guest) = channel(QUEUE);
    let ExecSession { input, events } = session;
    std::thread::spawn(move || feed(input, input_queue));
    std::thread::spawn(move || {
        for event in events {
            // After the client has gone this only drains.
            let _ = event_queue.blocking_send(encode(event));
        }
    });
    let Ok(upgraded) = upgrade.await else { return };
    let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
    let reading = tokio::spawn(read_frames(reader, to_guest));
    match write_frames(writer, from_guest).await {
        Ending::Told => reading.abort(),
        // The reader sees the end too, and hangs up on the command.
        Ending::ClientGone => drop(reading.await),
    }
}

/// Until the client ends or talks nonsense.
async fn read_frames(mut reader: impl AsyncReadExt + Unpin, queue: Sender<Frame>) {
    loop {
        let mut header = [0; ExecFrame::HEADER_LEN];
        if reader.read_exact(&mut header).await.is_err() {
            break;
        }
        let Some((kind, length)) = ExecFrame::decode_header(header) else {
            break;
        };
        let mut payload = vec![0; length];
        if reader.read_exact(&mut payload).await.is_err() {
            break;
        }
        if queue.send((kind, payload)).await.is_err() {
            return;
        }
    }
    let _ = queue.send((ExecFrame::Signal, vec![SIGHUP as u8])).await;
}

fn feed(mut input: Box<dyn ExecInput>, mut queue: Receiver<Frame>) {
    while let Some((kind, payload)) = queue.blocking_recv() {
        let fed = match kind {
            ExecFrame::Stdin => input.stdin(&payload),
            ExecFrame::StdinEnd => input.stdin_end(),
            ExecFrame::Resize => match serde_json::from_slice::<TtySize>(&payload) {
                Ok(size) => input.resize(size),
                Err(_) => return,
            },
            ExecFrame::Signal => match payload[..] {
                [signal @ 1..=64] => input.signal(signal.into()),
                _ => return,
            },
            // These only ever come from the guest.
            ExecFrame::Stdout | ExecFrame::Stderr | ExecFrame::Exit | ExecFrame::Problem => return,
        };
        if let Err(problem) = fed {
            // A command that ended, or closed its input, is told by its events and not here.
            tracing::debug!(%problem, "input of a command was not taken");
        }
    }
}

/// How the conversation with a client ended.
enum Ending {
    /// It has been told how its command ended.
    Told,
    /// It went away before.
    ClientGone,
}

async fn write_frames(mut writer: impl AsyncWriteExt + Unpin, mut frames: Receiver<Vec<Vec<u8>>>) -> Ending {
    let mut ended = false;
    while let Some(encoded) = frames.recv().await {
        for frame in encoded {
            ended = frame[0] == ExecFrame::Exit as u8 || frame[0] == ExecFrame::Problem as u8;
            if writer.write_all(&frame).await.is_err() {
                return Ending::ClientGone;
            }
        }
        if ended {
            break;
        }
        // What TLS could not send at once it keeps until it is asked.
        if writer.flush().await.is_err() {
            return Ending::ClientGone;
        }
    }
    if !ended {
        let lost = Problem::new(ProblemCode::GuestFailed, "the connection to the command was lost")
            .remediation("see `martlet ps` and `martlet logs` for what became of the machine");
        for frame in encode(ExecEvent::Problem(lost)) {
            let _ = writer.write_all(&frame).await;
        }
    }
    let _ = writer.shutdown().await;
    Ending::Told
}

fn encode(event: ExecEvent) -> Vec<Vec<u8>> {
    let chunked = |kind: ExecFrame, bytes: Vec<u8>| {
        bytes
            .chunks(ExecFrame::PAYLOAD_MAX)
            .map(|chunk| kind.encode(chunk))
            .collect()
    };
    match event {
        ExecEvent::Stdout(bytes) => chunked(ExecFrame::Stdout, bytes),
        ExecEvent::Stderr(bytes) => chunked(ExecFrame::Stderr, bytes),
        ExecEvent::Exit(status) => vec![ExecFrame::Exit.encode(&json(&status))],
        ExecEvent::Problem(problem) => vec![ExecFrame::Problem.encode(&json(&problem))],
    }
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("API types are plain data")
}
