//! What a snapshot needs, in the order in which it can be found out.

use crate::{Key, Kind, Store, StoreError};
use martlet_image::{BlobId, ManifestId, SnapshotRecord};

/// How much of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// All but frames and what is only booted by: enough to begin with, if the rest is promised.
    Outline,
}

impl Store {
    /// Tells `need`, which sees to it that they are here, of all objects that a part of a snapshot needs, the record excepted:
    /// blobs, manifests and those that they say what differs from, frames.
    pub fn walk<E: From<StoreError>>(
        &self,
        record: &SnapshotRecord,
        part: Part,
        need: &mut dyn FnMut(&[Key]) -> Result<(), E>,
    ) -> Result<(), E> {
        let ids: Vec<BlobId> = match part {
            Part::Whole => record.blobs().collect(),
            Part::Outline => record.resume_blobs().collect(),
        };
        let mut keys: Vec<Key> = ids.iter().map(|id| Key::new(Kind::Blob, id.0)).collect();
        let manifests: Vec<ManifestId> = record.manifests().collect();
        let mut wanted = manifests.clone();
        // Each step down is less deep, or the store will not read it: none takes more.
        for _ in 0..=u8::MAX {
            keys.extend(wanted.iter().map(|id| Key::new(Kind::Manifest, id.0)));
            need(&keys)?;
            keys.clear();
            let mut below = Vec::new();
            for id in wanted {
                below.extend(self.manifest_header(&id)?.parent);
            }
            wanted = below;
            if wanted.is_empty() {
                break;
            }
        }
        for manifest in manifests.iter().filter(|_| part == Part::Whole) {
            let frames = self.manifest(manifest)?.frames();
            let frames: Vec<Key> = frames.iter().map(|id| Key::new(Kind::Frame, id.0)).collect();
            need(&frames)?;
        }
        Ok(())
    }
}
