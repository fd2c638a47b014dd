//! Pages: the unit of everything.

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// Most pages a frame holds.
pub const FRAME_PAGES_MAX: usize = 16;

/// A page of zeros.
pub static ZERO_PAGE: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// Is every byte zero? Shorter slices (a last, partial page) are allowed up to a page.
pub fn is_zero(page: &[u8]) -> bool {
    page == &ZERO_PAGE[..page.len()]
}

/// How many pages hold this many bytes.
pub fn pages_for(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(PAGE_SIZE as u64)
}
