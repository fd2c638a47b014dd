//! Post-clone hooks: programs in `/etc/martlet/hooks.d`, run in order of their names before user code goes on.
//!
//! They run while everything else is held, so a hook must not ask a service for anything: it would wait for ever, and is
//! killed at its timeout. A hook whose name ends in `.required` fails the identity when it fails.

use crate::process::PATH;
use crate::syscalls;
use martlet_agent_api::{Identity, Outcome};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// A hook and how it went.
pub struct HookResult {
    /// File name.
    pub name: String,
    /// Must it succeed?
    pub required: bool,
    /// How it went.
    pub outcome: Outcome,
}

/// Executable files of the directory, in order of their names.
pub fn find(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let is_program =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let mut hooks: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(is_program)
        .collect();
    hooks.sort();
    hooks
}

/// Runs one hook.
pub fn run(hook: &Path, identity: &Identity, timeout: Duration) -> HookResult {
    let name = hook
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let outcome = match run_within(hook, identity, timeout) {
        Ok(()) => Outcome::Done,
        Err(reason) => Outcome::Failed(reason),
    };
    HookResult {
        required: name.ends_with(".required"),
        name,
        outcome,
    }
}

fn run_within(hook: &Path, identity: &Identity, timeout: Duration) -> Result<(), String> {
    let mut child = Command::new(hook)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("MARTLET_CLONE_ID", &identity.clone_id)
        .env("MARTLET_GENERATION", identity.generation.to_string())
        .env("MARTLET_PARENT_ID", identity.parent_id.as_deref().unwrap_or(""))
        .env("MARTLET_INDEX", identity.index.to_string())
        .env("MARTLET_NAME", &identity.name)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("cannot run: {error}"))?;
    let group = -(child.id() as i32);
    let (over, watch) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        let late = watch.recv_timeout(timeout) == Err(mpsc::RecvTimeoutError::Timeout);
        if late {
            let _ = syscalls::kill(group, libc::SIGKILL); // it may just have ended
        }
        late
    });
    let status = child.wait().map_err(|error| error.to_string());
    drop(over);
    match (status?, watchdog.join().unwrap_or(false)) {
        (status, _) if status.success() => Ok(()),
        (_, true) => Err(format!("killed after {} ms", timeout.as_millis())),
        (status, false) => Err(status.to_string()),
    }
}
