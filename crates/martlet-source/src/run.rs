//! How far garbage collection is: what is condemned, for pushes to keep away from.
//!
//! ```text
//! condemned/run@00000001 ◄── condemned/run@00000002 ◄── …      the newest counts; it and the one before are there
//! sealed for the object's name:  0  stage 1 | 1  stamp | .. count 4 | hashes of packs, 32 each | intents, 16 each
//! ```
//!
//! Each step of a collection is the next number, which only one of several collectors can put; so all agree on what is done,
//! and any of them goes on from where another was cut short. One who is late puts a number below the newest, if that was
//! cleared away, which counts for nothing.

use crate::intent::IntentId;
use crate::pack::PackHash;
use crate::{Key, Remote, Result, Room, SourceError, Stamp};
use std::collections::BTreeSet;

const RUN_BYTES_MAX: u64 = 8 << 20;
/// In one run; what is left is for the next.
pub(crate) const PACKS_MAX: usize = 100_000;

/// What comes next in a collection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing is condemned.
    #[default]
    Idle,
    /// To see who is pushing.
    Condemned,
    /// To wait for those who were.
    Waiting,
    /// To remove the packs. No others are condemned any more.
    Doomed,
}

/// A step of a collection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) stage: Stage,
    pub(crate) by: Stamp,
    pub(crate) packs: BTreeSet<PackHash>,
    pub(crate) intents: BTreeSet<IntentId>,
}

impl Run {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.stage as u8];
        bytes.extend(self.by.encode());
        bytes.extend((self.packs.len() as u32).to_le_bytes());
        bytes.extend(self.packs.iter().flat_map(|pack| pack.0));
        bytes.extend(self.intents.iter().flatten());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (stage, rest) = bytes.split_first()?;
        let (by, rest) = Stamp::decode(rest)?;
        let (count, rest) = rest.split_first_chunk()?;
        let packs_len = (u32::from_le_bytes(*count) as usize).checked_mul(32)?;
        let (packs, rest) = rest.split_at_checked(packs_len)?;
        let (intents, rest) = rest.as_chunks();
        rest.is_empty().then_some(Self {
            stage: match stage {
                0 => Stage::Idle,
                1 => Stage::Condemned,
                2 => Stage::Waiting,
                3 => Stage::Doomed,
                _ => return None,
            },
            by,
            packs: packs.as_chunks().0.iter().map(|pack| PackHash(*pack)).collect(),
            intents: intents.iter().copied().collect(),
        })
    }
}

impl Remote {
    /// The newest step, and its number.
    pub(crate) fn run(&self) -> Result<(u32, Run)> {
        let mut missed = None;
        loop {
            let listed = self.objects.list(Room::Condemned)?;
            let numbers = listed.iter().filter_map(|entry| entry.key.number());
            let Some((_, number)) = numbers.filter(|(name, _)| *name == "run").max() else {
                return Ok((0, Run::default()));
            };
            let key = run_key(number);
            match self.objects.get(&key, RUN_BYTES_MAX) {
                // The next one has come meanwhile.
                Err(SourceError::NotFound { .. }) if missed.replace(number) != Some(number) => {}
                sealed => {
                    let content = self.realm.open(key.name().as_bytes(), &sealed?);
                    let run = content.and_then(|content| Run::decode(&content));
                    let run = run.ok_or_else(|| self.wrong(&key, "it is no collection of this realm"))?;
                    return Ok((number, run));
                }
            }
        }
    }

    /// Goes on from step `number`, unless somebody else has. That one stays until the next, for who is listing meanwhile.
    pub(crate) fn put_run(&self, number: u32, next: &Run) -> Result<()> {
        let key = run_key(number + 1);
        let sealed = self.realm.seal(key.name().as_bytes(), &next.encode());
        self.objects.put_new(&key, &sealed)?;
        let mut newest = 0;
        for entry in self.objects.list(Room::Condemned)? {
            let Some(("run", there)) = entry.key.number() else {
                continue;
            };
            newest = newest.max(there);
            if there < number {
                self.objects.remove(&entry.key)?;
            }
        }
        match newest > number {
            true => Ok(()),
            false => Err(self.wrong(&key, "it does not list what was just put")),
        }
    }
}

fn run_key(number: u32) -> Key {
    Key::numbered(Room::Condemned, "run", number).expect("letters and digits fit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_comes_back_and_what_is_no_run_is_none() {
        for stage in [Stage::Idle, Stage::Condemned, Stage::Waiting, Stage::Doomed] {
            let run = Run {
                stage,
                by: Stamp {
                    unix_s: 5,
                    host: "there".into(),
                },
                packs: (0..3).map(|pack| PackHash([pack; 32])).collect(),
                intents: BTreeSet::from([[7; 16]]),
            };
            let bytes = run.encode();
            assert_eq!(Run::decode(&bytes), Some(run));
            assert_eq!(Run::decode(&[&[4], &bytes[1..]].concat()), None);
            let without_intents = bytes.len() - 16;
            for len in (0..bytes.len()).filter(|len| *len != without_intents) {
                assert_eq!(Run::decode(&bytes[..len]), None);
            }
        }
    }
}
