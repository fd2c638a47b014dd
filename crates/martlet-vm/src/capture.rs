//! The pages a machine has made its own, taken out of QEMU's process while the guest stands still.
//!
//! QEMU maps guest memory `MAP_PRIVATE` from a file, so the kernel already knows which pages differ from the file:
//! those that are anonymous. No dirty log, and no help from QEMU.
//!
//! 1. [`Mapping::find`] finds the file's mapping in `/proc/PID/maps`.
//! 2. [`private_pages`] asks for the pages that are present or swapped out, *and not the file's*.
//! 3. [`Capture`] copies exactly these with `process_vm_readv`, nearly all of them before the guest stands still; or they
//!    stay where they are, and [`PausedMemory`] reads them there.
//!
//! **Only private pages are touched.** Any other page of the mapping would fault into our own file server. (A page that its
//! guest gives up in the instant between being found and being copied does so, and is served by another thread.)

use crate::VmError;
use martlet_image::{PAGE_SIZE, PageSet, is_zero};
use std::path::Path;

mod ahead;
mod buffer;
mod copy;
mod paused;
mod scan;
#[cfg(test)]
mod testing;
mod twin;
mod written;

use buffer::CaptureBuffer;
use written::WriteWatch;

pub use ahead::Capture;
pub use paused::PausedMemory;
pub use twin::{ToFork, Twin};

/// Most pages of a mapping we take care of: 16 TiB would be a lie.
const PAGES_MAX: u64 = 1 << 32;

/// Where a file is mapped in a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    segments: Vec<Segment>,
    page_count: u64,
}

/// A contiguous part of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    /// Address in the process.
    start: u64,
    /// Its size.
    page_count: u64,
    /// Page of the file that is at `start`.
    first_page: u64,
}

impl Mapping {
    /// Finds the private mapping of a file in a process.
    pub fn find(pid: u32, file: &Path) -> Result<Self, VmError> {
        // By the end of its path, which is its own: to look at the file would be to ask whoever serves it, and a daemon that
        // is killed while it waits for its own answer never ends.
        let tail: std::path::PathBuf = match (file.parent().and_then(Path::file_name), file.file_name()) {
            (Some(dir), Some(name)) => Path::new(dir).join(name),
            _ => file.to_owned(),
        };
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))
            .map_err(VmError::io(format!("read the mappings of process {pid}")))?;
        let found = parse_maps(&maps, |path| path.ends_with(&tail));
        found.ok_or_else(|| VmError::Memory {
            pid,
            reason: format!("{} is not mapped privately", file.display()),
        })
    }

    /// Where the whole file is, if it is in one piece.
    pub(crate) fn addresses(&self) -> Option<std::ops::Range<u64>> {
        match self.segments[..] {
            [
                Segment {
                    start,
                    page_count,
                    first_page: 0,
                },
            ] => Some(start..start + page_count * PAGE_SIZE as u64),
            _ => None,
        }
    }

    /// Pages from the file's start to the mapping's end.
    pub fn page_count(&self) -> u64 {
        self.page_count
    }
}

fn parse_maps(maps: &str, wanted: impl Fn(&Path) -> bool) -> Option<Mapping> {
    let mut segments = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let parsed = (|| {
            let (start, end) = fields.next()?.split_once('-')?;
            let private = fields.next()?.ends_with('p');
            let offset = hex(fields.next()?)?;
            let path = line
                .find('/')
                .map(|at| line[at..].trim_end_matches(" (deleted)"))
                .unwrap_or_default();
            let (start, end) = (hex(start)?, hex(end)?);
            let segment = Segment {
                start,
                page_count: end.checked_sub(start)? / PAGE_SIZE as u64,
                first_page: offset / PAGE_SIZE as u64,
            };
            Some((segment, private, path))
        })();
        if let Some((segment, true, path)) = parsed
            && wanted(Path::new(path))
        {
            segments.push(segment);
        }
    }
    let page_count = segments.iter().map(|s| s.first_page + s.page_count).max()?;
    (page_count < PAGES_MAX).then_some(Mapping { segments, page_count })
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// The pages of a mapping that are the process's own. The process should stand still, else they are out of date.
pub fn private_pages(pid: u32, mapping: &Mapping) -> Result<PageSet, VmError> {
    scan::private_pages(pid, mapping)
        .map_err(VmError::io(format!("ask for the private pages of process {pid}")))
}

/// The pages of a mapping that the process has: those it touched, and what the kernel mapped around them.
pub fn mapped_pages(pid: u32, mapping: &Mapping) -> Result<PageSet, VmError> {
    scan::mapped_pages(pid, mapping)
        .map_err(VmError::io(format!("ask for the mapped pages of process {pid}")))
}

/// Copies these pages, in order, into the buffer. All of them should be private.
fn read_pages(
    pid: u32,
    mapping: &Mapping,
    pages: &PageSet,
    buffer: &mut CaptureBuffer,
) -> Result<(), VmError> {
    buffer
        .reserve(pages.len() as usize * PAGE_SIZE)
        .map_err(VmError::io("make room for guest memory"))?;
    copy::read_pages(pid, mapping, pages, buffer.as_mut_slice()).map_err(|e| VmError::Memory {
        pid,
        reason: format!("cannot be read: {e}"),
    })
}

/// A machine's own pages at one instant.
#[derive(Debug)]
pub struct CapturedMemory {
    pages: PageSet,
    /// Copies, oldest first: of a page that is in several the newest counts.
    copies: Vec<Copied>,
    watch: Option<WriteWatch>,
}

/// Pages, and their bytes in the same order.
#[derive(Debug)]
struct Copied {
    pages: PageSet,
    buffer: CaptureBuffer,
}

impl CapturedMemory {
    /// Which pages.
    pub fn pages(&self) -> &PageSet {
        &self.pages
    }

    /// How much.
    pub fn size_bytes(&self) -> u64 {
        self.pages.len() * PAGE_SIZE as u64
    }

    /// The guest goes on: its writes are not noted any more, which they cost something for. (Not earlier: that takes time.)
    pub fn unwatch(&mut self) {
        self.watch = None;
    }

    /// Every page with its index, ascending; but for those that were taken ahead ([`Capture::take`]) and not written since.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &[u8; PAGE_SIZE])> {
        let mut wanted = self.pages.clone();
        let mut pages = Vec::with_capacity(wanted.len() as usize);
        for Copied {
            pages: copied,
            buffer,
        } in self.copies.iter().rev()
        {
            let bytes = buffer.as_slice().as_chunks::<PAGE_SIZE>().0;
            pages.extend(
                copied
                    .iter()
                    .zip(bytes)
                    .filter(|(page, _)| wanted.contains(*page)),
            );
            wanted.and_not(copied);
        }
        pages.sort_unstable_by_key(|(page, _)| *page);
        pages.into_iter()
    }

    /// Every page that is not zero, ascending. Telling zeros apart is left to the time after the pause.
    pub fn iter_nonzero(&self) -> impl Iterator<Item = (u64, &[u8; PAGE_SIZE])> {
        self.iter().filter(|(_, page)| !is_zero(&page[..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_found_in_parts_by_its_path() {
        let maps = "\
7f0000000000-7f0000002000 rw-p 00000000 fd:01 42                 /m/mem with space (deleted)
7f0000002000-7f0000003000 rw-p 00002000 fd:01 42                 /m/mem with space
7f0000010000-7f0000011000 rw-s 00000000 fd:01 42                 /m/mem with space
7f0000020000-7f0000021000 r--p 00000000 fd:02 42                 /other
garbage
7ffc00000000-7ffc00001000 rw-p 00000000 00:00 0                  [stack]
";
        let mapping = parse_maps(maps, |path| path.ends_with("m/mem with space")).unwrap();
        assert_eq!(mapping.page_count(), 3);
        assert_eq!(mapping.segments.len(), 2);
        assert_eq!(
            mapping.segments[1],
            Segment {
                start: 0x7f0000002000,
                page_count: 1,
                first_page: 2
            }
        );
        assert_eq!(parse_maps(maps, |path| path.ends_with("n/mem with space")), None);
        let absurd = "0-fffffffffffff000 rw-p 00000000 fd:01 42 /m\n";
        assert_eq!(parse_maps(absurd, |_| true), None);
    }
}
