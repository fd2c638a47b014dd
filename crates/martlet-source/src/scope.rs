//! The objects of one realm at a place that several realms may share.
//!
//! Their names begin with the realm's id, so that a realm that is read or cleaned up does not come across another's, of
//! which it could not tell what is needed.

use crate::{Entry, Key, Objects, Put, Realm, Result, Room, SourceError};
use std::ops::Range;
use std::sync::Arc;

/// See the module's documentation.
#[derive(Debug)]
pub struct Scope {
    place: Arc<dyn Objects>,
    prefix: String,
}

impl Scope {
    /// That of a realm.
    pub fn new(place: Arc<dyn Objects>, realm: &Realm) -> Self {
        Self {
            place,
            prefix: format!("{}-", realm.id()),
        }
    }

    /// Of what tries leave there are no realms: they are made before one is chosen.
    fn is_of_all(room: Room) -> bool {
        room == Room::Checks
    }

    fn outer(&self, key: &Key) -> Result<Key> {
        if Self::is_of_all(key.room()) {
            return Ok(key.clone());
        }
        Key::new(key.room(), format!("{}{}", self.prefix, key.name())).ok_or_else(|| SourceError::Wrong {
            place: self.place(),
            key: key.clone(),
            reason: "its name is too long".into(),
        })
    }
}

impl Objects for Scope {
    fn place(&self) -> String {
        self.place.place()
    }

    fn is_writable(&self) -> bool {
        self.place.is_writable()
    }

    fn get(&self, key: &Key, size_bytes_max: u64) -> Result<Vec<u8>> {
        self.place.get(&self.outer(key)?, size_bytes_max)
    }

    fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        self.place.get_range(&self.outer(key)?, range)
    }

    fn read_range(
        &self,
        key: &Key,
        range: Range<u64>,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.place.read_range(&self.outer(key)?, range, each)
    }

    fn put_new(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.place.put_new(&self.outer(key)?, bytes)
    }

    fn list(&self, room: Room) -> Result<Vec<Entry>> {
        if Self::is_of_all(room) {
            return self.place.list(room);
        }
        let inner = |entry: Entry| {
            let name = entry.key.name().strip_prefix(&self.prefix)?;
            Some(Entry {
                key: Key::new(room, name)?,
                size_bytes: entry.size_bytes,
            })
        };
        Ok(self.place.list(room)?.into_iter().filter_map(inner).collect())
    }

    fn remove(&self, key: &Key) -> Result<()> {
        self.place.remove(&self.outer(key)?)
    }

    fn tidy(&self) -> Result<()> {
        self.place.tidy()
    }
}
