//! A snapshot comes from a remote: what is lacking here of it, then its name.
//!
//! ```text
//! ref ──► contents, indexes ──► snapshot ──► manifests and those below, blobs ──► frames ──► named
//! ```
//!
//! Nothing is believed: what was sealed for another place does not open, and what does not match its id is not stored. What
//! has come is committed from time to time, so that a pull that is cut short goes on where it was.

use crate::{Ref, Remote, Result, SourceError};
use martlet_image::{ManifestId, SnapshotRecord};
use martlet_store::{Batch, Key, Kind, RefName, Store};

/// What has come is committed after so many bytes.
const COMMIT_BYTES: u64 = 64 << 20;

/// What a pull did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PullReport {
    /// Objects that were lacking here.
    pub got_objects: u64,
    /// What they took there.
    pub got_bytes: u64,
}

/// Pulls the snapshot that the remote calls `name`, and calls it `called` here. `progress` is told of objects that have
/// come, and of objects in all, as far as is known.
pub fn pull(
    store: &Store,
    remote: &Remote,
    name: &RefName,
    called: &RefName,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(PullReport, Ref)> {
    let found = remote.find_ref(name)?.ok_or_else(|| SourceError::NoSnapshot {
        place: remote.place(),
        name: name.to_string(),
    })?;
    let id = found.snapshot;
    let snapshot = Key::new(Kind::Snapshot, id.0);
    remote.learn(remote.contents(&snapshot)?)?;
    let mut pull = Pull {
        store,
        remote,
        // Of what comes, nothing is needed by anything yet.
        keeper: store.begin()?,
        report: PullReport::default(),
        total: 1,
        progress,
    };
    let record = pull.record(&snapshot)?;
    let manifests: Vec<ManifestId> = record.manifests().collect();
    let blobs: Vec<Key> = record.blobs().map(|id| Key::new(Kind::Blob, id.0)).collect();
    pull.all(&blobs)?;
    pull.manifests(&manifests)?;
    for manifest in &manifests {
        let frames = store.manifest(manifest)?.frames();
        let frames: Vec<Key> = frames.iter().map(|id| Key::new(Kind::Frame, id.0)).collect();
        pull.all(&frames)?;
    }
    let mut batch = store.begin()?;
    if batch.put_snapshot(&record)? != id {
        return Err(SourceError::Incomplete {
            place: remote.place(),
            object: snapshot.to_string(),
        });
    }
    batch.commit(&[(called.clone(), id)])?;
    Ok((pull.report, found))
}

struct Pull<'a> {
    store: &'a Store,
    remote: &'a Remote,
    keeper: Batch,
    report: PullReport,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Pull<'_> {
    /// The record of the snapshot, which is in the store only once all that it needs is.
    fn record(&mut self, snapshot: &Key) -> Result<SnapshotRecord> {
        let id = martlet_image::SnapshotId(snapshot.id);
        if self.store.lacks(&[*snapshot])?.is_empty() {
            return Ok(self.store.snapshot(&id)?);
        }
        let mut record = None;
        let report = &mut self.report;
        self.remote.fetch([*snapshot], |object, sealed_bytes| {
            report.got_objects += 1;
            report.got_bytes += sealed_bytes;
            record =
                Some(SnapshotRecord::decode(&object.content()?).map_err(martlet_store::StoreError::from)?);
            Ok(())
        })?;
        record.ok_or_else(|| SourceError::Incomplete {
            place: self.remote.place(),
            object: snapshot.to_string(),
        })
    }

    /// Manifests, and those that they say what differs from. Each step down is less deep, so it ends.
    fn manifests(&mut self, manifests: &[ManifestId]) -> Result<()> {
        let mut wanted = manifests.to_vec();
        while !wanted.is_empty() {
            let keys: Vec<Key> = wanted.iter().map(|id| Key::new(Kind::Manifest, id.0)).collect();
            self.all(&keys)?;
            let mut below = Vec::new();
            for id in wanted {
                below.extend(self.store.manifest_header(&id)?.parent);
            }
            wanted = below;
        }
        Ok(())
    }

    /// Gets those of these objects that are lacking.
    fn all(&mut self, keys: &[Key]) -> Result<()> {
        self.keeper.rely_on(keys.iter().copied());
        let lacking = self.store.lacks(keys)?;
        self.total += lacking.len() as u64;
        let (store, remote) = (self.store, self.remote);
        let mut batch = store.begin()?;
        let mut in_batch_bytes = 0;
        remote.fetch(lacking, |object, sealed_bytes| {
            batch.put_stored(&object)?;
            in_batch_bytes += sealed_bytes;
            self.report.got_objects += 1;
            self.report.got_bytes += sealed_bytes;
            (self.progress)(self.report.got_objects, self.total);
            if in_batch_bytes >= COMMIT_BYTES {
                std::mem::replace(&mut batch, store.begin()?).commit(&[])?;
                in_batch_bytes = 0;
            }
            Ok(())
        })?;
        batch.commit(&[])?;
        Ok(())
    }
}
