//! Batches: what is written together comes to exist together, or not at all.
//!
//! ```text
//!   begin ──► open ──put_*──► open ──commit──► committed
//!               └──────── drop, or a failed commit ──────► its packs are cut back: no trace
//! ```
//!
//! A batch remembers what it relies on without having written it (duplicates, parents), and gc spares that.

use crate::index::{Change, Location};
use crate::ingest::{self, Place};
use crate::pack::PackWriter;
use crate::record::{CONTENT_BYTES_MAX, Key, Kind};
use crate::store::{Inner, Pin, lock};
use crate::{RefName, Result, StoreError};
use martlet_image::{
    BlobId, EncodedFrame, FrameId, MANIFEST_PAGES_MAX, Manifest, ManifestId, ManifestParent, PAGE_SIZE,
    PageLocation, SnapshotId, SnapshotRecord, compress,
};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// What became of the pages and objects put into a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IngestStats {
    /// All zero: not stored.
    pub zero_pages: u64,
    /// Stored already, or put before.
    pub duplicate_pages: u64,
    /// Stored now.
    pub new_pages: u64,
    /// Content of new frames, blobs, manifests and snapshots.
    pub new_bytes: u64,
    /// What they take in packs.
    pub stored_bytes: u64,
}

/// A batch is committed.
#[derive(Debug)]
pub struct Committed {
    /// What was written.
    pub stats: IngestStats,
    /// The new snapshots, kept while this lives even if no ref names them.
    pub pins: Vec<Pin>,
}

/// Writes that are committed together.
#[derive(Debug)]
pub struct Batch {
    pub(crate) inner: Arc<Inner>,
    pub(crate) id: u64,
    writer: PackWriter,
    objects: HashMap<Key, Location>,
    pub(crate) pages: HashMap<[u8; 32], (FrameId, u8)>,
    /// Bytes of manifests put, for those put after them.
    manifests: HashMap<ManifestId, Vec<u8>>,
    snapshots: Vec<SnapshotId>,
    stats: IngestStats,
}

impl Batch {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        let id = inner.next_batch.fetch_add(1, Ordering::Relaxed);
        lock(&inner.held).insert(id, Default::default());
        Self {
            id,
            writer: PackWriter::new(inner.packs.clone()),
            inner,
            objects: HashMap::new(),
            pages: HashMap::new(),
            manifests: HashMap::new(),
            snapshots: Vec::new(),
            stats: IngestStats::default(),
        }
    }

    /// What was put so far.
    pub fn stats(&self) -> IngestStats {
        self.stats
    }

    /// Stores pages of an image, each with its index, and tells where each of them is, in the order given.
    ///
    /// Zero pages cost nothing, pages whose content is known anywhere in the store are referred to, and the rest
    /// goes into frames in the order given: what lies together in the image lies together in a frame.
    pub fn put_pages<'a>(
        &mut self,
        pages: impl IntoIterator<Item = (u64, &'a [u8; PAGE_SIZE])>,
    ) -> Result<Vec<(u64, PageLocation)>> {
        let mut pages = pages.into_iter();
        let mut located = Vec::new();
        let mut slab: Vec<(u64, &[u8; PAGE_SIZE])> = Vec::with_capacity(ingest::SLAB_PAGES);
        loop {
            slab.clear();
            slab.extend(pages.by_ref().take(ingest::SLAB_PAGES));
            if slab.is_empty() {
                return Ok(located);
            }
            self.put_slab(&slab, &mut located)?;
        }
    }

    fn put_slab(
        &mut self,
        slab: &[(u64, &[u8; PAGE_SIZE])],
        located: &mut Vec<(u64, PageLocation)>,
    ) -> Result<()> {
        let hashes = ingest::hash_pages(slab);
        let mut places = self.place(&hashes)?;
        let fresh: Vec<&[u8; PAGE_SIZE]> = places
            .iter()
            .zip(slab)
            .filter(|(place, _)| matches!(place, Place::New(_)))
            .map(|(_, (_, p))| *p)
            .collect();
        let frames = ingest::encode_frames(&fresh);
        for frame in &frames {
            self.append_frame(frame)?;
        }
        for ((page, _), (place, hash)) in slab.iter().zip(places.iter_mut().zip(&hashes)) {
            if let Place::New(at) = *place {
                let (frame, slot) = ingest::slot_of(&frames, at);
                if let Some(hash) = hash {
                    self.pages.insert(*hash, (frame, slot));
                }
            }
            let location = match *place {
                Place::Zero => PageLocation::Zero,
                Place::Known(frame, slot) => PageLocation::Frame { frame, slot },
                Place::New(at) | Place::Again(at) => {
                    let (frame, slot) = ingest::slot_of(&frames, at);
                    PageLocation::Frame { frame, slot }
                }
            };
            match place {
                Place::Zero => self.stats.zero_pages += 1,
                Place::Known(..) | Place::Again(_) => self.stats.duplicate_pages += 1,
                Place::New(_) => self.stats.new_pages += 1,
            }
            located.push((*page, location));
        }
        Ok(())
    }

    /// Decides for each page of a slab (`None`: zero) whether it is stored already.
    fn place(&mut self, hashes: &[Option<[u8; 32]>]) -> Result<Vec<Place>> {
        let unknown: Vec<[u8; 32]> = hashes
            .iter()
            .flatten()
            .filter(|hash| !self.pages.contains_key(*hash))
            .copied()
            .collect();
        // From the look-up until it is held, gc must not decide that what was found is dead.
        let _gate = self.inner.gate.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = self.inner.index.find_pages(&unknown)?.into_iter();
        let mut held = lock(&self.inner.held);
        let held = held.entry(self.id).or_default();
        let mut fresh: HashMap<[u8; 32], usize> = HashMap::new();
        Ok(hashes
            .iter()
            .map(|hash| {
                let Some(hash) = hash else { return Place::Zero };
                if let Some(&(frame, slot)) = self.pages.get(hash) {
                    return Place::Known(frame, slot);
                }
                if let Some((frame, slot)) = found.next().flatten() {
                    held.insert(Key::new(Kind::Frame, frame.0));
                    return Place::Known(frame, slot);
                }
                let next = fresh.len();
                match fresh.entry(*hash) {
                    std::collections::hash_map::Entry::Occupied(entry) => Place::Again(*entry.get()),
                    std::collections::hash_map::Entry::Vacant(entry) => Place::New(*entry.insert(next)),
                }
            })
            .collect())
    }

    fn append_frame(&mut self, frame: &EncodedFrame) -> Result<()> {
        let content_len = usize::from(frame.page_count) * PAGE_SIZE;
        self.append(
            Key::new(Kind::Frame, frame.id.0),
            frame.codec,
            &frame.bytes,
            content_len,
        )
    }

    pub(crate) fn append(
        &mut self,
        key: Key,
        codec: martlet_image::Codec,
        stored: &[u8],
        content_len: usize,
    ) -> Result<()> {
        if self.objects.contains_key(&key) {
            return Ok(());
        }
        let location = self.writer.append(key, codec, stored, content_len)?;
        self.objects.insert(key, location);
        self.stats.new_bytes += content_len as u64;
        self.stats.stored_bytes += stored.len() as u64 + crate::record::RECORD_HEADER as u64;
        Ok(())
    }

    /// Stores an object unless it is there, and relies on it.
    fn put_object(&mut self, kind: Kind, content: &[u8]) -> Result<[u8; 32]> {
        if content.len() > CONTENT_BYTES_MAX {
            return Err(StoreError::Invalid(format!(
                "{} bytes are more than an object may have",
                content.len()
            )));
        }
        let key = Key::new(kind, *blake3::hash(content).as_bytes());
        {
            let _gate = self.inner.gate.read().unwrap_or_else(PoisonError::into_inner);
            if self.inner.index.get(&key)?.is_some() {
                lock(&self.inner.held).entry(self.id).or_default().insert(key);
                return Ok(key.id);
            }
        }
        let (codec, stored) = compress(content);
        self.append(key, codec, &stored, content.len())?;
        Ok(key.id)
    }

    /// Stores a blob.
    pub fn put_blob(&mut self, bytes: &[u8]) -> Result<BlobId> {
        self.put_object(Kind::Blob, bytes).map(BlobId)
    }

    /// Stores a manifest: what differs from `parent`, if that pays. Every frame it names has to be in the store, in
    /// this batch, or promised from elsewhere.
    pub fn put_manifest(&mut self, manifest: &Manifest, parent: Option<ManifestId>) -> Result<ManifestId> {
        if manifest.page_count() > MANIFEST_PAGES_MAX {
            return Err(StoreError::Invalid(format!(
                "an image of {} pages is too large",
                manifest.page_count()
            )));
        }
        self.rely_on_frames(manifest)?;
        let bytes = match parent {
            None => manifest.encode(None),
            Some(id) => {
                let own = &self.manifests;
                let inner = &self.inner;
                let _gate = inner.gate.read().unwrap_or_else(PoisonError::into_inner);
                let mut bytes_of = |id: &ManifestId| match own.get(id) {
                    Some(bytes) => Ok(bytes.clone().into()),
                    None => inner.read(Key::new(Kind::Manifest, id.0)),
                };
                let depth = Manifest::decode_header(&bytes_of(&id)?)?.depth;
                let parent = inner.manifest_with(&id, &mut bytes_of)?;
                let key = Key::new(Kind::Manifest, id.0);
                if !own.contains_key(&id) {
                    lock(&inner.held).entry(self.id).or_default().insert(key);
                }
                manifest.encode(Some(ManifestParent {
                    id,
                    depth,
                    manifest: &parent,
                }))
            }
        };
        let id = ManifestId(self.put_object(Kind::Manifest, &bytes)?);
        self.manifests.insert(id, bytes);
        Ok(id)
    }

    fn rely_on_frames(&mut self, manifest: &Manifest) -> Result<()> {
        let keys: Vec<Key> = manifest
            .frames()
            .iter()
            .map(|frame| Key::new(Kind::Frame, frame.0))
            .collect();
        let mut others: Vec<Key> = keys
            .into_iter()
            .filter(|key| !self.objects.contains_key(key))
            .collect();
        others.sort_unstable();
        let _gate = self.inner.gate.read().unwrap_or_else(PoisonError::into_inner);
        let found = self.inner.index.get_many(&others)?;
        let mut missing = others.iter().zip(&found).filter(|(_, found)| found.is_none());
        if let Some((key, _)) = missing.find(|(key, _)| !self.inner.is_promised(key)) {
            return Err(StoreError::NotFound(key.to_string()));
        }
        lock(&self.inner.held).entry(self.id).or_default().extend(others);
        Ok(())
    }

    /// Stores a snapshot. Its manifests and blobs have to be in the store or in this batch; blobs may be promised.
    pub fn put_snapshot(&mut self, record: &SnapshotRecord) -> Result<SnapshotId> {
        let bytes = record.encode()?;
        let manifests = record.manifests().map(|id| Key::new(Kind::Manifest, id.0));
        let blobs = record.blobs().map(|id| Key::new(Kind::Blob, id.0));
        let needs: Vec<Key> = manifests
            .chain(blobs)
            .filter(|key| !self.objects.contains_key(key))
            .collect();
        {
            let _gate = self.inner.gate.read().unwrap_or_else(PoisonError::into_inner);
            let found = self.inner.index.get_many(&needs)?;
            let mut missing = needs.iter().zip(&found).filter(|(_, found)| found.is_none());
            if let Some((key, _)) = missing.find(|(key, _)| !self.inner.is_promised(key)) {
                return Err(StoreError::NotFound(key.to_string()));
            }
            lock(&self.inner.held).entry(self.id).or_default().extend(needs);
        }
        let id = SnapshotId(self.put_object(Kind::Snapshot, &bytes)?);
        self.snapshots.push(id);
        Ok(id)
    }

    /// Makes everything put durable, and these refs with it.
    pub fn commit(mut self, set_refs: &[(RefName, SnapshotId)]) -> Result<Committed> {
        let known = self.inner.root();
        for (name, id) in set_refs {
            if !self.snapshots.contains(id) && !known.snapshots.contains(id) {
                return Err(StoreError::NotFound(format!("snapshot {id}, to be named {name}")));
            }
        }
        let change = Change {
            put: self.objects.drain().collect(),
            pages: self
                .pages
                .drain()
                .map(|(hash, (frame, slot))| (hash, frame, slot))
                .collect(),
            ..Change::default()
        };
        let writer = std::mem::replace(&mut self.writer, PackWriter::new(self.inner.packs.clone()));
        // Until the batch is dropped at the end of this function, what it relies on stays held.
        let _gate = self.inner.gate.read().unwrap_or_else(PoisonError::into_inner);
        self.inner.commit(writer, change, |root| {
            root.snapshots.extend(&self.snapshots);
            for (name, id) in set_refs {
                root.refs.insert(name.clone(), *id);
            }
        })?;
        let pins = self
            .snapshots
            .iter()
            .map(|id| self.inner.pin(*id, "the commit that made it"))
            .collect();
        Ok(Committed {
            stats: self.stats,
            pins,
        })
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        lock(&self.inner.held).remove(&self.id);
    }
}
