//! A disk on a file system that runs full.
#![allow(unsafe_code)] // mount(2)

mod support;

use martlet_disk::{BLOCK_SIZE, CowDisk, DiskError};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use support::Shelf;

/// A file system of half a MiB, gone at the end.
struct Small(tempfile::TempDir);

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

impl Small {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let target = c_path(dir.path());
        // SAFETY: valid C strings that outlive the call.
        let mounted = unsafe {
            libc::mount(
                c"none".as_ptr(),
                target.as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                c"size=512k".as_ptr().cast(),
            )
        };
        assert_eq!(mounted, 0, "{}", std::io::Error::last_os_error());
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let target = c_path(self.0.path());
        // SAFETY: a valid C string.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

#[test]
fn a_full_file_system_is_the_guests_error_and_loses_nothing() {
    let small = Small::new();
    let shelf = Arc::new(Shelf::default());
    let base = shelf.image(&[0xBA; 300 * BLOCK_SIZE]);
    let dir = small.0.path().join("disk");
    let disk = CowDisk::create(&dir, shelf.pager(), base.clone(), 300 * BLOCK_SIZE as u64).unwrap();
    let at = |block: usize| (block * BLOCK_SIZE) as u64;
    let write = |disk: &CowDisk, block: usize| disk.write_at(at(block), &[block as u8; BLOCK_SIZE]);
    let (full, error) = (0..300)
        .find_map(|block| Some((block, write(&disk, block).err()?)))
        .unwrap();
    assert!(full > 60, "only {full} blocks");
    assert_eq!((error.errno(), error.is_retryable()), (libc::ENOSPC, true));
    let frozen = disk.freeze();
    assert!(
        matches!(&frozen, Err(DiskError::Io { source, .. }) if source.raw_os_error() == Some(libc::ENOSPC))
    );

    let check = |disk: &CowDisk, from: usize| {
        for block in from..300 {
            let mut buf = [0; BLOCK_SIZE];
            disk.read_at(at(block), &mut buf).unwrap();
            let expected = if block < full { block as u8 } else { 0xBA };
            assert!(buf == [expected; BLOCK_SIZE], "block {block}");
        }
    };
    check(&disk, 0);
    disk.flush().unwrap();
    drop((disk, frozen));
    let disk = CowDisk::open(&dir, shelf.pager(), base, 300 * BLOCK_SIZE as u64).unwrap();
    check(&disk, 0);
    disk.discard(0..at(20)).unwrap();
    drop(disk.freeze().unwrap());
    check(&disk, 20);
    write(&disk, 0).unwrap();
}
