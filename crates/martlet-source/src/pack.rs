//! Packs of a remote, and their indexes.
//!
//! ```text
//! packs/HASH     salt 16 | sealed records, one after the other; HASH is that of all of it
//! indexes/HASH   sealed: for each record   0  name in the realm 32 | 32  offset 4 | 36  length 4
//! record         sealed for its name:      0  codec 1 | 1  content length 4 | 5  stored bytes
//! ```
//!
//! An index is put after its pack: what it names is there. The salt is that of the push, so that no two pushes make the same
//! pack: one that was removed never comes back, and whoever is late to remove it removes nothing else.

use crate::realm::{Realm, SEAL_BYTES};
use crate::{Key, Room};
use martlet_image::Codec;
use martlet_store::{Key as ObjectKey, Stored};
use std::fmt;

/// A pack is closed when it is as large as this; the last record may make it larger.
pub const PACK_BYTES: usize = 16 << 20;
/// No index is larger: packs of the smallest records.
pub const INDEX_BYTES_MAX: u64 = 32 << 20;
/// What is before the records.
pub const SALT_BYTES: usize = 16;
const ENTRY: usize = 40;
const RECORD_HEADER: usize = 5;

/// What an object is called in a realm.
pub type Name = [u8; 32];

/// The hash of a pack, which it and its index are called by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackHash(pub [u8; 32]);

impl PackHash {
    /// That of an object of one of their rooms; None if that is called otherwise.
    pub fn of(key: &Key) -> Option<Self> {
        let hash = Self(*blake3::Hash::from_hex(key.name()).ok()?.as_bytes());
        (hash.key(key.room()) == *key).then_some(hash)
    }

    /// The pack, or its index.
    pub fn key(&self, room: Room) -> Key {
        Key::new(room, self.to_string()).expect("a hash fits")
    }
}

impl fmt::Display for PackHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for PackHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackHash({self})")
    }
}

/// Where a record is in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the pack.
    pub offset: u32,
    /// Length.
    pub len: u32,
}

/// The name of an object in a realm.
pub fn name_of(realm: &Realm, key: &ObjectKey) -> Name {
    let mut what = [0; 33];
    what[0] = key.kind as u8;
    what[1..].copy_from_slice(&key.id);
    realm.name(&what)
}

/// A pack that is being filled.
#[derive(Debug)]
pub struct PackBuilder {
    bytes: Vec<u8>,
    entries: Vec<(Name, Extent)>,
}

/// A pack and its index, as they are put.
#[derive(Debug)]
pub struct SealedPack {
    /// What both are called.
    pub hash: PackHash,
    /// The pack.
    pub bytes: Vec<u8>,
    /// Its index, sealed.
    pub index: Vec<u8>,
    /// The same, open.
    pub entries: Vec<(Name, Extent)>,
}

impl PackBuilder {
    /// An empty one, of a push.
    pub fn new(salt: &[u8; SALT_BYTES]) -> Self {
        Self {
            bytes: salt.to_vec(),
            entries: Vec::new(),
        }
    }

    /// Adds an object.
    pub fn add(&mut self, realm: &Realm, object: &Stored) {
        let name = name_of(realm, &object.key);
        let mut record = Vec::with_capacity(RECORD_HEADER + object.bytes.len());
        record.push(object.codec as u8);
        record.extend(object.content_len.to_le_bytes());
        record.extend(&object.bytes);
        let sealed = realm.seal(&name, &record);
        let extent = Extent {
            offset: self.bytes.len() as u32,
            len: sealed.len() as u32,
        };
        self.bytes.extend(sealed);
        self.entries.push((name, extent));
    }

    /// Is it time to close it?
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= PACK_BYTES
    }

    /// Closes it.
    pub fn close(self, realm: &Realm) -> SealedPack {
        let hash = PackHash(*blake3::hash(&self.bytes).as_bytes());
        let mut index = Vec::with_capacity(self.entries.len() * ENTRY);
        for (name, extent) in &self.entries {
            index.extend(name);
            index.extend(extent.offset.to_le_bytes());
            index.extend(extent.len.to_le_bytes());
        }
        SealedPack {
            index: realm.seal(hash.to_string().as_bytes(), &index),
            hash,
            bytes: self.bytes,
            entries: self.entries,
        }
    }
}

/// What the index of the pack called `hash` says. None if it is not one of this realm.
pub fn open_index(realm: &Realm, hash: &PackHash, sealed: &[u8]) -> Option<Vec<(Name, Extent)>> {
    decode_index(&realm.open(hash.to_string().as_bytes(), sealed)?)
}

pub(crate) fn decode_index(index: &[u8]) -> Option<Vec<(Name, Extent)>> {
    let (entries, rest) = index.as_chunks::<ENTRY>();
    let word = |entry: &[u8; ENTRY], at: usize| Some(u32::from_le_bytes(*entry[at..].first_chunk()?));
    let entry = |entry: &[u8; ENTRY]| {
        let extent = Extent {
            offset: word(entry, 32)?,
            len: word(entry, 36)?,
        };
        extent.offset.checked_add(extent.len)?;
        Some((*entry.first_chunk()?, extent))
    };
    entries
        .iter()
        .map(entry)
        .collect::<Option<_>>()
        .filter(|_| rest.is_empty())
}

/// The object that a record is. None if it is not that of `key` in this realm. Its content is not verified yet.
pub fn open_record(realm: &Realm, key: &ObjectKey, sealed: &[u8]) -> Option<Stored> {
    let mut record = realm.open(&name_of(realm, key), sealed)?;
    let header = *record.first_chunk::<RECORD_HEADER>()?;
    let bytes = record.split_off(RECORD_HEADER);
    Some(Stored {
        key: *key,
        codec: Codec::try_from(header[0]).ok()?,
        content_len: u32::from_le_bytes(*header[1..].first_chunk()?),
        bytes,
    })
}

/// What a record takes of which so many bytes are stored.
pub fn sealed_bytes(stored_len: usize) -> u64 {
    (stored_len + RECORD_HEADER + SEAL_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use martlet_store::Kind;

    fn object(id: u8, len: usize) -> Stored {
        Stored {
            key: ObjectKey::new(Kind::Frame, [id; 32]),
            codec: Codec::Raw,
            content_len: len as u32,
            bytes: vec![id; len],
        }
    }

    #[test]
    fn each_object_is_found_by_the_index() {
        let realm = Realm::new(&[3; 32]);
        let objects = [object(1, 10), object(2, 0), object(3, 70_000)];
        let mut builder = PackBuilder::new(&[1; SALT_BYTES]);
        objects.iter().for_each(|object| builder.add(&realm, object));
        let pack = builder.close(&realm);
        assert_eq!(PackHash::of(&pack.hash.key(Room::Packs)), Some(pack.hash));
        let mut salted = PackBuilder::new(&[2; SALT_BYTES]);
        objects.iter().for_each(|object| salted.add(&realm, object));
        assert_ne!(salted.close(&realm).hash, pack.hash);
        let index = open_index(&realm, &pack.hash, &pack.index).unwrap();
        assert_eq!(index, pack.entries);
        for (object, (name, Extent { offset, len })) in objects.iter().zip(index) {
            assert_eq!(name, name_of(&realm, &object.key));
            assert_eq!(u64::from(len), sealed_bytes(object.bytes.len()));
            let sealed = &pack.bytes[offset as usize..][..len as usize];
            assert_eq!(open_record(&realm, &object.key, sealed).unwrap(), *object);
            // It is no other's.
            assert_eq!(
                open_record(&realm, &ObjectKey::new(Kind::Blob, object.key.id), sealed),
                None
            );
        }
    }

    #[test]
    fn an_index_of_another_realm_or_pack_is_none() {
        let realm = Realm::new(&[3; 32]);
        let mut builder = PackBuilder::new(&[1; SALT_BYTES]);
        builder.add(&realm, &object(1, 10));
        let pack = builder.close(&realm);
        assert_eq!(open_index(&Realm::new(&[4; 32]), &pack.hash, &pack.index), None);
        assert_eq!(open_index(&realm, &PackHash([0; 32]), &pack.index), None);
        // Sealed by somebody who knows the realm, and still not believed.
        for bad in [vec![0; ENTRY - 1], vec![0xff; ENTRY]] {
            let sealed = realm.seal(pack.hash.to_string().as_bytes(), &bad);
            assert_eq!(open_index(&realm, &pack.hash, &sealed), None);
        }
    }
}
