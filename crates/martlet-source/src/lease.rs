//! Who may go on with a machine: a lease on its name.
//!
//! ```text
//!                  acquire                 publish                    release
//!   free ─────────────────────► held by A ─────────► held by A ─────────────────► free
//!   version n       put n + 1        │     put n + 2            put n + 3
//!                                    │ break, or expired: put by B
//!                                    └──────────────────────────────► held by B      A: lost, at its next version
//! ```
//!
//! The lease is part of a version of the name, and each version is made only once: so the number of a version is a fencing
//! token, and of two hosts that want a name one gets it, whatever their clocks say. Whoever lost a lease finds that out by
//! the version it can no longer put.
//!
//! Whether a holder is still there is another question, which only decides whether it may be *presumed* gone. It puts beats,
//! `leases/ID@00000001` and so on, and an observer that has seen no new one for as long as the lease lasts, by its own clock,
//! takes the name over. No clock is compared with another's. One that is checked out has no beats; it says until when.
//! Others ask a holder to let go by `leases/ID-asked@00000001`.
//!
//! ```text
//!  in a ref   0  is there one 1 | 1  id 16 | 17  lasts, seconds 4 | 21  checked out until, unix seconds, or 0: 8
//!  a beat     sealed for its name: a stamp
//! ```

use crate::unique::random;
use crate::{Key, Ref, Remote, Result, Room, SourceError, Stamp};
use martlet_store::RefName;
use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

const BEAT_BYTES_MAX: u64 = 1 << 10;

/// Which of all leases one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub [u8; 16]);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl FromStr for LeaseId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(|id| Self(id.to_be_bytes()))
    }
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Which one it is.
    pub id: LeaseId,
    /// For so long its holder may be silent.
    pub lasts_s: u32,
    /// Checked out: it is silent until then, by its clock.
    pub until_unix_s: Option<u64>,
}

impl Lease {
    /// A new one.
    pub fn new(lasts_s: u32, until_unix_s: Option<u64>) -> Self {
        Self {
            id: LeaseId(random()),
            lasts_s,
            until_unix_s: until_unix_s.filter(|until| *until > 0),
        }
    }

    pub(crate) fn encode(lease: Option<&Self>) -> Vec<u8> {
        let Some(lease) = lease else { return vec![0] };
        let mut bytes = vec![1];
        bytes.extend(lease.id.0);
        bytes.extend(lease.lasts_s.to_le_bytes());
        bytes.extend(lease.until_unix_s.unwrap_or(0).to_le_bytes());
        bytes
    }

    /// A lease or that there is none, and what is after it.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Option<Self>, &[u8])> {
        let (is_there, rest) = bytes.split_first()?;
        match is_there {
            0 => return Some((None, rest)),
            1 => {}
            _ => return None,
        }
        let (id, rest) = rest.split_first_chunk()?;
        let (lasts_s, rest) = rest.split_first_chunk()?;
        let (until, rest) = rest.split_first_chunk()?;
        let lease = Self {
            id: LeaseId(*id),
            lasts_s: u32::from_le_bytes(*lasts_s),
            until_unix_s: NonZeroU64::new(u64::from_le_bytes(*until)).map(NonZeroU64::get),
        };
        Some((Some(lease), rest))
    }
}

/// By what right a version of a name is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Under<'a> {
    /// Nobody holds it.
    Nothing,
    /// This lease, which goes on.
    Lease(&'a Lease),
    /// This lease, which ends with it.
    LastOf(&'a Lease),
}

/// A sign of a holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// How many there were.
    pub number: u32,
    /// Who gave it, and when by its clock.
    pub by: Stamp,
}

impl Remote {
    /// Has a name, as it was found, held under a lease: it stands for what it did. A lease that is `broken` by it is over.
    pub fn acquire(
        &self,
        name: &RefName,
        found: &Ref,
        lease: Lease,
        broken: Option<&LeaseId>,
    ) -> Result<Ref> {
        if let Some(held) = &found.lease
            && Some(&held.id) != broken
        {
            return Err(self.held(name, found));
        }
        let packs = found.packs.clone();
        let acquired = self.put_ref(name, found.snapshot, packs, Some(lease), Some(found))?;
        self.forget_beats(found.lease.as_ref());
        Ok(acquired)
    }

    /// Has nobody hold a name any more, which stands for what it did. That is no error if this lease is over already.
    pub fn release(&self, name: &RefName, lease: &LeaseId) -> Result<()> {
        let Some(found) = self.find_ref(name)? else {
            return Ok(());
        };
        match &found.lease {
            Some(held) if held.id == *lease => {}
            _ => return Ok(()),
        }
        self.put_ref(name, found.snapshot, found.packs.clone(), None, Some(&found))?;
        self.forget_beats(found.lease.as_ref());
        Ok(())
    }

    /// Is a name still held under this lease? Its newest version then.
    pub fn is_held(&self, name: &RefName, lease: &LeaseId) -> Result<Ref> {
        match self.newest(name)? {
            Some(newest) if newest.lease.as_ref().is_some_and(|held| held.id == *lease) => Ok(newest),
            newest => Err(self.lost(name, newest.as_ref())),
        }
    }

    /// Gives a sign that the holder of a lease is there, after those it gave before. Who asked it to let go?
    pub fn beat(&self, lease: &LeaseId) -> Result<Option<Stamp>> {
        let last = self.last_number(lease)?;
        let key = beat_key(lease, last + 1);
        let sealed = self.realm.seal(key.name().as_bytes(), &self.stamp().encode());
        self.objects.put_new(&key, &sealed)?;
        if last > 0 {
            self.objects.remove(&beat_key(lease, last))?;
        }
        self.asked(lease)
    }

    /// The last sign of the holder of a lease.
    pub fn last_beat(&self, lease: &LeaseId) -> Result<Option<Beat>> {
        let number = self.last_number(lease)?;
        let by = match number {
            0 => None,
            _ => self.stamp_of(&beat_key(lease, number))?,
        };
        Ok(by.map(|by| Beat { number, by }))
    }

    /// Asks the holder of a lease to let go.
    pub fn ask(&self, lease: &LeaseId) -> Result<()> {
        let key = asked_key(lease);
        let sealed = self.realm.seal(key.name().as_bytes(), &self.stamp().encode());
        self.objects.put_new(&key, &sealed).map(drop)
    }

    /// Who has asked the holder of a lease to let go.
    pub fn asked(&self, lease: &LeaseId) -> Result<Option<Stamp>> {
        self.stamp_of(&asked_key(lease))
    }

    /// What a version may have as its lease that is put after `before`.
    pub(crate) fn may_follow(
        &self,
        name: &RefName,
        before: Option<&Ref>,
        under: Under<'_>,
    ) -> Result<Option<Lease>> {
        let held = before.and_then(|before| before.lease.as_ref());
        let is_ours = |lease: &Lease| held.is_some_and(|held| held.id == lease.id);
        match (under, before) {
            (Under::Nothing, Some(before)) if held.is_some() => Err(self.held(name, before)),
            (Under::Nothing, _) => Ok(None),
            (Under::Lease(lease) | Under::LastOf(lease), _) if !is_ours(lease) => {
                Err(self.lost(name, before))
            }
            (Under::Lease(_), _) => Ok(held.cloned()),
            (Under::LastOf(_), _) => Ok(None),
        }
    }

    pub(crate) fn held(&self, name: &RefName, by: &Ref) -> SourceError {
        SourceError::Held {
            place: self.place(),
            name: name.to_string(),
            host: by.by.host.clone(),
        }
    }

    fn lost(&self, name: &RefName, newest: Option<&Ref>) -> SourceError {
        SourceError::Lost {
            place: self.place(),
            name: name.to_string(),
            version: newest.map_or(0, |newest| newest.version),
            host: newest.map_or_else(String::new, |newest| newest.by.host.clone()),
        }
    }

    fn last_number(&self, lease: &LeaseId) -> Result<u32> {
        let entries = self.objects.list(Room::Leases)?;
        let beats = entries.iter().filter_map(|entry| entry.key.number());
        let of_it = beats.filter(|(name, _)| *name == lease.to_string());
        Ok(of_it.map(|(_, number)| number).max().unwrap_or(0))
    }

    fn stamp_of(&self, key: &Key) -> Result<Option<Stamp>> {
        let sealed = match self.objects.get(key, BEAT_BYTES_MAX) {
            Err(SourceError::NotFound { .. }) => return Ok(None),
            sealed => sealed?,
        };
        let content = self.realm.open(key.name().as_bytes(), &sealed);
        let stamp = content.and_then(|content| crate::intent::decode(&content));
        stamp
            .map(Some)
            .ok_or_else(|| self.wrong(key, "it is of no lease of this realm"))
    }

    /// Removes what is left of leases that are over: of hosts that died, and signs that came too late.
    pub(crate) fn forget_ended_leases(&self) -> Result<()> {
        // Listed before names are looked at: a lease is there before its first sign is.
        let signs = self.objects.list(Room::Leases)?;
        if signs.is_empty() {
            return Ok(());
        }
        let held = self.refs()?.into_values().filter_map(|found| found.lease);
        let held: BTreeSet<String> = held.map(|lease| lease.id.to_string()).collect();
        let is_of = |key: &Key| {
            key.name()
                .split(['-', '@'])
                .next()
                .is_some_and(|id| held.contains(id))
        };
        for sign in signs.iter().filter(|sign| !is_of(&sign.key)) {
            self.objects.remove(&sign.key)?;
        }
        Ok(())
    }

    /// What is left of a lease that is over is in nobody's way.
    pub(crate) fn forget_beats(&self, lease: Option<&Lease>) {
        let Some(lease) = lease else { return };
        let id = lease.id.to_string();
        for entry in self.objects.list(Room::Leases).unwrap_or_default() {
            if entry.key.name().starts_with(&id) {
                let _ = self.objects.remove(&entry.key); // it says nothing any more
            }
        }
    }
}

fn beat_key(lease: &LeaseId, number: u32) -> Key {
    Key::numbered(Room::Leases, &lease.to_string(), number).expect("digits fit")
}

fn asked_key(lease: &LeaseId) -> Key {
    Key::numbered(Room::Leases, &format!("{lease}-asked"), 1).expect("digits fit")
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
