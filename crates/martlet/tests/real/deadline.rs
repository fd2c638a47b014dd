//! Nothing here may hang: whoever takes too long is named, with the logs of its daemon, and everything ends.

use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// For what must come about, but in its own time.
const PATIENCE: Duration = Duration::from_secs(120);

/// Ends the program unless it is dropped in time.
pub struct Deadline {
    _alive: Sender<()>,
}

impl Deadline {
    /// `what` must be over within `limit`; `logs` are shown if it is not.
    pub fn new(what: &str, limit: Duration, logs: Vec<PathBuf>) -> Self {
        let (alive, dropped) = channel::<()>();
        let what = what.to_owned();
        std::thread::spawn(move || {
            if dropped.recv_timeout(limit) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                return;
            }
            eprintln!("{what} is not over after {limit:?}; ending everything");
            for log in logs {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                eprintln!("-- end of {}", log.display());
                for line in &lines[lines.len().saturating_sub(40)..] {
                    eprintln!("{line}");
                }
            }
            // Not through destructors: they would wait for what hangs. `script/test` clears away what is left.
            std::process::exit(101);
        });
        Self { _alive: alive }
    }
}

/// Looks again and again until it `come`s.
#[track_caller]
pub fn wait_for(what: &str, mut come: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !come() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
