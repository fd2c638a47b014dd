//! One layer: a sparse file of blocks and the map of their states.

use crate::state_map::{BlockState, StateMap};
use crate::{BLOCK_SIZE, DiskError};
use std::fs::{self, File};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) struct Layer {
    seq: u64,
    data: File,
    data_path: PathBuf,
    map_path: PathBuf,
    pub(crate) states: StateMap,
    unsynced: AtomicBool,
}

/// Both of a layer's files.
fn paths(dir: &Path, seq: u64) -> (PathBuf, PathBuf) {
    (
        dir.join(format!("layer-{seq:08}.data")),
        dir.join(format!("layer-{seq:08}.map")),
    )
}

/// The numbers of the layers in a directory, oldest first. Data without a map is a layer half made or half deleted.
pub(crate) fn list(dir: &Path) -> Result<Vec<u64>, DiskError> {
    let mut seqs = Vec::new();
    for entry in fs::read_dir(dir).map_err(DiskError::io("list", dir))? {
        let name = entry.map_err(DiskError::io("list", dir))?.file_name();
        let seq: Option<u64> = name
            .to_str()
            .and_then(|name| name.strip_prefix("layer-")?.strip_suffix(".map")?.parse().ok());
        seqs.extend(seq);
    }
    seqs.sort_unstable();
    Ok(seqs)
}

impl Layer {
    pub(crate) fn create(dir: &Path, seq: u64, size_bytes: u64) -> Result<Self, DiskError> {
        let (data_path, map_path) = paths(dir, seq);
        // A map makes the layer: it comes last, and what an earlier attempt left goes first.
        let _ = fs::remove_file(&map_path);
        let data = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&data_path);
        let data = data.map_err(DiskError::io("create", &data_path))?;
        let length = size_bytes.next_multiple_of(BLOCK_SIZE as u64);
        data.set_len(length)
            .map_err(DiskError::io("lengthen", &data_path))?;
        let states = StateMap::create(&map_path, size_bytes).inspect_err(|_| {
            let _ = fs::remove_file(&map_path);
            let _ = fs::remove_file(&data_path);
        })?;
        Ok(Self {
            seq,
            data,
            data_path,
            map_path,
            states,
            unsynced: AtomicBool::new(true),
        })
    }

    /// `None` for a layer that was never flushed before the host went down; its files are deleted.
    pub(crate) fn open(dir: &Path, seq: u64) -> Result<Option<Self>, DiskError> {
        let (data_path, map_path) = paths(dir, seq);
        let Some(states) = StateMap::open(&map_path)? else {
            fs::remove_file(&map_path).map_err(DiskError::io("delete", &map_path))?;
            let _ = fs::remove_file(&data_path);
            return Ok(None);
        };
        let data = File::options().read(true).write(true).open(&data_path);
        let data = data.map_err(DiskError::io("open", &data_path))?;
        let length = data
            .metadata()
            .map_err(DiskError::io("look at", &data_path))?
            .len();
        if length != states.size_bytes().next_multiple_of(BLOCK_SIZE as u64) {
            let reason = format!("{length} bytes, for a disk of {}", states.size_bytes());
            return Err(DiskError::Damaged {
                path: data_path,
                reason,
            });
        }
        Ok(Some(Self {
            seq,
            data,
            data_path,
            map_path,
            states,
            unsynced: AtomicBool::new(true),
        }))
    }

    /// Deletes the files; who has the layer open goes on reading it.
    pub(crate) fn delete(&self) -> Result<(), DiskError> {
        fs::remove_file(&self.map_path).map_err(DiskError::io("delete", &self.map_path))?;
        fs::remove_file(&self.data_path).map_err(DiskError::io("delete", &self.data_path))
    }

    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.data.metadata().map_or(0, |metadata| metadata.blocks() * 512)
    }

    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.data
            .read_exact_at(buf, offset)
            .map_err(DiskError::io("read", &self.data_path))
    }

    /// Writes bytes. The caller sees to it that blocks written in part hold data already.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let block = BLOCK_SIZE as u64;
        let written = self
            .data
            .write_all_at(data, offset)
            .map_err(DiskError::io("write", &self.data_path));
        self.unsynced.store(true, Ordering::Release);
        written?;
        self.states.set(
            offset / block..(offset + data.len() as u64).div_ceil(block),
            BlockState::Data,
        );
        Ok(())
    }

    /// Makes blocks zero and gives back the room they took.
    pub(crate) fn discard(&self, blocks: Range<u64>) {
        let held = blocks
            .clone()
            .any(|block| self.states.get(block) == BlockState::Data);
        self.states.set(blocks.clone(), BlockState::Zero);
        if held {
            self.punch(blocks);
        }
    }

    #[allow(unsafe_code)] // fallocate(2) has no safe wrapper in std
    fn punch(&self, blocks: Range<u64>) {
        let block = BLOCK_SIZE as u64;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (offset, length) = (blocks.start * block, (blocks.end - blocks.start) * block);
        // SAFETY: no memory is involved; the descriptor is open. A file system that cannot do it keeps the room:
        // the state, not the file, says that the blocks are zero.
        let _ = unsafe {
            libc::fallocate(
                self.data.as_raw_fd(),
                mode,
                offset as libc::off_t,
                length as libc::off_t,
            )
        };
    }

    pub(crate) fn flush(&self) -> Result<(), DiskError> {
        self.states.flush(|| {
            if self.unsynced.swap(false, Ordering::AcqRel) {
                let synced = self
                    .data
                    .sync_data()
                    .map_err(DiskError::io("sync", &self.data_path));
                synced.inspect_err(|_| self.unsynced.store(true, Ordering::Release))?;
            }
            Ok(())
        })
    }
}
