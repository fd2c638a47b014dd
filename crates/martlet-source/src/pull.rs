//! A snapshot comes from a remote: what is lacking here of it, then its name.
//!
//! ```text
//! ref ──► indexes ──► snapshot ──► blobs, manifests and those below ──► frames ──► named
//! ```
//!
//! Nothing is believed: what was sealed for another place does not open, and what does not match its id is not stored. What
//! has come is committed from time to time, so that a pull that is cut short goes on where it was.

use crate::preview::preview;
use crate::{Ref, Remote, Result, SourceError};
use martlet_image::SnapshotRecord;
use martlet_store::{Batch, Key, Kind, Part, RefName, Store, StoreError, Stored};

/// What has come is committed after so many bytes.
const COMMIT_BYTES: u64 = 64 << 20;

/// What a pull did, or would do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PullReport {
    /// Objects that were lacking here.
    pub got_objects: u64,
    /// What they took there.
    pub got_bytes: u64,
}

/// Pulls the snapshot that the remote calls `name`, and calls it `called` here. With `dry_run` it stores nothing and only
/// says what would come, for which it gets manifests. `progress` is told of objects that have come, and of objects in all,
/// as far as is known.
pub fn pull(
    store: &Store,
    remote: &Remote,
    name: &RefName,
    called: &RefName,
    dry_run: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(PullReport, Ref)> {
    let found = remote.find_ref(name)?.ok_or_else(|| remote.no_snapshot(name))?;
    by_ref(remote, name, found, |found| {
        if dry_run {
            return preview(store, remote, &found.snapshot);
        }
        let mut pull = Pull::begin(store, remote, progress)?;
        let record = pull.part(found, Part::Whole)?;
        let mut batch = store.begin()?;
        let id = batch.put_snapshot(&record)?;
        if id != found.snapshot {
            return Err(SourceError::Incomplete {
                place: remote.place(),
                object: Key::new(Kind::Snapshot, found.snapshot.0).to_string(),
            });
        }
        batch.commit(&[(called.clone(), id)])?;
        Ok(pull.report)
    })
}

/// Gets all of a snapshot but its frames and what is only booted by, which [`Remote::frames`] then gets when they are needed,
/// as long as the version of the ref is kept there: that which `name` was `found` to stand for just now. Nothing is named here:
/// garbage collection spares what has come while the batch lives.
pub fn fetch_without_frames(
    store: &Store,
    remote: &Remote,
    name: &RefName,
    found: Ref,
) -> Result<(PullReport, Ref, SnapshotRecord, Batch)> {
    let ((report, record, batch), found) = by_ref(remote, name, found, |found| {
        let mut ignored = |_, _| ();
        let mut pull = Pull::begin(store, remote, &mut ignored)?;
        let record = pull.part(found, Part::Outline)?;
        Ok((pull.report, record, pull.keeper))
    })?;
    Ok((report, found, record, batch))
}

/// What comes of a ref. If it comes to stand for something else meanwhile, what it stood for may be gone.
fn by_ref<T>(
    remote: &Remote,
    name: &RefName,
    found: Ref,
    get: impl FnOnce(&Ref) -> Result<T>,
) -> Result<(T, Ref)> {
    match remote.learn(&found).and_then(|()| get(&found)) {
        Err(SourceError::NotFound { .. }) if remote.find_ref(name)?.as_ref() != Some(&found) => {
            Err(SourceError::Changed {
                place: remote.place(),
                name: name.to_string(),
            })
        }
        got => Ok((got?, found)),
    }
}

/// The record of a snapshot, and how it came if it was not here. What [`pull`] has not ended yet does not leave it here.
pub(crate) fn record(store: &Store, remote: &Remote, id: &Key) -> Result<(SnapshotRecord, Option<Stored>)> {
    if store.lacks(&[*id])?.is_empty() {
        let content = store.stored(id)?.content()?;
        return Ok((SnapshotRecord::decode(&content).map_err(StoreError::from)?, None));
    }
    let came = remote.frame(id)?;
    let record = SnapshotRecord::decode(&came.content()?).map_err(StoreError::from)?;
    Ok((record, Some(came)))
}

struct Pull<'a> {
    store: &'a Store,
    remote: &'a Remote,
    keeper: Batch,
    report: PullReport,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<'a> Pull<'a> {
    fn begin(store: &'a Store, remote: &'a Remote, progress: &'a mut dyn FnMut(u64, u64)) -> Result<Self> {
        Ok(Self {
            store,
            remote,
            // Of what comes, nothing is needed by anything yet.
            keeper: store.begin()?,
            report: PullReport::default(),
            total: 0,
            progress,
        })
    }

    /// A part of a snapshot is here then, but the record: who has that finds everything else.
    fn part(&mut self, found: &Ref, part: Part) -> Result<SnapshotRecord> {
        let snapshot = Key::new(Kind::Snapshot, found.snapshot.0);
        self.keeper.rely_on([snapshot]);
        let (record, came) = record(self.store, self.remote, &snapshot)?;
        if let Some(came) = &came {
            self.total += 1;
            self.count(came)?;
        }
        let store = self.store;
        store.walk(&record, part, &mut |keys| self.all(keys))?;
        Ok(record)
    }

    /// Gets those of these objects that are lacking.
    fn all(&mut self, keys: &[Key]) -> Result<()> {
        self.keeper.rely_on(keys.iter().copied());
        let lacking = self.store.lacks(keys)?;
        self.total += lacking.len() as u64;
        let (store, remote) = (self.store, self.remote);
        let mut batch = store.begin()?;
        let mut in_batch_bytes = 0;
        remote.frames(lacking, |object| {
            batch.put_stored(&object)?;
            in_batch_bytes += object.bytes.len() as u64;
            self.count(&object)?;
            if in_batch_bytes >= COMMIT_BYTES {
                std::mem::replace(&mut batch, store.begin()?).commit(&[])?;
                in_batch_bytes = 0;
            }
            Ok(())
        })?;
        batch.commit(&[])?;
        Ok(())
    }

    fn count(&mut self, came: &Stored) -> Result<()> {
        self.report.got_objects += 1;
        self.report.got_bytes += self.remote.sealed_bytes([&came.key])?;
        (self.progress)(self.report.got_objects, self.total);
        Ok(())
    }
}
