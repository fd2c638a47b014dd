//! Stock QEMU over the mount: it maps a memory image and uses a disk, and sees the bytes there are.

mod support;

use martlet_disk::CowDisk;
use martlet_fuse::{Placement, Registry};
use martlet_pager::{MemoryImage, Pager};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use support::{Mounted, image};

/// A stopped QEMU; killed at the end, also of a test that fails.
struct Qemu {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Qemu {
    fn start(arguments: &[String]) -> Self {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(output)
                .lines()
                .try_for_each(|line| sender.send(line.unwrap()))
        });
        let mut qemu = Self { child, input, lines };
        qemu.ask(r#"{"execute": "qmp_capabilities"}"#);
        qemu
    }
    fn ask(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").unwrap();
        loop {
            let line = self
                .lines
                .recv_timeout(Duration::from_secs(60))
                .expect("QEMU answers");
            assert!(!line.contains(r#""error""#), "{command}: {line}");
            if line.contains(r#""return""#) {
                return line;
            }
        }
    }
    fn monitor(&mut self, line: &str) -> String {
        let argument =
            serde_json::json!({"execute": "human-monitor-command", "arguments": {"command-line": line}});
        self.ask(&argument.to_string())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn qemu_maps_memory_and_uses_disks() {
    let (shelf, manifest, content) = image(16 * 256, 3);
    let pager = Pager::new(shelf, 64 << 20);
    let temporary = tempfile::tempdir().unwrap();
    let disk = CowDisk::create(
        &temporary.path().join("d"),
        pager.clone(),
        manifest.clone(),
        16 << 20,
    )
    .unwrap();
    let memory = MemoryImage::new(pager, manifest);
    let registry = Registry::new();
    registry
        .add_memory("m", memory.clone(), Placement::default())
        .unwrap();
    registry
        .add_disk("d", disk.clone(), Placement::default())
        .unwrap();
    let (mounted, _server) = Mounted::served(&registry);

    let text = |text: &str| text.to_owned();
    let mut qemu = Qemu::start(&[
        text("-accel"),
        text("tcg"),
        text("-nodefaults"),
        text("-display"),
        text("none"),
        text("-S"),
        text("-machine"),
        text("q35,memory-backend=m"),
        text("-m"),
        text("16"),
        text("-object"),
        format!(
            "memory-backend-file,id=m,size=16M,mem-path={},share=off",
            mounted.mem("m").display()
        ),
        text("-drive"),
        format!(
            "if=none,id=d,file={},format=raw,discard=unmap",
            mounted.disk("d").display()
        ),
        text("-device"),
        text("virtio-blk-pci,drive=d"),
        text("-incoming"),
        text("defer"),
        text("-qmp"),
        text("stdio"),
    ]);

    let dump = temporary.path().join("dump");
    qemu.monitor(&format!("pmemsave 0x200000 0xe00000 \"{}\"", dump.display()));
    assert!(
        std::fs::read(&dump).unwrap() == content[2 << 20..],
        "guest memory differs from the image"
    );

    // The block layer is inactive while a migration is awaited: the file is used as QEMU uses it, by qemu-io.
    drop(qemu);
    let io = Command::new("qemu-io")
        .args([
            "-f",
            "raw",
            "-d",
            "unmap",
            "-c",
            "write -P 7 65536 10k",
            "-c",
            "discard 1M 64k",
            "-c",
            "read -P 7 65536 10k",
        ])
        .args(["-c", "read -P 0 1M 64k", "-c", "flush"])
        .arg(mounted.disk("d"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&io.stdout);
    assert!(
        io.status.success() && !said.contains("failed"),
        "{said}{}",
        String::from_utf8_lossy(&io.stderr)
    );
    let mut expected = content.clone();
    expected[65536..65536 + 10240].fill(7);
    expected[1 << 20..(1 << 20) + 65536].fill(0);
    let mut bytes = vec![0; 16 << 20];
    disk.read_at(0, &mut bytes).unwrap();
    assert!(bytes == expected);
}
