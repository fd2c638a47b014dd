//! A remote: objects of a realm at a place.

use crate::pack::{Extent, INDEX_BYTES_MAX, Name, SealedPack, key_in, name_of, open_index, open_record};
use crate::scope::Scope;
use crate::{Key, Objects, Realm, Result, Room, SourceError};
use martlet_store::{Key as ObjectKey, Stored};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What lies so close together is read at once, with what is between.
const GAP_BYTES: u32 = 32 << 10;
/// No more is read at once, but one record.
const READ_BYTES: u32 = 4 << 20;
/// Of a list of packs: 100,000 of them.
const CONTENTS_BYTES_MAX: u64 = 8 << 20;

/// See the module's documentation.
#[derive(Debug)]
pub struct Remote {
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) realm: Realm,
    index: Mutex<Index>,
}

/// What is known of its packs.
#[derive(Debug, Default)]
struct Index {
    packs: Vec<String>,
    places: HashMap<Name, (u32, Extent)>,
}

impl Remote {
    /// That of a realm at a place.
    pub fn new(objects: Arc<dyn Objects>, realm: Realm) -> Self {
        Self {
            objects: Arc::new(Scope::new(objects, &realm)),
            realm,
            index: Mutex::default(),
        }
    }

    /// What it is called in messages.
    pub fn place(&self) -> String {
        self.objects.place()
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns of all packs that were put since it last did.
    pub(crate) fn learn_all(&self) -> Result<()> {
        let listed = self.objects.list(Room::Indexes)?;
        self.learn(listed.into_iter().map(|entry| entry.key.name().to_owned()))
    }

    /// Learns of these packs, whose hashes may be anything.
    pub(crate) fn learn(&self, hashes: impl IntoIterator<Item = String>) -> Result<()> {
        let known: BTreeSet<String> = self.index().packs.iter().cloned().collect();
        for hash in hashes.into_iter().filter(|hash| !known.contains(hash)) {
            let Some(key) = key_in(Room::Indexes, &hash) else {
                continue;
            };
            let sealed = self.objects.get(&key, INDEX_BYTES_MAX)?;
            let entries = open_index(&self.realm, &hash, &sealed)
                .ok_or_else(|| self.wrong(&key, "it is no index of this realm"))?;
            self.index().add(hash, entries);
        }
        Ok(())
    }

    pub(crate) fn wrong(&self, key: &Key, reason: impl Into<String>) -> SourceError {
        SourceError::Wrong {
            place: self.place(),
            key: key.clone(),
            reason: reason.into(),
        }
    }

    /// Is an object in a pack that is known?
    pub(crate) fn has(&self, key: &ObjectKey) -> bool {
        self.index().places.contains_key(&name_of(&self.realm, key))
    }

    /// Puts a pack, then its index.
    pub(crate) fn put_pack(&self, pack: SealedPack) -> Result<()> {
        let key = |room| key_in(room, &pack.hash).expect("a hash is a hash");
        self.objects.put_new(&key(Room::Packs), &pack.bytes)?;
        self.objects.put_new(&key(Room::Indexes), &pack.index)?;
        self.index().add(pack.hash, pack.entries);
        Ok(())
    }

    /// The packs that have these objects, all of which are known.
    pub(crate) fn packs_of<'a>(&self, keys: impl IntoIterator<Item = &'a ObjectKey>) -> BTreeSet<String> {
        let index = self.index();
        let places = keys
            .into_iter()
            .filter_map(|key| index.places.get(&name_of(&self.realm, key)));
        let packs: BTreeSet<u32> = places.map(|(pack, _)| *pack).collect();
        packs
            .into_iter()
            .map(|pack| index.packs[pack as usize].clone())
            .collect()
    }

    /// Notes in which packs a snapshot is, for those who cannot list packs. It stays as it was first noted.
    pub(crate) fn put_contents(&self, snapshot: &ObjectKey, packs: &BTreeSet<String>) -> Result<()> {
        let (key, about) = self.contents_key(snapshot);
        let list: Vec<&str> = packs.iter().map(String::as_str).collect();
        let sealed = self.realm.seal(&about, list.join("\n").as_bytes());
        self.objects.put_new(&key, &sealed).map(drop)
    }

    /// In which packs a snapshot was when it was pushed.
    pub(crate) fn contents(&self, snapshot: &ObjectKey) -> Result<Vec<String>> {
        let (key, about) = self.contents_key(snapshot);
        let sealed = self.objects.get(&key, CONTENTS_BYTES_MAX)?;
        let list = self
            .realm
            .open(&about, &sealed)
            .and_then(|list| String::from_utf8(list).ok())
            .ok_or_else(|| self.wrong(&key, "it is no list of packs of this realm"))?;
        Ok(list.lines().map(str::to_owned).collect())
    }

    fn contents_key(&self, snapshot: &ObjectKey) -> (Key, Name) {
        let name = name_of(&self.realm, snapshot);
        let hex = blake3::Hash::from_bytes(name).to_hex();
        (
            Key::new(Room::Contents, hex.as_str()).expect("a hash is a name"),
            name,
        )
    }

    /// Gets objects, in the order in which they lie there. Each is opened, and its content is not verified yet.
    pub(crate) fn fetch(
        &self,
        keys: impl IntoIterator<Item = ObjectKey>,
        mut each: impl FnMut(Stored, u64) -> Result<()>,
    ) -> Result<()> {
        let mut by_pack: BTreeMap<u32, Vec<(Extent, ObjectKey)>> = BTreeMap::new();
        {
            let index = self.index();
            for key in keys {
                let (pack, extent) =
                    index
                        .places
                        .get(&name_of(&self.realm, &key))
                        .ok_or_else(|| SourceError::Incomplete {
                            place: self.place(),
                            object: key.to_string(),
                        })?;
                by_pack.entry(*pack).or_default().push((*extent, key));
            }
        }
        for (pack, mut records) in by_pack {
            let hash = self.index().packs[pack as usize].clone();
            let pack = key_in(Room::Packs, &hash).expect("it was one when it was learnt");
            records.sort_unstable_by_key(|(extent, _)| extent.offset);
            for run in runs(&records) {
                let (start, end) = (run[0].0.offset, end_of(&run[run.len() - 1].0));
                let bytes = self.objects.get_range(&pack, start.into()..end.into())?;
                for (extent, key) in run {
                    let at = (extent.offset - start) as usize;
                    let sealed = bytes.get(at..at + extent.len as usize).unwrap_or_default();
                    let object = open_record(&self.realm, key, sealed)
                        .ok_or_else(|| self.wrong(&pack, format!("{key} is not in it as it was")))?;
                    each(object, extent.len.into())?;
                }
            }
        }
        Ok(())
    }
}

impl Index {
    fn add(&mut self, hash: String, entries: Vec<(Name, Extent)>) {
        let pack = self.packs.len() as u32;
        self.packs.push(hash);
        for (name, extent) in entries {
            self.places.entry(name).or_insert((pack, extent));
        }
    }
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
            next.offset > end_of(&records[at - 1].0).saturating_add(GAP_BYTES)
                || end_of(next) - records[begin].0.offset > READ_BYTES
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
    use martlet_store::Kind;

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
}
