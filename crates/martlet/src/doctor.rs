//! What this software needs of its host, looked at from here so that it works when the daemon does not.

use crate::daemon::Daemon;
use crate::process::free_bytes;
use crate::show;
use martlet_api::{Check, Paths};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Oldest QEMU that restores work with.
const QEMU_OLDEST: (u32, u32) = (7, 2);
const SPACE_NEEDED_BYTES: u64 = 1 << 30;
const SPACE_WANTED_BYTES: u64 = 5 << 30;

/// All checks of this host.
pub fn local(daemon: &Daemon) -> Vec<Check> {
    let mut checks = vec![virtualisation(), qemu(), fuse(), pagemap_scan(), fuse_resend()];
    checks.extend([permissions(), memory(), space()]);
    checks.push(program("qemu-img", "qemu-utils", "needed to import qcow2 disks"));
    checks.push(program(
        "mmdebstrap",
        "mmdebstrap",
        "needed to build bases from Debian packages",
    ));
    checks.push(program(
        "mke2fs",
        "e2fsprogs",
        "needed to build bases and import OCI images",
    ));
    checks.push(running(daemon));
    checks
}

fn virtualisation() -> Check {
    let name = "virtualisation";
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    let has = |flag| flags.split_whitespace().any(|word| word == flag);
    let kind = if has("vmx") { "vmx" } else { "svm" };
    if !has(kind) {
        return Check::warn(
            name,
            "the CPU offers neither vmx nor svm: guests are emulated (TCG), right but slow",
            "switch virtualisation on in the firmware, or nested virtualisation when this host is a VM itself",
        );
    }
    let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    match opened.and_then(|device| device.metadata()) {
        Ok(device) if is_root() && !opens_to_qemu(device.mode(), device.gid()) => Check::fail(
            name,
            format!("KVM ({kind}), but /dev/kvm is closed to QEMU, which runs unprivileged"),
            "chgrp kvm /dev/kvm && chmod g+rw /dev/kvm, and start the daemon anew; or `martlet run --accel tcg`",
        ),
        Ok(_) => Check::ok(name, format!("KVM ({kind})")),
        Err(error) => Check::warn(
            name,
            format!("the CPU has {kind}, but /dev/kvm cannot be opened: {error}"),
            "modprobe kvm_intel or kvm_amd; and as a user: adduser $USER kvm, then log in again",
        ),
    }
}

/// The daemon of root gives its QEMUs users of their own, and the device's group unless that is root's.
fn opens_to_qemu(mode: u32, gid: u32) -> bool {
    mode & 0o006 == 0o006 || (gid != 0 && mode & 0o060 == 0o060)
}

fn is_root() -> bool {
    Paths::of_this_user().state_dir == Path::new(martlet_api::SYSTEM_STATE_DIR)
}

fn qemu() -> Check {
    let (name, package) = ("qemu", "apt-get install qemu-system-x86");
    let output = match Command::new("qemu-system-x86_64").arg("--version").output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => {
            return Check::fail(
                name,
                format!("qemu-system-x86_64 cannot be run: {error}"),
                package,
            );
        }
    };
    match version(output.split("version ").nth(1).unwrap_or_default()) {
        Some(found) if found >= QEMU_OLDEST => Check::ok(name, output.lines().next().unwrap_or_default()),
        Some((major, minor)) => Check::fail(
            name,
            format!(
                "QEMU {major}.{minor} is too old: {}.{} is needed",
                QEMU_OLDEST.0, QEMU_OLDEST.1
            ),
            "upgrade to Debian 12 or later, or install a newer qemu-system-x86",
        ),
        None => Check::fail(
            name,
            format!("its version was not understood: {output:.80?}"),
            package,
        ),
    }
}

fn fuse() -> Check {
    let name = "fuse";
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Check::ok(name, "/dev/fuse opens"),
        Err(error) => Check::fail(
            name,
            format!("/dev/fuse cannot be opened: {error}"),
            "modprobe fuse; in a container, give it the device",
        ),
    }
}

fn kernel() -> (String, Option<(u32, u32)>) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_string();
    let parsed = version(&release);
    (release, parsed)
}

fn pagemap_scan() -> Check {
    since_kernel(
        "kernel: private pages",
        (6, 7),
        "PAGEMAP_SCAN",
        "checkpoints read /proc/PID/pagemap: 10 times slower",
    )
}

fn fuse_resend() -> Check {
    since_kernel(
        "kernel: daemon restart",
        (6, 9),
        "FUSE resend",
        "a guest that faults at the very moment the daemon dies stays stuck",
    )
}

fn since_kernel(name: &str, since: (u32, u32), feature: &str, without: &str) -> Check {
    let (release, version) = kernel();
    match version {
        Some(version) if version >= since => Check::ok(name, format!("{feature} (kernel {release})")),
        _ => Check::warn(
            name,
            format!("no {feature} in kernel {release}: {without}"),
            format!("boot kernel {}.{} or later", since.0, since.1),
        ),
    }
}

fn permissions() -> Check {
    let name = "permissions";
    if is_root() {
        return Check::ok(name, "root");
    }
    let number = |path: &str| {
        fs::read_to_string(path)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
    };
    let namespaces = number("/proc/sys/user/max_user_namespaces").is_some_and(|max| max > 0)
        && number("/proc/sys/kernel/unprivileged_userns_clone") != Some(0);
    if !namespaces {
        return Check::fail(
            name,
            "you are not root, and user namespaces are off",
            "sysctl -w user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1, or use the system-wide daemon",
        );
    }
    if find_program("fusermount3").is_none() {
        return Check::fail(
            name,
            "a user mounts with fusermount3, and there is none",
            "apt-get install fuse3",
        );
    }
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    match conf.lines().any(|line| line.trim() == "user_allow_other") {
        true => Check::ok(name, "user, with user namespaces and user_allow_other"),
        false => Check::warn(
            name,
            "/etc/fuse.conf does not allow user_allow_other: guests run as you and not as users of their own",
            "as root: echo user_allow_other >> /etc/fuse.conf",
        ),
    }
}

fn memory() -> Check {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = line
        .and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0)
        << 10;
    match available {
        0..0x4000_0000 => Check::warn(
            "memory",
            format!("{} available", show::size(available)),
            "end something, or give machines less with --memory",
        ),
        _ => Check::ok("memory", format!("{} available", show::size(available))),
    }
}

fn space() -> Check {
    let state_dir =
        std::env::var_os("MARTLET_STATE_DIR").map_or_else(|| Paths::of_this_user().state_dir, PathBuf::from);
    let existing = state_dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let remedy = "martlet gc, or put the state on a larger disk with --state-dir";
    match free_bytes(existing) {
        Err(error) => Check::fail("space", format!("{}: {error}", existing.display()), remedy),
        Ok(free) => {
            let found = format!("{} free for {}", show::size(free), state_dir.display());
            match free {
                ..SPACE_NEEDED_BYTES => Check::fail("space", found, remedy),
                SPACE_NEEDED_BYTES..SPACE_WANTED_BYTES => Check::warn("space", found, remedy),
                _ => Check::ok("space", found),
            }
        }
    }
}

fn program(name: &str, package: &str, why: &str) -> Check {
    match find_program(name) {
        Some(path) => Check::ok(name, path.display().to_string()),
        None => Check::warn(
            name,
            format!("not there; {why}"),
            format!("apt-get install {package}"),
        ),
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|p| p.exists())
}

fn running(daemon: &Daemon) -> Check {
    let (name, ours) = ("daemon", env!("CARGO_PKG_VERSION"));
    match daemon.version() {
        Ok(Some(version)) if version.version == ours => {
            Check::ok(name, format!("version {ours}, process {}", version.pid))
        }
        Ok(Some(version)) => Check::warn(
            name,
            format!("version {} answers, this is {ours}", version.version),
            "martlet daemon stop; the next command starts the new one, and machines go on",
        ),
        Ok(None) => Check::ok(name, "not running; it is started when it is needed"),
        Err(failure) => Check::fail(
            name,
            failure.problem.message,
            "martlet daemon stop, then martlet daemon start, and see martletd.log in the state directory",
        ),
    }
}

/// `10.0` of `10.0.2 (Debian …)`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kvm_device_must_open_to_the_users_that_qemu_runs_as() {
        let (root, kvm) = (0, 106);
        assert!(opens_to_qemu(0o20_660, kvm) && opens_to_qemu(0o20_666, root));
        assert!(!opens_to_qemu(0o20_660, root), "QEMU is never in root's group");
        assert!(!opens_to_qemu(0o20_600, kvm) && !opens_to_qemu(0o20_640, kvm));
    }

    #[test]
    fn versions() {
        assert_eq!(version("10.0.2 (Debian 1:10.0.2+ds-2)"), Some((10, 0)));
        assert_eq!(version("6.18.5-rc1"), Some((6, 18)));
        assert_eq!(version("nonsense"), None);
        assert!(version("7.10.1") > Some(QEMU_OLDEST), "numbers and not text");
    }
}
