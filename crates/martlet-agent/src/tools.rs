//! What programs in the guest need for their calls, without anything to install: below `/run/martlet` are the command
//! `martlet-guest`, which is the agent's own file under another name, and the libraries for Python and C.

use crate::fault::{Result, failed};
use crate::syscalls;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Under this name the agent is the command.
pub const COMMAND: &str = "martlet-guest";

const LIBRARIES: [(&str, &str); 3] = [
    (
        "martlet_guest.py",
        include_str!("../../../guest/python/martlet_guest.py"),
    ),
    (
        "martlet_guest.h",
        include_str!("../../../guest/c/martlet_guest.h"),
    ),
    (
        "martlet_guest.c",
        include_str!("../../../guest/c/martlet_guest.c"),
    ),
];

/// Puts them there.
pub fn offer(run: &Path) -> Result<()> {
    put_all(run).map_err(|error| failed("cannot offer martlet-guest", error))
}

fn put_all(run: &Path) -> io::Result<()> {
    fs::create_dir_all(run)?;
    for (name, text) in LIBRARIES {
        fs::write(run.join(name), text)?;
    }
    let command = run.join(COMMAND);
    File::create(&command)?;
    fs::set_permissions(&command, Permissions::from_mode(0o755))?;
    // Not a copy: that would take memory.
    syscalls::mount(Path::new("/proc/self/exe"), &command, "", libc::MS_BIND, "")
}
