//! The smallest base: busybox, and the agent from the initramfs. For tests, and for looking at a kernel.

use crate::boot::{Boot, DEFAULT_SUITE, ROOT_DISK};
use crate::command::Run;
use crate::error::IoContext;
use crate::ext4::{self, Ext4};
use crate::scratch::{Scratch, Unfinished};
use crate::{Artifacts, BaseError, Job, job};
use martlet_api::InitKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const SIZE_BYTES: u64 = 32 << 20;
const BUSYBOX: [&str; 2] = ["/usr/bin/busybox", "/bin/busybox"];

const FILES: [(&str, &str); 5] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hostname", "martlet\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    ("etc/machine-id", ""),
];

/// Builds the smallest base there is: busybox and the agent.
pub fn build_tiny(size_bytes: Option<u64>, job: &Job) -> Result<Artifacts, BaseError> {
    ext4::check_size(size_bytes)?;
    job::need_root("making the root file system")?;
    let busybox = static_busybox()?;
    let boot = Boot::new(DEFAULT_SUITE, job)?;
    let scratch = Scratch::new(job.work_dir)?;
    let tree = scratch.path().join("tree");
    populate(&tree, &busybox, job)?;
    let mut unfinished = Unfinished::new();
    let root_disk = unfinished.add(job.work_dir.join("root.img"));
    let how = Ext4 {
        size_bytes: Some(size_bytes.unwrap_or(SIZE_BYTES)),
        journal: false,
    };
    ext4::make(&tree, &root_disk, &how, job)?;
    drop(scratch);
    let artifacts = boot.artifacts(
        root_disk,
        ROOT_DISK,
        InitKind::Command,
        "tiny".into(),
        &mut unfinished,
        job,
    )?;
    unfinished.keep();
    Ok(artifacts)
}

/// Nothing else is in the guest that a dynamically linked one could be linked against.
fn static_busybox() -> Result<PathBuf, BaseError> {
    let missing = || BaseError::MissingTool {
        tool: "busybox (static)".into(),
        package: "busybox-static",
    };
    let path = BUSYBOX
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .ok_or_else(missing)?;
    let program = std::fs::read(&path).during("read", &path)?;
    let loader = b"/lib64/ld-linux";
    match program.windows(loader.len()).any(|window| window == loader) {
        true => Err(missing()),
        false => Ok(path),
    }
}

fn populate(tree: &Path, busybox: &Path, job: &Job) -> Result<(), BaseError> {
    for dir in [
        "bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin", "var",
    ] {
        let dir = tree.join(dir);
        std::fs::create_dir_all(&dir).during("create", &dir)?;
    }
    let tmp = tree.join("tmp");
    std::fs::set_permissions(&tmp, std::fs::Permissions::from_mode(0o1777)).during("open up", &tmp)?;
    let program = tree.join("bin/busybox");
    std::fs::copy(busybox, &program).during("copy", &program)?;
    let applets = Run::new(busybox, "busybox-static")
        .arg("--list-full")
        .output(job)?;
    for applet in String::from_utf8_lossy(&applets).lines() {
        let at = tree.join(applet);
        // Some have places that a tiny system does not, and busybox itself is there already.
        if at.parent().is_some_and(Path::is_dir) && !at.exists() {
            symlink("/bin/busybox", &at).during("link", &at)?;
        }
    }
    for (name, content) in FILES {
        let path = tree.join(name);
        std::fs::write(&path, content).during("write", &path)?;
    }
    Ok(())
}
