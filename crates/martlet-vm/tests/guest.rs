//! A real guest, checkpointed and restored: device state and private pages, the same and across QEMU versions.
//!
//! The guest is Debian's cloud kernel with its virtio drivers and busybox. It keeps 8 MiB of random bytes in memory and goes on counting,
//! checking the bytes' digest at each step; any wrong byte would show on its console.

use martlet_image::PAGE_SIZE;
use martlet_vm::capture::{Capture, CapturedMemory, Mapping};
use martlet_vm::process::{ChildState, ExitStatus, User, own_directory};
use martlet_vm::running::{EndReason, StartOptions};
use martlet_vm::spec::{Boot, Forward, Link, Memory, Net};
use martlet_vm::{DirectSpawner, MachineSpec, Qemu, RunningVm, Spawner, VmError, VmEvent};
use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const MEMORY_BYTES: u64 = 160 << 20;
const GUEST_TIMEOUT: Duration = Duration::from_secs(90);
const USER: User = User {
    uid: 200_123,
    gid: 200_123,
    groups: Vec::new(),
};

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /bin/busybox insmod $module; done
/bin/busybox dd if=/dev/urandom of=/block bs=1M count=8 2>/dev/null
sum=$(/bin/busybox sha256sum /block)
n=0
while :; do
    n=$((n + 1))
    if [ "$(/bin/busybox sha256sum /block)" = "$sum" ]; then echo "count $n right"; else echo "count $n WRONG"; fi
    /bin/busybox sleep 0.1
done
"#;

/// A machine that is killed when the test is done with it, however that ends.
struct Guest {
    vm: RunningVm,
    spec: MachineSpec,
    killer: Killer,
}

struct Killer {
    spawner: Arc<dyn Spawner>,
    pid: u32,
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.spawner.signal(self.pid, libc::SIGKILL).ok();
        self.spawner.wait(self.pid, Duration::from_secs(10)).ok();
    }
}

impl Guest {
    fn console(&self) -> String {
        std::fs::read_to_string(self.spec.console_log()).unwrap_or_default()
    }

    /// The last number counted so far.
    fn count(&self) -> u64 {
        let console = self.console();
        assert!(!console.contains("WRONG"), "{console}");
        let counts = console
            .lines()
            .filter_map(|l| l.trim().strip_prefix("count ")?.strip_suffix(" right"));
        counts.filter_map(|n| n.parse().ok()).next_back().unwrap_or(0)
    }

    fn wait_for_count(&self, wanted: u64) {
        let deadline = Instant::now() + GUEST_TIMEOUT;
        while self.count() < wanted {
            assert!(self.vm.is_alive(), "QEMU ended: {}", self.vm.last_words());
            assert!(
                Instant::now() < deadline,
                "no count {wanted} on the console: {}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Everything on disk that the test needs, in a directory other users can reach.
struct Lab {
    dir: tempfile::TempDir,
    spawner: Arc<dyn Spawner>,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("martlet-vm-")
            .tempdir_in("/tmp")
            .unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let kernel = PathBuf::from(script("test-kernel", &[]));
        std::fs::copy(&kernel, dir.path().join("vmlinuz")).unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("bin")).unwrap();
        std::fs::create_dir_all(root.join("modules")).unwrap();
        for module in std::fs::read_dir(kernel.with_file_name("modules"))
            .unwrap()
            .map(Result::unwrap)
        {
            std::fs::copy(module.path(), root.join("modules").join(module.file_name())).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        std::fs::write(root.join("init"), INIT).unwrap();
        std::fs::set_permissions(root.join("init"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let pack = "find . | busybox cpio -o -H newc > ../initrd";
        let packed = Command::new("sh")
            .args(["-c", pack])
            .current_dir(&root)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(packed.success());
        Self {
            dir,
            spawner: Arc::new(DirectSpawner::new()),
        }
    }

    fn memory_file(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        let file = File::create(&path).unwrap();
        file.set_len(MEMORY_BYTES).unwrap();
        std::os::unix::fs::fchown(&file, Some(USER.uid), Some(USER.gid)).unwrap();
        path
    }

    fn spec(&self, qemu: &Qemu, name: &str, memory: &Path, incoming: bool) -> MachineSpec {
        MachineSpec {
            name: name.into(),
            hardware: qemu.new_hardware(None),
            cpus: 1,
            // A plain file would lose the pages that the guest reports free.
            memory: Memory {
                path: memory.into(),
                size_bytes: MEMORY_BYTES,
                free_page_reporting: false,
            },
            disks: Vec::new(),
            boot: Boot::Kernel {
                kernel: self.dir.path().join("vmlinuz"),
                initrd: Some(self.dir.path().join("initrd")),
                cmdline: "console=ttyS0 quiet mitigations=off panic=-1".into(),
            },
            net: Some(Net {
                family: None,
                address: [10, 77, 1, 1].into(),
                mac: "52:54:00:00:00:01".into(),
                link: Link::User {
                    forwards: Vec::new(),
                    outbound: false,
                },
            }),
            generation_id: "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87".into(),
            run_dir: self.dir.path().join(name),
            incoming,
        }
    }

    fn start(&self, qemu: &Qemu, spec: MachineSpec, user: Option<User>) -> Guest {
        own_directory(&spec.run_dir, user.as_ref()).unwrap();
        let options = StartOptions {
            user,
            ..StartOptions::default()
        };
        let begun = Instant::now();
        let vm = RunningVm::start(qemu, &spec, &options, self.spawner.clone()).unwrap();
        eprintln!(
            "{}: QEMU {} answers after {:?}",
            spec.name,
            qemu.version(),
            begun.elapsed()
        );
        let killer = Killer {
            spawner: self.spawner.clone(),
            pid: vm.pid(),
        };
        Guest { vm, spec, killer }
    }

    fn boot(&self, qemu: &Qemu, name: &str, user: Option<User>) -> Guest {
        let memory = self.memory_file(&format!("{name}.mem"));
        let guest = self.start(qemu, self.spec(qemu, name, &memory, false), user);
        guest.vm.cont().unwrap();
        guest
    }

    /// A machine that goes on from a checkpoint.
    fn restore(&self, qemu: &Qemu, name: &str, saved: &Saved, user: Option<User>) -> Guest {
        let memory = self.memory_file(&format!("{name}.mem"));
        let file = File::options().write(true).open(&memory).unwrap();
        for (page, bytes) in saved.memory.iter_nonzero() {
            file.write_all_at(bytes, page * PAGE_SIZE as u64).unwrap();
        }
        let guest = self.start(qemu, self.spec(qemu, name, &memory, true), user);
        assert_eq!(guest.vm.status().unwrap(), "inmigrate");
        let load = guest.vm.load_descriptor(&saved.descriptor).unwrap();
        eprintln!("{name}: loaded in {load:?}");
        assert_eq!(guest.vm.status().unwrap(), "paused");
        guest.vm.cont().unwrap();
        guest
    }
}

struct Saved {
    memory: CapturedMemory,
    descriptor: Vec<u8>,
    count: u64,
}

fn checkpoint(guest: &Guest) -> Saved {
    let pid = guest.vm.pid();
    let mapping = Mapping::find(pid, &guest.spec.memory.path).unwrap();
    assert_eq!(mapping.page_count() * PAGE_SIZE as u64, MEMORY_BYTES);
    let mut capture = Capture::prepare(pid, &mapping).unwrap();
    capture.make_room().unwrap();
    let begun = Instant::now();
    guest.vm.stop().unwrap();
    let stopped = begun.elapsed();
    let descriptor = guest.vm.save_descriptor().unwrap();
    let saved = begun.elapsed();
    let memory = capture.finish().unwrap();
    let captured = begun.elapsed();
    assert_eq!(guest.vm.status().unwrap(), "paused");
    let count = guest.count();
    guest.vm.cont().unwrap();
    eprintln!(
        "{}: stop {stopped:?}, descriptor of {} bytes at {saved:?}, {} MiB at {captured:?}",
        guest.spec.name,
        descriptor.len(),
        memory.size_bytes() >> 20
    );
    Saved {
        memory,
        descriptor,
        count,
    }
}

fn script(name: &str, args: &[&str]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../script")
        .join(name);
    let output = Command::new(path)
        .args(args)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "script/{name} failed");
    String::from_utf8(output.stdout).unwrap().trim().to_string()
}

#[test]
fn a_guest_goes_on_where_it_was_and_so_does_its_clone() {
    let lab = Lab::new();
    let qemu = Qemu::discover(None).unwrap();
    let parent = lab.boot(&qemu, "parent", Some(USER));
    let events = parent.vm.events();
    parent.wait_for_count(3);
    let status = std::fs::read_to_string(format!("/proc/{}/status", parent.vm.pid())).unwrap();
    for line in ["Uid:\t200123\t200123", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} not in {status}");
    }

    let saved = checkpoint(&parent);
    parent.wait_for_count(saved.count + 3);
    let seen: Vec<_> = events.try_iter().collect();
    assert!(
        matches!(seen[..], [VmEvent::Stopped(_), VmEvent::Resumed(_)]),
        "{seen:?}"
    );

    // A checkpoint of the clone holds what the clone has written, and nothing else.
    let clone = lab.restore(&qemu, "clone", &saved, Some(USER));
    clone.wait_for_count(saved.count + 2);
    assert!(
        !clone.console().contains("count 1 "),
        "it booted instead: {}",
        clone.console()
    );
    let again = checkpoint(&clone);
    assert!(
        again.memory.size_bytes() < saved.memory.size_bytes(),
        "the delta is smaller than the whole"
    );

    ports_are_forwarded(&clone.vm);
    our_restart_is_survived(&lab, clone);

    parent.vm.quit().unwrap();
    let end = parent.vm.wait(Duration::from_secs(10)).unwrap();
    assert!(
        matches!(
            end,
            ChildState::Ended {
                status: ExitStatus::Code(0),
                ..
            }
        ),
        "{end:?}"
    );
    assert_eq!(parent.vm.end_reason(), Some(EndReason::Host));
    assert_eq!(events.iter().last(), Some(VmEvent::Ended));
    assert!(!parent.vm.is_alive());
    assert!(matches!(parent.vm.status(), Err(VmError::Ended { .. })));

    damaged_descriptors_are_refused(&lab, &qemu, &saved);
}

fn ports_are_forwarded(vm: &RunningVm) {
    let forward = vm
        .add_forward(Forward {
            host_port: 0,
            guest_port: 80,
        })
        .unwrap();
    std::net::TcpStream::connect(("127.0.0.1", forward.host_port)).unwrap();
    let taken = vm.add_forward(forward).unwrap_err().to_string();
    assert!(taken.contains(&forward.host_port.to_string()), "{taken}");
}

/// Dropping our end and taking the machine over again changes nothing for the guest.
fn our_restart_is_survived(lab: &Lab, guest: Guest) {
    let before = guest.count();
    let Guest { vm, spec, killer } = guest;
    let handle = vm.handle().clone();
    drop(vm);
    let vm = RunningVm::adopt(handle, lab.spawner.clone()).unwrap();
    assert_eq!(vm.status().unwrap(), "running");
    let guest = Guest { vm, spec, killer };
    guest.wait_for_count(before + 2);
}

fn damaged_descriptors_are_refused(lab: &Lab, qemu: &Qemu, saved: &Saved) {
    let mut flipped = saved.descriptor.clone();
    flipped[20] ^= 0xff;
    let truncated = saved.descriptor[..saved.descriptor.len() / 2].to_vec();
    for (name, descriptor) in [
        ("flipped", flipped),
        ("truncated", truncated),
        ("garbage", vec![0xa5; 5000]),
    ] {
        let memory = lab.memory_file(&format!("{name}.mem"));
        let guest = lab.start(qemu, lab.spec(qemu, name, &memory, true), Some(USER));
        let begun = Instant::now();
        match guest.vm.load_descriptor(&descriptor) {
            Err(VmError::BadDescriptor { reason }) => {
                eprintln!("{name}, after {:?}: {reason}", begun.elapsed())
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn checkpoints_move_between_qemu_versions_both_ways() {
    let lab = Lab::new();
    let old = Qemu::discover(None).unwrap();
    let new = Qemu::discover(Some(Path::new(&script("fetch-qemu", &["10.0"])))).unwrap();
    assert!(new.version().starts_with("10.0"), "{}", new.version());
    for (from, to, name) in [(&old, &new, "forth"), (&new, &old, "back")] {
        let saved = {
            let parent = lab.boot(from, &format!("{name}-parent"), None);
            parent.wait_for_count(2);
            checkpoint(&parent)
        };
        martlet_vm::compat::check(&from.new_hardware(None), &to.offer().unwrap(), None).unwrap();
        let clone = lab.restore(to, &format!("{name}-clone"), &saved, None);
        clone.wait_for_count(saved.count + 3);
        assert!(
            !clone.console().contains("count 1 "),
            "it booted instead: {}",
            clone.console()
        );
    }
}
