//! A memory image of ours as its reader has it: a file that a page fault or a read brings in page by page.

use crate::BenchError;
use martlet_image::PAGE_SIZE;
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Read and copied at once.
const CHUNK_BYTES: usize = 1 << 20;
/// A page that is read alone lies at least this far from the one before: nothing read around that one brings it in.
const APART_PAGES: u64 = 64;
/// What the server pushes behind an answer has arrived after this time.
const SETTLE: Duration = Duration::from_millis(2);

/// The image of a snapshot, as a machine that was started from it maps it.
pub struct ImageFile {
    file: File,
    size_bytes: u64,
    /// Pages that hold something.
    pages: Vec<u64>,
}

impl ImageFile {
    /// The image of `snapshot` that process `pid` maps; copied to `copy`, with holes for zeros.
    pub fn open(pid: u32, snapshot: &str, copy: &Path) -> Result<Self, BenchError> {
        let file = mapped(pid, snapshot)?;
        let size_bytes = file
            .metadata()
            .map_err(BenchError::io("look at the image"))?
            .len();
        let mut image = Self {
            file,
            size_bytes,
            pages: Vec::new(),
        };
        image.copy(copy).map_err(BenchError::io("copy the image"))?;
        Ok(image)
    }

    /// The same image as process `pid` maps it, on another host of which it may not be known what it holds without having it all.
    pub fn elsewhere(&self, pid: u32, snapshot: &str) -> Result<Self, BenchError> {
        Ok(Self {
            file: mapped(pid, snapshot)?,
            size_bytes: self.size_bytes,
            pages: self.pages.clone(),
        })
    }

    /// Pages that hold something, `apart` of them from one to the next.
    pub fn pages_apart(&self, apart: usize) -> Vec<u64> {
        self.pages.iter().step_by(apart).copied().collect()
    }

    /// Reads one page; how long that took, in milliseconds.
    pub fn read_page(&self, number: u64) -> Result<f64, BenchError> {
        self.time_page(number).map_err(BenchError::io("read the image"))
    }

    fn time_page(&self, number: u64) -> std::io::Result<f64> {
        let mut page = [0; PAGE_SIZE];
        let begun = Instant::now();
        self.file.read_exact_at(&mut page, number * PAGE_SIZE as u64)?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    fn copy(&mut self, to: &Path) -> std::io::Result<()> {
        let mut to = File::create(to)?;
        to.set_len(self.size_bytes)?;
        let mut chunk = vec![0; CHUNK_BYTES];
        for at in (0..self.size_bytes).step_by(CHUNK_BYTES) {
            self.file.read_exact_at(&mut chunk, at)?;
            for (index, page) in chunk.chunks_exact(PAGE_SIZE).enumerate() {
                if page.iter().any(|byte| *byte != 0) {
                    let offset = at + (index * PAGE_SIZE) as u64;
                    to.write_all_at(page, offset)?;
                    self.pages.push(offset / PAGE_SIZE as u64);
                }
            }
        }
        to.flush()
    }

    /// Forgets what the kernel has of it.
    fn forget(&self) -> std::io::Result<()> {
        Ok(fadvise(&self.file, 0, None, Advice::DontNeed)?)
    }

    /// Reads everything that is not zero, in order, with nothing of it in the page cache; bytes per second.
    pub fn read_in_order(&self) -> Result<f64, BenchError> {
        let read = || -> std::io::Result<f64> {
            self.forget()?;
            let mut chunk = vec![0; CHUNK_BYTES];
            let begun = Instant::now();
            for pages in self.pages.chunk_by(|page, next| page + 1 == *next) {
                let (mut at, end) = (
                    pages[0] * PAGE_SIZE as u64,
                    (pages[pages.len() - 1] + 1) * PAGE_SIZE as u64,
                );
                while at < end {
                    let size = CHUNK_BYTES.min((end - at) as usize);
                    self.file.read_exact_at(&mut chunk[..size], at)?;
                    at += size as u64;
                }
            }
            Ok((self.pages.len() * PAGE_SIZE) as f64 / begun.elapsed().as_secs_f64())
        };
        read().map_err(BenchError::io("read the image"))
    }

    /// Reads up to `count` single pages of its lower half, which nobody has read lately, and each of them a second time,
    /// when the server has it at hand: medians of both, in milliseconds.
    pub fn read_single_pages(&self, count: usize) -> Result<(f64, f64), BenchError> {
        let read = || -> std::io::Result<(Vec<f64>, Vec<f64>)> {
            self.forget()?;
            let (mut cold, mut warm) = (Vec::new(), Vec::new());
            let mut last = None;
            for number in &self.pages[..self.pages.len() / 2] {
                if last.is_some_and(|last| number - last < APART_PAGES) || cold.len() == count {
                    continue;
                }
                last = Some(*number);
                cold.push(self.time_page(*number)?);
                std::thread::sleep(SETTLE);
                self.forget()?;
                warm.push(self.time_page(*number)?);
                std::thread::sleep(SETTLE);
            }
            Ok((cold, warm))
        };
        let (cold, warm) = read().map_err(BenchError::io("read the image"))?;
        let median = |values: &[f64]| {
            crate::figure::median(values)
                .ok_or_else(|| BenchError::Other("the image holds nothing that could be read".into()))
        };
        Ok((median(&cold)?, median(&warm)?))
    }
}

/// The file of an image that a process maps.
fn mapped(pid: u32, snapshot: &str) -> Result<File, BenchError> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))
        .map_err(BenchError::io("read the mappings of QEMU"))?;
    let path = maps
        .lines()
        .filter_map(|line| Some(PathBuf::from(&line[line.find('/')?..])))
        .find(|path| path.file_name().is_some_and(|name| name == snapshot))
        .ok_or_else(|| BenchError::Other(format!("process {pid} does not map snapshot {snapshot}")))?;
    File::open(&path).map_err(BenchError::io(format!("open {}", path.display())))
}
