//! An agent that answers as a test says, and knows what it was asked.

use martlet_agent_api::guest::{GuestCall, LINE_BYTES};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// What is answered before the connection is ended.
pub struct Reply(Vec<u8>);

impl Reply {
    /// These bytes.
    pub fn bytes(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// This line.
    pub fn line(line: &[u8]) -> Self {
        Self([line, b"\n"].concat())
    }

    /// This answer.
    pub fn ok(answer: &str) -> Self {
        Self::line(format!(r#"{{"ok":{answer}}}"#).as_bytes())
    }

    /// An error of this kind.
    pub fn error(kind: &str) -> Self {
        let message = r#"those are \"the\" words"#;
        Self::line(format!(r#"{{"error":{{"kind":"{kind}","message":"{message}"}}}}"#).as_bytes())
    }
}

/// What it was asked, and a bell for each call.
type Calls = Arc<(Mutex<Vec<GuestCall>>, Condvar)>;

/// The agent, until it is dropped.
pub struct Agent {
    /// As clients are told it.
    pub socket: String,
    address: SocketAddr,
    calls: Calls,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _directory: Option<tempfile::TempDir>,
}

impl Agent {
    /// One in the abstract namespace.
    pub fn start(answer: impl FnMut(&GuestCall) -> Reply + Send + 'static) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("martlet.guest.test.{}.{next}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        Self::listen(format!("@{name}"), address, None, answer)
    }

    /// One at a path.
    pub fn start_at_path(answer: impl FnMut(&GuestCall) -> Reply + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent");
        let address = SocketAddr::from_pathname(&path).unwrap();
        Self::listen(path.to_str().unwrap().into(), address, Some(directory), answer)
    }

    /// One that listens no more.
    pub fn gone() -> Self {
        let mut agent = Self::start(|_| Reply::bytes(b""));
        agent.stop();
        agent
    }

    fn listen(
        socket: String,
        address: SocketAddr,
        directory: Option<tempfile::TempDir>,
        mut answer: impl FnMut(&GuestCall) -> Reply + Send + 'static,
    ) -> Self {
        let listener = UnixListener::bind_addr(&address).unwrap();
        let (calls, over) = (Calls::default(), Arc::new(AtomicBool::new(false)));
        let (known, ends) = (calls.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                if let Some(call) = read_call(&stream) {
                    let reply = answer(&call);
                    known.0.lock().unwrap().push(call);
                    known.1.notify_all();
                    let _ = (&stream).write_all(&reply.0); // who has read enough does not wait for the rest
                }
            }
        });
        Self {
            socket,
            address,
            calls,
            over,
            thread: Some(thread),
            _directory: directory,
        }
    }

    /// What it was asked so far.
    pub fn calls(&self) -> Vec<GuestCall> {
        self.calls.0.lock().unwrap().clone()
    }

    /// Waits until it has been asked so much.
    pub fn wait_for(&self, count: usize) {
        let calls = self.calls.0.lock().unwrap();
        let _calls = self
            .calls
            .1
            .wait_while(calls, |calls| calls.len() < count)
            .unwrap();
    }

    fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.over.store(true, Ordering::Relaxed);
            let _ = UnixStream::connect_addr(&self.address);
            thread.join().unwrap();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}

/// None where a client only looked whether somebody listens.
fn read_call(stream: &UnixStream) -> Option<GuestCall> {
    let mut line = Vec::new();
    let mut bounded = BufReader::new(stream).take(LINE_BYTES as u64);
    bounded.read_until(b'\n', &mut line).ok()?;
    if line.is_empty() {
        return None;
    }
    Some(serde_json::from_slice(&line).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&line))))
}
