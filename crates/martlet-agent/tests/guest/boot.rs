//! Boots a guest, and ends it.

use martlet_vm::agent::AgentClient;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running guest; dropping it ends it and removes its files.
pub struct Guest {
    qemu: Child,
    dir: tempfile::TempDir,
}

fn must(command: &mut Command) -> String {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// An initramfs with the agent as `/init` and the modules it needs.
fn make_initramfs(dir: &Path, kernel: &Path) -> PathBuf {
    let tree = dir.join("initramfs");
    fs::create_dir(&tree).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_martlet-agent"), tree.join("init")).unwrap();
    must(
        Command::new("cp")
            .arg("-r")
            .arg(kernel.join("modules"))
            .arg(&tree),
    );
    let image = dir.join("initramfs.gz");
    let script = "cd \"$1\" && find . | cpio --quiet -o -H newc | gzip -1 > \"$2\"";
    must(
        Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&tree)
            .arg(&image),
    );
    image
}

/// A disk of 64 MiB that holds a file system of 32 MiB, with busybox.
fn make_disk(dir: &Path) -> PathBuf {
    let tree = dir.join("root");
    for name in [
        "bin",
        "etc",
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "var/lib/systemd",
    ] {
        fs::create_dir_all(tree.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    for applet in must(Command::new("/bin/busybox").arg("--list"))
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    symlink("bin", tree.join("sbin")).unwrap();
    fs::write(tree.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    fs::write(tree.join("var/lib/systemd/random-seed"), "the parent's").unwrap();
    let disk = dir.join("disk.img");
    let mke2fs = [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-E",
        "root_owner=0:0",
        "-d",
    ];
    must(
        Command::new("mke2fs")
            .args(mke2fs)
            .arg(&tree)
            .arg(&disk)
            .arg("32M"),
    );
    fs::File::options()
        .write(true)
        .open(&disk)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    disk
}

impl Guest {
    /// Boots with these words added to the kernel's command line.
    pub fn boot(words: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../script/test-kernel");
        let vmlinuz = PathBuf::from(must(&mut Command::new(script)));
        let kernel = vmlinuz.parent().expect("a path of a file");
        let dir = tempfile::tempdir().unwrap();
        let (initramfs, disk) = (make_initramfs(dir.path(), kernel), make_disk(dir.path()));
        let path = |name: &str| dir.path().join(name).display().to_string();
        let qemu = Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg",
                "-M",
                "q35",
                "-cpu",
                "max",
                "-m",
                "256",
                "-nodefaults",
                "-no-user-config",
            ])
            .args(["-display", "none", "-no-reboot", "-sandbox", "on", "-serial"])
            .arg(format!("file:{}", path("console")))
            .arg("-kernel")
            .arg(&vmlinuz)
            .arg("-initrd")
            .arg(initramfs)
            .args([
                "-append",
                &format!("console=ttyS0 quiet panic=-1 net.ifnames=0 {words}"),
            ])
            .args([
                "-drive",
                &format!("if=none,id=disk,format=raw,discard=unmap,file={}", disk.display()),
            ])
            .args([
                "-device",
                "virtio-blk-pci,drive=disk",
                "-device",
                "virtio-rng-pci",
            ])
            .args([
                "-netdev",
                "user,id=net,restrict=on,net=10.77.0.0/16",
                "-device",
                "virtio-net-pci,netdev=net",
            ])
            .args([
                "-chardev",
                &format!("socket,id=agent,path={},server=on,wait=off", path("agent.sock")),
            ])
            .args([
                "-device",
                "virtio-serial-pci",
                "-device",
                "virtserialport,chardev=agent,name=martlet.agent",
            ])
            .stdin(Stdio::null())
            .spawn()
            .expect("QEMU starts");
        Self { qemu, dir }
    }

    /// A new host comes to the guest.
    pub fn connect(&self) -> AgentClient {
        let epoch = self.dir.path().as_os_str().len() as u64 + Instant::now().elapsed().as_nanos() as u64;
        let epoch = epoch ^ std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        AgentClient::connect(
            &self.dir.path().join("agent.sock"),
            epoch,
            Duration::from_secs(10),
        )
        .unwrap()
    }

    /// What the guest's console shows.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("console")).unwrap_or_default()).into_owned()
    }

    /// Waits until the guest has powered itself off.
    pub fn wait_for_end(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(
                Instant::now() < deadline,
                "the guest did not end: {}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.console());
        }
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
