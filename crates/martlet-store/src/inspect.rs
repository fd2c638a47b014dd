//! Questions about snapshots and space.

use crate::gc::record_bytes;
use crate::record::{Key, Kind};
use crate::store::Store;
use crate::{Result, StoreError};
use martlet_image::{Manifest, ManifestDiff, ManifestId, PAGE_SIZE, SnapshotId, SnapshotRecord};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// How two snapshots differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotDiff {
    /// Memory.
    pub memory: ManifestDiff,
    /// All disks.
    pub disks: ManifestDiff,
}

/// Where the space goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Pack files.
    pub packs: u64,
    /// Frames in them.
    pub frames: u64,
    /// Size of the packs.
    pub pack_bytes: u64,
    /// Uncompressed content of the frames.
    pub content_bytes: u64,
    /// What all snapshots would take as plain files: non-zero pages, no sharing.
    pub referenced_bytes: u64,
    /// Bytes in packs that nothing refers to.
    pub garbage_bytes: u64,
    /// Size of the index.
    pub index_bytes: u64,
}

impl Store {
    /// A snapshot and those before it, newest first, as far back as they exist.
    pub fn history(&self, id: SnapshotId) -> Result<Vec<(SnapshotId, SnapshotRecord)>> {
        let mut history = vec![(id, self.snapshot(&id)?)];
        // Ids are hashes, so a record cannot be its own ancestor and this ends.
        while let Some(parent) = history.last().and_then(|(_, record)| record.parent) {
            match self.snapshot(&parent) {
                Ok(record) => history.push((parent, record)),
                Err(StoreError::NotFound(_)) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(history)
    }

    /// Snapshots whose parent this is.
    pub fn children(&self, id: &SnapshotId) -> Result<Vec<SnapshotId>> {
        let mut children = Vec::new();
        for child in self.snapshots() {
            if self.snapshot(&child)?.parent == Some(*id) {
                children.push(child);
            }
        }
        Ok(children)
    }

    /// What changed from `before` to `after`.
    pub fn diff(&self, before: &SnapshotId, after: &SnapshotId) -> Result<SnapshotDiff> {
        let (before, after) = (self.snapshot(before)?, self.snapshot(after)?);
        let memory = |record: &SnapshotRecord| record.memory.as_ref().map(|memory| memory.manifest);
        let mut diff = SnapshotDiff {
            memory: self.diff_images(memory(&before), memory(&after))?,
            ..SnapshotDiff::default()
        };
        for disk in 0..before.disks.len().max(after.disks.len()) {
            let image = |record: &SnapshotRecord| record.disks.get(disk).map(|disk| disk.manifest);
            let disk = self.diff_images(image(&before), image(&after))?;
            diff.disks.same_pages += disk.same_pages;
            diff.disks.changed_pages += disk.changed_pages;
            diff.disks.added_pages += disk.added_pages;
            diff.disks.removed_pages += disk.removed_pages;
        }
        Ok(diff)
    }

    fn diff_images(&self, before: Option<ManifestId>, after: Option<ManifestId>) -> Result<ManifestDiff> {
        let image = |id: Option<ManifestId>| match id {
            Some(id) => self.manifest(&id),
            None => Ok(Arc::new(Manifest::zero(0))),
        };
        Ok(image(after)?.diff(&*image(before)?))
    }

    /// Bytes in packs that only this snapshot needs.
    pub fn unique_bytes(&self, id: &SnapshotId) -> Result<u64> {
        Ok(self.unique_bytes_of_all()?.get(id).copied().unwrap_or(0))
    }

    /// [`Store::unique_bytes`] of every snapshot, for little more than the price of one.
    pub fn unique_bytes_of_all(&self) -> Result<HashMap<SnapshotId, u64>> {
        let snapshots = self.snapshots();
        // The only snapshot that needs an object; `None` once a second one turned up.
        let mut owners: HashMap<Key, Option<SnapshotId>> = HashMap::new();
        for id in &snapshots {
            for key in self
                .inner
                .closure(&HashSet::from([Key::new(Kind::Snapshot, id.0)]), false)?
            {
                owners
                    .entry(key)
                    .and_modify(|owner| *owner = None)
                    .or_insert(Some(*id));
            }
        }
        let mut unique: HashMap<SnapshotId, u64> = snapshots.iter().map(|id| (*id, 0)).collect();
        for (key, location) in self.inner.index.objects()? {
            if let Some(Some(owner)) = owners.get(&key)
                && let Some(bytes) = unique.get_mut(owner)
            {
                *bytes += record_bytes(&location);
            }
        }
        Ok(unique)
    }

    /// Size of the packs. Told at once, however much is in them.
    pub fn pack_bytes(&self) -> Result<u64> {
        Ok(self.inner.pack_bytes()?.1)
    }

    /// Where the space goes.
    pub fn usage(&self) -> Result<Usage> {
        let (packs, pack_bytes) = self.inner.pack_bytes()?;
        let mut usage = Usage {
            packs,
            pack_bytes,
            ..Usage::default()
        };
        let needed = self.inner.closure(&self.inner.gc_roots()?, false)?;
        let mut needed_bytes = 0;
        for (key, location) in self.inner.index.objects()? {
            if key.kind == Kind::Frame {
                usage.frames += 1;
                usage.content_bytes += u64::from(location.content_len);
            }
            if needed.contains(&key) {
                needed_bytes += record_bytes(&location);
            }
        }
        usage.garbage_bytes = pack_bytes.saturating_sub(needed_bytes);
        for id in self.snapshots() {
            let Ok(record) = self.snapshot(&id) else { continue };
            for manifest in record.manifests() {
                let pages = self
                    .manifest_header(&manifest)
                    .map_or(0, |header| header.stored_count);
                usage.referenced_bytes += pages * PAGE_SIZE as u64;
            }
        }
        let index = self.inner.files.open_to_read(&self.inner.dir.join("index.redb"));
        usage.index_bytes = index
            .and_then(|file| file.size())
            .map_err(StoreError::io("reading the index"))?;
        Ok(usage)
    }
}
