//! Booting the guest as process 1 of the initramfs.
//!
//! ```text
//! mounts ─► modules ─► root disk ─► move into it ─► cgroup2, loopback ─► fork
//!                                                                         ├─ agent: joins its cgroup, opens the gate
//!                                                                         └─ process 1: waits at the gate, then
//!                                                                            image's init, or reaps orphans
//! ```
//!
//! Kernel command line: `root=/dev/vda` (default) with `rootfstype=`, `rootflags=`, `ro`; `martlet.root=none` stays in the
//! initramfs; `martlet.init=systemd|command` (default: systemd when the image has an init, else command);
//! `martlet.hold=1` keeps the gate shut until the host's first release. With `command` the host says which one is run,
//! once the guest has its identity; its end does not end the guest.

use crate::log::log;
use crate::serve::{Agent, AgentOptions, Init};
use crate::{network, port, syscalls};
use std::fs::{self, File};
use std::io::{self, Error, PipeReader, PipeWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::thread::sleep;
use std::time::{Duration, Instant};

const NEW_ROOT: &str = "/martlet-root";
const ROOT_APPEARS_WITHIN: Duration = Duration::from_secs(20);
/// systemd spares processes whose name begins with `@` when it ends all others.
const AGENT_NAME: &str = "@martlet-agent";
const IMAGE_INITS: [&str; 3] = ["/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd"];

/// Boots; returns only why it could not.
pub fn run() -> io::Error {
    match boot() {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

enum Never {}

fn boot() -> io::Result<Never> {
    mount_kernel_file_systems()?;
    let named = std::env::args_os()
        .next()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"@"));
    // The initramfs of a base names it so from the start.
    if !named {
        return Err(Process::new("/proc/self/exe").arg0(AGENT_NAME).exec());
    }
    let boot = Boot::parse(&fs::read_to_string("/proc/cmdline")?);
    load_modules(Path::new("/modules"));
    report_single_pages();
    if let Some(root) = &boot.root {
        mount_root(root)?;
        move_into_root()?;
    }
    let cgroups = Path::new("/sys/fs/cgroup");
    mount(
        "cgroup2",
        cgroups,
        "cgroup2",
        libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
        "",
    )?;
    if let Err(error) = network::bring_up_loopback() {
        log(&error.message);
    }
    let image_init = IMAGE_INITS
        .iter()
        .map(Path::new)
        .find(|path| fs::metadata(path).is_ok_and(|m| m.is_file()));
    match (boot.init, image_init) {
        (InitMode::Image | InitMode::Choose, Some(init)) => start_image_init(init, &boot),
        (InitMode::Image, None) => Err(Error::new(io::ErrorKind::NotFound, "the image has no /sbin/init")),
        (InitMode::Choose | InitMode::Command, _) => be_init(&boot),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InitMode {
    Choose,
    Image,
    Command,
}

/// What the kernel command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Boot {
    root: Option<Root>,
    init: InitMode,
    held: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Root {
    device: PathBuf,
    fs_type: String,
    options: String,
    read_only: bool,
}

impl Boot {
    fn parse(cmdline: &str) -> Self {
        let mut root = Root {
            device: "/dev/vda".into(),
            fs_type: "ext4".into(),
            options: String::new(),
            read_only: false,
        };
        let mut boot = Self {
            root: None,
            init: InitMode::Choose,
            held: false,
        };
        let mut no_root = false;
        for word in cmdline.split_whitespace() {
            match word.split_once('=') {
                Some(("root", device)) => root.device = device.into(),
                Some(("rootfstype", fs_type)) => root.fs_type = fs_type.into(),
                Some(("rootflags", options)) => root.options = options.into(),
                Some(("martlet.root", "none")) => no_root = true,
                Some(("martlet.hold", value)) => boot.held = value == "1",
                Some(("martlet.init", "systemd")) => boot.init = InitMode::Image,
                Some(("martlet.init", "command")) => boot.init = InitMode::Command,
                None if word == "ro" => root.read_only = true,
                None if word == "rw" => root.read_only = false,
                _ => {}
            }
        }
        boot.root = (!no_root).then_some(root);
        boot
    }
}

fn mount(source: &str, target: &Path, fs_type: &str, flags: libc::c_ulong, options: &str) -> io::Result<()> {
    match syscalls::mount(Path::new(source), target, fs_type, flags, options) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()), // mounted already
        Err(error) => Err(Error::new(
            error.kind(),
            format!("cannot mount {source} at {target:?}: {error}"),
        )),
        Ok(()) => Ok(()),
    }
}

fn mount_kernel_file_systems() -> io::Result<()> {
    let safe = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    for (fs_type, target, flags, options) in [
        ("proc", "/proc", safe, ""),
        ("sysfs", "/sys", safe, ""),
        ("devtmpfs", "/dev", libc::MS_NOSUID, "mode=755"),
        (
            "devpts",
            "/dev/pts",
            libc::MS_NOSUID | libc::MS_NOEXEC,
            "mode=620,ptmxmode=666",
        ),
        ("tmpfs", "/run", libc::MS_NOSUID | libc::MS_NODEV, "mode=755"),
    ] {
        fs::create_dir_all(target)?;
        if !is_mount_point(Path::new(target)) {
            mount(fs_type, Path::new(target), fs_type, flags, options)?;
        }
    }
    Ok(())
}

fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    device(path) != path.parent().and_then(device)
}

/// Has the kernel report single free pages, not only blocks of 2 MiB, of which a guest that has run for a while has few. On
/// its command line this would do nothing: the balloon's driver sets it to its own choice when it is loaded.
fn report_single_pages() {
    // A kernel that cannot be told reports what it likes.
    let _ = fs::write("/sys/module/page_reporting/parameters/page_reporting_order", "0");
}

/// Loads them in order of their names; what lacks a symbol is tried again after the others.
fn load_modules(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut waiting: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    waiting.sort();
    loop {
        let mut lacking = Vec::new();
        for module in &waiting {
            match File::open(module).and_then(|file| syscalls::load_module(&file)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => lacking.push(module.clone()),
                Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                    log(&format!("cannot load {module:?}: {error}"));
                }
                _ => {}
            }
        }
        if lacking.is_empty() || lacking.len() == waiting.len() {
            lacking
                .iter()
                .for_each(|module| log(&format!("cannot load {module:?}: it lacks a symbol")));
            return;
        }
        waiting = lacking;
    }
}

fn mount_root(root: &Root) -> io::Result<()> {
    let deadline = Instant::now() + ROOT_APPEARS_WITHIN;
    while !root.device.exists() {
        if Instant::now() >= deadline {
            return Err(Error::new(
                io::ErrorKind::NotFound,
                format!("the root disk {:?} did not appear", root.device),
            ));
        }
        sleep(Duration::from_millis(2));
    }
    fs::create_dir_all(NEW_ROOT)?;
    let flags = if root.read_only { libc::MS_RDONLY } else { 0 };
    let device = root.device.to_string_lossy();
    mount(&device, Path::new(NEW_ROOT), &root.fs_type, flags, &root.options)
}

/// Makes the disk the root directory and frees the initramfs.
fn move_into_root() -> io::Result<()> {
    let new_root = Path::new(NEW_ROOT);
    for name in ["proc", "sys", "dev", "run"] {
        let target = new_root.join(name);
        let _ = fs::create_dir(&target); // it may be there, or the root be read-only
        syscalls::mount(&Path::new("/").join(name), &target, "", libc::MS_MOVE, "")
            .map_err(|error| Error::new(error.kind(), format!("the image has no usable /{name}: {error}")))?;
    }
    let device = fs::metadata("/")?.dev();
    // The agent's own file stays: it takes memory for as long as it runs anyhow, and programs are to have it too.
    let own = fs::metadata(new_root.join("proc/self/exe")).map_or(0, |own| own.ino());
    remove_tree(Path::new("/"), device, own);
    std::env::set_current_dir(new_root)?;
    syscalls::mount(Path::new("."), Path::new("/"), "", libc::MS_MOVE, "")?;
    syscalls::chroot(Path::new("."))?;
    std::env::set_current_dir("/")
}

/// Removes what is on `device` below `dir`, but for one inode; whatever stays only costs memory.
fn remove_tree(dir: &Path, device: u64, spared: u64) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            remove_tree(&path, device, spared);
            let _ = fs::remove_dir(&path);
        } else if metadata.ino() != spared {
            let _ = fs::remove_file(&path);
        }
    }
}

/// What the agent holds of process 1's gate.
struct Gate(PipeWriter);

impl Gate {
    fn open(mut self) {
        let _ = self.0.write_all(b"1"); // process 1 cannot have gone
    }
}

/// Process 1's side: an agent that ends without opening it leaves the guest without its init, on purpose.
fn wait_at(mut gate: PipeReader) -> io::Result<()> {
    gate.read_exact(&mut [0])
        .map_err(|_| Error::other("the agent ended before it let the guest start"))
}

fn start_image_init(init: &Path, boot: &Boot) -> io::Result<Never> {
    let (reader, writer) = io::pipe()?;
    if syscalls::fork()?.is_none() {
        drop(reader);
        let options = AgentOptions {
            held: boot.held,
            ..AgentOptions::service()
        };
        let agent = Agent::new(options);
        let gate = Gate(writer);
        agent.hold().at_release(move || gate.open());
        run_agent(&agent);
    }
    drop(writer);
    wait_at(reader)?;
    Err(Process::new(init)
        .env_clear()
        .env("HOME", "/")
        .env("TERM", "linux")
        .exec())
}

/// Process 1 for images that have no init of their own: reaps orphans, and starts the agent again should it ever end.
fn be_init(boot: &Boot) -> io::Result<Never> {
    if let Ok(name) = fs::read_to_string("/etc/hostname") {
        let _ = syscalls::set_hostname(name.trim()); // a bad name is no reason not to boot
    }
    let mut first = true;
    loop {
        let Some(agent_pid) = syscalls::fork()? else {
            let options = AgentOptions {
                own_processes: vec![1],
                held: boot.held && first,
                init: Init::Own,
                ..AgentOptions::service()
            };
            let agent = Agent::new(options);
            run_agent(&agent);
        };
        while syscalls::wait_any()? != agent_pid {}
        log("the agent ended; starting it again");
        sleep(Duration::from_secs(1));
        first = false;
    }
}

fn run_agent(agent: &std::sync::Arc<Agent>) -> ! {
    let _ = fs::write("/proc/self/oom_score_adj", "-1000"); // without the agent nobody can help the guest
    let error = port::serve(agent);
    log(&format!("stopped: {error}"));
    std::process::exit(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line() {
        let boot = Boot::parse(
            "console=ttyS0 quiet rw root=/dev/vdb rootfstype=xfs martlet.init=systemd martlet.hold=1\n",
        );
        let root = boot.root.clone().unwrap();
        assert_eq!(
            (
                root.device.to_str().unwrap(),
                root.fs_type.as_str(),
                root.read_only
            ),
            ("/dev/vdb", "xfs", false)
        );
        assert_eq!((boot.init, boot.held), (InitMode::Image, true));
        let plain = Boot::parse("ro");
        assert!(plain.root.unwrap().read_only);
        assert_eq!((plain.init, plain.held), (InitMode::Choose, false));
        assert_eq!(Boot::parse("martlet.root=none root=/dev/vda").root, None);
    }
}
