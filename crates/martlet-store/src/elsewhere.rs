//! Frames and blobs that are needed here and are not here yet.
//!
//! ```text
//!   Store::frame ──► here and whole ──no──► Elsewhere::fetch ──► verified ──► the caller
//!                                      └─ stores it, so that it is here from then on
//! ```
//!
//! A snapshot whose frames and blobs are promised can be used as if it were here: a read takes longer. Without the promise what is
//! missing is missing.

use crate::record::{Key, Kind};
use crate::store::{Inner, Store};
use crate::{Result, StoreError, Verified};
use bytes::Bytes;
use martlet_image::{BlobId, FrameId};
use std::fmt::Debug;
use std::sync::{Arc, Weak};

/// Who has frames and blobs that are not here.
pub trait Elsewhere: Debug + Send + Sync {
    /// Can this object be had?
    fn promises(&self, key: &Key) -> bool;

    /// Gets an object; none, if it is not promised. Blocks for as long as it takes.
    fn fetch(&self, key: &Key) -> Option<Result<Verified>>;
}

impl Store {
    /// Asks `elsewhere`, while that lives, for what is not here. Once for a store: later calls change nothing.
    pub fn set_elsewhere(&self, elsewhere: Weak<dyn Elsewhere>) {
        let _ = self.inner.elsewhere.set(elsewhere);
    }

    /// The pages of a frame, read from disk and verified; got from elsewhere if that is where it is. Not cached here.
    pub fn frame(&self, id: &FrameId) -> Result<Bytes> {
        self.read_or_fetch(Key::new(Kind::Frame, id.0))
    }

    /// A blob, verified; got from elsewhere if that is where it is.
    pub fn blob(&self, id: &BlobId) -> Result<Bytes> {
        self.read_or_fetch(Key::new(Kind::Blob, id.0))
    }

    fn read_or_fetch(&self, key: Key) -> Result<Bytes> {
        let location = self.inner.index.get(&key)?;
        let read = location.map(|location| self.inner.read_from(key, Some(location)));
        match read {
            Some(Err(StoreError::NotFound(_) | StoreError::Damaged { .. })) | None => {
                match self.inner.fetch(&key) {
                    Some(fetched) => fetched.map(Verified::into_content),
                    None => read.unwrap_or_else(|| Err(StoreError::NotFound(key.to_string()))),
                }
            }
            Some(read) => read,
        }
    }
}

impl Inner {
    fn elsewhere(&self) -> Option<Arc<dyn Elsewhere>> {
        self.elsewhere.get()?.upgrade()
    }

    /// Is it promised?
    pub(crate) fn is_promised(&self, key: &Key) -> bool {
        let can_be = matches!(key.kind, Kind::Frame | Kind::Blob);
        can_be && self.elsewhere().is_some_and(|elsewhere| elsewhere.promises(key))
    }

    /// Gets what is promised; `None` for what is not.
    pub(crate) fn fetch(&self, key: &Key) -> Option<Result<Verified>> {
        let is_it = |fetched: Verified| match fetched.stored().key {
            came if came == *key => Ok(fetched),
            came => Err(StoreError::Invalid(format!("{came} came for {key}"))),
        };
        Some(self.elsewhere()?.fetch(key)?.and_then(is_it))
    }
}
