//! A private mapping of a file, in this process.
#![allow(unsafe_code)] // a mapping that is written to and read past the compiler

use martlet_image::PAGE_SIZE;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

pub struct Mapped {
    start: *mut u8,
    size_bytes: usize,
    pub path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Mapped {
    pub fn new(page_count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mem");
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let size_bytes = page_count * PAGE_SIZE;
        file.set_len(size_bytes as u64).unwrap();
        // SAFETY: a new mapping.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        Self {
            start: start.cast(),
            size_bytes,
            path,
            _dir: dir,
        }
    }

    /// Fills a page.
    pub fn write(&self, page: usize, byte: u8) {
        assert!((page + 1) * PAGE_SIZE <= self.size_bytes);
        // SAFETY: within the mapping.
        unsafe { self.start.add(page * PAGE_SIZE).write_bytes(byte, PAGE_SIZE) };
    }

    /// Touches a page.
    pub fn read(&self, page: usize) {
        assert!((page + 1) * PAGE_SIZE <= self.size_bytes);
        // SAFETY: within the mapping.
        unsafe { self.start.add(page * PAGE_SIZE).read_volatile() };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: our mapping.
        unsafe { libc::munmap(self.start.cast(), self.size_bytes) };
    }
}
