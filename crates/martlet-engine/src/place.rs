//! Places that have what is away.

use martlet_source::SourceError;
use martlet_store::{Key, Verified};
use std::fmt::Debug;
use std::sync::Arc;

/// A place that has frames and blobs.
///
/// Separate from a remote, so that a peer or a carried disk can be one as well.
pub trait Place: Debug + Send + Sync {
    /// What it is called in messages.
    fn name(&self) -> String;
    /// Who an object comes from, as people call it, if that is not the place itself.
    fn giver(&self, _object: &Key) -> Option<Arc<str>> {
        None
    }
    /// Frames and blobs, in any order.
    fn objects(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<(), SourceError>;
    /// The same, in this order, and each as soon as it has come, where that can be.
    fn in_turn(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        self.objects(keys, each)
    }
    /// The same, of what nobody waits for.
    fn behind(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        self.objects(keys, each)
    }
}

/// How to reach a place, which may not be possible now.
pub type Open = Box<dyn Fn() -> Result<Arc<dyn Place>, SourceError> + Send + Sync>;

impl Place for martlet_source::Remote {
    fn name(&self) -> String {
        self.place()
    }

    fn objects(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        self.frames(keys.iter().copied(), |stored| each(stored.verify()?))
    }

    fn in_turn(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        self.in_turn(keys, |stored| each(stored.verify()?))
    }
}
