//! What every remote can do.

use crate::{Key, Result, Room};
use std::fmt::Debug;
use std::ops::Range;

/// What became of an object that was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is there now.
    Made,
    /// Something was there already, and is untouched.
    WasThere,
}

/// An object as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its name.
    pub key: Key,
    /// Its size.
    pub size_bytes: u64,
}

/// A place that keeps objects. An object is there wholly or not at all, and is never changed: all that needs one to be
/// (what a name stands for, who holds a lease) makes a new one with the next number instead, which only one can. So the one
/// condition that a remote has to know is *if there is none*, and what was true once stays to be looked at.
///
/// Calls block. They end: by an answer, or by [`crate::SourceError::Unavailable`] after some tries and some time.
pub trait Objects: Debug + Send + Sync {
    /// What it is called in messages.
    fn place(&self) -> String;

    /// Can anything be put?
    fn is_writable(&self) -> bool {
        true
    }

    /// An object of at most `size_bytes_max` bytes. One that is larger is wrong.
    fn get(&self, key: &Key, size_bytes_max: u64) -> Result<Vec<u8>>;

    /// A part of an object, all of it: less is wrong.
    fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>>;

    /// The same, handed on piece by piece as it comes, where it can be.
    fn read_range(
        &self,
        key: &Key,
        range: Range<u64>,
        each: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        each(&self.get_range(key, range)?)
    }

    /// Puts an object where there is none. When it returns the object is durable.
    fn put_new(&self, key: &Key, bytes: &[u8]) -> Result<Put>;

    /// All objects of a room, by name. What was put before is among them; what is put meanwhile may be or not.
    fn list(&self, room: Room) -> Result<Vec<Entry>>;

    /// Removes an object. It is no error if there is none.
    fn remove(&self, key: &Key) -> Result<()>;

    /// Clears away what is no object: what writers left that died more than a day ago.
    fn tidy(&self) -> Result<()> {
        Ok(())
    }
}
