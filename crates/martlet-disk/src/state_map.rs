//! Two bits a block, in a mapped file. See the crate's page for why there are two copies.
//!
//! ```text
//! 0      magic 8, version 4, reserved 4, size_bytes 8, boot id 40, zeros to 4096
//! 4096   live:    32 blocks in each little-endian 64-bit word, rounded up to 4096
//! then   durable: the same, as of the last flush
//! ```
//!
//! All of it is allocated when the file is made, so that a full file system can never fail a store into the mapping.
#![allow(unsafe_code)] // a mapped file as atomic words

use crate::{BLOCK_SIZE, DISK_BYTES_MAX, DiskError};
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const MAGIC: &[u8; 8] = b"MARTLYR\n";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 4096;
const BOOT_ID_BYTES: usize = 40;
/// Blocks in a word of the map.
pub(crate) const WORD_BLOCKS: u64 = 32;
/// Words in the part of the map that is written at once.
const PART_WORDS: usize = 512;
const LOW_BITS: u64 = 0x5555_5555_5555_5555;

/// What a layer knows of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockState {
    Absent = 0,
    Data = 1,
    Zero = 2,
}

pub(crate) struct StateMap {
    file: File,
    path: PathBuf,
    live: MmapRaw,
    size_bytes: u64,
    unflushed: Vec<AtomicBool>, // parts that changed since they were last made durable
}

/// Which boot of the host this is.
fn boot_id() -> Result<[u8; BOOT_ID_BYTES], DiskError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read(path).map_err(DiskError::io("read", path))?;
    let mut id = [0; BOOT_ID_BYTES];
    let length = text.len().min(BOOT_ID_BYTES);
    id[..length].copy_from_slice(&text[..length]);
    Ok(id)
}

fn words_for(size_bytes: u64) -> u64 {
    let words = size_bytes.div_ceil(BLOCK_SIZE as u64).div_ceil(WORD_BLOCKS);
    words.next_multiple_of(PART_WORDS as u64).max(PART_WORDS as u64)
}

impl StateMap {
    /// A new map of absent blocks.
    pub(crate) fn create(path: &Path, size_bytes: u64) -> Result<Self, DiskError> {
        let file = File::options().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(DiskError::io("create", path))?;
        let length = HEADER_BYTES + 2 * 8 * words_for(size_bytes);
        // SAFETY: no memory is involved; the descriptor is open.
        let failed = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length as libc::off_t) };
        if failed != 0 {
            let error = std::io::Error::from_raw_os_error(failed);
            return Err(DiskError::io("allocate", path)(error));
        }
        let mut header = [0; 64];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&size_bytes.to_le_bytes());
        header[24..].copy_from_slice(&boot_id()?);
        file.write_all_at(&header, 0)
            .map_err(DiskError::io("write", path))?;
        Self::map(file, path, size_bytes)
    }

    /// An existing map. `None` for one that was made, but never flushed, before the host went down.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>, DiskError> {
        let damaged = |reason: &str| DiskError::Damaged {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(DiskError::io("open", path))?;
        let length = file.metadata().map_err(DiskError::io("look at", path))?.len();
        let mut header = [0; 64];
        if length >= HEADER_BYTES {
            file.read_exact_at(&mut header, 0)
                .map_err(DiskError::io("read", path))?;
        }
        if header == [0; 64] {
            return Ok(None);
        }
        let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        if header[..8] != *MAGIC {
            return Err(damaged("not a layer's map"));
        }
        if word(8) != u64::from(VERSION) {
            return Err(damaged("a version this program does not know"));
        }
        let size_bytes = word(16);
        if size_bytes > DISK_BYTES_MAX || length != HEADER_BYTES + 16 * words_for(size_bytes) {
            return Err(damaged("its length is not that of its disk"));
        }
        let map = Self::map(file, path, size_bytes)?;
        let boot = boot_id()?;
        if header[24..] != boot {
            map.believe_durable(boot)?;
        }
        let invalid = |word: &AtomicU64| {
            let w = word.load(Ordering::Relaxed);
            w & w >> 1 & LOW_BITS != 0
        };
        if map.words().iter().any(invalid) {
            return Err(damaged("a block in no known state"));
        }
        Ok(Some(map))
    }

    fn map(file: File, path: &Path, size_bytes: u64) -> Result<Self, DiskError> {
        let words = words_for(size_bytes) as usize;
        let live = MmapOptions::new()
            .offset(HEADER_BYTES)
            .len(words * 8)
            .map_raw(&file);
        let live = live.map_err(DiskError::io("map", path))?;
        let unflushed = (0..words / PART_WORDS).map(|_| AtomicBool::new(true)).collect();
        Ok(Self {
            file,
            path: path.to_owned(),
            live,
            size_bytes,
            unflushed,
        })
    }

    /// The host was restarted: what counts is what was flushed.
    fn believe_durable(&self, boot: [u8; BOOT_ID_BYTES]) -> Result<(), DiskError> {
        let mut bytes = vec![0; self.words().len() * 8];
        let durable = HEADER_BYTES + bytes.len() as u64;
        self.file
            .read_exact_at(&mut bytes, durable)
            .map_err(DiskError::io("read", &self.path))?;
        for (word, bytes) in self.words().iter().zip(bytes.chunks_exact(8)) {
            let value = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
            word.store(value.to_le(), Ordering::Relaxed);
        }
        self.live.flush().map_err(DiskError::io("write", &self.path))?;
        self.file
            .write_all_at(&boot, 24)
            .map_err(DiskError::io("write", &self.path))
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page aligned, whole words long, lives as long as `self`, and is only ever accessed
        // through these atomics. Its file is allocated in full and nobody else's, so no access can fault.
        unsafe { std::slice::from_raw_parts(self.live.as_ptr().cast::<AtomicU64>(), self.live.len() / 8) }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The state of 32 blocks from block `32 * index`; 0 says all absent.
    pub(crate) fn word(&self, index: u64) -> u64 {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.words().get(index))
            .map_or(0, |word| u64::from_le(word.load(Ordering::Acquire)))
    }

    pub(crate) fn get(&self, block: u64) -> BlockState {
        match self.word(block / WORD_BLOCKS) >> (2 * (block % WORD_BLOCKS)) & 3 {
            1 => BlockState::Data,
            2 => BlockState::Zero,
            _ => BlockState::Absent,
        }
    }

    /// Sets a range of blocks. A reader that sees the new state sees everything done before.
    pub(crate) fn set(&self, blocks: Range<u64>, state: BlockState) {
        let mut block = blocks.start;
        while block < blocks.end {
            let index = (block / WORD_BLOCKS) as usize;
            let end = blocks.end.min((block / WORD_BLOCKS + 1) * WORD_BLOCKS);
            let (low, count) = (2 * (block % WORD_BLOCKS), 2 * (end - block));
            let mask = if count == 64 {
                u64::MAX
            } else {
                ((1 << count) - 1) << low
            };
            let value = ((LOW_BITS * state as u64) & mask).to_le();
            let mask = mask.to_le();
            let merge = |old: u64| Some(old & !mask | value);
            let old = self.words()[index].fetch_update(Ordering::AcqRel, Ordering::Relaxed, merge);
            if old.is_ok_and(|old| old & mask != value) {
                self.unflushed[index / PART_WORDS].store(true, Ordering::Release);
            }
            block = end;
        }
    }

    /// Nothing was ever written to the layer.
    pub(crate) fn is_empty(&self) -> bool {
        self.words().iter().all(|word| word.load(Ordering::Acquire) == 0)
    }

    /// Blocks in state data.
    pub(crate) fn data_blocks(&self) -> u64 {
        self.words()
            .iter()
            .map(|word| u64::from((word.load(Ordering::Relaxed) & LOW_BITS.to_le()).count_ones()))
            .sum()
    }

    /// Makes the present map durable, after `sync_data` has done so with the data.
    pub(crate) fn flush(&self, sync_data: impl FnOnce() -> Result<(), DiskError>) -> Result<(), DiskError> {
        let take = |part: &usize| self.unflushed[*part].swap(false, Ordering::AcqRel);
        let parts: Vec<usize> = (0..self.unflushed.len()).filter(take).collect();
        let outcome = self.flush_parts(&parts, sync_data);
        if outcome.is_err() {
            parts
                .iter()
                .for_each(|&part| self.unflushed[part].store(true, Ordering::Release));
        }
        outcome
    }

    fn flush_parts(
        &self,
        parts: &[usize],
        sync_data: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        // Copied before the data is synced: what a block's state says here, that sync covers.
        let copies: Vec<Vec<u8>> = parts
            .iter()
            .map(|&part| {
                let words = &self.words()[part * PART_WORDS..(part + 1) * PART_WORDS];
                words
                    .iter()
                    .flat_map(|word| word.load(Ordering::Acquire).to_ne_bytes())
                    .collect()
            })
            .collect();
        sync_data()?;
        if parts.is_empty() {
            return Ok(());
        }
        let durable = HEADER_BYTES + self.live.len() as u64;
        for (&part, copy) in parts.iter().zip(&copies) {
            let at = durable + (part * PART_WORDS * 8) as u64;
            self.file
                .write_all_at(copy, at)
                .map_err(DiskError::io("write", &self.path))?;
        }
        self.file.sync_data().map_err(DiskError::io("sync", &self.path))
    }
}
