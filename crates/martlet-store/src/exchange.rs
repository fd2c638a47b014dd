//! Objects as they are stored, compressed: what goes to other stores and comes from them.

use crate::batch::Batch;
use crate::record::{CONTENT_BYTES_MAX, Key, Kind};
use crate::store::{Store, lock};
use crate::{Location, Result, StoreError};
use bytes::Bytes;
use martlet_image::{Codec, FrameId, PAGE_SIZE, SnapshotId, SnapshotRecord, is_zero};
use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

/// An object as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Which object.
    pub key: Key,
    /// How its bytes are compressed.
    pub codec: Codec,
    /// Bytes when decompressed.
    pub content_len: u32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Stored {
    /// Its content, verified against its id.
    pub fn content(&self) -> Result<Bytes> {
        let wrong = |reason: String| StoreError::Invalid(format!("{}: {reason}", self.key));
        if self.bytes.len().max(self.content_len as usize) > CONTENT_BYTES_MAX {
            return Err(wrong("it is larger than an object may be".into()));
        }
        let location = Location {
            pack: 0,
            offset: 0,
            stored_len: self.bytes.len() as u32,
            content_len: self.content_len,
            codec: self.codec,
        };
        crate::store::open_content(&self.key, &location, &self.bytes)
            .map_err(|reason| wrong(reason.to_string()))
    }

    /// Finds out whether its content is what its id says.
    pub fn verify(self) -> Result<Verified> {
        let content = self.content()?;
        Ok(Verified {
            stored: self.into(),
            content,
        })
    }
}

/// An object whose content was found to be what its id says: who has it need not look again. Clones are the same bytes.
#[derive(Debug, Clone)]
pub struct Verified {
    stored: Arc<Stored>,
    content: Bytes,
}

impl Verified {
    /// As it is stored.
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// What it takes in memory.
    pub fn size_bytes(&self) -> usize {
        self.stored.bytes.len() + self.content.len()
    }

    /// What is in it.
    pub fn into_content(self) -> Bytes {
        self.content
    }
}

impl Store {
    /// All that a snapshot needs, itself included, in the order in which it lies on disk, and how many bytes each takes;
    /// first what is promised from elsewhere, which takes none here.
    pub fn needs(&self, id: &SnapshotId) -> Result<Vec<(Key, u32)>> {
        let roots = HashSet::from([Key::new(Kind::Snapshot, id.0)]);
        self.located(self.inner.closure(&roots, true)?.into_iter().collect())
    }

    /// The same of these objects.
    pub fn located(&self, mut keys: Vec<Key>) -> Result<Vec<(Key, u32)>> {
        keys.sort_unstable();
        keys.dedup();
        let locations = self.inner.index.get_many(&keys)?;
        let mut needs = Vec::new();
        let mut located = Vec::new();
        for (key, location) in keys.into_iter().zip(locations) {
            match location {
                Some(location) => located.push((key, location)),
                None if self.inner.is_promised(&key) => needs.push((key, 0)),
                None => return Err(StoreError::NotFound(key.to_string())),
            }
        }
        located.sort_by_key(|(_, location)| (location.pack, location.offset));
        needs.extend(
            located
                .into_iter()
                .map(|(key, location)| (key, location.stored_len)),
        );
        Ok(needs)
    }

    /// Frames and blobs of a snapshot, whose manifests are here.
    pub fn leaves(&self, record: &SnapshotRecord) -> Result<HashSet<Key>> {
        let mut leaves: HashSet<Key> = record.blobs().map(|blob| Key::new(Kind::Blob, blob.0)).collect();
        for manifest in record.manifests() {
            let frames = self.manifest(&manifest)?.frames();
            leaves.extend(frames.iter().map(|frame| Key::new(Kind::Frame, frame.0)));
        }
        Ok(leaves)
    }

    /// Those of these objects that are not here.
    pub fn lacks(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let mut keys = keys.to_vec();
        keys.sort_unstable();
        keys.dedup();
        let found = self.inner.index.get_many(&keys)?;
        let lacking = keys.into_iter().zip(found).filter(|(_, found)| found.is_none());
        Ok(lacking.map(|(key, _)| key).collect())
    }

    /// An object as it is stored, its bytes as they were written; had from elsewhere if that is where it is.
    pub fn stored(&self, key: &Key) -> Result<Stored> {
        let missing = || StoreError::NotFound(key.to_string());
        loop {
            let Some(location) = self.inner.index.get(key)? else {
                let fetched = self.inner.fetch(key).unwrap_or_else(|| Err(missing()))?;
                return Ok(Arc::unwrap_or_clone(fetched.stored));
            };
            match self.inner.packs.read(key, &location) {
                Ok(bytes) => {
                    return Ok(Stored {
                        key: *key,
                        codec: location.codec,
                        content_len: location.content_len,
                        bytes,
                    });
                }
                // gc has moved it since the index was asked.
                Err(_) if self.inner.index.get(key)? != Some(location) => {}
                Err(_) => return Err(self.inner.read_at(key, &location).err().unwrap_or_else(missing)),
            }
        }
    }
}

impl Batch {
    /// Stores an object from elsewhere, once its content is found to be what its id says, unless it is there; and relies on
    /// it.
    pub fn put_stored(&mut self, object: &Stored) -> Result<()> {
        self.put(object, &object.content()?)
    }

    /// The same of one that was verified.
    pub fn put_verified(&mut self, object: &Verified) -> Result<()> {
        self.put(&object.stored, &object.content)
    }

    fn put(&mut self, object: &Stored, content: &[u8]) -> Result<()> {
        {
            let _gate = self.inner.gate.read().unwrap_or_else(PoisonError::into_inner);
            if self.inner.index.get(&object.key)?.is_some() {
                lock(&self.inner.held)
                    .entry(self.id)
                    .or_default()
                    .insert(object.key);
                return Ok(());
            }
        }
        self.append(object.key, object.codec, &object.bytes, content.len())?;
        if object.key.kind == Kind::Frame {
            // Pages that come again are found here, too.
            for (slot, page) in content.chunks_exact(PAGE_SIZE).enumerate() {
                if !is_zero(page) {
                    let place = (FrameId(object.key.id), slot as u8);
                    self.pages.insert(*blake3::hash(page).as_bytes(), place);
                }
            }
        }
        Ok(())
    }

    /// Relies on objects that are there, so that they are kept while this lives.
    pub fn rely_on(&self, keys: impl IntoIterator<Item = Key>) {
        lock(&self.inner.held).entry(self.id).or_default().extend(keys);
    }
}
