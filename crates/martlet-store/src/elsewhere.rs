//! Frames that are needed here and are not here yet.
//!
//! ```text
//!   Store::frame ──► here and whole ──no──► Elsewhere::fetch ──► verified ──► the caller
//!                                      └─ stores it, so that it is here from then on
//! ```
//!
//! A snapshot whose frames are promised can be used as if it were here: a read takes longer. Without the promise a frame
//! that is missing is missing.

use crate::record::{Key, Kind};
use crate::store::{Inner, Store};
use crate::{Result, StoreError, Stored};
use martlet_image::FrameId;
use std::fmt::Debug;
use std::sync::{Arc, Weak};

/// Who has frames that are not here.
pub trait Elsewhere: Debug + Send + Sync {
    /// Can this frame be had?
    fn promises(&self, frame: &FrameId) -> bool;

    /// Gets a frame. Blocks for as long as it takes. Its content is not believed.
    fn fetch(&self, frame: &FrameId) -> Result<Stored>;
}

impl Store {
    /// Asks `elsewhere`, while that lives, for frames that are not here. Once for a store: later calls change nothing.
    pub fn set_elsewhere(&self, elsewhere: Weak<dyn Elsewhere>) {
        let _ = self.inner.elsewhere.set(elsewhere);
    }

    /// The pages of a frame, read from disk and verified; got from elsewhere if that is where it is. Not cached here.
    pub fn frame(&self, id: &FrameId) -> Result<Arc<[u8]>> {
        let key = Key::new(Kind::Frame, id.0);
        match self.inner.read(key) {
            Err(error @ (StoreError::NotFound(_) | StoreError::Damaged { .. })) => {
                match self.inner.fetch(&key) {
                    Some(fetched) => Ok(fetched?.content()?.into()),
                    None => Err(error),
                }
            }
            read => Ok(read?.into()),
        }
    }
}

impl Inner {
    fn elsewhere(&self) -> Option<Arc<dyn Elsewhere>> {
        self.elsewhere.get()?.upgrade()
    }

    /// Is this a frame that is promised?
    pub(crate) fn is_promised(&self, key: &Key) -> bool {
        key.kind == Kind::Frame
            && self
                .elsewhere()
                .is_some_and(|elsewhere| elsewhere.promises(&FrameId(key.id)))
    }

    /// Gets what is promised; `None` for what is not.
    pub(crate) fn fetch(&self, key: &Key) -> Option<Result<Stored>> {
        let elsewhere = self.elsewhere().filter(|_| self.is_promised(key))?;
        Some(
            elsewhere
                .fetch(&FrameId(key.id))
                .and_then(|stored| match stored.key == *key {
                    true => Ok(stored),
                    false => Err(StoreError::Invalid(format!("{} came for {key}", stored.key))),
                }),
        )
    }
}
