//! A shelf of frames in memory, images with known content, mounts that go away whatever happens.
#![allow(unsafe_code)] // mmap, to fault as QEMU does
#![allow(dead_code)] // each test binary uses its part

use bytes::Bytes;
use martlet_fuse::{MountOptions, Registry, Server, mount, unmount};
use martlet_image::{FRAME_PAGES_MAX, FrameId, Manifest, PAGE_SIZE, PageLocation};
use martlet_pager::{FrameSource, SourceError};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Default)]
pub struct Shelf {
    frames: HashMap<FrameId, Bytes>,
    broken: Mutex<HashSet<FrameId>>,
    pub fetches: AtomicU64,
    pub delay_us: AtomicU64,
}

impl Shelf {
    pub fn frames(&self) -> u64 {
        self.frames.len() as u64
    }
    pub fn break_frame(&self, id: FrameId) {
        self.broken.lock().unwrap().insert(id);
    }
    pub fn mend(&self) {
        self.broken.lock().unwrap().clear();
    }
}

impl FrameSource for Shelf {
    fn frame(&self, id: &FrameId) -> Result<Bytes, SourceError> {
        self.fetches.fetch_add(1, Relaxed);
        std::thread::sleep(Duration::from_micros(self.delay_us.load(Relaxed)));
        if self.broken.lock().unwrap().contains(id) {
            return Err(SourceError::Damaged {
                frame: *id,
                reason: "to order".into(),
            });
        }
        self.frames
            .get(id)
            .cloned()
            .ok_or(SourceError::Missing { frame: *id })
    }
}

/// An image of `pages` pages, every fifth zero, in full frames; and its content.
pub fn image(pages: u64, seed: u64) -> (Arc<Shelf>, Arc<Manifest>, Vec<u8>) {
    let mut shelf = Shelf::default();
    let mut manifest = Manifest::zero(pages);
    let mut content = vec![0; pages as usize * PAGE_SIZE];
    let stored: Vec<u64> = (0..pages)
        .filter(|page| !(page * 31 + seed).is_multiple_of(5))
        .collect();
    for pages in stored.chunks(FRAME_PAGES_MAX) {
        let mut frame = Vec::new();
        for &page in pages {
            let bytes = &mut content[page as usize * PAGE_SIZE..][..PAGE_SIZE];
            for (n, chunk) in bytes.chunks_exact_mut(8).enumerate() {
                let word = (seed + page * 1_000_003 + n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                chunk.copy_from_slice(&word.to_le_bytes());
            }
            frame.extend_from_slice(bytes);
        }
        let id = FrameId::of(&frame);
        for (slot, &page) in pages.iter().enumerate() {
            manifest.set(
                page,
                PageLocation::Frame {
                    frame: id,
                    slot: slot as u8,
                },
            );
        }
        shelf.frames.insert(id, frame.into());
    }
    (Arc::new(shelf), Arc::new(manifest), content)
}

/// A mount point that is unmounted and deleted at the end, also of a test that fails.
pub struct Mounted {
    pub dir: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Mounted {
    pub fn new() -> (Self, OwnedFd) {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("mnt");
        std::fs::create_dir(&dir).unwrap();
        let fd = mount(&dir, MountOptions { allow_other: true }).unwrap();
        (
            Self {
                dir,
                _temporary: temporary,
            },
            fd,
        )
    }
    pub fn served(registry: &Arc<Registry>) -> (Self, Server) {
        let (mounted, fd) = Self::new();
        let server = Server::start(fd, registry.clone(), None, 4).unwrap();
        (mounted, server)
    }
    pub fn mem(&self, name: &str) -> PathBuf {
        self.dir.join("mem").join(name)
    }
    pub fn disk(&self, name: &str) -> PathBuf {
        self.dir.join("disk").join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.dir);
    }
}

/// A private mapping of a whole file, as QEMU maps guest memory.
pub struct Mapping {
    pub base: *mut u8,
    pub length: usize,
    _file: File,
}

// SAFETY: a mapping is memory; tests share it for reading only.
unsafe impl Sync for Mapping {}
// SAFETY: as above.
unsafe impl Send for Mapping {}

impl Mapping {
    pub fn private(path: &Path) -> Self {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let length = file.metadata().unwrap().len() as usize;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        Self {
            base: base.cast(),
            length,
            _file: file,
        }
    }
    pub fn file(&self) -> &File {
        &self._file
    }
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for `length` bytes until drop; writers are other pages' owners in the same test.
        unsafe { std::slice::from_raw_parts(self.base, self.length) }
    }
    pub fn page(&self, page: u64) -> &[u8] {
        &self.bytes()[page as usize * PAGE_SIZE..][..PAGE_SIZE]
    }
    pub fn write(&self, offset: usize, byte: u8) {
        assert!(offset < self.length);
        // SAFETY: within the mapping, which is writable and private.
        unsafe { self.base.add(offset).write_volatile(byte) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `private` with this length.
        unsafe { libc::munmap(self.base.cast(), self.length) };
    }
}
