//! A real base boots under a real QEMU: kernel from the Debian archive (cached in the target directory), initramfs,
//! modules, root disk. A small program stands in for the agent, which is another crate's.

use martlet_base::{Job, Tools, build_tiny};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Loads every module in order, mounts the root, says what it found, and reboots, which ends QEMU.
const INIT: &str = r#"
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
    struct dirent **names;
    int count = scandir("/modules", &names, 0, alphasort), loaded = 0;
    for (int i = 0; i < count; i++) {
        char path[512];
        if (names[i]->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
        int file = open(path, O_RDONLY);
        if (syscall(SYS_finit_module, file, "", 0)) perror(path); else loaded++;
        close(file);
    }
    mount("dev", "/dev", "devtmpfs", 0, 0);
    int failed = 1;
    for (int tries = 0; failed && tries < 500; tries++) {
        failed = mount("/dev/vda", "/root", "ext4", 0, 0);
        if (failed) usleep(10000);
    }
    printf("modules loaded: %d\n", loaded);
    printf("root mounted: %s\n", failed ? "no" : "yes");
    printf("busybox: %s\n", access("/root/bin/busybox", X_OK) ? "no" : "yes");
    printf("network: %s\n", access("/sys", F_OK) || mount("s", "/sys", "sysfs", 0, 0) || access("/sys/class/net/eth0", F_OK) ? "no" : "yes");
    fflush(stdout);
    sync();
    reboot(RB_AUTOBOOT);
    return 0;
}
"#;

struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn compile_init(dir: &Path) -> std::path::PathBuf {
    let (source, program) = (dir.join("init.c"), dir.join("init"));
    std::fs::write(&source, INIT).unwrap();
    let built = Command::new("gcc")
        .args(["-static", "-O1", "-w", "-o"])
        .arg(&program)
        .arg(&source)
        .status();
    assert!(built.expect("gcc is installed (script/bootstrap)").success());
    program
}

#[test]
fn a_tiny_base_boots_to_its_root() {
    let dir = tempfile::tempdir().unwrap();
    let tools = Tools {
        agent: compile_init(dir.path()),
        cache_dir: Path::new(env!("CARGO_TARGET_TMPDIR")).join("base-cache"),
    };
    let work = dir.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let job = Job {
        tools: &tools,
        work_dir: &work,
        progress: &|_| (),
        cancel: &AtomicBool::new(false),
    };
    let base = build_tiny(None, &job).unwrap();
    assert_eq!(
        std::fs::read_dir(&work).unwrap().count(),
        3,
        "only the artifacts are left"
    );

    let console = dir.path().join("console");
    let mut qemu = Qemu(
        Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg",
                "-M",
                "q35",
                "-cpu",
                "qemu64",
                "-m",
                "256",
                "-nodefaults",
                "-display",
                "none",
            ])
            .args(["-no-reboot", "-serial", &format!("file:{}", console.display())])
            .arg("-kernel")
            .arg(base.kernel.as_ref().unwrap())
            .arg("-initrd")
            .arg(base.initrd.as_ref().unwrap())
            .args(["-append", &base.cmdline])
            .args([
                "-drive",
                &format!("if=none,id=d,format=raw,file={}", base.root_disk.display()),
            ])
            .args([
                "-device",
                "virtio-blk-pci,drive=d",
                "-netdev",
                "user,id=n,restrict=on",
            ])
            .args(["-device", "virtio-net-pci,netdev=n,romfile="])
            .args([
                "-device",
                "virtio-serial-pci",
                "-device",
                "virtio-rng-pci",
                "-device",
                "virtio-balloon-pci",
            ])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu is installed (script/bootstrap)"),
    );
    let started = Instant::now();
    while qemu.0.try_wait().unwrap().is_none() {
        let said = || String::from_utf8_lossy(&std::fs::read(&console).unwrap_or_default()).into_owned();
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "the guest hangs; it said:\n{}",
            said()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = std::fs::read_to_string(&console).unwrap();
    for line in ["root mounted: yes", "busybox: yes", "network: yes"] {
        assert!(said.contains(line), "{line} is missing from:\n{said}");
    }
    assert!(!said.contains("/modules/"), "a module failed to load:\n{said}");
}
