//! Has another process move a mapping of a file over another part of its memory.
//!
//! QEMU maps its guest's memory when it starts, and no command of its gives it another one later. So that a QEMU can be
//! started before it is known what it will run, it is made to call `mremap(MREMAP_FIXED)` once. Nothing of QEMU is changed
//! but what is at these addresses.

use super::inject;
use std::io;
use std::ops::Range;

/// Moves what process `pid` has at `addresses` to `to`, over what is there.
pub(crate) fn move_over(pid: u32, addresses: Range<u64>, to: u64) -> io::Result<()> {
    let size = addresses.end - addresses.start;
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    let moved = inject::stop(pid)?.call(libc::SYS_mremap, [addresses.start, size, size, flags, to, 0])?;
    match moved == to {
        true => Ok(()),
        false => Err(io::Error::other("it was at another call")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::process::Command;
    use std::time::{Duration, Instant};

    fn mapping(pid: u32, part: &str) -> Range<u64> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let line = maps.lines().find(|line| line.ends_with(part)).unwrap();
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        u64::from_str_radix(start, 16).unwrap()..u64::from_str_radix(end, 16).unwrap()
    }

    const FREE_ADDRESS: u64 = 0x10_0000_0000;

    fn byte(pid: u32, at: u64) -> io::Result<u8> {
        let mut byte = [0];
        File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut byte, at)?;
        Ok(byte[0])
    }

    #[test]
    fn a_waiting_process_has_it_elsewhere_and_goes_on_waiting() {
        let begun = Instant::now();
        let mut child = Command::new("sleep").arg("0.7").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let heap = mapping(child.id(), "[heap]");
        let first = byte(child.id(), heap.start + 8).unwrap();

        move_over(child.id(), heap.clone(), FREE_ADDRESS).unwrap();
        assert_eq!(byte(child.id(), FREE_ADDRESS + 8).unwrap(), first);
        assert!(byte(child.id(), heap.start).is_err(), "it is not where it was");

        move_over(
            child.id(),
            FREE_ADDRESS..FREE_ADDRESS + (heap.end - heap.start),
            heap.start,
        )
        .unwrap();
        assert!(child.wait().unwrap().success(), "it has noticed nothing");
        assert!(
            begun.elapsed() >= Duration::from_millis(700),
            "it has slept to its end"
        );
    }

    #[test]
    fn what_the_process_cannot_do_is_told_and_harms_it_not() {
        let mut child = Command::new("sleep").arg("0.5").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(100));

        let error = move_over(child.id(), FREE_ADDRESS..FREE_ADDRESS + 4096, 2 * FREE_ADDRESS).unwrap_err();

        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
        assert!(child.wait().unwrap().success());
    }
}
