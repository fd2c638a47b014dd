//! QEMU asks for huge pages for its guest's memory (`madvise(MADV_HUGEPAGE)`), and has no option not to. On memory that is a
//! file the kernel takes that for a wish to read 2 MiB and more around every page fault (`do_sync_mmap_readahead` in
//! Linux's mm/filemap.c), which is what serving memory page by page is there to avoid: a clone would read ten times
//! what it uses. So that one call is answered with EINVAL, as a kernel without huge pages would; QEMU goes on without.
//!
//! A seccomp filter, because `prctl(PR_SET_THP_DISABLE)` does not stop the reading ahead, only the huge pages. It is
//! inherited over exec and stands beside QEMU's own filters (`-sandbox on`).
#![allow(unsafe_code)] // prctl takes a pointer to the filter

use std::io;

/// Offsets in `struct seccomp_data`; arguments are 64 bits wide, and the low half comes first.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const THIRD_ARGUMENT: u32 = 16 + 2 * 8;
/// `AUDIT_ARCH_X86_64` of linux/audit.h.
const X86_64: u32 = 0xc000_003e;

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

/// Goes on with the next instruction when the value is `k`, else skips `otherwise` instructions.
const fn unless_equal(k: u32, otherwise: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf: otherwise,
        k,
    }
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

static FILTER: [libc::sock_filter; 8] = [
    statement(LOAD, ARCHITECTURE),
    unless_equal(X86_64, 5),
    statement(LOAD, NUMBER),
    unless_equal(libc::SYS_madvise as u32, 3),
    statement(LOAD, THIRD_ARGUMENT),
    unless_equal(libc::MADV_HUGEPAGE as u32, 1),
    statement(RETURN, libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32),
    statement(RETURN, libc::SECCOMP_RET_ALLOW),
];

/// Refuses huge pages to this process and what it executes. Needs `PR_SET_NO_NEW_PRIVS`. Async-signal-safe.
pub fn refuse() -> io::Result<()> {
    let program = libc::sock_fprog {
        len: FILTER.len() as u16,
        filter: FILTER.as_ptr().cast_mut(), // the kernel only reads it
    };
    // SAFETY: `program` and the filter it names outlive the call, which copies them.
    let set = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_refused_and_other_advice_is_not() {
        // On a thread of its own: the filter is that thread's for ever.
        std::thread::spawn(|| {
            // SAFETY: memory mapped here, advised on and left to the end of the program.
            unsafe {
                let size = 4 << 20;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let access = libc::PROT_READ | libc::PROT_WRITE;
                let memory = libc::mmap(std::ptr::null_mut(), size, access, flags, -1, 0);
                assert_ne!(memory, libc::MAP_FAILED);
                assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
                refuse().unwrap();
                assert_eq!(libc::madvise(memory, size, libc::MADV_HUGEPAGE), -1);
                assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EINVAL));
                assert_eq!(libc::madvise(memory, size, libc::MADV_DONTNEED), 0);
                assert_eq!(libc::madvise(memory, size, libc::MADV_NOHUGEPAGE), 0);
            }
        })
        .join()
        .unwrap();
    }
}
