//! A server is killed in the middle of requests; another adopts the connection; nobody notices but by the wait.
//!
//! The test's own program is the server that dies (`serve`), so it has a `main` of its own.
#![allow(unsafe_code)] // a descriptor that crosses exec

mod support;

use bytes::Bytes;
use martlet_disk::CowDisk;
use martlet_fuse::{Negotiated, Placement, Registry, Server};
use martlet_image::{FrameId, Manifest, PAGE_SIZE, PageLocation};
use martlet_pager::{FrameSource, MemoryImage, Pager, SourceError, VmKey};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use support::{Mapping, Mounted, Shelf, image};

const PAGES: u64 = 1024;
const MEMORY: Placement = Placement {
    ino: Some(20),
    uid: 0,
    gid: 0,
    mode: 0o600,
};
const DISK: Placement = Placement {
    ino: Some(21),
    uid: 0,
    gid: 0,
    mode: 0o600,
};
/// Pages whose frames the first server never gets.
const STUCK_PAGES: [u64; 2] = [701, 301];

static STUCK: AtomicBool = AtomicBool::new(false);

/// Never comes back with some frames, and says so.
struct Stuck {
    shelf: Arc<Shelf>,
    frames: Vec<FrameId>,
}

impl FrameSource for Stuck {
    fn frame(&self, id: &FrameId) -> Result<Bytes, SourceError> {
        while self.frames.contains(id) {
            println!("stuck");
            STUCK.store(true, Relaxed);
            std::thread::sleep(Duration::from_secs(3600));
        }
        self.shelf.frame(id)
    }
}

fn frame_of(manifest: &Manifest, page: u64) -> FrameId {
    match manifest.locate(page) {
        PageLocation::Frame { frame, .. } => frame,
        PageLocation::Zero => panic!("page {page} is stored"),
    }
}

fn registry(memory: Arc<MemoryImage>, disk: Arc<CowDisk>) -> Arc<Registry> {
    let registry = Registry::new();
    registry.add_memory("m", memory, MEMORY).unwrap();
    registry.add_disk("d", disk, DISK).unwrap();
    registry
}

/// The server that will be killed.
fn serve(fd: i32, dir: &Path) {
    // SAFETY: the parent left this descriptor open for this process, which uses it nowhere else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let (shelf, manifest, content) = image(PAGES, 1);
    let frames = STUCK_PAGES.map(|page| frame_of(&manifest, page)).to_vec();
    let pager = Pager::new(Arc::new(Stuck { shelf, frames }), 16 << 20);
    let disk = CowDisk::create(dir, pager.clone(), manifest.clone(), PAGES * 4096).unwrap();
    let registry = registry(MemoryImage::new(pager, manifest), disk);
    let server = Server::start(fd, registry, None, 4).unwrap();
    println!("{}", serde_json::to_string(&server.negotiated()).unwrap());
    // A push of the very page that is being read waits for the page's lock, and no signal ends that.
    while !STUCK.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("pushing");
    server.pusher(20).unwrap().push(
        STUCK_PAGES[0] * 4096,
        &Arc::new(content[STUCK_PAGES[0] as usize * 4096..][..4096].to_vec()),
    );
    server.join();
}

/// Killed and waited for, also when the test fails.
struct Served(Child);

impl Served {
    /// Does not wait: the process cannot end before somebody answers the read that its push waits for.
    fn kill(&mut self) {
        let _ = self.0.kill();
    }
    fn stdout(&mut self) -> ChildStdout {
        self.0.stdout.take().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.kill();
        let _ = self.0.wait();
    }
}

/// The disk, as soon as the killed process let go of it. That process is not gone altogether: its push still waits.
fn reopen(dir: &Path, pager: &Arc<Pager>, manifest: &Arc<Manifest>) -> Arc<CowDisk> {
    let start = Instant::now();
    loop {
        match CowDisk::open(dir, pager.clone(), manifest.clone(), PAGES * 4096) {
            Ok(disk) => return disk,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(20), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn spawn(fd: &OwnedFd, dir: &Path) -> Served {
    // SAFETY: duplicates an open descriptor; the duplicate, which exec leaves open, is owned below.
    let inherited = unsafe { OwnedFd::from_raw_fd(libc::dup(fd.as_raw_fd())) };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .arg("serve")
        .arg(inherited.as_raw_fd().to_string())
        .arg(dir)
        .stdout(Stdio::piped());
    Served(command.spawn().unwrap())
}

fn a_killed_server_is_replaced_in_the_middle_of_requests() {
    let (shelf, manifest, content) = image(PAGES, 1);
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("disk");
    let (mounted, fd) = Mounted::new();
    let mut first = spawn(&fd, &dir);
    let mut lines = BufReader::new(first.stdout()).lines().map(|line| line.unwrap());
    let negotiated: Negotiated = serde_json::from_str(&lines.next().unwrap()).unwrap();
    assert!(negotiated.has_resend(), "the kernel is older than 6.9");

    let page_at = |page: u64| &content[page as usize * PAGE_SIZE..][..PAGE_SIZE];
    let mapping = Mapping::private(&mounted.mem("m"));
    assert!(mapping.page(1) == page_at(1));
    let file = File::options()
        .read(true)
        .write(true)
        .open(mounted.disk("d"))
        .unwrap();
    let mut model = content.clone();
    file.write_all_at(&[7; 10_000], 50_000).unwrap();
    model[50_000..60_000].fill(7);

    let at = STUCK_PAGES[1] * 4096 + 100;
    std::thread::scope(|scope| {
        let (fd, mut first) = (fd, first); // closed by a failure, so that nobody waits for ever
        let reader = scope.spawn(|| mapping.page(STUCK_PAGES[0]).to_vec());
        let writer = scope.spawn(|| file.write_all_at(b"half a block", at));
        let mut said: Vec<String> = lines.by_ref().take(3).collect();
        said.sort();
        assert_eq!(said, ["pushing", "stuck", "stuck"]);
        std::thread::sleep(Duration::from_millis(50)); // until the push waits
        first.kill();
        std::thread::sleep(Duration::from_millis(20));
        assert!(
            !reader.is_finished() && !writer.is_finished(),
            "both wait for a server"
        );

        let pager = Pager::new(shelf.clone(), 16 << 20);
        let disk = reopen(&dir, &pager, &manifest);
        let memory = MemoryImage::new(pager, manifest.clone());
        let registry = registry(memory.clone(), disk);
        registry.set_owner(std::process::id(), VmKey(1));
        let second = Server::start(fd.try_clone().unwrap(), registry.clone(), Some(negotiated), 4).unwrap();
        assert!(
            reader.join().unwrap() == page_at(STUCK_PAGES[0]),
            "the stalled reader's bytes"
        );
        writer.join().unwrap().unwrap();
        model[at as usize..][..12].copy_from_slice(b"half a block");

        let mut whole = vec![0; model.len()];
        file.read_exact_at(&mut whole, 0).unwrap();
        assert!(
            whole == model,
            "answered writes survived, the stalled one was made"
        );
        assert!(mapping.bytes() == content);
        let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: no memory is involved; the descriptor is open.
        let punched = unsafe { libc::fallocate(mapping.file().as_raw_fd(), hole, 8192, 4096) };
        assert_eq!(punched, 0);
        assert_eq!(
            memory.free_pages(VmKey(1)).len(),
            1,
            "handles of the first server still say whose they are"
        );

        // And once more, in an orderly way.
        second.stop();
        let late = scope.spawn(|| {
            let mut buf = [0; 512];
            file.read_exact_at(&mut buf, 0).map(|()| buf)
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!late.is_finished());
        let third = Server::start(fd.try_clone().unwrap(), registry, Some(negotiated), 1).unwrap();
        assert!(late.join().unwrap().unwrap() == model[..512]);
        drop(third);
    });
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, verb, fd, dir] = &arguments[..]
        && verb == "serve"
    {
        return serve(fd.parse().unwrap(), Path::new(dir));
    }
    a_killed_server_is_replaced_in_the_middle_of_requests();
    println!("a_killed_server_is_replaced_in_the_middle_of_requests ... ok");
}
