//! Packs: append-only files of records.
//!
//! A writer owns the packs it writes to, so that several batches write at the same time without waiting for one
//! another, and a batch that is given up is undone by cutting its packs back to where it began.
//!
//! ```text
//!            claim                     release(new length)
//!   idle ───────────► owned by a writer ───────────► idle
//!                       │ abandon: cut back ────────► idle, or removed if it was new
//!                       └ abandon fails ────────────► out of use until the store is opened again
//! ```

use crate::files::{File, Files};
use crate::index::Location;
use crate::record::{CONTENT_BYTES_MAX, Key, PACK_HEADER, RECORD_HEADER, RecordHeader, pack_header};
use crate::{Result, StoreError};
use martlet_image::Codec;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Written to a file at once.
const WRITE_BYTES: usize = 1 << 20;
/// A thread's buffer that has grown beyond this, for something larger than frames, is not kept.
const BUFFER_BYTES_MAX: usize = 128 << 10;

thread_local! {
    /// What a thread reads records into, one after the other. New memory for each would have to be zeroed first.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

#[derive(Debug)]
pub(crate) struct Packs {
    files: Arc<dyn Files>,
    dir: PathBuf,
    pack_bytes_max: u64,
    open: Mutex<HashMap<u32, Arc<dyn File>>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u32,
    /// Packs that no writer owns, with their lengths.
    idle: BTreeMap<u32, u64>,
}

pub(crate) fn pack_name(number: u32) -> String {
    format!("{number:06}.pack")
}

/// The numbers of the packs in a directory.
pub(crate) fn list(files: &dyn Files, dir: &Path) -> Result<Vec<u32>> {
    let names = files.list(dir).map_err(StoreError::io("listing the packs"))?;
    let mut numbers: Vec<u32> = names
        .iter()
        .filter_map(|name| name.strip_suffix(".pack")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

impl Packs {
    pub(crate) fn new(files: Arc<dyn Files>, dir: PathBuf, pack_bytes_max: u64) -> Self {
        Self {
            files,
            dir,
            pack_bytes_max,
            open: Mutex::default(),
            state: Mutex::default(),
        }
    }

    /// Tells which packs there are, when the store is opened.
    pub(crate) fn adopt(&self, packs: impl IntoIterator<Item = (u32, u64)>) {
        let mut state = self.state();
        for (number, len) in packs {
            state.next = state.next.max(number + 1);
            state.idle.insert(number, len);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn path(&self, number: u32) -> PathBuf {
        self.dir.join(pack_name(number))
    }

    pub(crate) fn file(&self, number: u32) -> io::Result<Arc<dyn File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&number) {
            return Ok(file.clone());
        }
        let file = self.files.open(&self.path(number))?;
        open.insert(number, file.clone());
        Ok(file)
    }

    /// The stored bytes of a record; why they cannot be had, otherwise.
    pub(crate) fn read(&self, key: &Key, location: &Location) -> Result<Vec<u8>, String> {
        self.with(key, location, |stored| Ok(stored.to_vec()))
    }

    /// The same, for who only looks at them.
    pub(crate) fn with<T>(
        &self,
        key: &Key,
        location: &Location,
        look: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T, String> {
        let file = self
            .file(location.pack)
            .map_err(|error| format!("the pack cannot be opened: {error}"))?;
        if location.stored_len as usize > CONTENT_BYTES_MAX {
            return Err("its length is impossible".to_owned());
        }
        let record_len = RECORD_HEADER + location.stored_len as usize;
        let mut buffer = BUFFER.take();
        if buffer.len() < record_len {
            buffer.resize(record_len, 0);
        }
        let bytes = &mut buffer[..record_len];
        let looked = file
            .read_at(location.offset, bytes)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => "the pack ends before it".to_owned(),
                _ => error.to_string(),
            })
            .and_then(|()| match RecordHeader::decode(bytes) {
                Some(header) if header.key == *key && header.stored_len == location.stored_len => {
                    look(&bytes[RECORD_HEADER..])
                }
                _ => Err("its record header is damaged".to_owned()),
            });
        if buffer.len() <= BUFFER_BYTES_MAX {
            BUFFER.set(buffer);
        }
        looked
    }

    /// Forgets and deletes packs that nothing refers to. Readers that have one open keep reading it.
    pub(crate) fn delete(&self, numbers: &[u32]) -> Result<()> {
        for number in numbers {
            self.open
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(number);
            match self.files.remove(&self.path(*number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io(format!("deleting {}", pack_name(*number)))(error));
                }
                _ => {}
            }
        }
        self.files
            .sync_dir(&self.dir)
            .map_err(StoreError::io("deleting packs"))
    }

    /// Takes this pack out of use, if it is idle.
    pub(crate) fn claim(&self, number: u32) -> bool {
        self.state().idle.remove(&number).is_some()
    }

    /// Gives a pack back.
    pub(crate) fn release(&self, number: u32, len: u64) {
        self.state().idle.insert(number, len);
    }

    /// Packs and their committed lengths that no writer owns.
    pub(crate) fn idle(&self) -> Vec<(u32, u64)> {
        self.state()
            .idle
            .iter()
            .map(|(number, len)| (*number, *len))
            .collect()
    }

    fn claim_any(&self) -> Result<Owned> {
        let claimed = {
            let mut state = self.state();
            let room = self.pack_bytes_max - self.pack_bytes_max / 8;
            let number = state
                .idle
                .iter()
                .rev()
                .find(|&(_, &len)| len < room)
                .map(|(number, _)| *number);
            number.and_then(|number| state.idle.remove_entry(&number))
        };
        if let Some((number, len)) = claimed
            && let Ok(file) = self.file(number)
        {
            // A pack shorter than it should be has lost its tail: nothing is appended to it.
            if file.size().is_ok_and(|size| size == len) {
                return Ok(Owned {
                    number,
                    file,
                    start: len,
                    len,
                });
            }
        }
        let number = {
            let mut state = self.state();
            state.next += 1;
            state.next - 1
        };
        let doing = || StoreError::io(format!("creating {}", pack_name(number)));
        let file = self.files.create(&self.path(number)).map_err(doing())?;
        let written = file
            .write_at(0, &pack_header(number))
            .and_then(|()| self.files.sync_dir(&self.dir));
        if let Err(error) = written {
            // Best effort: what is left is removed when the store is opened next.
            let _ = self.files.remove(&self.path(number));
            return Err(doing()(error));
        }
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, file.clone());
        Ok(Owned {
            number,
            file,
            start: PACK_HEADER,
            len: PACK_HEADER,
        })
    }
}

#[derive(Debug)]
struct Owned {
    number: u32,
    file: Arc<dyn File>,
    /// Length when it was claimed.
    start: u64,
    /// Length now, with what is buffered.
    len: u64,
}

/// Appends records to packs that it owns.
#[derive(Debug)]
pub(crate) struct PackWriter {
    packs: Arc<Packs>,
    full: Vec<Owned>,
    current: Option<Owned>,
    buffer: Vec<u8>,
}

impl PackWriter {
    pub(crate) fn new(packs: Arc<Packs>) -> Self {
        Self {
            packs,
            full: Vec::new(),
            current: None,
            buffer: Vec::new(),
        }
    }

    /// Appends a record; it is readable after [`PackWriter::flush`].
    pub(crate) fn append(
        &mut self,
        key: Key,
        codec: Codec,
        stored: &[u8],
        content_len: usize,
    ) -> Result<Location> {
        let record_len = (RECORD_HEADER + stored.len()) as u64;
        if let Some(owned) = &self.current
            && owned.len + record_len > self.packs.pack_bytes_max
            && owned.len > PACK_HEADER
        {
            self.flush()?;
            self.full.extend(self.current.take());
        }
        let owned = match &mut self.current {
            Some(owned) => owned,
            none => none.insert(self.packs.claim_any()?),
        };
        let header = RecordHeader {
            key,
            codec,
            stored_len: stored.len() as u32,
            content_len: content_len as u32,
            stored_crc: crc32fast::hash(stored),
        };
        self.buffer.extend_from_slice(&header.encode());
        self.buffer.extend_from_slice(stored);
        let location = Location {
            pack: owned.number,
            offset: owned.len,
            stored_len: header.stored_len,
            content_len: header.content_len,
            codec,
        };
        owned.len += record_len;
        if self.buffer.len() >= WRITE_BYTES {
            self.flush()?;
        }
        Ok(location)
    }

    /// Hands what is buffered to the file.
    pub(crate) fn flush(&mut self) -> Result<()> {
        if let Some(owned) = &self.current
            && !self.buffer.is_empty()
        {
            let at = owned.len - self.buffer.len() as u64;
            let doing = StoreError::io(format!("writing {}", pack_name(owned.number)));
            owned.file.write_at(at, &self.buffer).map_err(doing)?;
        }
        self.buffer.clear();
        Ok(())
    }

    /// Makes everything so far durable.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.flush()?;
        for owned in self.full.iter().chain(&self.current) {
            owned
                .file
                .sync()
                .map_err(StoreError::io(format!("syncing {}", pack_name(owned.number))))?;
        }
        Ok(())
    }

    /// Packs written to, with their new lengths.
    pub(crate) fn lengths(&self) -> Vec<(u32, u64)> {
        self.full
            .iter()
            .chain(&self.current)
            .map(|owned| (owned.number, owned.len))
            .collect()
    }

    /// It is committed: gives the packs back.
    pub(crate) fn release(mut self) {
        for owned in self.full.drain(..).chain(self.current.take()) {
            self.packs.release(owned.number, owned.len);
        }
    }

    /// Leaves the packs as they are and out of use: whether they are committed is not known.
    pub(crate) fn forget(mut self) {
        self.full.clear();
        self.current = None;
    }

    /// Undoes everything; tells whether that is durable. What could not be undone is tried again the next time.
    pub(crate) fn abandon(&mut self) -> bool {
        self.buffer.clear();
        let owned: Vec<Owned> = self.full.drain(..).chain(self.current.take()).collect();
        for owned in owned {
            if owned.start == PACK_HEADER {
                if self.packs.delete(&[owned.number]).is_err() {
                    self.full.push(owned);
                }
            } else if owned
                .file
                .set_size(owned.start)
                .and_then(|()| owned.file.sync())
                .is_ok()
            {
                self.packs.release(owned.number, owned.start);
            } else {
                self.full.push(owned);
            }
        }
        self.full.is_empty()
    }
}

impl Drop for PackWriter {
    fn drop(&mut self) {
        self.abandon();
    }
}
