//! What was seen of refs before, so that a place that shows an older state is found out.
//!
//! ```text
//! newest shown:   older than what was seen, or gone ──► refused
//!                 what was seen                     ──► its hash must be the same
//!                 newer ──► back along the chain to what was seen, whose hash must be the same ──► seen from now on
//! ```

use crate::refs::Ref;
use crate::{Remote, Result, SourceError};
use martlet_store::RefName;
use std::fmt::Debug;

/// A version of a ref, by number and hash.
pub type Version = (u32, [u8; 32]);

/// Who remembers what was seen, over the life of a process. A remote has its own. When it cannot, nothing is believed.
pub trait Seen: Debug + Send + Sync {
    /// The newest version that was seen of a name.
    fn newest(&self, name: &RefName) -> Result<Option<Version>>;

    /// A newer one is seen. It is remembered before anything comes of it.
    fn saw(&self, name: &RefName, version: Version) -> Result<()>;
}

impl Remote {
    /// Compares what is shown as the newest version of a ref with what was seen before.
    pub(crate) fn compare_with_seen(&self, name: &RefName, shown: Option<&Ref>) -> Result<()> {
        let Some(seen) = &self.seen else {
            return Ok(());
        };
        let before = seen.newest(name)?;
        let rolled_back = || SourceError::RolledBack {
            place: self.place(),
            name: name.to_string(),
            seen: before.map_or(0, |(version, _)| version),
            shown: shown.map_or(0, |shown| shown.version),
        };
        match (before, shown) {
            (None, None) => return Ok(()),
            (Some(_), None) => return Err(rolled_back()),
            (Some((version, hash)), Some(shown)) => {
                let mut at = shown.clone();
                while at.version > version {
                    let below = self.version_of(name, at.version - 1)?;
                    at = below
                        .filter(|below| below.hash == at.before)
                        .ok_or_else(rolled_back)?;
                }
                if (at.version, at.hash) != (version, hash) {
                    return Err(rolled_back());
                }
            }
            (None, Some(_)) => {}
        }
        match shown.filter(|shown| before.is_none_or(|(version, _)| version < shown.version)) {
            Some(newer) => seen.saw(name, (newer.version, newer.hash)),
            None => Ok(()),
        }
    }
}
