//! Memory that a capture is copied into. Taken from the kernel before the pause, in huge pages if it has them.
#![allow(unsafe_code)] // the standard allocator cannot be told to take its memory now

use std::io;

/// Memory is taken in steps of a huge page.
const STEP_BYTES: usize = 2 << 20;

/// A buffer that only grows, and whose memory is there before it is needed.
#[derive(Debug)]
pub struct CaptureBuffer {
    start: *mut u8,
    capacity_bytes: usize,
}

// SAFETY: it owns its memory, and hands it out under the usual rules of borrowing only.
unsafe impl Send for CaptureBuffer {}
// SAFETY: as above.
unsafe impl Sync for CaptureBuffer {}

impl CaptureBuffer {
    /// Holds nothing yet.
    pub fn new() -> Self {
        Self {
            start: std::ptr::null_mut(),
            capacity_bytes: 0,
        }
    }

    /// Makes sure that it holds this much. What it held is lost if it has to grow.
    pub fn reserve(&mut self, size_bytes: usize) -> io::Result<()> {
        if size_bytes <= self.capacity_bytes {
            return Ok(());
        }
        let grown_bytes = size_bytes.div_ceil(STEP_BYTES) * STEP_BYTES;
        self.release();
        // SAFETY: a new anonymous mapping, of no consequence to any other memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                grown_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.start = start.cast();
        self.capacity_bytes = grown_bytes;
        // SAFETY: the mapping just made. Both are advice: kernels that do not know it fault pages in as they are used.
        unsafe {
            libc::madvise(start, grown_bytes, libc::MADV_HUGEPAGE);
            libc::madvise(start, grown_bytes, libc::MADV_POPULATE_WRITE);
        }
        Ok(())
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        if self.start.is_null() {
            return &[];
        }
        // SAFETY: our mapping of that size, always initialised (the kernel's zeros at first).
        unsafe { std::slice::from_raw_parts(self.start, self.capacity_bytes) }
    }

    /// Its bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        if self.start.is_null() {
            return &mut [];
        }
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.capacity_bytes) }
    }

    fn release(&mut self) {
        if !self.start.is_null() {
            // SAFETY: our mapping, to which no borrow is left.
            unsafe { libc::munmap(self.start.cast(), self.capacity_bytes) };
            self.start = std::ptr::null_mut();
            self.capacity_bytes = 0;
        }
    }
}

impl Default for CaptureBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for CaptureBuffer {
    fn drop(&mut self) {
        self.release();
    }
}
