//! The memory of a running machine at one instant, for as long as it takes to store it.
//!
//! QEMU's process is forked while the guest stands still. Its twin shares every page with it until one of them is written to, and
//! never runs: it is only read. So the guest stands still no longer for having written much, goes on in its own process, with
//! all connections, and depends on nothing. Of all that QEMU has only the guest's memory is inherited.
//!
//! QEMU asks for its guest's memory not to be inherited (`MADV_DONTFORK`), since a KVM without a notifier of changes in the
//! memory's mapping (before Linux 2.6.30) could not stand that.

use super::{Capture, CapturedMemory, Mapping, PausedMemory, Segment};
use crate::VmError;
use crate::process::inject::{self, Copy};
use martlet_image::PAGE_SIZE;
use std::io;
use std::ops::Range;

/// Other memory of QEMU's from this size on is not inherited: that would take time for nothing.
const NOT_INHERITED_MIN_BYTES: u64 = 1 << 20;

/// A process to be forked.
#[derive(Debug)]
pub struct ToFork {
    pid: u32,
    mapping: Mapping,
}

/// A twin of a machine's process. It ends when this is dropped, or with the thread that has made it.
pub struct Twin {
    copy: Option<Copy>,
    memory: PausedMemory,
}

impl ToFork {
    /// Prepares a process for [`ToFork::fork`], while its guest runs.
    pub fn prepare(pid: u32, mapping: Mapping) -> Result<Self, VmError> {
        let others =
            others(pid, &mapping).map_err(VmError::io(format!("read the mappings of process {pid}")))?;
        let prepared = (|| {
            let process = inject::stop(pid)?;
            process.can_fork()?;
            process.reap();
            let advise = |range: Range<u64>, advice: libc::c_int| {
                let arguments = [range.start, range.end - range.start, advice as u64, 0, 0, 0];
                process.call(libc::SYS_madvise, arguments)
            };
            for segment in &mapping.segments {
                advise(segment.addresses(), libc::MADV_DOFORK)?;
            }
            let needed = process.thread_local();
            for other in others.into_iter().filter(|other| !other.contains(&needed)) {
                let _ = advise(other, libc::MADV_DONTFORK); // it may be gone
            }
            Ok(())
        })();
        prepared.map_err(VmError::io(format!("prepare the memory of process {pid}")))?;
        Ok(Self { pid, mapping })
    }

    /// Copies its memory instead, which stands still.
    pub fn copy(&self) -> Result<CapturedMemory, VmError> {
        let mut capture = Capture::prepare(self.pid, &self.mapping)?;
        capture.make_room()?;
        capture.finish()
    }

    /// The guest stands still: this is its memory.
    pub fn fork(&self) -> Result<Twin, VmError> {
        let copy = inject::stop(self.pid).and_then(|process| process.fork());
        let copy = copy.map_err(VmError::io(format!("fork process {}", self.pid)))?;
        let memory = PausedMemory::open(copy.pid(), self.mapping.clone())?;
        Ok(Twin {
            copy: Some(copy),
            memory,
        })
    }
}

impl Twin {
    /// Its private pages: those that the machine had.
    pub fn find_pages(&mut self) -> Result<(), VmError> {
        let pid = self.copy.as_ref().map_or(0, Copy::pid);
        self.memory.find_pages(pid)
    }

    /// Its memory.
    pub fn memory(&self) -> &PausedMemory {
        &self.memory
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        if let Some(copy) = self.copy.take() {
            copy.end();
        }
    }
}

impl std::fmt::Debug for Twin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Twin")
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

impl Segment {
    fn addresses(&self) -> Range<u64> {
        self.start..self.start + self.page_count * PAGE_SIZE as u64
    }
}

/// Large private memory of a process besides this mapping.
fn others(pid: u32, mapping: &Mapping) -> io::Result<Vec<Range<u64>>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let others = maps.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let range = super::hex(start)?..super::hex(end)?;
        let modes = fields.next()?;
        let is_own = modes.contains('w') && modes.ends_with('p');
        let is_memory = mapping
            .segments
            .iter()
            .any(|segment| segment.start == range.start);
        let size = range.end.checked_sub(range.start)?;
        (is_own && !is_memory && size >= NOT_INHERITED_MIN_BYTES).then_some(range)
    });
    Ok(others.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::Writer;
    use std::time::{Duration, Instant};

    fn twin(writer: &Writer) -> Twin {
        twin_of(writer.pid(), writer.file())
    }

    fn twin_of(pid: u32, file: &std::path::Path) -> Twin {
        let mapping = Mapping::find(pid, file).unwrap();
        let mut twin = ToFork::prepare(pid, mapping).unwrap().fork().unwrap();
        twin.find_pages().unwrap();
        twin
    }

    fn children(writer: &Writer) -> String {
        let pid = writer.pid();
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap()
    }

    #[test]
    fn a_twin_has_what_its_process_had() {
        let writer = Writer::start(64);
        for (page, byte) in [(3, 7), (4, 8)] {
            writer.write(page, byte);
        }
        let first = twin(&writer);
        writer.write(4, 9);
        writer.write(5, 10);
        let second = twin(&writer);
        writer.write(3, 11);

        let read = |twin: &Twin, page| {
            let mut bytes = [0; PAGE_SIZE];
            twin.memory().read(page..page + 1, &mut bytes).unwrap();
            bytes[17]
        };
        assert_eq!(first.memory().pages().iter().collect::<Vec<_>>(), [3, 4]);
        assert_eq!([read(&first, 3), read(&first, 4)], [7, 8]);
        assert_eq!(second.memory().pages().iter().collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!([3, 4, 5].map(|page| read(&second, page)), [7, 9, 10]);

        drop((first, second));
        assert_eq!(children(&writer), "", "nothing is left of them");
        writer.write(6, 1);
        assert_eq!(writer.read(3)[0], 11);
    }

    #[test]
    fn a_twin_ends_with_who_has_made_it() {
        let writer = Writer::start(64);
        writer.write(3, 7);
        let (pid, file) = (writer.pid(), writer.file().to_owned());
        let thread = std::thread::spawn(move || std::mem::forget(twin_of(pid, &file)));
        thread.join().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let pid = children(&writer).trim().to_owned();
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        while !state().contains(") Z ") {
            assert!(Instant::now() < deadline, "{}", state());
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(twin(&writer));
        assert_eq!(children(&writer), "", "the next one has it forgotten");
        writer.write(6, 1);
    }
}
