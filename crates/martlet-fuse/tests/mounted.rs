//! Files of a real mount, read and written through the kernel.
#![allow(unsafe_code)] // fallocate and friends have no safe wrappers

mod support;

use bytes::Bytes;
use martlet_disk::CowDisk;
use martlet_fuse::{
    MountOptions, Placement, Prefetcher, Readahead, Registry, Server, mount, mounts_at, set_readahead,
    unmount,
};
use martlet_image::{FrameId, PAGE_SIZE, PageSet, Trace};
use martlet_pager::{FrameSource, MemoryImage, Pager, SourceError, VmKey};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};
use support::{Mapping, Mounted, image};

fn fallocate(file: &File, mode: i32, offset: u64, length: u64) -> io::Result<()> {
    // SAFETY: no memory is involved; the descriptor is open.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, length as i64) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

#[test]
fn a_memory_image_is_mapped_right_to_the_byte() {
    let (shelf, manifest, content) = image(2000, 3);
    let registry = Registry::new();
    let memory = MemoryImage::new(Pager::new(shelf.clone(), 64 << 20), manifest);
    let ino = registry
        .add_memory("a", memory.clone(), Placement::default())
        .unwrap();
    registry
        .add_memory("clone of a", memory.clone(), Placement::default())
        .unwrap();
    let (mounted, server) = Mounted::served(&registry);

    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for name in ["a", "clone of a", "a", "clone of a"] {
            let (path, start, content) = (mounted.mem(name), &start, &content);
            scope.spawn(move || {
                let mapping = Mapping::private(&path);
                start.wait();
                assert!(mapping.bytes() == content, "mapped bytes differ");
            });
        }
    });
    assert_eq!(
        shelf.fetches.load(Relaxed),
        shelf.frames(),
        "each frame fetched once"
    );

    let one = Mapping::private(&mounted.mem("a"));
    one.write(5, 99);
    let file = File::options()
        .read(true)
        .write(true)
        .open(mounted.mem("clone of a"))
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5).unwrap();
    assert_eq!(
        (byte[0], one.bytes()[5]),
        (content[5], 99),
        "what a VM writes is its own"
    );
    assert_eq!(
        file.write_at(b"x", 5).unwrap_err().raw_os_error(),
        Some(libc::EROFS)
    );
    assert_eq!(file.set_len(1).unwrap_err().raw_os_error(), Some(libc::EPERM));
    assert_eq!(file.metadata().unwrap().ino(), ino);
    assert!(File::create(mounted.mem("b")).is_err());
    let mut names: Vec<_> = fs::read_dir(mounted.dir.join("mem"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["a", "clone of a"]);

    assert!(registry.remove_memory("a") && registry.remove_memory("clone of a"));
    assert!(
        File::open(mounted.mem("a")).is_err(),
        "a removed name is gone at once"
    );
    server.invalidate(ino).unwrap();
    assert!(
        one.page(1000) == &content[1000 * PAGE_SIZE..1001 * PAGE_SIZE],
        "who has it open goes on"
    );
}

#[test]
fn damage_is_an_error_and_never_wrong_bytes() {
    let (shelf, manifest, content) = image(64, 0);
    let (page, frame, _) = manifest.stored_pages().next().unwrap();
    shelf.break_frame(frame);
    let registry = Registry::new();
    let memory = MemoryImage::new(Pager::new(shelf.clone(), 1 << 20), manifest.clone());
    registry
        .add_memory("m", memory.clone(), Placement::default())
        .unwrap();
    let (mounted, server) = Mounted::served(&registry);
    let file = File::open(mounted.mem("m")).unwrap();
    let mut buf = [0; PAGE_SIZE];
    let error = file.read_exact_at(&mut buf, page * PAGE_SIZE as u64).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));

    // A mapping gets SIGBUS; a child takes it.
    let mapping = Mapping::private(&mounted.mem("m"));
    // SAFETY: the child only touches memory and leaves.
    let status = unsafe {
        match libc::fork() {
            0 => {
                libc::signal(libc::SIGBUS, libc::SIG_DFL);
                libc::_exit(mapping.base.add(page as usize * PAGE_SIZE).read_volatile().into());
            }
            child => {
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &mut status, 0), child);
                status
            }
        }
    };
    assert!(
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS,
        "status {status:#x}"
    );

    shelf.mend();
    file.read_exact_at(&mut buf, page * PAGE_SIZE as u64).unwrap();
    assert!(
        buf[..] == content[page as usize * PAGE_SIZE..][..PAGE_SIZE],
        "a mended frame is read"
    );
    drop((mapping, server));
}

#[test]
fn free_pages_are_noted_for_the_vm_that_reports_them() {
    let (shelf, manifest, content) = image(64, 1);
    let registry = Registry::new();
    let memory = MemoryImage::new(Pager::new(shelf, 1 << 20), manifest);
    registry
        .add_memory("m", memory.clone(), Placement::default())
        .unwrap();
    let (mounted, _server) = Mounted::served(&registry);
    let mapping = Mapping::private(&mounted.mem("m"));
    mapping.write(8 * PAGE_SIZE, 42);
    fallocate(mapping.file(), PUNCH, 0, 4096).unwrap();
    assert!(memory.free_pages(VmKey(7)).is_empty(), "nobody's yet");
    registry.set_owner(std::process::id(), VmKey(7)); // found out when it reports, not when it opened the file
    fallocate(mapping.file(), PUNCH, 8192, 5 * 4096).unwrap();
    assert_eq!(memory.free_pages(VmKey(7)), (2..7).collect::<PageSet>());
    assert_eq!(mapping.page(8)[0], 42, "private pages are kept");
    assert!(
        mapping.page(3) == &content[3 * PAGE_SIZE..4 * PAGE_SIZE],
        "the image does not change"
    );
    let zero = fallocate(mapping.file(), libc::FALLOC_FL_ZERO_RANGE, 0, 4096);
    assert_eq!(zero.unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
}

#[test]
fn prefetched_pages_are_not_asked_for() {
    let (shelf, manifest, content) = image(4096, 2);
    let registry = Registry::new();
    let memory = MemoryImage::new(Pager::new(shelf, 64 << 20), manifest);
    registry
        .add_memory("m", memory.clone(), Placement::default())
        .unwrap();
    let (mounted, server) = Mounted::served(&registry);
    set_readahead(&mounted.dir, 0).unwrap();
    let trace = Trace::new((0..1024).chain(3000..3100).collect());
    let nobody = Prefetcher::start(memory.clone(), trace.clone(), 1 << 30)
        .unwrap()
        .join();
    assert_eq!(
        (nobody.pushed_pages, nobody.refused_pages),
        (0, 1124),
        "nobody has it open"
    );
    let mapping = Mapping::private(&mounted.mem("m"));
    let report = Prefetcher::start(memory.clone(), trace, 1 << 30).unwrap().join();
    assert_eq!((report.pushed_pages, report.complete), (1124, true));
    let reads = memory.stats().reads;
    for page in (0..1024).chain(3000..3100) {
        assert!(
            mapping.page(page) == &content[page as usize * PAGE_SIZE..][..PAGE_SIZE],
            "page {page}"
        );
    }
    assert_eq!(memory.stats().reads, reads, "no faults");
    assert!(mapping.page(2000) == &content[2000 * PAGE_SIZE..][..PAGE_SIZE]);
    assert_eq!(
        (memory.stats().reads, memory.trace().pages()),
        (reads + 1, &[2000][..])
    );
    assert!(server.pusher(16).is_some() && server.pusher(17).is_none());
    // The rest of page 2000's frame comes by itself.
    let (_, frame, _) = memory
        .manifest()
        .stored_pages()
        .find(|(page, ..)| *page == 2000)
        .unwrap();
    let stored: Vec<_> = memory
        .manifest()
        .stored_pages()
        .filter(|(_, id, _)| *id == frame)
        .collect();
    let expected = 1124 + stored.last().unwrap().0 - stored[0].0; // with the zeros between
    let start = Instant::now();
    while memory.stats().pushed_pages != expected {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{} of {expected}",
            memory.stats().pushed_pages
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn who_only_reads_an_image_asks_for_much_at_once_and_a_machine_does_not() {
    let (shelf, manifest, content) = image(4096, 5);
    let registry = Registry::new();
    let memory = MemoryImage::new(Pager::new(shelf, 64 << 20), manifest);
    let place = Placement::default();
    registry.add_memory("m", memory.clone(), place).unwrap();
    let (mounted, _server) = Mounted::served(&registry);
    registry.set_readahead(Readahead::of(&mounted.dir).unwrap());
    let read = |file: &File| {
        // SAFETY: a descriptor that is open; the page cache is the kernel's own.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        let before = memory.stats();
        let mut bytes = vec![0; content.len()];
        for (at, chunk) in bytes.chunks_mut(64 << 10).enumerate() {
            file.read_exact_at(chunk, (at as u64) << 16).unwrap();
        }
        assert!(bytes == content);
        let after = memory.stats();
        (
            after.reads - before.reads,
            after.pushed_pages - before.pushed_pages,
        )
    };
    let (reads, pushed_pages) = read(&File::open(mounted.mem("m")).unwrap());
    assert!(
        reads < 64 && pushed_pages == 0,
        "{reads} reads, {pushed_pages} pages pushed"
    );
    let machine = File::options()
        .read(true)
        .write(true)
        .open(mounted.mem("m"))
        .unwrap();
    // It asks as often as it overtakes who pushes: how often cannot be told, but not for all of it.
    let (reads, pushed_pages) = read(&machine);
    assert!(pushed_pages > 0, "{reads} reads and nothing pushed");
}

#[test]
fn a_disk_is_written_discarded_and_frozen_under_load() {
    let (shelf, manifest, mut content) = image(512, 4);
    let pager = Pager::new(shelf, 16 << 20);
    let store = tempfile::tempdir().unwrap();
    let size_bytes = 513 * 4096 - 512;
    content.resize(size_bytes, 0);
    let disk = CowDisk::create(&store.path().join("d"), pager, manifest, size_bytes as u64).unwrap();
    let registry = Registry::new();
    let placement = Placement {
        uid: 1234,
        mode: 0o640,
        ..Placement::default()
    };
    registry.add_disk("d", disk.clone(), placement).unwrap();
    let (mounted, _server) = Mounted::served(&registry);
    let file = File::options()
        .read(true)
        .write(true)
        .open(mounted.disk("d"))
        .unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(
        (metadata.len(), metadata.uid(), metadata.mode() & 0o7777),
        (size_bytes as u64, 1234, 0o640)
    );

    // Four writers, each in its own quarter, while the disk is frozen again and again.
    let quarter = size_bytes / 4;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = content
            .chunks_mut(quarter)
            .take(4)
            .enumerate()
            .map(|(n, model)| {
                let (file, base) = (&file, n * quarter);
                scope.spawn(move || {
                    let mut state = n as u64 + 1;
                    let mut random = |below: usize| {
                        state = state
                            .wrapping_mul(6364136223846793005)
                            .wrapping_add(1442695040888963407);
                        (state >> 33) as usize % below
                    };
                    for step in 0..200 {
                        let at = random(model.len());
                        let length = 1 + random(40_000.min(model.len() - at));
                        let offset = (base + at) as u64;
                        match random(4) {
                            0 => {
                                fallocate(file, PUNCH, offset, length as u64).unwrap();
                                model[at..at + length].fill(0);
                            }
                            1 => {
                                let mut buf = vec![0; length];
                                file.read_exact_at(&mut buf, offset).unwrap();
                                assert!(buf == model[at..at + length], "step {step}: read differs");
                            }
                            _ => {
                                model[at..at + length].fill(step as u8 + 1);
                                file.write_all_at(&model[at..at + length], offset).unwrap();
                            }
                        }
                    }
                })
            })
            .collect();
        let done = &done;
        scope.spawn(move || {
            while !done.load(Relaxed) {
                drop(disk.freeze().unwrap());
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Relaxed);
    });
    file.sync_all().unwrap();
    let mut whole = vec![0; size_bytes];
    file.read_exact_at(&mut whole, 0).unwrap();
    assert!(whole == content);
    for behind in [0, 1, 4096] {
        let end = size_bytes as u64 + behind;
        assert_eq!(
            file.read_at(&mut [0; 8], end).unwrap(),
            0,
            "{behind} bytes behind the end"
        );
    }
    assert_eq!(
        file.write_at(b"beyond", size_bytes as u64)
            .unwrap_err()
            .raw_os_error(),
        Some(libc::ENOSPC)
    );
    assert_eq!(file.set_len(9).unwrap_err().raw_os_error(), Some(libc::EPERM));

    fallocate(&file, PUNCH, 4096, 8 * 4096).unwrap();
    file.write_all_at(b"data", 4096 * 5).unwrap();
    // SAFETY: no memory is involved; the descriptor is open.
    let seek = |offset, whence| unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    assert_eq!(
        (seek(4096, libc::SEEK_DATA), seek(4096 * 5, libc::SEEK_HOLE)),
        (4096 * 5, 4096 * 6)
    );
}

#[test]
fn a_removed_disk_is_let_go_when_it_is_closed() {
    let (shelf, manifest, _) = image(64, 1);
    let pager = Pager::new(shelf, 1 << 20);
    let store = tempfile::tempdir().unwrap();
    let disk = CowDisk::create(store.path(), pager.clone(), manifest.clone(), 64 * 4096).unwrap();
    let registry = Registry::new();
    registry.add_disk("d", disk, Placement::default()).unwrap();
    let (mounted, _server) = Mounted::served(&registry);
    let file = File::open(mounted.disk("d")).unwrap();
    assert!(registry.remove_disk("d"));
    file.read_exact_at(&mut [0; 100], 5000).unwrap();
    assert!(
        CowDisk::open(store.path(), pager.clone(), manifest.clone(), 64 * 4096).is_err(),
        "in use"
    );
    drop(file);
    let start = Instant::now();
    while CowDisk::open(store.path(), pager.clone(), manifest.clone(), 64 * 4096).is_err() {
        assert!(start.elapsed() < Duration::from_secs(20), "the kernel keeps it");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn mounting_again_replaces_what_was_left() {
    let registry = Registry::new();
    let (mounted, fd) = Mounted::new();
    drop(fd); // the daemon died before it served
    assert_eq!(mounts_at(&mounted.dir).unwrap(), 1);
    assert!(fs::read_dir(&mounted.dir).is_err(), "a dead mount");
    let fd = mount(&mounted.dir, MountOptions { allow_other: true }).unwrap();
    assert_eq!(mounts_at(&mounted.dir).unwrap(), 1);
    let server = Server::start(fd, registry, None, 2).unwrap();
    assert_eq!(fs::read_dir(&mounted.dir).unwrap().count(), 2);
    unmount(&mounted.dir).unwrap();
    assert_eq!(mounts_at(&mounted.dir).unwrap(), 0);
    server.join();
}

#[test]
fn reads_that_wait_hold_up_no_others() {
    /// Far away until the gate is open.
    struct Far(Arc<support::Shelf>, Arc<Mutex<()>>);
    impl FrameSource for Far {
        fn frame(&self, id: &FrameId) -> Result<Bytes, SourceError> {
            drop(self.1.lock().unwrap_or_else(PoisonError::into_inner));
            self.0.frame(id)
        }
    }
    let gate = Arc::new(Mutex::new(()));
    let (shelf, manifest, far_content) = image(16 * 16, 1);
    let far = Pager::new(Arc::new(Far(shelf, gate.clone())), 16 << 20);
    let (shelf, near_manifest, near_content) = image(16, 2);
    let near = Pager::new(shelf, 16 << 20);
    let registry = Registry::new();
    registry
        .add_memory("far", MemoryImage::new(far, manifest), Placement::default())
        .unwrap();
    registry
        .add_memory(
            "near",
            MemoryImage::new(near, near_manifest),
            Placement::default(),
        )
        .unwrap();
    let (mounted, _server) = Mounted::served(&registry);
    let closed = gate.lock().unwrap();
    let read = |name: &str, frame: u64| {
        let mut bytes = vec![0; 4096];
        let file = File::open(mounted.mem(name)).unwrap();
        file.read_exact_at(&mut bytes, frame * 16 * 4096).unwrap();
        bytes
    };
    std::thread::scope(|scope| {
        // Twice as many as there are threads.
        let readers: Vec<_> = (0..8)
            .map(|frame| scope.spawn(move || read("far", frame * 2)))
            .collect();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(read("near", 0), near_content[..4096]);
        drop(closed);
        for (frame, reader) in readers.into_iter().enumerate() {
            assert_eq!(reader.join().unwrap(), far_content[frame * 2 * 65536..][..4096]);
        }
    });
}
