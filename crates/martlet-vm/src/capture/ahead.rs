//! Copying before the pause what does not change any more, so that the pause is spent on the rest.
//!
//! ```text
//!   prepare: watch writes, copy all ──► copy what was written meanwhile, while that gets less ──► finish: the rest
//!   └─ guest runs ──────────────────────────────────────────────────────────────────────────┘   └─ it stands still
//! ```
//!
//! Where writes cannot be watched (a kernel before 6.7, a process that may not be traced) all is copied in the pause.

use super::{CaptureBuffer, CapturedMemory, Copied, Mapping, WriteWatch, private_pages, read_pages};
use crate::VmError;
use martlet_image::{PAGE_SIZE, PageSet};

/// So much is copied in no time.
const SMALL_BYTES: u64 = 2 << 20;
/// Copies of what was written during the one before.
const ROUNDS_MAX: usize = 4;
/// Room taken for what will be copied in the pause, at least.
const ROOM_MIN_BYTES: usize = 4 << 20;

/// A capture under way.
#[derive(Debug)]
pub struct Capture {
    pid: u32,
    mapping: Mapping,
    copies: Vec<Copied>,
    watch: Option<WriteWatch>,
    room: CaptureBuffer,
    rest_bytes: u64,
}

impl Capture {
    /// Copies what it can while the guest runs.
    pub fn prepare(pid: u32, mapping: &Mapping) -> Result<Self, VmError> {
        let mut capture = Self {
            pid,
            mapping: mapping.clone(),
            copies: Vec::new(),
            watch: None,
            room: CaptureBuffer::new(),
            rest_bytes: 0,
        };
        let rest = match WriteWatch::start(pid, mapping) {
            Ok(watch) => capture.copy_ahead(watch)?,
            Err(error) => {
                tracing::debug!(pid, %error, "writes cannot be watched: all is copied in the pause");
                private_pages(pid, mapping)?.len()
            }
        };
        capture.rest_bytes = rest * PAGE_SIZE as u64;
        Ok(capture)
    }

    /// What would have to be copied in a pause that began when it was looked at.
    pub fn rest_bytes(&self) -> u64 {
        self.rest_bytes
    }

    /// Takes memory for the rest: the kernel clears it now, not during the pause. An eighth more than it would be now.
    pub fn make_room(&mut self) -> Result<(), VmError> {
        let rest_bytes = self.rest_bytes as usize;
        self.room
            .reserve(ROOM_MIN_BYTES.max(rest_bytes + rest_bytes / 8))
            .map_err(VmError::io("make room for guest memory"))
    }

    /// Can it be told what is written?
    pub fn is_watching(&self) -> bool {
        self.watch.is_some()
    }

    /// Copies what was written since, while the guest runs, if that can be told.
    pub fn again(&mut self) -> Result<(), VmError> {
        let Some(watch) = self.watch.take() else {
            return Ok(());
        };
        self.copy(&watch)?;
        self.watch = Some(watch);
        Ok(())
    }

    /// What would have to be copied in a pause that began now; looked at anew, if that can be told.
    pub fn look(&mut self) -> Result<u64, VmError> {
        if let Some(watch) = &self.watch {
            self.rest_bytes = watch.look(false)?.written.len() * PAGE_SIZE as u64;
        }
        Ok(self.rest_bytes)
    }

    /// What was copied since this was asked last. It is the caller's to keep: [`Capture::finish`] has of these pages only those
    /// that were written again.
    pub fn take(&mut self) -> CapturedMemory {
        let copies = std::mem::take(&mut self.copies);
        let mut pages = PageSet::new();
        copies.iter().for_each(|copied| pages.or(&copied.pages));
        CapturedMemory {
            pages,
            copies,
            watch: None,
        }
    }

    /// Returns how many pages it would have to copy again now.
    fn copy_ahead(&mut self, watch: WriteWatch) -> Result<u64, VmError> {
        let mut count = self.copy(&watch)?;
        for _ in 0..ROUNDS_MAX {
            let written = watch.look(false)?.written.len();
            if written * PAGE_SIZE as u64 <= SMALL_BYTES || written > count / 2 {
                break;
            }
            count = self.copy(&watch)?;
        }
        let written = watch.look(false)?.written.len();
        self.watch = Some(watch);
        Ok(written)
    }

    /// Copies what was written since the last copy, and returns how many pages that were.
    fn copy(&mut self, watch: &WriteWatch) -> Result<u64, VmError> {
        // First watched, then copied: what is written in between is copied again.
        let pages = watch.look(true)?.written;
        let mut buffer = CaptureBuffer::new();
        read_pages(self.pid, &self.mapping, &pages, &mut buffer)?;
        let count = pages.len();
        self.copies.push(Copied { pages, buffer });
        Ok(count)
    }

    /// The guest stands still: copies the rest.
    pub fn finish(self) -> Result<CapturedMemory, VmError> {
        let Self {
            pid,
            mapping,
            mut copies,
            watch,
            room: mut buffer,
            ..
        } = self;
        let (pages, rest): (PageSet, PageSet) = match &watch {
            Some(watch) => {
                let seen = watch.look(false)?;
                (seen.private, seen.written)
            }
            None => {
                let pages = private_pages(pid, &mapping)?;
                (pages.clone(), pages)
            }
        };
        read_pages(pid, &mapping, &rest, &mut buffer)?;
        copies.push(Copied { pages: rest, buffer });
        Ok(CapturedMemory { pages, copies, watch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::{Mapped, Writer};

    /// All that is captured is what the process has, whatever was written before, during and after the first copy.
    #[test]
    fn what_is_captured_is_what_was_there_at_the_end() {
        const PAGES: usize = 3000;
        for seed in 0..4 {
            let writer = Writer::start(PAGES);
            let mut random = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed + 1);
            let mut write_some = |count: usize| {
                for _ in 0..count {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    writer.write(random as usize % PAGES, (random >> 32) as u8);
                }
            };
            write_some(1000);
            let mapping = Mapping::find(writer.pid(), writer.file()).unwrap();
            let capture = Capture::prepare(writer.pid(), &mapping).unwrap();
            if capture.watch.is_some() {
                assert!(capture.copies[0].pages.len() > 500, "copied ahead");
            }
            write_some(700);
            let memory = capture.finish().unwrap();

            assert_eq!(memory.pages(), &private_pages(writer.pid(), &mapping).unwrap());
            let mut pages = memory.pages().iter();
            for (page, bytes) in memory.iter() {
                assert_eq!(Some(page), pages.next());
                assert_eq!(bytes[..], writer.read(page as usize)[..], "page {page}");
            }
            assert_eq!(pages.next(), None);
            if memory.watch.is_some() {
                let last = memory.copies.last().unwrap();
                assert!((1..=700).contains(&last.pages.len()), "{}", last.pages.len());
            }
        }
    }

    /// What was taken ahead, less what was written after that, and the rest at the end, are all that was there at the end.
    #[test]
    fn what_was_taken_ahead_is_not_copied_again() {
        const PAGES: usize = 2000;
        let writer = Writer::start(PAGES);
        let mapping = Mapping::find(writer.pid(), writer.file()).unwrap();
        (0..1000).for_each(|page| writer.write(page, 1));
        let mut capture = Capture::prepare(writer.pid(), &mapping).unwrap();
        if !capture.is_watching() {
            return; // this kernel cannot tell
        }
        let mut known = std::collections::BTreeMap::new();
        let mut keep = |memory: CapturedMemory| {
            memory
                .iter()
                .for_each(|(page, bytes)| drop(known.insert(page, bytes.to_vec())));
        };
        keep(capture.take());
        (900..1100).for_each(|page| writer.write(page, 2));
        assert_eq!(capture.take().pages().len(), 0, "nothing was copied since");
        capture.again().unwrap();
        keep(capture.take());
        (1090..1150).for_each(|page| writer.write(page, 3));
        let memory = capture.finish().unwrap();
        assert_eq!(memory.pages().len(), 1150, "all of its own pages");
        assert_eq!(memory.iter().count(), 60, "of which so many were written since");
        let all = memory.pages().clone();
        keep(memory);
        assert!(all.iter().eq(known.keys().copied()));
        for (page, bytes) in known {
            assert_eq!(bytes[..], writer.read(page as usize)[..], "page {page}");
        }
    }

    #[test]
    fn a_process_that_cannot_be_watched_is_captured_all_the_same() {
        let mapped = Mapped::new(64);
        mapped.write(5, 55);
        let pid = std::process::id(); // nobody can stop itself
        let mapping = Mapping::find(pid, &mapped.path).unwrap();
        let capture = Capture::prepare(pid, &mapping).unwrap();
        assert!(capture.watch.is_none());
        mapped.write(6, 66);
        let memory = capture.finish().unwrap();
        let found: Vec<_> = memory.iter().map(|(page, bytes)| (page, bytes[7])).collect();
        assert_eq!(found, [(5, 55), (6, 66)]);
    }
}
