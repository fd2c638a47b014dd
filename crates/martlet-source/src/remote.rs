//! A remote: objects of a realm at a place.

use crate::index::Index;
use crate::pack::{Extent, INDEX_BYTES_MAX, Name, PackHash, SealedPack, name_of, open_index, open_record};
use crate::parallel::in_parallel;
use crate::scope::Scope;
use crate::stamp::fitting;
use crate::unique::now_unix_s;
use crate::{Key, Objects, Realm, Ref, Result, Room, Seen, SourceError, Stamp};
use martlet_store::{Key as ObjectKey, Stored};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What lies so close together is read at once, with what is between.
const GAP_BYTES: u32 = 32 << 10;
/// No more is read at once, but one record.
const READ_BYTES: u32 = 4 << 20;
/// Reads at the same time.
const READERS: usize = 4;

/// See the module's documentation. Threads may use it together.
#[derive(Debug)]
pub struct Remote {
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) realm: Realm,
    host: String,
    clock: fn() -> u64,
    pub(crate) seen: Option<Arc<dyn Seen>>,
    /// Of the packs of refs that were asked for.
    index: Mutex<Index>,
}

/// Records of a pack that are read at once.
#[derive(Debug)]
struct Read {
    pack: PackHash,
    records: Vec<(Extent, ObjectKey)>,
}

impl Remote {
    /// That of a realm at a place.
    pub fn new(objects: Arc<dyn Objects>, realm: Realm) -> Self {
        Self {
            objects: Arc::new(Scope::new(objects, &realm)),
            realm,
            host: String::new(),
            clock: now_unix_s,
            seen: None,
            index: Mutex::default(),
        }
    }

    /// Refuses refs that are older than what was seen of them before.
    pub fn with_seen(self, seen: Arc<dyn Seen>) -> Self {
        Self {
            seen: Some(seen),
            ..self
        }
    }

    /// What others are told who puts something there: as much of it as fits a [`Stamp`].
    pub fn with_host(self, host: impl Into<String>) -> Self {
        Self {
            host: fitting(host.into()),
            ..self
        }
    }

    /// Another clock: seconds since 1970.
    #[cfg(test)]
    pub(crate) fn with_clock(self, clock: fn() -> u64) -> Self {
        Self { clock, ..self }
    }

    /// What it is called in messages.
    pub fn place(&self) -> String {
        self.objects.place()
    }

    pub(crate) fn now(&self) -> u64 {
        (self.clock)()
    }

    /// Us, now.
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp {
            unix_s: self.now(),
            host: self.host.clone(),
        }
    }

    pub(crate) fn wrong(&self, key: &Key, reason: impl Into<String>) -> SourceError {
        SourceError::Wrong {
            place: self.place(),
            key: key.clone(),
            reason: reason.into(),
        }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns where everything is that a ref's snapshot needs, for [`Remote::frames`].
    pub fn learn(&self, found: &Ref) -> Result<()> {
        let packs: Vec<PackHash> = {
            let index = self.index();
            let unknown = found.packs.iter().filter(|pack| !index.knows(pack));
            unknown.copied().collect()
        };
        self.read_indexes(packs, |pack, entries| self.index().add(pack, entries))
    }

    /// Learns where everything is that is there, of any ref or of none.
    pub fn learn_all(&self) -> Result<()> {
        let listed = self.objects.list(Room::Indexes)?;
        let packs = listed.iter().filter_map(|entry| PackHash::of(&entry.key));
        self.read_indexes(packs.collect(), |pack, entries| self.index().add(pack, entries))
    }

    /// Those of these objects that were learnt of.
    pub fn which(&self, keys: impl IntoIterator<Item = ObjectKey>) -> HashSet<ObjectKey> {
        let index = self.index();
        let is_there = |key: &ObjectKey| index.place(&name_of(&self.realm, key)).is_some();
        keys.into_iter().filter(is_there).collect()
    }

    /// Reads the indexes of these packs.
    pub(crate) fn read_indexes(
        &self,
        packs: Vec<PackHash>,
        mut each: impl FnMut(PackHash, Vec<(Name, Extent)>),
    ) -> Result<()> {
        let read = |pack: PackHash| {
            let key = pack.key(Room::Indexes);
            let sealed = self.objects.get(&key, INDEX_BYTES_MAX)?;
            let entries = open_index(&self.realm, &pack, &sealed);
            let entries = entries.ok_or_else(|| self.wrong(&key, "it is no index of this realm"))?;
            Ok((pack, entries))
        };
        in_parallel(READERS, packs.into_iter(), read, |(pack, entries)| {
            each(pack, entries);
            Ok(())
        })
    }

    /// Puts a pack, then its index.
    pub(crate) fn put_pack(&self, pack: &SealedPack) -> Result<()> {
        self.objects.put_new(&pack.hash.key(Room::Packs), &pack.bytes)?;
        self.objects
            .put_new(&pack.hash.key(Room::Indexes), &pack.index)
            .map(drop)
    }

    /// What these objects take there.
    pub(crate) fn sealed_bytes<'a>(&self, keys: impl IntoIterator<Item = &'a ObjectKey>) -> Result<u64> {
        let index = self.index();
        keys.into_iter()
            .map(|key| Ok(u64::from(self.place_of(&index, key)?.1.len)))
            .sum()
    }

    /// An object of a ref that was learnt. Its content is not verified yet.
    pub fn frame(&self, key: &ObjectKey) -> Result<Stored> {
        let (pack, extent) = self.place_of(&self.index(), key)?;
        let read = Read {
            pack,
            records: vec![(extent, *key)],
        };
        let mut objects = self.read(&read)?;
        Ok(objects.swap_remove(0))
    }

    /// Objects of refs that were learnt, each as soon as it has come, in this order: what lies together is one answer, and no two are
    /// under way at the same time. Their contents are not verified yet.
    pub fn in_turn(&self, keys: &[ObjectKey], mut each: impl FnMut(Stored) -> Result<()>) -> Result<()> {
        let mut reads: Vec<Read> = Vec::new();
        for key in keys {
            let (pack, extent) = self.place_of(&self.index(), key)?;
            match reads.last_mut() {
                Some(read) if read.pack == pack && is_near(&read.last().0, &extent) => {
                    read.records.push((extent, *key));
                }
                _ => reads.push(Read {
                    pack,
                    records: vec![(extent, *key)],
                }),
            }
        }
        reads.iter().try_for_each(|read| self.read_each(read, &mut each))
    }

    /// Objects of refs that were learnt, in any order: those that lie together are read together, some at the same time.
    /// Their contents are not verified yet.
    pub fn frames(
        &self,
        keys: impl IntoIterator<Item = ObjectKey>,
        mut each: impl FnMut(Stored) -> Result<()>,
    ) -> Result<()> {
        let reads = self.reads(keys)?;
        in_parallel(
            READERS,
            reads.into_iter(),
            |read| self.read(&read),
            |objects| objects.into_iter().try_for_each(&mut each),
        )
    }

    fn place_of(&self, index: &Index, key: &ObjectKey) -> Result<(PackHash, Extent)> {
        let place = index.place(&name_of(&self.realm, key));
        place.ok_or_else(|| SourceError::Incomplete {
            place: self.place(),
            object: key.to_string(),
        })
    }

    fn reads(&self, keys: impl IntoIterator<Item = ObjectKey>) -> Result<Vec<Read>> {
        let mut by_pack: BTreeMap<PackHash, Vec<(Extent, ObjectKey)>> = BTreeMap::new();
        let index = self.index();
        for key in keys {
            let (pack, extent) = self.place_of(&index, &key)?;
            by_pack.entry(pack).or_default().push((extent, key));
        }
        let mut reads = Vec::new();
        for (pack, mut records) in by_pack {
            records.sort_unstable_by_key(|(extent, _)| extent.offset);
            reads.extend(runs(&records).into_iter().map(|run| Read {
                pack,
                records: run.to_vec(),
            }));
        }
        Ok(reads)
    }

    fn read(&self, read: &Read) -> Result<Vec<Stored>> {
        let mut objects = Vec::with_capacity(read.records.len());
        self.read_each(read, &mut |object| {
            objects.push(object);
            Ok(())
        })?;
        Ok(objects)
    }

    fn read_each(&self, read: &Read, each: &mut dyn FnMut(Stored) -> Result<()>) -> Result<()> {
        let key = read.pack.key(Room::Packs);
        let range = read.first().0.offset..end_of(&read.last().0);
        let mut records = read.records.iter().peekable();
        // What has come and is not handed on yet, and where it begins.
        let (mut bytes, mut begin) = (Vec::new(), range.start);
        let range = u64::from(range.start)..u64::from(range.end);
        self.objects.read_range(&key, range, &mut |piece| {
            bytes.extend_from_slice(piece);
            let mut taken = 0;
            while let Some((extent, object)) = records.peek() {
                let at = (extent.offset - begin) as usize;
                let Some(sealed) = bytes.get(at..at + extent.len as usize) else {
                    break;
                };
                taken = at + sealed.len();
                let opened = open_record(&self.realm, object, sealed);
                each(opened.ok_or_else(|| self.wrong(&key, format!("{object} is not in it as it was")))?)?;
                records.next();
            }
            bytes.drain(..taken);
            begin += taken as u32;
            Ok(())
        })?;
        match records.next() {
            Some((_, object)) => Err(self.wrong(&key, format!("it ends before {object}"))),
            None => Ok(()),
        }
    }
}

impl Read {
    fn first(&self) -> &(Extent, ObjectKey) {
        &self.records[0] // a read is of one at least
    }

    fn last(&self) -> &(Extent, ObjectKey) {
        &self.records[self.records.len() - 1]
    }
}

/// Does a record lie a little after another one, or right after it?
fn is_near(before: &Extent, after: &Extent) -> bool {
    let end = end_of(before);
    (end..=end.saturating_add(GAP_BYTES)).contains(&after.offset)
}

fn end_of(extent: &Extent) -> u32 {
    extent.offset + extent.len // checked when the index was opened
}

/// Records, by offset, that are read at once.
fn runs(records: &[(Extent, ObjectKey)]) -> Vec<&[(Extent, ObjectKey)]> {
    let mut runs = Vec::new();
    let mut begin = 0;
    for at in 1..=records.len() {
        let ends = records.get(at).is_none_or(|(next, _)| {
            !is_near(&records[at - 1].0, next) || end_of(next) - records[begin].0.offset > READ_BYTES
        });
        if ends {
            runs.push(&records[begin..at]);
            begin = at;
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::{PackBuilder, SALT_BYTES};
    use martlet_image::Codec;
    use martlet_store::Kind;
    use std::ops::Range;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    #[test]
    fn what_lies_together_is_read_at_once() {
        let record = |offset, len| (Extent { offset, len }, ObjectKey::new(Kind::Frame, [0; 32]));
        let records = [
            record(0, 100),
            record(100, 100),
            record(200 + GAP_BYTES, 100),
            record(301 + 2 * GAP_BYTES, 100),
            record(READ_BYTES, READ_BYTES),
            record(2 * READ_BYTES, 1),
        ];
        let lens: Vec<usize> = runs(&records).iter().map(|run| run.len()).collect();
        assert_eq!(lens, [3, 1, 1, 1]);
        assert!(runs(&[]).is_empty());
    }

    /// A place that gives what is read of it in pieces, and counts them.
    #[derive(Debug)]
    struct Pieces {
        directory: crate::Directory,
        given: AtomicUsize,
        asked: AtomicUsize,
    }

    impl Objects for Pieces {
        fn place(&self) -> String {
            self.directory.place()
        }

        fn get(&self, key: &Key, size_bytes_max: u64) -> Result<Vec<u8>> {
            self.directory.get(key, size_bytes_max)
        }

        fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
            self.directory.get_range(key, range)
        }

        fn read_range(
            &self,
            key: &Key,
            range: Range<u64>,
            each: &mut dyn FnMut(&[u8]) -> Result<()>,
        ) -> Result<()> {
            self.asked.fetch_add(1, Relaxed);
            for piece in self.get_range(key, range)?.chunks(100) {
                self.given.fetch_add(1, Relaxed);
                each(piece)?;
            }
            Ok(())
        }

        fn put_new(&self, key: &Key, bytes: &[u8]) -> Result<crate::Put> {
            self.directory.put_new(key, bytes)
        }

        fn list(&self, room: Room) -> Result<Vec<crate::Entry>> {
            self.directory.list(room)
        }

        fn remove(&self, key: &Key) -> Result<()> {
            self.directory.remove(key)
        }
    }

    #[test]
    fn what_comes_in_turn_is_handed_on_before_the_rest_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let place = Arc::new(Pieces {
            directory: crate::Directory::new(dir.path()),
            given: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
        });
        let remote = Remote::new(place.clone(), Realm::new(&[3; 32]));
        let objects: Vec<Stored> = (0..6)
            .map(|id| Stored {
                key: ObjectKey::new(Kind::Blob, [id; 32]),
                codec: Codec::Raw,
                content_len: 1000,
                bytes: vec![id; 1000],
            })
            .collect();
        let mut pack = PackBuilder::new(&[1; SALT_BYTES]);
        objects.iter().for_each(|object| pack.add(&remote.realm, object));
        let pack = pack.close(&remote.realm);
        remote.put_pack(&pack).unwrap();
        remote.index().add(pack.hash, pack.entries);
        let order = [0, 1, 2, 4, 3];
        let keys = order.map(|id| objects[id].key);
        let mut came = Vec::new();
        let got = remote.in_turn(&keys, |object| {
            came.push((object, place.given.load(Relaxed)));
            Ok(())
        });
        got.unwrap();
        assert_eq!(
            place.asked.load(Relaxed),
            2,
            "the fourth lies before what came before it"
        );
        assert!(
            came.iter()
                .map(|(object, _)| object)
                .eq(order.map(|id| &objects[id]))
        );
        assert!(
            came[0].1 < 20 && came.is_sorted_by(|one, other| one.1 < other.1),
            "{came:?}"
        );

        // One that is not as it was ends it; those before it have come.
        let file = dir.path().join("packs");
        let file = std::fs::read_dir(file).unwrap().next().unwrap().unwrap().path();
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[2500] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let mut came = 0;
        let got = remote.in_turn(&keys, |_| {
            came += 1;
            Ok(())
        });
        assert!(
            matches!(got, Err(SourceError::Wrong { .. })) && came == 2,
            "{got:?} {came}"
        );
        let unknown = remote.in_turn(&[ObjectKey::new(Kind::Blob, [9; 32])], |_| Ok(()));
        assert!(matches!(unknown, Err(SourceError::Incomplete { .. })));
    }
}
