//! What a snapshot needs, in the order in which it can be found out.

use martlet_image::{BlobId, ManifestId, SnapshotRecord};
use martlet_store::{Key, Kind, Store, StoreError};

/// Tells `need`, which sees to it that they are in the store, of all objects that a snapshot needs, itself excepted: blobs,
/// manifests and those that they say what differs from, frames. Without `leaves`, of frames and what is only booted by nothing
/// is said.
pub(crate) fn walk<E: From<StoreError>>(
    store: &Store,
    record: &SnapshotRecord,
    leaves: bool,
    need: &mut dyn FnMut(&[Key]) -> Result<(), E>,
) -> Result<(), E> {
    let ids: Vec<BlobId> = match leaves {
        true => record.blobs().collect(),
        false => record.resume_blobs().collect(),
    };
    let blobs: Vec<Key> = ids.iter().map(|id| Key::new(Kind::Blob, id.0)).collect();
    need(&blobs)?;
    let manifests: Vec<ManifestId> = record.manifests().collect();
    let mut wanted = manifests.clone();
    // Each step down is less deep, or the store will not read it: none takes more.
    for _ in 0..=u8::MAX {
        let keys: Vec<Key> = wanted.iter().map(|id| Key::new(Kind::Manifest, id.0)).collect();
        need(&keys)?;
        let mut below = Vec::new();
        for id in wanted {
            below.extend(store.manifest_header(&id)?.parent);
        }
        wanted = below;
        if wanted.is_empty() {
            break;
        }
    }
    for manifest in manifests.iter().filter(|_| leaves) {
        let frames = store.manifest(manifest)?.frames();
        let frames: Vec<Key> = frames.iter().map(|id| Key::new(Kind::Frame, id.0)).collect();
        need(&frames)?;
    }
    Ok(())
}
