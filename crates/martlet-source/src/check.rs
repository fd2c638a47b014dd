//! Does a remote keep its word? Some servers answer that they put an object where there was none, and replace it.

use crate::unique::{now_unix_s, unique_name};
use crate::{Key, Objects, Put, Result, Room, SourceError};

/// Tries a remote out, and takes away what that left. What can only be read is believed.
pub fn check(remote: &dyn Objects) -> Result<()> {
    if !remote.is_writable() {
        return Ok(());
    }
    let key = Key::new(Room::Checks, unique_name(now_unix_s())).expect("letters and digits fit");
    let tried = try_out(remote, &key);
    let removed = remote.remove(&key);
    tried.and(removed)
}

fn try_out(remote: &dyn Objects, key: &Key) -> Result<()> {
    let wrong = |reason: &str| {
        Err(SourceError::Wrong {
            place: remote.place(),
            key: key.clone(),
            reason: reason.into(),
        })
    };
    if remote.put_new(key, b"first")? != Put::Made {
        return wrong("a new object was there already");
    }
    if remote.put_new(key, b"second")? != Put::WasThere {
        return wrong("it puts an object in place of another, though told to only where there is none");
    }
    if remote.get(key, 100)? != b"first" {
        return wrong("it gives back something else than was put");
    }
    if remote.get_range(key, 1..3)? != b"ir" {
        return wrong("it does not give parts of objects");
    }
    match remote.list(key.room())?.iter().any(|entry| entry.key == *key) {
        true => Ok(()),
        false => wrong("it does not list what was just put"),
    }
}
