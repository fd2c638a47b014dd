//! Garbage collection.
//!
//! 1. *Mark*: everything that refs, pins and open batches need. 2. *Forget*: one commit takes the rest out of the
//!    index. Both under the gate, so that no batch can come to rely on what is about to go. 3. *Sweep*: packs without
//!    live records are deleted; packs with much garbage are copied without it, a commit for each.
//!
//! A crash anywhere leaves garbage at worst: an object's old record goes only after its new place is committed.
//! Readers keep the packs they have open, and ask the index again when a record is not where it was.

use crate::index::{Change, Location};
use crate::pack::{PackWriter, list};
use crate::record::{Key, Kind, PACK_HEADER, RECORD_HEADER};
use crate::store::{Inner, Store, lock};
use crate::{Result, StoreError};
use martlet_image::{Manifest, ManifestId, SnapshotId, SnapshotRecord};
use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;

/// A pack is rewritten when at least 1/3 of it is garbage: then a byte written frees half a byte or more.
const GARBAGE_DIVISOR: u64 = 3;

/// A pack with less garbage than this stays: every commit leaves a root behind, and that is no reason to copy.
const GARBAGE_BYTES_MIN: u64 = 1024;

/// What a garbage collection did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Nothing was changed.
    pub dry_run: bool,
    /// Snapshots that nothing refers to.
    pub snapshots_freed: u64,
    /// Frames, blobs, manifests and snapshots that nothing refers to.
    pub objects_freed: u64,
    /// Bytes of packs freed.
    pub freed_bytes: u64,
    /// Packs deleted.
    pub packs_deleted: u64,
    /// Packs rewritten without their garbage.
    pub packs_rewritten: u64,
    /// Bytes of live records.
    pub kept_bytes: u64,
}

impl Store {
    /// Frees what no ref, no pin and no open batch needs. `progress` hears (packs done, packs to do).
    pub fn gc(&self, dry_run: bool, progress: &mut dyn FnMut(u64, u64)) -> Result<GcReport> {
        let inner = &*self.inner;
        inner.check_settled()?;
        let _collecting = lock(&inner.collecting);
        let mut report = GcReport {
            dry_run,
            ..GcReport::default()
        };
        let (live, sizes) = {
            let _gate = inner.gate.write().unwrap_or_else(PoisonError::into_inner);
            let roots = inner.gc_roots()?;
            let needed = inner.closure(&roots, true)?;
            let (live, dead): (Vec<_>, Vec<_>) = inner
                .index
                .objects()?
                .into_iter()
                .partition(|(key, _)| needed.contains(key));
            report.objects_freed = dead.len() as u64;
            report.snapshots_freed = dead.iter().filter(|(key, _)| key.kind == Kind::Snapshot).count() as u64;
            report.kept_bytes = live.iter().map(|(_, location)| record_bytes(location)).sum();
            if !dry_run && !dead.is_empty() {
                let change = Change {
                    dead: dead.into_iter().map(|(key, _)| key).collect(),
                    ..Change::default()
                };
                inner.commit(PackWriter::new(inner.packs.clone()), change, |root| {
                    root.snapshots
                        .retain(|id| needed.contains(&Key::new(Kind::Snapshot, id.0)));
                })?;
            }
            // Claimed before the gate opens: nothing is appended to a pack whose records have been counted.
            let mut idle = inner.packs.idle();
            if !dry_run {
                idle.retain(|(number, _)| inner.packs.claim(*number));
            }
            (live, idle)
        };

        let mut by_pack: HashMap<u32, Vec<(Key, Location)>> = HashMap::new();
        for (key, location) in live {
            by_pack.entry(location.pack).or_default().push((key, location));
        }
        let pack_count = sizes.len() as u64;
        let mut claimed = Claimed {
            inner,
            packs: if dry_run { Vec::new() } else { sizes.clone() },
        };
        for (done, (pack, len)) in sizes.into_iter().enumerate() {
            progress(done as u64, pack_count);
            let live = by_pack.remove(&pack).unwrap_or_default();
            let live_bytes: u64 = live.iter().map(|(_, location)| record_bytes(location)).sum();
            let garbage = len.saturating_sub(PACK_HEADER + live_bytes);
            if garbage < GARBAGE_BYTES_MIN || garbage < len / GARBAGE_DIVISOR {
                continue;
            }
            let is_empty = live.is_empty();
            if dry_run || inner.move_records(pack, live)? {
                claimed.packs.retain(|(number, _)| *number != pack);
                if !dry_run {
                    inner.packs.delete(&[pack])?;
                }
                report.freed_bytes += garbage;
                if is_empty {
                    report.packs_deleted += 1
                } else {
                    report.packs_rewritten += 1
                }
            }
        }
        progress(pack_count, pack_count);
        Ok(report)
    }
}

/// Packs out of use while gc works on them; they go back to idle however it ends.
struct Claimed<'a> {
    inner: &'a Inner,
    packs: Vec<(u32, u64)>,
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        for (number, len) in self.packs.drain(..) {
            self.inner.packs.release(number, len);
        }
    }
}

pub(crate) fn record_bytes(location: &Location) -> u64 {
    RECORD_HEADER as u64 + u64::from(location.stored_len)
}

impl Inner {
    pub(crate) fn gc_roots(&self) -> Result<HashSet<Key>> {
        let root = self.root();
        let mut roots: HashSet<Key> = root
            .refs
            .values()
            .chain(&self.pinned())
            .map(|id| Key::new(Kind::Snapshot, id.0))
            .collect();
        // A batch may rely on what is still to come. That is not here to be collected, and what it needs is told as well.
        let held: Vec<Key> = lock(&self.held).values().flatten().copied().collect();
        let here = self.index.get_many(&held)?;
        roots.extend(
            held.iter()
                .zip(here)
                .filter(|(_, here)| here.is_some())
                .map(|(key, _)| *key),
        );
        Ok(roots)
    }

    /// Everything these objects need, themselves included. What a damaged or missing object needs cannot be known:
    /// if `strict` that is an error, so that gc never deletes what a repair could still bring to use.
    pub(crate) fn closure(&self, roots: &HashSet<Key>, strict: bool) -> Result<HashSet<Key>> {
        let mut needed = HashSet::new();
        let mut chain = HashSet::new();
        let mut todo: Vec<Key> = roots.iter().copied().collect();
        while let Some(key) = todo.pop() {
            if !needed.insert(key) {
                continue;
            }
            let needs = match key.kind {
                Kind::Frame | Kind::Blob | Kind::Root => continue,
                Kind::Snapshot => self.snapshot_needs(&SnapshotId(key.id)),
                Kind::Manifest => self.manifest_needs(&ManifestId(key.id), &mut chain),
            };
            match needs {
                Ok(needs) => todo.extend(needs),
                Err(
                    error @ (StoreError::Damaged { .. } | StoreError::NotFound(_) | StoreError::Format(_)),
                ) => {
                    if strict {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        needed.extend(chain);
        Ok(needed)
    }

    fn snapshot_needs(&self, id: &SnapshotId) -> Result<Vec<Key>> {
        let record = SnapshotRecord::decode(&self.read(Key::new(Kind::Snapshot, id.0))?)?;
        let manifests = record.manifests().map(|id| Key::new(Kind::Manifest, id.0));
        Ok(manifests
            .chain(record.blobs().map(|id| Key::new(Kind::Blob, id.0)))
            .collect())
    }

    /// A manifest needs its frames, and the bytes of the manifests it is a delta to (they go to `chain`), but not the
    /// frames that only those name.
    fn manifest_needs(&self, id: &ManifestId, chain: &mut HashSet<Key>) -> Result<Vec<Key>> {
        let mut at = Key::new(Kind::Manifest, id.0);
        while let Some(parent) = Manifest::decode_header(&self.read(at)?)?.parent {
            at = Key::new(Kind::Manifest, parent.0);
            if !chain.insert(at) {
                break;
            }
        }
        Ok(self
            .manifest(id)?
            .frames()
            .iter()
            .map(|frame| Key::new(Kind::Frame, frame.0))
            .collect())
    }

    /// Copies the live records of a pack elsewhere; `false` if one is damaged, and the pack has to stay for verify.
    fn move_records(&self, pack: u32, live: Vec<(Key, Location)>) -> Result<bool> {
        let mut writer = PackWriter::new(self.packs.clone());
        let mut change = Change {
            dead_packs: vec![pack],
            ..Change::default()
        };
        for (key, location) in live {
            let Ok(stored) = self.packs.read(&key, &location) else {
                return Ok(false);
            };
            if crate::store::open_content(&key, &location, &stored).is_err() {
                return Ok(false);
            }
            let moved = writer.append(key, location.codec, &stored, location.content_len as usize)?;
            change.put.push((key, moved));
        }
        self.commit(writer, change, |_| {})?;
        Ok(true)
    }

    /// Bytes in packs, and how many packs there are.
    pub(crate) fn pack_bytes(&self) -> Result<(u64, u64)> {
        let numbers = list(&*self.files, &self.dir.join("packs"))?;
        let sizes = numbers
            .iter()
            .filter_map(|number| self.packs.file(*number).ok()?.size().ok());
        Ok((numbers.len() as u64, sizes.sum()))
    }
}
