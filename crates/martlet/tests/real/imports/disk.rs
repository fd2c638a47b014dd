//! Disks: bare, partitioned, and with a boot loader of their own.

use super::{busybox, shell, usable};
use crate::{Daemon, Fixture};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn tool(program: &str, args: &[&str]) {
    let ended = Command::new(program).args(args).stdin(Stdio::null()).output();
    let ended = ended.unwrap_or_else(|error| panic!("{program}: {error}; see script/bootstrap --tests"));
    assert!(ended.status.success(), "{program} {args:?}: {ended:?}");
}

/// An ext4 file system with an init of its own: busybox's, which proves by a file that it was process 1.
pub fn file_system(dir: &Path) -> PathBuf {
    let tree = dir.join("tree");
    for name in ["bin", "sbin", "etc", "dev", "proc", "sys", "run", "tmp"] {
        fs::create_dir_all(tree.join(name)).unwrap();
    }
    fs::write(tree.join("bin/busybox"), busybox()).unwrap();
    tool("chmod", &["755", tree.join("bin/busybox").to_str().unwrap()]);
    for name in ["bin/sh", "bin/cat", "bin/hostname", "bin/mount", "sbin/init"] {
        symlink("/bin/busybox", tree.join(name)).unwrap();
    }
    fs::write(
        tree.join("etc/inittab"),
        "::sysinit:/bin/sh -c 'echo $PPID > /parent'\n",
    )
    .unwrap();
    let image = dir.join("disk.raw");
    let (from, to) = (tree.to_str().unwrap(), image.to_str().unwrap());
    tool("mke2fs", &["-q", "-F", "-t", "ext4", "-d", from, to, "24M"]);
    image
}

fn boots_its_own_init(daemon: &Daemon, root: &str) {
    assert_eq!(shell(daemon, "box", "cat /proc/1/comm /parent"), "init\n1");
    assert_eq!(
        shell(
            daemon,
            "box",
            "mount | while read d on at r; do [ $at = / ] && echo $d; done; true"
        ),
        root
    );
    usable(daemon, "box");
}

#[test]
fn a_bare_file_system_boots_its_own_init() {
    let daemon = Daemon::new(Fixture::Tiny);
    let dir = tempfile::tempdir().unwrap();
    let disk = file_system(dir.path());
    daemon.ok(&["base", "import", "--name", "bare", disk.to_str().unwrap()]);
    daemon.ok(&["run", "bare", "--name", "box", "--memory", "128M"]);
    boots_its_own_init(&daemon, "/dev/vda");
    // What a broken download leaves is refused in words.
    let file = File::options().write(true).open(&disk).unwrap();
    file.set_len(20 << 20).unwrap();
    let (code, words) = daemon.refused(&["base", "import", "--name", "cut", disk.to_str().unwrap()]);
    assert!(code == 2 && words.contains("cut short"), "{code} {words}");
}

#[test]
fn a_partitioned_qcow2_boots_from_its_root_partition() {
    let daemon = Daemon::new(Fixture::Tiny);
    let dir = tempfile::tempdir().unwrap();
    let content = fs::read(file_system(dir.path())).unwrap();
    let (raw, qcow2) = (dir.path().join("parts.raw"), dir.path().join("parts.qcow2"));
    let disk = File::create_new(&raw).unwrap();
    disk.set_len(40 << 20).unwrap();
    let mut sfdisk = Command::new("sfdisk")
        .args(["--quiet", "--no-tell-kernel", raw.to_str().unwrap()])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let table = "label: gpt\nstart=2048, size=4096, type=uefi\nstart=8192, size=49152, type=linux\n";
    sfdisk.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    disk.write_all_at(&content, 8192 * 512).unwrap();
    let (from, to) = (raw.to_str().unwrap(), qcow2.to_str().unwrap());
    tool("qemu-img", &["convert", "-c", "-O", "qcow2", from, to]);
    daemon.ok(&["base", "import", "--name", "parts", to]);
    daemon.ok(&["run", "parts", "--name", "box", "--memory", "128M"]);
    boots_its_own_init(&daemon, "/dev/vda2");
    let whole = fs::read(&qcow2).unwrap();
    fs::write(&qcow2, &whole[..whole.len() / 2]).unwrap();
    let (code, words) = daemon.refused(&["base", "import", "--name", "cut", to]);
    assert!(code == 2 && words.contains("cut short"), "{code} {words}");
}

/// A boot loader that loads its second sector, says what is written there, and then counts on the serial line: a number
/// for each tick of the timer.
const BOOT_LOADER: &str = r#"
.code16
.globl _start
_start:
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    sti
    mov $0x0201, %ax        # read one sector,
    mov $0x0002, %cx        # the second,
    mov $0x0080, %dx        # of the first disk,
    mov $0x7e00, %bx        # to here
    int $0x13
    mov $0x7e00, %si
    call say
    xor %bx, %bx
count:
    hlt
    inc %bx
    mov $12, %cl
digit:
    mov %bx, %ax
    shr %cl, %ax
    and $15, %al
    add $'0', %al
    cmp $'9', %al
    jbe plain
    add $39, %al
plain:
    mov $0x3f8, %dx
    out %al, %dx
    sub $4, %cl
    jns digit
    mov $'\n', %al
    out %al, %dx
    jmp count
say:
    lodsb
    test %al, %al
    jz done
    mov $0x3f8, %dx
    out %al, %dx
    jmp say
done:
    ret
.org 510
.word 0xaa55
.ascii "from the second sector\n\0"
.org 1024
"#;

fn boot_loader(dir: &Path) -> PathBuf {
    let (source, object, image) = (dir.join("boot.s"), dir.join("boot.o"), dir.join("boot.raw"));
    fs::write(&source, BOOT_LOADER).unwrap();
    let [from, between, to] = [&source, &object, &image].map(|path| path.to_str().unwrap());
    tool("as", &["--32", "-o", between, from]);
    tool(
        "ld",
        &[
            "-m",
            "elf_i386",
            "-Ttext=0x7c00",
            "--oformat=binary",
            "-o",
            to,
            between,
        ],
    );
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    image
}

/// The numbers on a machine's console so far.
fn counted(daemon: &Daemon, machine: &str) -> Vec<u64> {
    let log = daemon.ok(&["logs", machine]);
    log.lines()
        .filter_map(|line| u64::from_str_radix(line.trim(), 16).ok())
        .collect()
}

/// Waits until the machine has counted further than `from`, and has not begun anew.
fn counts_on(daemon: &Daemon, machine: &str, from: u64) -> u64 {
    loop {
        let last = counted(daemon, machine).last().copied().unwrap_or(0);
        if last > from {
            return last;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn a_disk_boots_by_its_own_boot_loader_and_lives_without_an_agent() {
    let daemon = Daemon::new(Fixture::Tiny);
    let dir = tempfile::tempdir().unwrap();
    let disk = boot_loader(dir.path());
    daemon.ok(&["base", "import", "--name", "loader", disk.to_str().unwrap()]);
    assert_eq!(daemon.json(&["base", "inspect", "loader"])["init"], "firmware");
    daemon.ok(&["run", "loader", "--name", "box", "--memory", "64M"]);
    let before = counts_on(&daemon, "box", 20);
    assert!(daemon.ok(&["logs", "box"]).contains("from the second sector"));

    daemon.ok(&["suspend", "box"]);
    daemon.ok(&["resume", "box"]);
    let after = counts_on(&daemon, "box", before);
    assert!(
        daemon.ok(&["logs", "box"]).matches("second sector").count() <= 1,
        "it booted anew"
    );

    // Nobody in the guest could give a clone an identity, so it takes a flag.
    let (code, words) = daemon.refused(&["fork", "box"]);
    assert!(code == 8 && words.contains("--allow-agentless"), "{code} {words}");
    daemon.ok(&["fork", "box", "--allow-agentless"]);
    counts_on(&daemon, "box-1", after);
    assert!(
        !daemon.ok(&["logs", "box-1"]).contains("second sector"),
        "the clone booted anew"
    );
    counts_on(&daemon, "box", after);
    let (code, words) = daemon.refused(&["exec", "box", "--", "true"]);
    assert!(code == 125 && words.contains("agent"), "{code} {words}");
}
