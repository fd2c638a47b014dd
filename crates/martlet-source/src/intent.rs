//! Who is pushing: `intents/RANDOM`, there from before a push relies on anything until its end. Sealed for its name: a stamp.
//!
//! What a push may rely on is not removed while its intent is there ([`crate::gc()`]). Of one that was killed it stays, and
//! counts no more after [`STALE_S`]; so a push that lives must have ended long before, and gives up after [`PUSH_S`].

use crate::unique::{DAY_S, random};
use crate::{Key, Remote, Result, Room, SourceError, Stamp};
use std::time::{Duration, Instant};

/// No push takes longer.
pub(crate) const PUSH_S: u64 = DAY_S;
/// Days more, for clocks that are wrong and for hosts that slept between looking at the time and putting a ref.
pub(crate) const STALE_S: u64 = 7 * DAY_S;
const INTENT_BYTES_MAX: u64 = 1 << 10;

/// The name of an intent, and the salt of the packs of its push.
pub(crate) type IntentId = [u8; 16];

/// An intent of ours. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Intent<'a> {
    remote: &'a Remote,
    pub(crate) id: IntentId,
    began: Instant,
    began_unix_s: u64,
}

impl Drop for Intent<'_> {
    fn drop(&mut self) {
        // If it cannot be removed it counts as that of a push that was killed.
        let _ = self.remote.objects.remove(&key(self.id));
    }
}

impl Intent<'_> {
    /// Does it still count, for long enough to put a ref?
    pub(crate) fn check(&self) -> Result<()> {
        let by_calendar = self.remote.now().abs_diff(self.began_unix_s) < PUSH_S;
        match by_calendar && self.began.elapsed() < Duration::from_secs(PUSH_S) {
            true => Ok(()),
            false => Err(SourceError::TooLong {
                place: self.remote.place(),
            }),
        }
    }
}

impl Remote {
    /// Says that something is about to be pushed.
    pub(crate) fn intend(&self) -> Result<Intent<'_>> {
        let stamp = self.stamp();
        let intent = Intent {
            remote: self,
            id: random(),
            began: Instant::now(),
            began_unix_s: stamp.unix_s,
        };
        let key = key(intent.id);
        let sealed = self.realm.seal(key.name().as_bytes(), &stamp.encode());
        self.objects.put_new(&key, &sealed)?;
        Ok(intent)
    }

    /// Who is pushing. What pushes left that were killed long ago is removed.
    pub(crate) fn intents(&self) -> Result<Vec<(IntentId, Stamp)>> {
        let mut intents = Vec::new();
        for entry in self.objects.list(Room::Intents)? {
            let Some(id) = id_of(&entry.key) else { continue };
            let sealed = match self.objects.get(&entry.key, INTENT_BYTES_MAX) {
                Err(SourceError::NotFound { .. }) => continue, // it has ended meanwhile
                sealed => sealed?,
            };
            let content = self.realm.open(entry.key.name().as_bytes(), &sealed);
            let stamp = content
                .and_then(|content| decode(&content))
                .ok_or_else(|| self.wrong(&entry.key, "it is no intent of this realm"))?;
            match self.now().saturating_sub(stamp.unix_s) > STALE_S {
                true => self.objects.remove(&entry.key)?,
                false => intents.push((id, stamp)),
            }
        }
        Ok(intents)
    }
}

pub(crate) fn decode(content: &[u8]) -> Option<Stamp> {
    let (stamp, rest) = Stamp::decode(content)?;
    rest.is_empty().then_some(stamp)
}

fn key(id: IntentId) -> Key {
    Key::new(Room::Intents, format!("{:032x}", u128::from_be_bytes(id))).expect("digits fit")
}

fn id_of(of: &Key) -> Option<IntentId> {
    let id = u128::from_str_radix(of.name(), 16).ok()?.to_be_bytes();
    (key(id) == *of).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Directory, Realm};
    use martlet_store::faulty::FaultyFiles;
    use std::cell::Cell;
    use std::path::Path;
    use std::sync::Arc;

    thread_local!(static NOW: Cell<u64> = const { Cell::new(1_800_000_000) });

    #[test]
    fn an_intent_is_there_until_its_end_and_counts_for_a_day() {
        let directory = Directory::on(Path::new("/remote"), Arc::new(FaultyFiles::new()));
        let remote = Remote::new(Arc::new(directory), Realm::new(&[7; 32]));
        let remote = remote.with_host("here").with_clock(|| NOW.get());
        let intent = remote.intend().unwrap();
        assert_eq!(remote.intents().unwrap(), [(intent.id, remote.stamp())]);
        intent.check().unwrap();
        for later in [NOW.get() + PUSH_S, NOW.get() - PUSH_S] {
            let before = NOW.replace(later);
            let error = intent.check().unwrap_err();
            assert!(matches!(error, SourceError::TooLong { .. }) && error.is_retryable());
            NOW.set(before);
        }
        drop(intent);
        assert_eq!(remote.intents().unwrap(), []);
    }
}
