//! A small file system for the state directory: it can be filled, and it can be made to stall.
//!
//! It is ext4 on a loop device whose file has no name any more, so that nothing of it outlives its mount. Where loop
//! devices cannot be had it is a tmpfs, which does not stall.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SIZE_MIB: u64 = 768;

pub struct Room {
    dir: PathBuf,
    pub can_stall: bool,
}

fn run(program: &str, args: &[&str]) -> bool {
    let output = Command::new(program).args(args).output();
    output.is_ok_and(|output| output.status.success())
}

impl Room {
    /// Mounts one on `dir`, which is empty. [`crate::Daemon`] unmounts what is below its state directory.
    pub fn mount(dir: &Path) -> Self {
        let path = dir.to_str().expect("a temporary directory has a plain name");
        let image = dir.with_extension("img");
        let image_path = image.to_str().expect("as the directory");
        let size = format!("{SIZE_MIB}M");
        // Nothing kept back for root, whom a full disk must hit as well.
        let can_stall = run("truncate", &["-s", &size, image_path])
            && run("mke2fs", &["-q", "-F", "-t", "ext4", "-m", "0", image_path])
            && run("mount", &["-o", "loop", image_path, path])
            && run("fsfreeze", &["--freeze", path])
            && run("fsfreeze", &["--unfreeze", path]);
        let _ = std::fs::remove_file(&image);
        if can_stall {
            let _ = std::fs::remove_dir(dir.join("lost+found"));
        } else {
            run("umount", &[path]);
            let options = format!("size={size},mode=711");
            assert!(
                run("mount", &["-t", "tmpfs", "-o", &options, "soak", path]),
                "no file system of its own for the state directory"
            );
        }
        Self {
            dir: dir.to_owned(),
            can_stall,
        }
    }

    pub fn free_bytes(&self) -> u64 {
        let path = self.dir.to_string_lossy().into_owned();
        let output = Command::new("df").args(["-B1", "--output=avail", &path]).output();
        let text = output.map_or_else(
            |_| String::new(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        );
        text.lines()
            .nth(1)
            .and_then(|line| line.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Leaves this much.
    pub fn fill(&self, left_bytes: u64) -> Filled {
        let balloon = self.dir.join("balloon");
        let size = self.free_bytes().saturating_sub(left_bytes).max(1).to_string();
        run("fallocate", &["-l", &size, &balloon.to_string_lossy()]);
        Filled(balloon)
    }

    /// Nothing is written to it for this long; whoever writes waits.
    pub fn stall(&self, time: Duration) {
        let path = self.dir.to_string_lossy().into_owned();
        let _thawed = Stalled(&path);
        run("fsfreeze", &["--freeze", &path]);
        std::thread::sleep(time);
    }
}

/// There is room again when it is dropped.
pub struct Filled(PathBuf);

impl Drop for Filled {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

struct Stalled<'a>(&'a str);

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        run("fsfreeze", &["--unfreeze", self.0]);
    }
}
