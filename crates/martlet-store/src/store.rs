//! The store: reading, names and pins. Writing is in [`crate::Batch`].
//!
//! Commit protocol, in this order, one commit at a time:
//! 1. the batch's records are synced in its packs;
//! 2. a new [`Root`] is appended and synced: from here on it exists;
//! 3. one durable index transaction, and the packs go back to idle.
//!
//! A failure before 2 cuts the packs back. A failure in 3 opens the index again to see whether the transaction
//! happened, and cuts the packs back if not; while that cannot be done every write tries it first. A crash between 2 and 3 is finished when the store is opened next, by
//! reading what lies beyond the committed length of each pack.

use crate::cache::ManifestCache;
use crate::files::Files;
use crate::index::{Change, Index, Location};
use crate::pack::{PackWriter, Packs};
use crate::record::{Key, Kind};
use crate::{Batch, Elsewhere, LATEST, RefName, Result, Root, StoreError, recover};
use bytes::Bytes;
use martlet_image::{
    FrameId, Manifest, ManifestHeader, ManifestId, SnapshotId, SnapshotRecord, compress, decompress,
};
use std::any::Any;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// A pack that has grown to this size is not written to any more.
    pub pack_bytes_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pack_bytes_max: 64 << 20,
        }
    }
}

/// Content-addressed frames, blobs, manifests and snapshots in a directory. Clones are the same store.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) files: Arc<dyn Files>,
    pub(crate) dir: PathBuf,
    pub(crate) packs: Arc<Packs>,
    pub(crate) index: Index,
    /// Held exclusively while gc decides what is dead, and shared by everything that comes to rely on an object.
    pub(crate) gate: RwLock<()>,
    /// Serialises commits.
    committing: Mutex<()>,
    /// One garbage collection at a time.
    pub(crate) collecting: Mutex<()>,
    root: RwLock<Arc<Root>>,
    pins: Mutex<HashMap<SnapshotId, Vec<String>>>,
    /// What open batches rely on.
    pub(crate) held: Mutex<HashMap<u64, HashSet<Key>>>,
    pub(crate) next_batch: AtomicU64,
    manifests: ManifestCache,
    unsettled: Mutex<Unsettled>,
    /// Asked for frames that are not here.
    pub(crate) elsewhere: OnceLock<Weak<dyn Elsewhere>>,
    _lock: Box<dyn Any + Send + Sync>,
}

/// A commit whose outcome is not known: its packs, out of use, and the root that it makes.
#[derive(Debug, Default)]
struct Unsettled(Option<(PackWriter, Root)>);

impl Drop for Unsettled {
    fn drop(&mut self) {
        // Opening the store again tells; until then nothing of it may be cut off.
        if let Some((writer, _)) = self.0.take() {
            writer.forget();
        }
    }
}

/// Keeps a snapshot, and all it needs, from being collected while it lives.
#[derive(Debug)]
pub struct Pin {
    inner: Arc<Inner>,
    id: SnapshotId,
    user: String,
}

impl Pin {
    /// The snapshot.
    pub fn id(&self) -> SnapshotId {
        self.id
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = lock(&self.inner.pins);
        if let Some(users) = pins.get_mut(&self.id) {
            if let Some(at) = users.iter().position(|user| *user == self.user) {
                users.swap_remove(at);
            }
            if users.is_empty() {
                pins.remove(&self.id);
            }
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens the store in `dir`, making it if there is none. One process at a time.
    pub fn open(dir: &Path, files: Arc<dyn Files>) -> Result<Self> {
        Self::open_with(dir, files, Options::default())
    }

    /// As [`Store::open`], with options.
    pub fn open_with(dir: &Path, files: Arc<dyn Files>, options: Options) -> Result<Self> {
        let packs_dir = dir.join("packs");
        files
            .create_dir(&packs_dir)
            .map_err(StoreError::io(format!("making {}", packs_dir.display())))?;
        let lock = files
            .lock(&dir.join("lock"))
            .map_err(StoreError::io("locking the store"))?;
        let lock = lock.ok_or_else(|| StoreError::Locked(dir.to_owned()))?;
        let packs = Arc::new(Packs::new(files.clone(), packs_dir, options.pack_bytes_max));
        let index = recover::open(&files, dir, &packs)?;
        let root = index.root()?;
        Ok(Self {
            inner: Arc::new(Inner {
                files,
                dir: dir.to_owned(),
                packs,
                index,
                gate: RwLock::default(),
                committing: Mutex::default(),
                collecting: Mutex::default(),
                root: RwLock::new(Arc::new(root)),
                pins: Mutex::default(),
                held: Mutex::default(),
                next_batch: AtomicU64::new(0),
                manifests: ManifestCache::default(),
                unsettled: Mutex::default(),
                elsewhere: OnceLock::new(),
                _lock: lock,
            }),
        })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Starts a batch of writes. Several may be open at the same time.
    pub fn begin(&self) -> Result<Batch> {
        self.inner.check_settled()?;
        Ok(Batch::new(self.inner.clone()))
    }

    /// Many frames: one index transaction, read in the order in which they lie on disk.
    pub fn frames(&self, ids: &[FrameId]) -> Vec<Result<Bytes>> {
        let keys: Vec<Key> = ids.iter().map(|id| Key::new(Kind::Frame, id.0)).collect();
        let Ok(locations) = self.inner.index.get_many(&keys) else {
            return ids.iter().map(|id| self.frame(id)).collect();
        };
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_unstable_by_key(|&at| locations[at].map(|location| (location.pack, location.offset)));
        let mut frames: Vec<Option<Result<Bytes>>> = ids.iter().map(|_| None).collect();
        for at in order {
            frames[at] = Some(self.inner.read_from(keys[at], locations[at]));
        }
        frames.into_iter().flatten().collect()
    }

    /// A manifest, verified and decoded with its parents. Recent ones are remembered.
    pub fn manifest(&self, id: &ManifestId) -> Result<Arc<Manifest>> {
        self.inner.manifest(id)
    }

    /// What a manifest says about itself, without decoding it.
    pub fn manifest_header(&self, id: &ManifestId) -> Result<ManifestHeader> {
        Ok(Manifest::decode_header(
            &self.inner.read(Key::new(Kind::Manifest, id.0))?,
        )?)
    }

    /// A snapshot record, verified.
    pub fn snapshot(&self, id: &SnapshotId) -> Result<SnapshotRecord> {
        Ok(SnapshotRecord::decode(
            &self.inner.read(Key::new(Kind::Snapshot, id.0))?,
        )?)
    }

    /// Every snapshot, those that nothing refers to included.
    pub fn snapshots(&self) -> Vec<SnapshotId> {
        self.inner.root().snapshots.iter().copied().collect()
    }

    /// Every name.
    pub fn refs(&self) -> BTreeMap<RefName, SnapshotId> {
        self.inner.root().refs.clone()
    }

    /// The names of a snapshot.
    pub fn refs_to(&self, id: &SnapshotId) -> Vec<RefName> {
        self.inner
            .root()
            .refs
            .iter()
            .filter(|(_, to)| *to == id)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// The snapshot meant by `name:tag`, by `name` or `name:latest` (the newest of that name, unless one is really
    /// tagged `latest`), by an id, or by the first 6 or more digits of one.
    pub fn resolve(&self, text: &str) -> Result<SnapshotId> {
        let root = self.inner.root();
        let name = text.parse::<RefName>();
        if let Some(id) = name.as_ref().ok().and_then(|name| root.refs.get(name)) {
            return Ok(*id);
        }
        if let Some(name) = name.as_ref().ok().filter(|name| name.tag() == LATEST) {
            let tagged = root.refs.iter().filter(|(other, _)| other.name() == name.name());
            let dated = tagged.filter_map(|(_, id)| Some((self.snapshot(id).ok()?.created_unix_ms, *id)));
            if let Some((_, id)) = dated.max() {
                return Ok(id);
            }
        }
        if !text.contains(':') && text.len() >= 6 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            let prefix = text.to_ascii_lowercase();
            let mut matches = root
                .snapshots
                .iter()
                .filter(|id| id.to_string().starts_with(&prefix));
            match (matches.next(), matches.next()) {
                (Some(id), None) => return Ok(*id),
                (Some(_), Some(_)) => {
                    return Err(StoreError::Invalid(format!(
                        "{text} begins several snapshot ids: give more digits"
                    )));
                }
                (None, _) => return Err(StoreError::NotFound(format!("snapshot {text}"))),
            }
        }
        Err(StoreError::NotFound(format!("snapshot {}", name?)))
    }

    /// Names a snapshot, replacing what had that name.
    pub fn set_ref(&self, name: &RefName, id: SnapshotId) -> Result<()> {
        let _gate = self.inner.gate.read().unwrap_or_else(PoisonError::into_inner);
        if !self.inner.root().snapshots.contains(&id) {
            return Err(StoreError::NotFound(format!("snapshot {id}")));
        }
        self.inner.change_refs(|root| {
            root.refs.insert(name.clone(), id);
        })
    }

    /// Takes a name away. A snapshot that has neither name nor pin is garbage from then on; so the last name of a
    /// pinned one is not taken away, and the error says who uses it.
    pub fn remove_ref(&self, name: &RefName) -> Result<SnapshotId> {
        let root = self.inner.root();
        let id = *root
            .refs
            .get(name)
            .ok_or_else(|| StoreError::NotFound(format!("snapshot {name}")))?;
        let by = self.users(&id);
        if !by.is_empty() && root.refs.values().filter(|to| **to == id).count() == 1 {
            return Err(StoreError::InUse {
                what: name.to_string(),
                by,
            });
        }
        self.inner.change_refs(|root| {
            root.refs.remove(name);
        })?;
        Ok(id)
    }

    /// Takes a name away, also the last one of a pinned snapshot: it stays until its pins are gone.
    pub fn drop_ref(&self, name: &RefName) -> Result<()> {
        self.inner.change_refs(|root| {
            root.refs.remove(name);
        })
    }

    /// Keeps a snapshot from being collected while the answer lives; `user` says to people for whom.
    pub fn pin(&self, id: SnapshotId, user: &str) -> Result<Pin> {
        let _gate = self.inner.gate.read().unwrap_or_else(PoisonError::into_inner);
        if !self.inner.root().snapshots.contains(&id) {
            return Err(StoreError::NotFound(format!("snapshot {id}")));
        }
        Ok(self.inner.pin(id, user))
    }

    /// Makes the index as small as what is in it, if most of it is free: for a user that has nothing more to do with the store, as
    /// everybody waits meanwhile. A crash in it, or a full disk, leaves the index as it was.
    pub fn compact(&self) -> Result<()> {
        self.inner.index.compact()
    }

    /// Who has pinned a snapshot.
    pub fn users(&self, id: &SnapshotId) -> Vec<String> {
        lock(&self.inner.pins).get(id).cloned().unwrap_or_default()
    }
}

impl Inner {
    pub(crate) fn root(&self) -> Arc<Root> {
        self.root.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn pin(self: &Arc<Self>, id: SnapshotId, user: &str) -> Pin {
        lock(&self.pins).entry(id).or_default().push(user.to_owned());
        Pin {
            inner: self.clone(),
            id,
            user: user.to_owned(),
        }
    }

    pub(crate) fn pinned(&self) -> Vec<SnapshotId> {
        lock(&self.pins).keys().copied().collect()
    }

    /// Finds out what a commit came to that failed in its last step, and finishes or undoes it.
    pub(crate) fn check_settled(&self) -> Result<()> {
        let mut unsettled = lock(&self.unsettled);
        let Some((writer, root)) = &mut unsettled.0 else {
            return Ok(());
        };
        self.index.reopen(false).map_err(|_| StoreError::Unsettled)?;
        if self.index.root()?.sequence < root.sequence {
            if !writer.abandon() {
                return Err(StoreError::Unsettled);
            }
            unsettled.0 = None;
        } else if let Some((writer, root)) = unsettled.0.take() {
            *self.root.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(root);
            writer.release();
        }
        Ok(())
    }

    /// Content of an object, verified against its id.
    pub(crate) fn read(&self, key: Key) -> Result<Bytes> {
        self.read_from(key, self.index.get(&key)?)
    }

    pub(crate) fn read_from(&self, key: Key, location: Option<Location>) -> Result<Bytes> {
        let location = location.ok_or_else(|| StoreError::NotFound(key.to_string()))?;
        self.read_at(&key, &location)
            .or_else(|error| match self.index.get(&key)? {
                // gc has moved the object since the index was asked.
                Some(moved) if moved != location => self.read_at(&key, &moved),
                _ => Err(error),
            })
    }

    pub(crate) fn read_at(&self, key: &Key, location: &Location) -> Result<Bytes> {
        let content = self
            .packs
            .with(key, location, |stored| open_content(key, location, stored));
        content.map_err(|reason| StoreError::Damaged {
            pack: crate::pack::pack_name(location.pack),
            offset: location.offset,
            id: key.to_string(),
            reason,
        })
    }

    pub(crate) fn manifest(&self, id: &ManifestId) -> Result<Arc<Manifest>> {
        self.manifest_with(id, &mut |id| self.read(Key::new(Kind::Manifest, id.0)))
    }

    /// Decodes a manifest whose bytes, and those of its parents, come from `bytes_of`.
    pub(crate) fn manifest_with(
        &self,
        id: &ManifestId,
        bytes_of: &mut dyn FnMut(&ManifestId) -> Result<Bytes>,
    ) -> Result<Arc<Manifest>> {
        if let Some(manifest) = self.manifests.get(id) {
            return Ok(manifest);
        }
        // Up the chain to a full manifest or one that is remembered, then down again. Depths shrink, so it ends.
        let mut chain = Vec::new();
        let (mut at, mut depth) = (*id, u8::MAX);
        let mut known = None;
        loop {
            let bytes = bytes_of(&at)?;
            let header = Manifest::decode_header(&bytes)?;
            if header.depth >= depth {
                return Err(StoreError::Invalid(format!(
                    "manifest {at} is deeper than its child"
                )));
            }
            depth = header.depth;
            chain.push((at, bytes));
            let Some(parent) = header.parent else { break };
            known = self.manifests.get(&parent);
            if known.is_some() {
                break;
            }
            at = parent;
        }
        for (id, bytes) in chain.iter().rev() {
            let mut parent = known.take();
            let manifest = Manifest::decode(bytes, &mut |id| {
                let missing = || StoreError::NotFound(format!("manifest {id}"));
                Ok::<_, StoreError>((*parent.take().ok_or_else(missing)?).clone())
            })?;
            let manifest = Arc::new(manifest);
            self.manifests.put(*id, manifest.clone());
            known = Some(manifest);
        }
        known.ok_or_else(|| StoreError::NotFound(format!("manifest {id}")))
    }

    fn change_refs(self: &Arc<Self>, edit: impl FnOnce(&mut Root)) -> Result<()> {
        let writer = PackWriter::new(self.packs.clone());
        self.commit(writer, Change::default(), edit)
    }

    /// The commit protocol in the module's header.
    pub(crate) fn commit(
        &self,
        mut writer: PackWriter,
        mut change: Change,
        edit: impl FnOnce(&mut Root),
    ) -> Result<()> {
        let _committing = lock(&self.committing);
        self.check_settled()?;
        writer.sync()?;
        let mut root = (*self.root()).clone();
        edit(&mut root);
        root.sequence += 1;
        let bytes = root.encode();
        let key = Key::new(Kind::Root, *blake3::hash(&bytes).as_bytes());
        let (codec, stored) = compress(&bytes);
        writer.append(key, codec, &stored, bytes.len())?;
        let durable = writer.sync();
        let applied = durable.and_then(|()| {
            change.packs = writer.lengths();
            self.index.apply(&change, &root)
        });
        if let Err(error) = applied {
            let sequence = root.sequence;
            lock(&self.unsettled).0 = Some((writer, root));
            // If this fails, the next write tries again.
            let settled = self.check_settled();
            return if settled.is_ok() && self.root().sequence == sequence {
                Ok(())
            } else {
                Err(error)
            };
        }
        *self.root.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(root);
        writer.release();
        Ok(())
    }
}

/// Decompresses stored bytes and verifies them against the id; why not, otherwise.
pub(crate) fn open_content(key: &Key, location: &Location, stored: &[u8]) -> Result<Bytes, String> {
    if location.content_len as usize > crate::record::CONTENT_BYTES_MAX {
        return Err("its length is impossible".to_owned());
    }
    let content = decompress(location.codec, stored, location.content_len as usize)
        .map_err(|error| error.to_string())?;
    if *blake3::hash(&content).as_bytes() != key.id {
        return Err("its content does not match its id".to_owned());
    }
    Ok(content)
}
