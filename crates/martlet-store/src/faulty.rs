//! A disk in memory that fills up, fails, tears writes, and forgets in a crash what was not synced. For tests.

use crate::files::{File, Files};
use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The disk is full; it stays full until [`FaultyFiles::mend`].
    NoSpace,
    /// The device fails, half-way through the write; it keeps failing until [`FaultyFiles::mend`].
    Broken,
    /// The power goes just before the operation: nothing of it happens, nor of anything after it until
    /// [`FaultyFiles::crash`], which says what is left.
    NoPower,
}

/// The disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct FaultyFiles {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Debug, Default)]
struct Disk {
    names: BTreeMap<PathBuf, Arc<Mutex<Node>>>,
    /// Names as a crash leaves them.
    durable_names: BTreeMap<PathBuf, Arc<Mutex<Node>>>,
    locked: Option<u64>,
    /// Files opened before the last crash are dead.
    epoch: u64,
    fault: Option<(u64, Fault)>,
    writes: u64,
    /// Everything that changes the disk or waits for it: writes, and syncs and removals too.
    operations: u64,
}

#[derive(Debug, Default)]
struct Node {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Operation>,
}

#[derive(Debug, Clone)]
enum Operation {
    Write(u64, Vec<u8>),
    SetSize(u64),
}

impl Operation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::SetSize(size) => bytes.resize(*size as usize, 0),
            Self::Write(offset, data) => {
                let end = *offset as usize + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset as usize..end].copy_from_slice(data);
            }
        }
    }
}

impl FaultyFiles {
    /// An empty disk that works.
    pub fn new() -> Self {
        Self::default()
    }

    /// From the `after`-th write from now on, everything that writes fails; the power goes at the `after`-th operation.
    pub fn fail_after(&self, after: u64, fault: Fault) {
        let mut disk = self.disk();
        let so_far = match fault {
            Fault::NoPower => disk.operations,
            Fault::NoSpace | Fault::Broken => disk.writes,
        };
        disk.fault = Some((so_far + after, fault));
    }

    /// The disk works again.
    pub fn mend(&self) {
        self.disk().fault = None;
    }

    /// Writes so far.
    pub fn writes(&self) -> u64 {
        self.disk().writes
    }

    /// Writes, syncs and removals so far: the power may go before each of them.
    pub fn operations(&self) -> u64 {
        self.disk().operations
    }

    /// The process is killed: what it has written is kept. Files open now are dead, locks are gone, and the disk works
    /// again.
    pub fn kill(&self) {
        let mut disk = self.disk();
        disk.epoch += 1;
        disk.locked = None;
        disk.fault = None;
    }

    /// The machine loses power. What was synced is kept; of every file's other writes an arbitrary part is, chosen by
    /// `seed`, and one of them may be torn. Files open now are dead, locks are gone, and the disk works again.
    pub fn crash(&self, seed: u64) {
        self.kill();
        let mut disk = self.disk();
        let mut random = seed;
        let mut next = move || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            random >> 33
        };
        // A name that was not synced may have reached the disk or not.
        let names = std::mem::take(&mut disk.names);
        for (path, node) in &names {
            if !disk.durable_names.contains_key(path) && next() % 2 == 0 {
                disk.durable_names.insert(path.clone(), node.clone());
            }
        }
        let removed: Vec<PathBuf> = disk
            .durable_names
            .keys()
            .filter(|path| !names.contains_key(*path))
            .cloned()
            .collect();
        for path in removed {
            if next() % 2 == 0 {
                disk.durable_names.remove(&path);
            }
        }
        for node in disk.durable_names.values() {
            let mut node = node.lock().unwrap_or_else(PoisonError::into_inner);
            let mut kept = std::mem::take(&mut node.durable);
            for operation in std::mem::take(&mut node.unsynced) {
                match (operation, next() % 4) {
                    (_, 0) => {}
                    (Operation::Write(offset, mut data), 1) => {
                        data.truncate(next() as usize % (data.len() + 1));
                        Operation::Write(offset, data).apply(&mut kept);
                    }
                    (operation, _) => operation.apply(&mut kept),
                }
            }
            node.now.clone_from(&kept);
            node.durable = kept;
        }
        disk.names = disk.durable_names.clone();
    }

    /// Flips bits of a byte on the disk, as age does.
    pub fn damage(&self, path: &Path, offset: usize, mask: u8) {
        let disk = self.disk();
        if let Some(node) = disk.names.get(path) {
            let mut node = node.lock().unwrap_or_else(PoisonError::into_inner);
            let node = &mut *node;
            for bytes in [&mut node.now, &mut node.durable] {
                if let Some(byte) = bytes.get_mut(offset) {
                    *byte ^= mask;
                }
            }
        }
    }

    /// Length of a file, if there is one.
    pub fn size_of(&self, path: &Path) -> Option<usize> {
        Some(
            self.disk()
                .names
                .get(path)?
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .now
                .len(),
        )
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, disk: &Disk, node: Arc<Mutex<Node>>) -> Arc<dyn File> {
        Arc::new(Handle {
            files: self.clone(),
            epoch: disk.epoch,
            node,
        })
    }
}

impl Disk {
    /// Counts an operation; the error if the power is gone.
    fn operate(&mut self) -> Result<(), Fault> {
        self.operations += 1;
        match self.fault {
            Some((at, Fault::NoPower)) if self.operations > at => Err(Fault::NoPower),
            _ => Ok(()),
        }
    }

    /// Counts a write; the error if it is one that fails.
    fn write(&mut self) -> Result<(), Fault> {
        self.operate()?;
        self.writes += 1;
        match self.fault {
            Some((at, fault @ (Fault::NoSpace | Fault::Broken))) if self.writes > at => Err(fault),
            _ => Ok(()),
        }
    }

    /// Counts a sync; the error if the device fails.
    fn sync(&mut self) -> Result<(), Fault> {
        self.operate()?;
        match self.fault {
            Some((at, Fault::Broken)) if self.writes >= at => Err(Fault::Broken),
            _ => Ok(()),
        }
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NoSpace => io::ErrorKind::StorageFull.into(),
            Fault::Broken => io::Error::other("the device failed"),
            Fault::NoPower => io::Error::other("the machine has lost power"),
        }
    }
}

impl Files for FaultyFiles {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let disk = self.disk();
        let node = disk.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(&disk, node.clone()))
    }
    fn open_to_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.open(path)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut disk = self.disk();
        disk.write()?;
        if disk.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let node = Arc::<Mutex<Node>>::default();
        disk.names.insert(path.to_owned(), node.clone());
        Ok(self.handle(&disk, node))
    }
    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.operate()?;
        disk.names
            .remove(path)
            .map(drop)
            .ok_or(io::ErrorKind::NotFound.into())
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.write()?;
        let node = disk.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        disk.names.insert(to.to_owned(), node);
        Ok(())
    }
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.disk().names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.rename(from, to)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.disk();
        let names = disk.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(names
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect())
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk();
        disk.sync()?;
        let inside = |path: &Path| path.parent() == Some(dir);
        let now: Vec<_> = disk
            .names
            .iter()
            .filter(|(path, _)| inside(path))
            .map(|(p, n)| (p.clone(), n.clone()))
            .collect();
        disk.durable_names.retain(|path, _| !inside(path));
        disk.durable_names.extend(now);
        Ok(())
    }
    fn lock(&self, _path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        let mut disk = self.disk();
        if disk.locked.is_some() {
            return Ok(None);
        }
        disk.locked = Some(disk.epoch);
        Ok(Some(Box::new(Unlock {
            files: self.clone(),
            epoch: disk.epoch,
        })))
    }
}

#[derive(Debug)]
struct Unlock {
    files: FaultyFiles,
    epoch: u64,
}

impl Drop for Unlock {
    fn drop(&mut self) {
        let mut disk = self.files.disk();
        if disk.locked == Some(self.epoch) {
            disk.locked = None;
        }
    }
}

#[derive(Debug)]
struct Handle {
    files: FaultyFiles,
    epoch: u64,
    node: Arc<Mutex<Node>>,
}

impl Handle {
    fn node(&self) -> io::Result<MutexGuard<'_, Node>> {
        if self.files.disk().epoch != self.epoch {
            return Err(io::Error::other("the machine has lost power"));
        }
        Ok(self.node.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, operation: Operation) -> io::Result<()> {
        let fault = self.files.disk().write().err();
        if fault == Some(Fault::NoPower) {
            return Err(Fault::NoPower.into());
        }
        let mut node = self.node()?;
        let shrinks = matches!(operation, Operation::SetSize(size) if size <= node.now.len() as u64);
        let (operation, result) = match (fault, operation) {
            (None, operation) => (operation, Ok(())),
            // Cutting a file needs no space.
            (Some(Fault::NoSpace), operation) if shrinks => (operation, Ok(())),
            (Some(fault), Operation::Write(offset, mut data)) => {
                data.truncate(data.len() / 2);
                (Operation::Write(offset, data), Err(fault.into()))
            }
            (Some(fault), _) => return Err(fault.into()),
        };
        operation.apply(&mut node.now);
        node.unsynced.push(operation);
        result
    }
}

impl File for Handle {
    fn size(&self) -> io::Result<u64> {
        Ok(self.node()?.now.len() as u64)
    }
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let node = self.node()?;
        if out.is_empty() {
            return Ok(()); // wherever that is
        }
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|at| node.now.get(at..)?.get(..out.len()));
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(Operation::Write(offset, bytes.to_vec()))
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.change(Operation::SetSize(size))
    }
    fn sync(&self) -> io::Result<()> {
        self.files.disk().sync()?;
        let mut node = self.node()?;
        let node = &mut *node;
        for operation in node.unsynced.drain(..) {
            operation.apply(&mut node.durable);
        }
        Ok(())
    }
}
