//! Verification: reads every record, names what is damaged and whom it hurts, and repairs from any other copy.
//!
//! Copies are looked for in this store's own packs (an object may have been written twice, and garbage lasts until
//! it is collected) and in the packs of other stores. A copy counts only when its content matches the id.

use crate::files::Files;
use crate::index::{Change, Location};
use crate::pack::{PackWriter, list, pack_name};
use crate::record::{Key, Kind, PACK_HEADER, RECORD_HEADER, scan};
use crate::store::{Store, open_content};
use crate::{Result, StoreError};
use martlet_image::{FrameId, SnapshotId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Objects read.
    pub checked: u64,
    /// Their stored bytes.
    pub checked_bytes: u64,
    /// Those that are damaged or missing.
    pub damaged: Vec<DamagedObject>,
    /// Repaired from another copy.
    pub repaired: u64,
    /// Frames that are promised from elsewhere and not here yet.
    pub away: u64,
}

/// A damaged or missing object, and whom it hurts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedObject {
    /// Which.
    pub key: Key,
    /// Where it should be; `None` if the index does not know it.
    pub location: Option<Location>,
    /// What is wrong with it.
    pub reason: String,
    /// Snapshots that need it.
    pub hurts: Vec<SnapshotId>,
    /// Has it been repaired?
    pub repaired: bool,
}

impl DamagedObject {
    /// File name of its pack, if that is known.
    pub fn pack(&self) -> Option<String> {
        self.location.map(|location| pack_name(location.pack))
    }
}

impl Store {
    /// Reads everything; see the module's header. `repair_from` names directories of other stores.
    /// `progress` hears (bytes done, bytes to do).
    pub fn verify(
        &self,
        repair_from: &[PathBuf],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let mut damaged: BTreeMap<Key, (Option<Location>, String)> = BTreeMap::new();
        let mut objects = self.inner.index.objects()?;
        objects.sort_unstable_by_key(|(_, location)| (location.pack, location.offset));
        let all_bytes = objects
            .iter()
            .map(|(_, location)| u64::from(location.stored_len))
            .sum();
        for (key, location) in objects {
            progress(report.checked_bytes, all_bytes);
            report.checked += 1;
            report.checked_bytes += u64::from(location.stored_len);
            if let Err(StoreError::Damaged { reason, .. }) = self.inner.read_from(key, Some(location)) {
                damaged.insert(key, (Some(location), reason));
            }
        }
        progress(all_bytes, all_bytes);
        // A repaired manifest tells of frames that are missing, which nothing else does: so in rounds.
        let mut repaired = HashSet::new();
        let needs = loop {
            let needs = self.needs_of_snapshots()?;
            let all: Vec<Key> = needs
                .values()
                .flatten()
                .copied()
                .collect::<HashSet<_>>()
                .into_iter()
                .collect();
            report.away = 0;
            for (key, found) in all.iter().zip(self.inner.index.get_many(&all)?) {
                match found {
                    None if damaged.contains_key(key) => {}
                    None if self.inner.is_promised(key) => report.away += 1,
                    None => drop(damaged.insert(*key, (None, "it is missing".to_owned()))),
                    Some(_) => {}
                }
            }
            let wanted = damaged
                .keys()
                .filter(|key| !repaired.contains(*key))
                .copied()
                .collect();
            let new = self.repair(wanted, repair_from)?;
            if new.is_empty() {
                break needs;
            }
            repaired.extend(new);
        };
        let distrusted: HashSet<FrameId> = damaged
            .keys()
            .filter(|key| key.kind == Kind::Frame && !repaired.contains(*key))
            .map(|key| FrameId(key.id))
            .collect();
        if !distrusted.is_empty() {
            // The same pages, when they come again, are stored again, and that repairs the frame or does without it.
            let change = Change {
                distrusted,
                ..Change::default()
            };
            self.inner
                .commit(PackWriter::new(self.inner.packs.clone()), change, |_| {})?;
        }
        report.repaired = repaired.len() as u64;
        report.damaged = damaged
            .into_iter()
            .map(|(key, (location, reason))| DamagedObject {
                key,
                location,
                reason,
                hurts: needs
                    .iter()
                    .filter(|(_, needs)| needs.contains(&key))
                    .map(|(id, _)| *id)
                    .collect(),
                repaired: repaired.contains(&key),
            })
            .collect();
        Ok(report)
    }

    fn needs_of_snapshots(&self) -> Result<BTreeMap<SnapshotId, HashSet<Key>>> {
        let closure = |id: SnapshotId| {
            self.inner
                .closure(&HashSet::from([Key::new(Kind::Snapshot, id.0)]), false)
        };
        self.snapshots()
            .into_iter()
            .map(|id| Ok((id, closure(id)?)))
            .collect()
    }

    /// Brings back what can be found elsewhere; tells what.
    fn repair(&self, mut wanted: HashSet<Key>, repair_from: &[PathBuf]) -> Result<Vec<Key>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut copies = HashMap::new();
        let own = self.inner.dir.as_path();
        for dir in std::iter::once(own).chain(repair_from.iter().map(PathBuf::as_path)) {
            find_copies(&*self.inner.files, dir, &mut wanted, &mut copies)?;
        }
        let mut writer = PackWriter::new(self.inner.packs.clone());
        let mut change = Change::default();
        for (key, (location, stored)) in &copies {
            let moved = writer.append(*key, location.codec, stored, location.content_len as usize)?;
            change.put.push((*key, moved));
        }
        if !copies.is_empty() {
            self.inner.commit(writer, change, |_| {})?;
        }
        Ok(copies.into_keys().collect())
    }
}

/// Looks for sound copies in the packs of a store, moving what it finds from `wanted` to `copies`.
fn find_copies(
    files: &dyn Files,
    dir: &Path,
    wanted: &mut HashSet<Key>,
    copies: &mut HashMap<Key, (Location, Vec<u8>)>,
) -> Result<()> {
    let dir = dir.join("packs");
    for number in list(files, &dir)? {
        if wanted.is_empty() {
            break;
        }
        let path = dir.join(pack_name(number));
        let doing = || StoreError::io(format!("reading {}", path.display()));
        let file = files.open_to_read(&path).map_err(doing())?;
        let mut bytes = vec![0; file.size().map_err(doing())?.saturating_sub(PACK_HEADER) as usize];
        if let Err(error) = file.read_at(PACK_HEADER, &mut bytes) {
            tracing::warn!(path = %path.display(), %error, "cannot look for copies here");
            continue;
        }
        for found in scan(&bytes, 0) {
            let header = found.header;
            if !wanted.contains(&header.key) {
                continue;
            }
            let at = found.offset as usize + RECORD_HEADER;
            let stored = bytes[at..at + header.stored_len as usize].to_vec();
            let location = Location {
                pack: number,
                offset: found.offset + PACK_HEADER,
                stored_len: header.stored_len,
                content_len: header.content_len,
                codec: header.codec,
            };
            if open_content(&header.key, &location, &stored).is_ok() {
                wanted.remove(&header.key);
                copies.insert(header.key, (location, stored));
            }
        }
    }
    Ok(())
}
