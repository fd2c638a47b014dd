//! What a site may meet while it is at work: its daemon dies, its link is cut.

use super::{Site, lab_failed};
use crate::BenchError;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const GONE_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(2);

impl Site {
    /// Starts a command of the command line, whose answer nobody wants.
    pub fn spawn(&self, args: &[&str]) -> Result<Child, BenchError> {
        let mut command = self.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map_err(BenchError::io("run martlet"))
    }

    /// A command of the command line that may be refused; its answer or what it said.
    pub fn attempt(&self, args: &[&str]) -> Result<Result<Value, String>, BenchError> {
        let output = self.command(args).output();
        let output = output.map_err(BenchError::io("run martlet"))?;
        Ok(match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).unwrap_or_default()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        })
    }

    /// Ends the daemon as nothing else does, and waits until it is gone. The next command starts another.
    pub fn kill_daemon(&self) -> Result<(), BenchError> {
        let Some(pid) = self.daemon() else {
            return Ok(());
        };
        let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
        killed.map_err(BenchError::io("run kill"))?;
        let until = Instant::now() + GONE_TIMEOUT;
        while self.daemon() == Some(pid) {
            if Instant::now() > until {
                return Err(BenchError::Other("a daemon that was killed does not end".into()));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// The daemon's process, while it runs.
    fn daemon(&self) -> Option<u32> {
        let holder = std::fs::read_to_string(self.state.path().join("martletd.lock")).ok()?;
        let pid = holder.strip_prefix("process ")?.split(',').next()?.parse().ok()?;
        // Not its directory: that is still there for a zombie, until somebody reaps it.
        let program: Option<PathBuf> = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        program.map(|_| pid)
    }

    /// Loses all that is sent, and tells nobody.
    pub fn cut(&self) -> Result<(), BenchError> {
        self.host.cut().map_err(lab_failed)
    }

    /// Mends the link.
    pub fn mend(&self) -> Result<(), BenchError> {
        self.host.mend().map_err(lab_failed)
    }
}
