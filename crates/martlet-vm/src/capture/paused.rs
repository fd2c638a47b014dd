//! The own pages of a process that runs no more, read where they are.

use super::{Mapping, private_pages};
use crate::VmError;
use martlet_image::{PAGE_SIZE, PageSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Private pages of a process that was stopped for good. Its memory is known by an open file, so a process that takes
/// over its number is never taken for it.
#[derive(Debug)]
pub struct PausedMemory {
    memory: File,
    mapping: Mapping,
    pages: PageSet,
}

impl PausedMemory {
    /// Opens a process's memory, before it stands still.
    pub fn open(pid: u32, mapping: Mapping) -> Result<Self, VmError> {
        let memory = File::open(format!("/proc/{pid}/mem"))
            .map_err(VmError::io(format!("open the memory of process {pid}")))?;
        Ok(Self {
            memory,
            mapping,
            pages: PageSet::new(),
        })
    }

    /// The process stands still: these are its pages.
    pub fn find_pages(&mut self, pid: u32) -> Result<(), VmError> {
        self.pages = private_pages(pid, &self.mapping)?;
        Ok(())
    }

    /// Which pages.
    pub fn pages(&self) -> &PageSet {
        &self.pages
    }

    /// How much.
    pub fn size_bytes(&self) -> u64 {
        self.pages.len() * PAGE_SIZE as u64
    }

    /// Fills `buf` with these pages. Any other than its private ones is refused: it would have to be asked for from our own
    /// file server.
    pub fn read(&self, pages: Range<u64>, buf: &mut [u8]) -> Result<(), VmError> {
        self.read_pages(pages, buf)
            .map_err(VmError::io("read guest memory"))
    }

    fn read_pages(&self, pages: Range<u64>, buf: &mut [u8]) -> io::Result<()> {
        let refused = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why.to_owned()));
        if buf.len() as u64 != (pages.end - pages.start) * PAGE_SIZE as u64 {
            return refused("as many bytes as pages are to be read");
        }
        if !pages.clone().all(|page| self.pages.contains(page)) {
            return refused("a page that is not the process's own");
        }
        let mut rest = buf;
        let mut page = pages.start;
        while page < pages.end {
            let inside = |segment: &&super::Segment| {
                (segment.first_page..segment.first_page + segment.page_count).contains(&page)
            };
            let Some(segment) = self.mapping.segments.iter().find(inside) else {
                return refused("a page that is not mapped");
            };
            let count = (segment.first_page + segment.page_count).min(pages.end) - page;
            let (part, tail) = rest.split_at_mut(count as usize * PAGE_SIZE);
            let address = segment.start + (page - segment.first_page) * PAGE_SIZE as u64;
            self.memory.read_exact_at(part, address)?;
            (rest, page) = (tail, page + count);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::Mapped;

    #[test]
    fn own_pages_are_read_in_place_and_others_refused() {
        let mapped = Mapped::new(64);
        for (page, byte) in [(3, 7), (4, 8), (60, 9)] {
            mapped.write(page, byte);
        }
        mapped.read(5);
        let pid = std::process::id();
        let mut paused = PausedMemory::open(pid, Mapping::find(pid, &mapped.path).unwrap()).unwrap();
        assert!(paused.read(3..4, &mut [0; PAGE_SIZE]).is_err(), "not found yet");
        paused.find_pages(pid).unwrap();
        assert_eq!(paused.pages().iter().collect::<Vec<_>>(), [3, 4, 60]);
        assert_eq!(paused.size_bytes(), 3 * 4096);

        let mut buf = vec![0; 2 * PAGE_SIZE];
        paused.read(3..5, &mut buf).unwrap();
        assert!(buf[..PAGE_SIZE].iter().all(|byte| *byte == 7));
        assert!(buf[PAGE_SIZE..].iter().all(|byte| *byte == 8));
        assert!(paused.read(4..6, &mut buf).is_err());
        assert!(paused.read(3..5, &mut buf[1..]).is_err());
    }
}
