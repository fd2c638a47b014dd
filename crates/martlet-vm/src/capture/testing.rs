//! A private mapping of a file, in this process or in another one.
#![allow(unsafe_code)] // a mapping that is written to and read past the compiler; a fork

use martlet_image::PAGE_SIZE;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
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

/// A process with such a mapping, to which it writes as it is told.
pub struct Writer {
    pid: libc::pid_t,
    mapped: Mapped,
    orders: UnixStream,
}

impl Writer {
    pub fn start(page_count: usize) -> Self {
        let mapped = Mapped::new(page_count);
        let (orders, taken) = UnixStream::pair().unwrap();
        // SAFETY: the child makes only system calls, and writes to the mapping that it has inherited.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            let mut order = [0_u8; 5];
            while (&taken).read_exact(&mut order).is_ok() {
                let [a, b, c, d, byte] = order;
                let page = u32::from_le_bytes([a, b, c, d]) as usize;
                // SAFETY: within the mapping: the parent has looked.
                unsafe { mapped.start.add(page * PAGE_SIZE).write_bytes(byte, PAGE_SIZE) };
                let _ = (&taken).write_all(&[1]);
            }
            // SAFETY: nothing of the parent's is to be run.
            unsafe { libc::_exit(0) };
        }
        Self { pid, mapped, orders }
    }

    pub fn pid(&self) -> u32 {
        self.pid as u32
    }

    pub fn file(&self) -> &Path {
        &self.mapped.path
    }

    /// Has it fill a page.
    pub fn write(&self, page: usize, byte: u8) {
        assert!((page + 1) * PAGE_SIZE <= self.mapped.size_bytes);
        let [a, b, c, d] = (page as u32).to_le_bytes();
        (&self.orders).write_all(&[a, b, c, d, byte]).unwrap();
        (&self.orders).read_exact(&mut [0]).unwrap();
    }

    /// What it has in a page.
    pub fn read(&self, page: usize) -> [u8; PAGE_SIZE] {
        let mut bytes = [0; PAGE_SIZE];
        let memory = File::open(format!("/proc/{}/mem", self.pid)).unwrap();
        let address = self.mapped.start as u64 + (page * PAGE_SIZE) as u64;
        memory.read_exact_at(&mut bytes, address).unwrap();
        bytes
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // SAFETY: our child.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}
