//! Whatever is imported boots and is usable: OCI images, bare file systems, partitioned disks, disks with a boot loader of
//! their own. Content is busybox, so that each is made and booted in seconds.

mod cut_short;
mod disk;
mod oci;

use crate::Daemon;

/// Is the guest under our hands: exec, exit codes, a checkpoint that goes on, a clone that has the parent's state
/// and a name of its own?
fn usable(daemon: &Daemon, machine: &str) {
    let code = daemon.call(&["exec", machine, "--", "/bin/busybox", "sh", "-c", "exit 7"]);
    assert_eq!(code.status.code(), Some(7));
    shell(daemon, machine, "echo kept > /kept");
    daemon.ok(&["checkpoint", machine, "--tag", "usable"]);
    let clone = format!("{machine}-1");
    daemon.ok(&["fork", machine]);
    assert_eq!(
        shell(daemon, &clone, "cat /kept; hostname"),
        format!("kept\n{clone}")
    );
    shell(daemon, &clone, "echo changed > /kept");
    assert_eq!(
        shell(daemon, machine, "cat /kept; hostname"),
        format!("kept\n{machine}")
    );
    daemon.ok(&["rm", "--force", &clone]);
}

/// A line of busybox's shell in the guest.
fn shell(daemon: &Daemon, machine: &str, line: &str) -> String {
    let line = format!("PATH=/bin; {line}");
    daemon.ok(&["exec", machine, "--", "/bin/busybox", "sh", "-c", &line])
}

/// Statically linked, so it runs in any image.
fn busybox() -> Vec<u8> {
    ["/usr/bin/busybox", "/bin/busybox"]
        .iter()
        .find_map(|path| std::fs::read(path).ok())
        .expect("busybox-static is installed (script/bootstrap)")
}
