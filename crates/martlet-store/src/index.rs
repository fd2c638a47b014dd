//! The index: where every object is, and which page content is already stored. An embedded database, and a cache:
//! all of it can be made again from the packs.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | objects | kind, id (33 bytes) | pack 4, offset 8, stored length 4, content length 4, codec 1 |
//! | pages | BLAKE3 of a page (32 bytes) | beginning of its frame's id 8, slot 1 |
//! | packs | pack number | bytes of it that are committed |
//! | meta | `root` | the newest root |
//!
//! The beginning of a frame's id is enough to find it in `objects`, and makes an entry a third shorter. Where two frames begin alike
//! (somebody may have worked for that) their pages count as unknown, and when one of them goes both lose their pages.
//!
//! A database that has met a write error refuses everything from then on; [`Index::reopen`] starts it afresh.
//!
//! The file grows by doubling, and keeps what is free for the next commits. When its user has nothing more to do with it,
//! [`Index::compact`] makes it as small as what is in it. Not sooner: everybody who reads waits for that.

use crate::backend::Backend;
use crate::files::Files;
use crate::record::{Key, Kind};
use crate::{Result, Root, StoreError};
use martlet_image::{Codec, FrameId};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

type PageHash = [u8; 32];
type PagePlace = [u8; 9];
type FrameBeginning = [u8; 8];

// By reference: arrays by value are compared, read and written byte by byte.
const OBJECTS: TableDefinition<&[u8; 33], &[u8; 21]> = TableDefinition::new("objects");
const PAGES: TableDefinition<&PageHash, &PagePlace> = TableDefinition::new("pages");
const PACKS: TableDefinition<u32, u64> = TableDefinition::new("packs");
const META: TableDefinition<&str, Vec<u8>> = TableDefinition::new("meta");

const CACHE_BYTES: usize = 8 << 20;
/// An index of this size is small enough, whatever is in it.
const SMALL_BYTES: u64 = 2 << 20;
/// It is made smaller when no more than one part of so many is used.
const USED_PART: u64 = 2;

/// Where an object's record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Pack number.
    pub pack: u32,
    /// Offset of the record's header.
    pub offset: u64,
    /// Bytes after the header.
    pub stored_len: u32,
    /// Bytes when decompressed.
    pub content_len: u32,
    /// How it is compressed.
    pub codec: Codec,
}

impl Location {
    fn to_bytes(self) -> [u8; 21] {
        let mut out = [0; 21];
        out[..4].copy_from_slice(&self.pack.to_le_bytes());
        out[4..12].copy_from_slice(&self.offset.to_le_bytes());
        out[12..16].copy_from_slice(&self.stored_len.to_le_bytes());
        out[16..20].copy_from_slice(&self.content_len.to_le_bytes());
        out[20] = self.codec as u8;
        out
    }

    fn from_bytes(bytes: &[u8; 21]) -> Result<Self> {
        let word = |at: usize| {
            bytes[at..]
                .first_chunk::<4>()
                .map_or(0, |word| u32::from_le_bytes(*word))
        };
        Ok(Self {
            pack: word(0),
            offset: bytes[4..]
                .first_chunk::<8>()
                .map_or(0, |word| u64::from_le_bytes(*word)),
            stored_len: word(12),
            content_len: word(16),
            codec: Codec::try_from(bytes[20])?,
        })
    }
}

/// What one commit does to the index, in one transaction.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// New objects, and new places of old ones.
    pub(crate) put: Vec<(Key, Location)>,
    /// Content of pages in new frames.
    pub(crate) pages: Vec<(PageHash, FrameId, u8)>,
    /// Objects that go.
    pub(crate) dead: HashSet<Key>,
    /// Frames on which no new page is to rely: their pages are forgotten.
    pub(crate) distrusted: HashSet<FrameId>,
    /// Committed length of packs written to.
    pub(crate) packs: Vec<(u32, u64)>,
    /// Packs that go.
    pub(crate) dead_packs: Vec<u32>,
}

fn beginning(frame: &[u8; 32]) -> FrameBeginning {
    *frame.first_chunk().expect("8 of 32 bytes")
}

fn place(frame: &FrameId, slot: u8) -> PagePlace {
    let mut place = [slot; 9];
    place[..8].copy_from_slice(&beginning(&frame.0));
    place
}

/// The only frame whose id begins so.
fn frame_at(
    objects: &impl ReadableTable<&'static [u8; 33], &'static [u8; 21]>,
    beginning: FrameBeginning,
) -> Result<Option<FrameId>, redb::Error> {
    let bound = |filled: u8| {
        let mut id = [filled; 32];
        id[..8].copy_from_slice(&beginning);
        Key::new(Kind::Frame, id).to_bytes()
    };
    let mut alike = objects.range::<&[u8; 33]>(&bound(0)..=&bound(0xff))?;
    let (first, second) = (alike.next().transpose()?, alike.next());
    Ok(match (first, second) {
        (Some((key, _)), None) => Key::from_bytes(key.value()).map(|key| FrameId(key.id)),
        _ => None,
    })
}

#[derive(Debug)]
pub(crate) struct Index {
    files: Arc<dyn Files>,
    path: PathBuf,
    db: RwLock<Option<Database>>,
}

/// Runs `body` in one read transaction.
macro_rules! read {
    ($self:ident, $txn:ident, $body:block) => {
        $self.retry(|db| {
            let $txn = db.begin_read()?;
            let body = || -> Result<_, redb::Error> { $body };
            body()
        })
    };
}

impl Index {
    /// Opens the index, or makes an empty one. An error means that it is damaged or cannot be read.
    pub(crate) fn open(files: Arc<dyn Files>, dir: &Path) -> Result<Self> {
        let index = Self {
            files,
            path: dir.join("index.redb"),
            db: RwLock::new(None),
        };
        index.reopen(true)?;
        Ok(index)
    }

    /// Is there one?
    pub(crate) fn exists(files: &dyn Files, dir: &Path) -> Result<bool> {
        let names = files.list(dir).map_err(StoreError::io("listing the store"))?;
        Ok(names.iter().any(|name| name == "index.redb"))
    }

    /// Puts a damaged index out of the way.
    pub(crate) fn set_aside(files: &dyn Files, dir: &Path) -> Result<()> {
        let (from, to) = (dir.join("index.redb"), dir.join("index.damaged"));
        files
            .rename(&from, &to)
            .and_then(|()| files.sync_dir(dir))
            .map_err(StoreError::io("replacing the index"))
    }

    /// Closes the database and opens it again, which settles what the last transaction came to.
    pub(crate) fn reopen(&self, check: bool) -> Result<()> {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        *db = None;
        let doing = || StoreError::io("opening the index");
        let file = match self.files.open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = self.files.create(&self.path).map_err(doing())?;
                self.files
                    .sync_dir(self.path.parent().unwrap_or(Path::new(".")))
                    .map_err(doing())?;
                file
            }
            file => file.map_err(doing())?,
        };
        let open = || {
            let mut builder = Database::builder();
            let mut opened = builder
                .set_cache_size(CACHE_BYTES)
                .create_with_backend(Backend(file))?;
            if check && !opened.check_integrity()? {
                tracing::warn!("the index was repaired");
            }
            let txn = opened.begin_write()?;
            txn.open_table(OBJECTS)?;
            txn.open_table(PAGES)?;
            txn.open_table(PACKS)?;
            txn.open_table(META)?;
            txn.commit()?;
            Ok(opened)
        };
        *db = Some(caught(open)?);
        Ok(())
    }

    fn with<T>(&self, body: &mut dyn FnMut(&Database) -> Result<T, redb::Error>) -> Result<T> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let db = db.as_ref().ok_or(StoreError::Unsettled)?;
        let done = caught(|| body(db));
        if let Err(StoreError::Index(why)) = &done {
            tracing::error!(
                why,
                "the index is damaged and will be rebuilt when the store is opened next"
            );
            if let Some(dir) = self.path.parent() {
                // If this fails the check at the next open finds the damage all the same.
                let _ = Self::set_aside(&*self.files, dir);
            }
        }
        done
    }

    /// Reads go on after a failed write: the database is opened again.
    fn retry<T>(&self, mut body: impl FnMut(&Database) -> Result<T, redb::Error>) -> Result<T> {
        match self.with(&mut body) {
            Err(StoreError::Unsettled) => {
                self.reopen(false)?;
                self.with(&mut body)
            }
            done => done,
        }
    }

    /// Gives back what is free, if that is most of it. Everybody else waits.
    pub(crate) fn compact(&self) -> Result<()> {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = db.as_mut() else {
            return Err(StoreError::Unsettled);
        };
        let file = self.files.open(&self.path);
        let size_bytes = file.and_then(|file| file.size());
        let size_bytes = size_bytes.map_err(StoreError::io("looking at the index"))?;
        if size_bytes <= SMALL_BYTES {
            return Ok(());
        }
        caught(|| {
            let txn = db.begin_write()?;
            let stats = txn.stats()?;
            txn.abort()?;
            let used_bytes = stats.allocated_pages() * stats.page_size() as u64;
            if used_bytes * USED_PART <= size_bytes {
                db.compact()?;
            }
            Ok(())
        })
    }

    /// Makes a change in one durable transaction. After an error the outcome is told by [`Index::root`].
    pub(crate) fn apply(&self, change: &Change, root: &Root) -> Result<()> {
        let mut body = |db: &Database| -> Result<(), redb::Error> {
            let txn = db.begin_write()?;
            {
                let mut objects = txn.open_table(OBJECTS)?;
                for key in &change.dead {
                    objects.remove(&key.to_bytes())?;
                }
                for (key, location) in &change.put {
                    objects.insert(&key.to_bytes(), &location.to_bytes())?;
                }
                let mut pages = txn.open_table(PAGES)?;
                let dead = change.dead.iter().filter(|key| key.kind == Kind::Frame);
                let going: HashSet<FrameBeginning> = dead
                    .map(|key| beginning(&key.id))
                    .chain(change.distrusted.iter().map(|frame| beginning(&frame.0)))
                    .collect();
                if !going.is_empty() {
                    pages.retain(|_, place| {
                        place
                            .first_chunk()
                            .is_some_and(|beginning| !going.contains(beginning))
                    })?;
                }
                // In key order each insertion finds the tree's pages in the cache.
                let mut sorted: Vec<_> = change.pages.iter().collect();
                sorted.sort_unstable_by_key(|(hash, _, _)| *hash);
                for (hash, frame, slot) in sorted {
                    pages.insert(hash, &place(frame, *slot))?;
                }
                let mut packs = txn.open_table(PACKS)?;
                for (pack, len) in &change.packs {
                    packs.insert(pack, len)?;
                }
                for pack in &change.dead_packs {
                    packs.remove(pack)?;
                }
                txn.open_table(META)?.insert("root", root.encode())?;
            }
            Ok(txn.commit()?)
        };
        self.with(&mut body)
    }

    pub(crate) fn root(&self) -> Result<Root> {
        let bytes = read!(self, txn, {
            Ok(txn.open_table(META)?.get("root")?.map(|bytes| bytes.value()))
        })?;
        match bytes {
            None => Ok(Root::default()),
            Some(bytes) => {
                Root::decode(&bytes).ok_or_else(|| StoreError::Index("its root is malformed".into()))
            }
        }
    }

    pub(crate) fn packs(&self) -> Result<Vec<(u32, u64)>> {
        read!(self, txn, {
            let table = txn.open_table(PACKS)?;
            table
                .iter()?
                .map(|entry| entry.map(|(k, v)| (k.value(), v.value())).map_err(Into::into))
                .collect()
        })
    }

    pub(crate) fn get(&self, key: &Key) -> Result<Option<Location>> {
        let bytes = read!(self, txn, {
            Ok(txn.open_table(OBJECTS)?.get(&key.to_bytes())?.map(|v| *v.value()))
        })?;
        bytes.as_ref().map(Location::from_bytes).transpose()
    }

    /// As [`Index::get`] for many keys in one transaction.
    pub(crate) fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Location>>> {
        let found: Vec<Option<[u8; 21]>> = read!(self, txn, {
            let table = txn.open_table(OBJECTS)?;
            keys.iter()
                .map(|key| Ok(table.get(&key.to_bytes())?.map(|v| *v.value())))
                .collect()
        })?;
        found
            .iter()
            .map(|bytes| bytes.as_ref().map(Location::from_bytes).transpose())
            .collect()
    }

    /// Where pages with this content are stored.
    pub(crate) fn find_pages(&self, hashes: &[PageHash]) -> Result<Vec<Option<(FrameId, u8)>>> {
        read!(self, txn, {
            let (pages, objects) = (txn.open_table(PAGES)?, txn.open_table(OBJECTS)?);
            // Neighbours are often of one frame.
            let mut last: Option<(FrameBeginning, Option<FrameId>)> = None;
            let mut found = Vec::with_capacity(hashes.len());
            for hash in hashes {
                let Some(place) = pages.get(hash)?.map(|place| *place.value()) else {
                    found.push(None);
                    continue;
                };
                let [beginning @ .., slot] = place;
                let frame = match last {
                    Some((known, frame)) if known == beginning => frame,
                    _ => frame_at(&objects, beginning)?,
                };
                last = Some((beginning, frame));
                found.push(frame.map(|frame| (frame, slot & 15)));
            }
            Ok(found)
        })
    }

    /// Every object.
    pub(crate) fn objects(&self) -> Result<Vec<(Key, Location)>> {
        let all: Vec<([u8; 33], [u8; 21])> = read!(self, txn, {
            let table = txn.open_table(OBJECTS)?;
            let mut all = Vec::with_capacity(table.len()? as usize);
            for entry in table.iter()? {
                let (key, value) = entry?;
                all.push((*key.value(), *value.value()));
            }
            Ok(all)
        })?;
        let malformed = || StoreError::Index("a key is malformed".into());
        all.iter()
            .map(|(key, location)| {
                Ok((
                    Key::from_bytes(key).ok_or_else(malformed)?,
                    Location::from_bytes(location)?,
                ))
            })
            .collect()
    }
}

/// A damaged database may break an assertion inside redb; to us that is one more way of being damaged.
fn caught<T>(body: impl FnOnce() -> Result<T, redb::Error>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(body))
        .map_err(|_| StoreError::Index("it breaks its reader".into()))?
        .map_err(failure)
}

/// redb's errors, by what to do about them.
fn failure(error: redb::Error) -> StoreError {
    match error {
        // Not the device's errors but redb's, about what it read.
        redb::Error::Io(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            StoreError::Index(error.to_string())
        }
        redb::Error::Io(error) => StoreError::io("writing or reading the index")(error),
        redb::Error::PreviousIo | redb::Error::DatabaseClosed => StoreError::Unsettled,
        error => StoreError::Index(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faulty::{Fault, FaultyFiles};

    fn frame(beginning: u8, end: u8) -> FrameId {
        let mut id = [beginning; 32];
        id[31] = end;
        FrameId(id)
    }

    fn stored(frame: FrameId) -> (Key, Location) {
        let location = Location {
            pack: 1,
            offset: 0,
            stored_len: 10,
            content_len: 4096,
            codec: Codec::Raw,
        };
        (Key::new(Kind::Frame, frame.0), location)
    }

    #[test]
    fn pages_of_frames_that_begin_alike_are_unknown_and_never_mistaken() {
        let index = Index::open(Arc::new(FaultyFiles::new()), Path::new("/store")).unwrap();
        let (one, two, other) = (frame(7, 1), frame(7, 2), frame(8, 1));
        let (page, of_two, of_other) = ([1; 32], [2; 32], [3; 32]);
        let find = || index.find_pages(&[page, of_other, of_two]).unwrap();
        let put = Change {
            put: vec![stored(one), stored(other)],
            pages: vec![(page, one, 3), (of_other, other, 15)],
            ..Change::default()
        };
        index.apply(&put, &Root::default()).unwrap();
        assert_eq!(find(), [Some((one, 3)), Some((other, 15)), None]);
        let put = Change {
            put: vec![stored(two)],
            pages: vec![(of_two, two, 0)],
            ..Change::default()
        };
        index.apply(&put, &Root::default()).unwrap();
        assert_eq!(find(), [None, Some((other, 15)), None]);
        let gone = Change {
            dead: HashSet::from([stored(one).0]),
            ..Change::default()
        };
        index.apply(&gone, &Root::default()).unwrap();
        // The page that was in the one that is gone must not be found in the other.
        assert_eq!(find(), [None, Some((other, 15)), None]);
    }

    const DIR: &str = "/store";
    const FRAMES: u32 = 24_000;

    fn opened(files: &FaultyFiles) -> Index {
        Index::open(Arc::new(files.clone()), Path::new(DIR)).unwrap()
    }

    fn numbered(number: u32) -> FrameId {
        FrameId(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    /// An index that was much larger: only each 16th of its frames is left.
    fn was_large() -> FaultyFiles {
        let files = FaultyFiles::new();
        let index = opened(&files);
        let numbers: Vec<u32> = (0..FRAMES).collect();
        for some in numbers.chunks(6000) {
            let put = Change {
                put: some.iter().map(|number| stored(numbered(*number))).collect(),
                ..Change::default()
            };
            index.apply(&put, &Root::default()).unwrap();
        }
        let gone = numbers.iter().filter(|number| *number % 16 > 0);
        let gone = Change {
            dead: gone.map(|number| stored(numbered(*number)).0).collect(),
            ..Change::default()
        };
        index.apply(&gone, &Root::default()).unwrap();
        std::mem::forget(index); // as when the process is killed
        files.kill();
        files
    }

    fn size_bytes(files: &FaultyFiles) -> u64 {
        files.size_of(&Path::new(DIR).join("index.redb")).unwrap() as u64
    }

    fn assert_has_what_is_left(index: &Index) {
        assert_eq!(index.objects().unwrap().len(), FRAMES as usize / 16);
        for number in 0..FRAMES {
            let (key, location) = stored(numbered(number));
            let expected = (number % 16 == 0).then_some(location);
            assert_eq!(index.get(&key).unwrap(), expected, "{number}");
        }
    }

    #[test]
    fn an_index_that_is_mostly_free_is_made_smaller() {
        let files = was_large();
        let before = size_bytes(&files);
        let index = opened(&files);
        index.compact().unwrap();
        let after = size_bytes(&files);
        assert!(
            before > SMALL_BYTES && after * USED_PART <= before,
            "{before} {after}"
        );
        assert_has_what_is_left(&index);
        drop(index);
        assert_has_what_is_left(&opened(&files));
    }

    #[test]
    fn the_power_may_go_and_the_disk_be_full_while_an_index_is_made_smaller() {
        const STEP: u64 = 5;
        let mut points = 0;
        for fault in [Fault::NoPower, Fault::NoSpace, Fault::Broken] {
            for seed in 0.. {
                let files = was_large();
                let index = opened(&files);
                files.fail_after(seed * STEP, fault);
                let done = index.compact();
                match fault {
                    Fault::NoPower => {
                        drop(index);
                        files.crash(seed);
                    }
                    // Who has it open goes on reading.
                    _ => {
                        files.mend();
                        assert_has_what_is_left(&index);
                        drop(index);
                    }
                }
                assert_has_what_is_left(&opened(&files));
                if done.is_ok() {
                    break;
                }
                points += 1;
            }
        }
        assert!(points > 10, "only {points} points");
    }

    #[test]
    fn an_index_of_another_shape_counts_as_damaged() {
        const FORMER: TableDefinition<PageHash, [u8; 33]> = TableDefinition::new("pages");
        let (files, dir) = (FaultyFiles::new(), Path::new("/store"));
        let file = files.create(&dir.join("index.redb")).unwrap();
        let former = Database::builder().create_with_backend(Backend(file)).unwrap();
        let txn = former.begin_write().unwrap();
        txn.open_table(FORMER).unwrap().insert([1; 32], [2; 33]).unwrap();
        txn.commit().unwrap();
        drop(former);
        // The store puts it aside, and makes another from the packs.
        let opened = Index::open(Arc::new(files), dir);
        assert!(matches!(opened, Err(StoreError::Index(_))), "{opened:?}");
    }
}
