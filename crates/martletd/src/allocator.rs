//! What the C library's allocator keeps for itself: little, because a daemon is mostly idle and its host is full of guests.
//!
//! By default it gives threads up to eight arenas for each processor and seldom returns memory from them (mallopt(3),
//! malloc_trim(3)). The threads here wait for guests and do not contend for it.
#![allow(unsafe_code)] // calls of the C library without a safe interface

/// Arenas that all threads share.
const ARENAS: libc::c_int = 2;
/// What is larger is memory of its own, and the system's again when it is freed. By default this bound rises with what was freed, up to
/// 32 MiB, and the buffers of a checkpoint or a suspend leave holes among what lives longer.
const OWN_BYTES: libc::c_int = 4 << 20;

/// To be called before there are threads.
pub fn limit() {
    // SAFETY: sets numbers in the allocator, which is not in use by another thread yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_BYTES);
    }
}

/// Returns unused memory to the system. Takes milliseconds.
pub fn give_back() {
    // SAFETY: the allocator may be told to at any time.
    unsafe { libc::malloc_trim(0) };
}
