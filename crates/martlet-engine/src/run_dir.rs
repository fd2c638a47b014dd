//! The directory of a running QEMU's sockets and logs.
//!
//! It belongs to the user that QEMU runs as, who is another one at each start, so each start has a new one; the logs in
//! it begin with the end of what the machine's earlier runs said.

use martlet_vm::process::{User, append_tail, own_directory};
use martlet_vm::spec::{CONSOLE_LOG, STDERR_LOG};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::io;
use std::os::unix::fs::lchown;
use std::path::Path;

/// The logs in it, as `MachineSpec` names them.
const LOGS: [&str; 2] = [CONSOLE_LOG, STDERR_LOG];
/// Of a log of earlier runs, this much is continued.
pub const LOG_CARRIED_BYTES: u64 = 1 << 20;

/// A new one for a QEMU that will run as `user`, in the place of the one of the machine's earlier run, if there is one.
pub fn renew(dir: &Path, user: Option<&User>) -> io::Result<()> {
    let new = dir.with_extension("new");
    remove(&new)?;
    own_directory(&new, user)?;
    replace(dir, &new)?;
    remove(&new)?;
    if let Some(user) = user {
        for log in LOGS.map(|log| dir.join(log)).iter().filter(|log| log.exists()) {
            lchown(log, Some(user.uid), Some(user.gid))?;
        }
    }
    Ok(())
}

/// Puts `new` in the place of `old`, which is at `new` afterwards if there was one.
pub fn replace(old: &Path, new: &Path) -> io::Result<()> {
    carry_logs(old, new)?;
    match renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE) {
        Err(rustix::io::Errno::NOENT) => std::fs::rename(new, old),
        exchanged => Ok(exchanged?),
    }
}

/// The logs in `new` go on where those in `old` end.
fn carry_logs(old: &Path, new: &Path) -> io::Result<()> {
    for log in LOGS {
        append_tail(&old.join(log), LOG_CARRIED_BYTES, &new.join(log))?;
    }
    Ok(())
}

fn remove(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn logs_are_continued_and_sockets_are_not() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("run");
        renew(&dir, None).unwrap();
        fs::write(dir.join("console.log"), "first run\n").unwrap();
        fs::write(dir.join("qmp.sock"), "").unwrap();

        renew(&dir, None).unwrap();

        assert_eq!(
            fs::read_to_string(dir.join("console.log")).unwrap(),
            "first run\n"
        );
        assert!(!dir.join("qmp.sock").exists());
        assert!(!dir.join("qemu.log").exists());
        assert_eq!(
            fs::read_dir(home.path()).unwrap().count(),
            1,
            "nothing is left of the old one"
        );
    }

    #[test]
    fn a_log_that_is_a_link_is_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("run");
        renew(&dir, None).unwrap();
        fs::write(home.path().join("secret"), "secret\n").unwrap();
        std::os::unix::fs::symlink(home.path().join("secret"), dir.join("console.log")).unwrap();

        renew(&dir, None).unwrap();

        assert!(!dir.join("console.log").exists());
    }
}
