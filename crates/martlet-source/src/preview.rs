//! What a pull would get. Nothing is stored; what says what a snapshot needs is held in memory.

use crate::pull::record;
use crate::{PullReport, Remote, Result};
use bytes::Bytes;
use martlet_image::{Manifest, ManifestId, SnapshotId};
use martlet_store::{Key, Kind, Store, StoreError};
use std::collections::{BTreeMap, BTreeSet};

/// Of a snapshot whose ref was learnt.
pub(crate) fn preview(store: &Store, remote: &Remote, id: &SnapshotId) -> Result<PullReport> {
    let snapshot = Key::new(Kind::Snapshot, id.0);
    let (record, _) = record(store, remote, &snapshot)?;
    let bytes = manifests(store, remote, record.manifests().collect())?;
    let mut needs = BTreeSet::from([snapshot]);
    needs.extend(record.blobs().map(|id| Key::new(Kind::Blob, id.0)));
    needs.extend(bytes.keys().map(|id| Key::new(Kind::Manifest, id.0)));
    for manifest in record.manifests() {
        let frames = decode(&bytes, &manifest)?.frames();
        needs.extend(frames.iter().map(|id| Key::new(Kind::Frame, id.0)));
    }
    let lacking = store.lacks(&needs.into_iter().collect::<Vec<_>>())?;
    Ok(PullReport {
        got_objects: lacking.len() as u64,
        got_bytes: remote.sealed_bytes(&lacking)?,
    })
}

/// The bytes of manifests, and of those that they say what differs from.
fn manifests(
    store: &Store,
    remote: &Remote,
    mut wanted: Vec<ManifestId>,
) -> Result<BTreeMap<ManifestId, Bytes>> {
    let mut bytes = BTreeMap::new();
    while !wanted.is_empty() {
        let keys: Vec<Key> = wanted.iter().map(|id| Key::new(Kind::Manifest, id.0)).collect();
        let lacking = store.lacks(&keys)?;
        let mut below = Vec::new();
        let mut add = |content: Bytes| -> Result<()> {
            below.extend(
                Manifest::decode_header(&content)
                    .map_err(StoreError::from)?
                    .parent,
            );
            bytes.insert(ManifestId::of(&content), content);
            Ok(())
        };
        for key in keys.iter().filter(|key| !lacking.contains(key)) {
            add(store.stored(key)?.content()?)?;
        }
        remote.frames(lacking, |object| add(object.content()?))?;
        wanted = below;
    }
    Ok(bytes)
}

fn decode(bytes: &BTreeMap<ManifestId, Bytes>, id: &ManifestId) -> martlet_store::Result<Manifest> {
    let missing = || StoreError::NotFound(format!("manifest {id}"));
    let content = bytes.get(id).ok_or_else(missing)?;
    Manifest::decode(content, &mut |below| decode(bytes, below))
}
