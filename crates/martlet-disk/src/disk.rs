//! The writable disk.
//!
//! Locks, in the order in which they are taken:
//! 1. a *stripe* (by region of 1 MiB): one writer of a block at a time, so that a read-modify-write loses nothing.
//!    Held while the old content is fetched, which may take long, for that region only.
//! 2. the *stack*: shared while bytes go into the top layer, exclusive for the instant of a freeze or rebase. Readers
//!    only copy it, so that no slow read ever delays a freeze.

use crate::frozen::FrozenLayer;
use crate::layer::{self, Layer};
use crate::stack::{Place, Stack};
use crate::state_map::BlockState;
use crate::{BLOCK_SIZE, DISK_BYTES_MAX, DiskError};
use martlet_image::Manifest;
use martlet_pager::Pager;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

const REGION_BYTES: u64 = 1 << 20;
const STRIPES: usize = 64;
const BLOCK: u64 = BLOCK_SIZE as u64;

/// What stays the same as long as the disk is open.
pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    pub(crate) size_bytes: u64,
    pub(crate) pager: Arc<Pager>,
    _lock: File, // held while the disk or a frozen state of it is open
}

/// A copy-on-write disk in a directory of its own.
pub struct CowDisk {
    shared: Arc<Shared>,
    stack: RwLock<Arc<Stack>>,
    stripes: [Mutex<()>; STRIPES],
    spare: Mutex<Option<Layer>>,
    maintenance: Mutex<()>, // one flush or rebase at a time
}

/// What a disk takes up on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes of blocks in all layers.
    pub data_bytes: u64,
    /// Bytes the host's file system gave for them.
    pub stored_bytes: u64,
    /// Layers, the top one included.
    pub layers: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn acquire(dir: &Path, size_bytes: u64, pager: Arc<Pager>, lock: File) -> Arc<Self> {
        Arc::new(Self {
            dir: dir.to_owned(),
            size_bytes,
            pager,
            _lock: lock,
        })
    }
    pub(crate) fn check_range(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(DiskError::OutOfRange {
                offset,
                length,
                size_bytes: self.size_bytes,
            }),
        }
    }
}

/// One process at a time.
fn lock_dir(dir: &Path) -> Result<File, DiskError> {
    let path = dir.join("lock");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let file = file.map_err(DiskError::io("open", &path))?;
    match try_lock(&file) {
        Ok(()) => Ok(file),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            Err(DiskError::InUse { dir: dir.to_owned() })
        }
        Err(error) => Err(DiskError::io("lock", &path)(error)),
    }
}

#[allow(unsafe_code)] // flock(2): std's own is younger than the oldest supported compiler
fn try_lock(file: &File) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: no memory is involved; the descriptor is open.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

impl CowDisk {
    /// A new disk over `manifest`, which may be shorter than `size_bytes` (the rest is zeros). Makes `dir`.
    pub fn create(
        dir: &Path,
        pager: Arc<Pager>,
        manifest: Arc<Manifest>,
        size_bytes: u64,
    ) -> Result<Arc<Self>, DiskError> {
        let unsuitable = |reason: &str| DiskError::Unsuitable {
            dir: dir.to_owned(),
            reason: reason.to_owned(),
        };
        if size_bytes == 0 || size_bytes > DISK_BYTES_MAX || !size_bytes.is_multiple_of(512) {
            return Err(unsuitable(&format!("{size_bytes} bytes is no size for a disk")));
        }
        fs::create_dir_all(dir).map_err(DiskError::io("make", dir))?;
        let lock = lock_dir(dir)?;
        if !layer::list(dir)?.is_empty() {
            return Err(unsuitable("there is a disk already"));
        }
        let top = Arc::new(Layer::create(dir, 1, size_bytes)?);
        let shared = Shared::acquire(dir, size_bytes, pager, lock);
        Ok(Self::new(
            shared,
            Stack {
                base: manifest,
                layers: vec![top],
            },
            None,
        ))
    }

    /// The disk in `dir`, with every write that was answered (after the host went down: that was flushed).
    /// `manifest` is the image that the engine last recorded as below it: that of its making or of a rebase. When nothing
    /// was flushed since, and the host went down, the image is all there is of it.
    pub fn open(
        dir: &Path,
        pager: Arc<Pager>,
        manifest: Arc<Manifest>,
        size_bytes: u64,
    ) -> Result<Arc<Self>, DiskError> {
        let lock = lock_dir(dir)?;
        let mut layers = Vec::new();
        for seq in layer::list(dir)? {
            layers.extend(Layer::open(dir, seq)?);
        }
        if layers.is_empty() {
            layers.push(Layer::create(dir, 1, size_bytes)?);
        }
        if layers.iter().any(|layer| layer.states.size_bytes() != size_bytes) {
            return Err(DiskError::Damaged {
                path: dir.to_owned(),
                reason: format!("a layer of another size than {size_bytes} bytes"),
            });
        }
        // An empty last layer was made in advance, or on top of a freeze that nothing was written after.
        let spare = if layers.len() > 1 {
            layers.pop_if(|layer| layer.states.is_empty())
        } else {
            None
        };
        let shared = Shared::acquire(dir, size_bytes, pager, lock);
        let layers = layers.into_iter().map(Arc::new).collect();
        Ok(Self::new(
            shared,
            Stack {
                base: manifest,
                layers,
            },
            spare,
        ))
    }

    fn new(shared: Arc<Shared>, stack: Stack, spare: Option<Layer>) -> Arc<Self> {
        Arc::new(Self {
            shared,
            stack: RwLock::new(Arc::new(stack)),
            stripes: [const { Mutex::new(()) }; STRIPES],
            spare: Mutex::new(spare),
            maintenance: Mutex::new(()),
        })
    }

    /// The disk's size.
    pub fn size_bytes(&self) -> u64 {
        self.shared.size_bytes
    }
    /// The image below the layers.
    pub fn base(&self) -> Arc<Manifest> {
        self.view().base.clone()
    }
    /// What it takes up.
    pub fn usage(&self) -> DiskUsage {
        let view = self.view();
        let data_bytes = view
            .layers
            .iter()
            .map(|layer| layer.states.data_blocks() * BLOCK)
            .sum();
        let stored_bytes = view.layers.iter().map(|layer| layer.stored_bytes()).sum();
        DiskUsage {
            data_bytes,
            stored_bytes,
            layers: view.layers.len(),
        }
    }

    fn hold(&self) -> RwLockReadGuard<'_, Arc<Stack>> {
        self.stack.read().unwrap_or_else(PoisonError::into_inner)
    }
    fn view(&self) -> Arc<Stack> {
        self.hold().clone()
    }

    /// Fills `buf` from `offset`. A range that leaves the disk is refused.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.shared.check_range(offset, buf.len() as u64)?;
        self.view().read(&self.shared.pager, offset, buf)
    }

    /// Writes `data` at `offset`. A range that leaves the disk is refused. On an error (a full file system) each block
    /// holds either what it held or what was to be written.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.shared.check_range(offset, data.len() as u64)?;
        let end = offset + data.len() as u64;
        for region in regions(offset..end) {
            let _stripe = self.stripe(region.start);
            for piece in pieces(&region) {
                let bytes = &data[(piece.start - offset) as usize..(piece.end - offset) as usize];
                self.write_piece(piece, bytes)?;
            }
        }
        Ok(())
    }

    /// Writes whole blocks or a part of one. The stripe is held.
    fn write_piece(&self, piece: Range<u64>, bytes: &[u8]) -> Result<(), DiskError> {
        let block = piece.start / BLOCK;
        let whole = piece.start.is_multiple_of(BLOCK) && piece.end.is_multiple_of(BLOCK);
        {
            let stack = self.hold();
            if whole || stack.top().states.get(block) == BlockState::Data {
                return stack.top().write(piece.start, bytes);
            }
        }
        let mut full = [0; BLOCK_SIZE];
        self.view().read(&self.shared.pager, block * BLOCK, &mut full)?;
        full[(piece.start % BLOCK) as usize..][..bytes.len()].copy_from_slice(bytes);
        self.hold().top().write(block * BLOCK, &full)
    }

    /// Makes a range zero: whole blocks give back their room.
    pub fn discard(&self, range: Range<u64>) -> Result<(), DiskError> {
        self.shared
            .check_range(range.start, range.end.saturating_sub(range.start))?;
        for region in regions(range) {
            let _stripe = self.stripe(region.start);
            for piece in pieces(&region) {
                let last = piece.end == self.shared.size_bytes;
                if piece.start.is_multiple_of(BLOCK) && (piece.end.is_multiple_of(BLOCK) || last) {
                    let stack = self.hold();
                    let blocks = piece.start / BLOCK..piece.end.div_ceil(BLOCK);
                    if blocks.clone().any(|block| stack.place(block) != Place::Zero) {
                        stack.top().discard(blocks);
                    }
                } else {
                    self.write_piece(
                        piece.clone(),
                        &[0; BLOCK_SIZE][..(piece.end - piece.start) as usize],
                    )?;
                }
            }
        }
        Ok(())
    }

    fn stripe(&self, offset: u64) -> MutexGuard<'_, ()> {
        lock(&self.stripes[(offset / REGION_BYTES) as usize % STRIPES])
    }

    /// The first byte at or after `offset` that may be other than zero.
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        self.seek(offset, |place| place != Place::Zero)
    }
    /// The first byte at or after `offset` that is known to be zero; the end counts.
    pub fn next_hole(&self, offset: u64) -> u64 {
        self.seek(offset, |place| place == Place::Zero)
            .unwrap_or(self.shared.size_bytes)
    }
    fn seek(&self, offset: u64, wanted: impl Fn(Place) -> bool) -> Option<u64> {
        let view = self.view();
        let mut blocks = offset / BLOCK..self.shared.size_bytes.div_ceil(BLOCK);
        let found = blocks.find(|&block| wanted(view.place(block)))?;
        Some(offset.max(found * BLOCK)).filter(|&at| at < self.shared.size_bytes)
    }

    /// Makes every answered write durable.
    pub fn flush(&self) -> Result<(), DiskError> {
        let _maintenance = lock(&self.maintenance);
        for layer in &self.view().layers {
            layer.flush()?;
        }
        let dir = &self.shared.dir;
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(DiskError::io("sync", dir))
    }

    /// Makes the next [`freeze`](Self::freeze) a matter of microseconds: call it before the pause.
    pub fn prepare_freeze(&self) -> Result<(), DiskError> {
        let mut spare = lock(&self.spare);
        if spare.is_none() {
            let seq = self.view().top().seq() + 1;
            *spare = Some(Layer::create(&self.shared.dir, seq, self.shared.size_bytes)?);
        }
        Ok(())
    }

    /// The disk as it is now: later writes go to a new layer. Nothing is copied.
    pub fn freeze(&self) -> Result<FrozenLayer, DiskError> {
        self.prepare_freeze()?;
        let mut spare = lock(&self.spare);
        let mut stack = self.stack.write().unwrap_or_else(PoisonError::into_inner);
        let mut frozen = (**stack).clone();
        if frozen.top().states.is_empty() {
            frozen.layers.pop(); // nothing was written since the last freeze: it stays the top layer
        } else if let Some(top) = spare.take() {
            let mut next = frozen.clone();
            next.layers.push(Arc::new(top));
            *stack = Arc::new(next);
        }
        let seq = frozen.layers.last().map_or(0, |layer| layer.seq());
        Ok(FrozenLayer {
            shared: self.shared.clone(),
            stack: frozen,
            seq,
        })
    }

    /// Puts `manifest` below and deletes the layers up to `frozen`, all of which it contains.
    ///
    /// Record durably that `manifest` is the disk's image *before* this: a crash in between leaves layers that say the
    /// same as the image. Rebases may come in any order; one that is older than another changes nothing.
    pub fn rebase(&self, manifest: Arc<Manifest>, frozen: &FrozenLayer) -> Result<(), DiskError> {
        let _maintenance = lock(&self.maintenance);
        let contained: Vec<Arc<Layer>> = {
            let mut stack = self.stack.write().unwrap_or_else(PoisonError::into_inner);
            let (contained, rest) = stack
                .layers
                .iter()
                .cloned()
                .partition(|layer| layer.seq() <= frozen.seq);
            *stack = Arc::new(Stack {
                base: if Vec::is_empty(&contained) {
                    stack.base.clone()
                } else {
                    manifest
                },
                layers: rest,
            });
            contained
        };
        // Oldest first, each for good before the next: an older layer must never be found above an image that is newer.
        let dir = &self.shared.dir;
        for layer in contained {
            layer.delete()?;
            File::open(dir)
                .and_then(|dir| dir.sync_all())
                .map_err(DiskError::io("sync", dir))?;
        }
        Ok(())
    }
}

/// A range cut at the regions' borders.
fn regions(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    cut(range, |at| (at / REGION_BYTES + 1) * REGION_BYTES)
}

/// A range cut into at most a part of a block, whole blocks, a part of a block.
fn pieces(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = range.end;
    cut(range.clone(), move |at| match at.is_multiple_of(BLOCK) {
        true if end - at >= BLOCK => end / BLOCK * BLOCK,
        _ => (at / BLOCK + 1) * BLOCK,
    })
}

fn cut(range: Range<u64>, border: impl Fn(u64) -> u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = border(start).min(range.end);
        (start < range.end).then_some(start..at)
    })
}
