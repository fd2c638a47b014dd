//! What snapshots are called at a remote.
//!
//! ```text
//! refs/NAME@00000001 ◄── refs/NAME@00000002 ◄── …     NAME is that of the ref in the realm
//! sealed for the object's name:  0  snapshot 32, or zeros | 32  hash of the version before 32 | 64  stamp
//!                                .. length 2 | the ref's name | lease (lease.rs) | hashes of the packs that the snapshot is in, 32 each
//! ```
//!
//! A name never changes what it stands for: it gets another version, which only one of several can put. All versions stay
//! to be looked at, and a remote that shows an older one as the newest is found out by who has seen a newer one. A version
//! of no snapshot takes the name away; the next one goes on from there.
//!
//! The packs are those that a push has found or put: all that the snapshot needs is in them. They are what garbage collection
//! keeps, and what a pull has to know, also from where nothing can be listed.

use crate::pack::PackHash;
use crate::parallel::in_parallel;
use crate::{Key, Lease, Put, Remote, Result, Room, SourceError, Stamp};
use martlet_image::SnapshotId;
use martlet_store::RefName;
use std::collections::{BTreeMap, BTreeSet};

const REF_BYTES_MAX: usize = 8 << 20;
/// Packs of one ref: 4 TiB, if they are full. With a version's other fields they stay below [`REF_BYTES_MAX`].
const PACKS_MAX: usize = REF_BYTES_MAX / 32 - 32;
const NOTHING: SnapshotId = SnapshotId([0; 32]);
/// Refs that are read at once.
const READERS: usize = 4;

/// A version of a ref.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ref {
    /// What it stands for.
    pub snapshot: SnapshotId,
    /// Which version it is: 1 is the first.
    pub version: u32,
    /// Who made it.
    pub by: Stamp,
    /// The lease that its name is held under from then on: no other version may follow but that one's.
    pub lease: Option<Lease>,
    /// Where the snapshot is.
    pub(crate) packs: BTreeSet<PackHash>,
    /// Hash of the version before.
    pub(crate) before: [u8; 32],
    /// Its hash, which the next version names.
    pub(crate) hash: [u8; 32],
}

impl Ref {
    /// Was the name taken away with it?
    pub fn is_removal(&self) -> bool {
        self.snapshot == NOTHING
    }
}

impl Remote {
    /// What a name stands for.
    pub fn find_ref(&self, name: &RefName) -> Result<Option<Ref>> {
        Ok(self.newest(name)?.filter(|found| !found.is_removal()))
    }

    /// All refs, by what they are called.
    pub fn refs(&self) -> Result<BTreeMap<RefName, Ref>> {
        let mut refs = BTreeMap::new();
        let newest = self.versions()?;
        let keys = newest.iter().filter_map(|(name, versions)| {
            let version = *versions.last()?;
            Some((version_key(name, version), version))
        });
        let open = |(key, version): (Key, u32)| self.open_version(&key, version);
        in_parallel(READERS, keys, open, |opened| {
            refs.extend(opened.filter(|(_, found)| !found.is_removal()));
            Ok(())
        })?;
        Ok(refs)
    }

    /// All that a name has stood for, the newest first, and when it was taken away. What cannot be opened is left out.
    pub fn history(&self, name: &RefName) -> Result<Vec<Ref>> {
        let newest = self.newest(name)?.map_or(0, |newest| newest.version);
        let realm_name = self.ref_name(name);
        let mut history = Vec::new();
        for version in (1..=newest).rev() {
            match self.open_version(&version_key(&realm_name, version), version) {
                Ok(opened) => history.extend(opened.map(|(_, found)| found)),
                Err(SourceError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(history)
    }

    /// Takes a name away. What only it needs is there until garbage is collected.
    pub fn remove_ref(&self, name: &RefName) -> Result<()> {
        let newest = self.find_ref(name)?.ok_or_else(|| self.no_snapshot(name))?;
        if newest.lease.is_some() {
            return Err(self.held(name, &newest));
        }
        self.put_ref(name, NOTHING, BTreeSet::new(), None, Some(&newest))
            .map(drop)
    }

    /// Has a name stand for a snapshot from now on, if `before` is its newest version. The new version.
    pub(crate) fn put_ref(
        &self,
        name: &RefName,
        snapshot: SnapshotId,
        packs: BTreeSet<PackHash>,
        lease: Option<Lease>,
        before: Option<&Ref>,
    ) -> Result<Ref> {
        if packs.len() > PACKS_MAX {
            return Err(SourceError::Scattered {
                place: self.place(),
                name: name.to_string(),
                packs: packs.len(),
            });
        }
        let version = before.map_or(0, |before| before.version) + 1;
        let key = version_key(&self.ref_name(name), version);
        let content = Content {
            snapshot,
            before: before.map_or([0; 32], |before| before.hash),
            by: self.stamp(),
            name: name.clone(),
            lease,
            packs,
        };
        let sealed = self.realm.seal(key.name().as_bytes(), &content.encode());
        match self.objects.put_new(&key, &sealed)? {
            Put::Made => {}
            // By us, when an answer was lost on its way, or by somebody else.
            Put::WasThere if self.objects.get(&key, REF_BYTES_MAX as u64)? == sealed => {}
            Put::WasThere => {
                return Err(SourceError::Changed {
                    place: self.place(),
                    name: name.to_string(),
                });
            }
        }
        let put = content.into_ref(version, &sealed);
        if let Some(seen) = &self.seen {
            seen.saw(name, (version, put.hash))?;
        }
        Ok(put)
    }

    /// The newest version of a ref, which may be its removal.
    pub(crate) fn newest(&self, name: &RefName) -> Result<Option<Ref>> {
        let newest = self.newest_shown(name)?;
        self.compare_with_seen(name, newest.as_ref())?;
        Ok(newest)
    }

    fn newest_shown(&self, name: &RefName) -> Result<Option<Ref>> {
        if self.objects.is_writable() {
            let versions = self.versions()?;
            let newest = versions.get(&self.ref_name(name)).and_then(BTreeSet::last);
            return newest.map_or(Ok(None), |version| self.version_of(name, *version));
        }
        // Of what cannot be listed: up in growing steps, then down by halves.
        let (mut there, mut step) = (0, 1);
        let mut newest = None;
        while let Some(found) = self.version_of(name, there + step)? {
            (there, step, newest) = (there + step, step * 2, Some(found));
        }
        while step > 1 {
            step /= 2;
            if let Some(found) = self.version_of(name, there + step)? {
                (there, newest) = (there + step, Some(found));
            }
        }
        Ok(newest)
    }

    /// The packs that are needed by the newest `keep_versions` versions of any ref since it was last removed. A version
    /// that is not among them never comes to be. One that cannot be opened might need anything, and is an error.
    pub(crate) fn needed_packs(&self, keep_versions: usize) -> Result<BTreeSet<PackHash>> {
        let needed_by = |(name, versions): (String, BTreeSet<u32>)| {
            let mut packs = BTreeSet::new();
            for version in versions.into_iter().rev().take(keep_versions) {
                let key = version_key(&name, version);
                let opened = self.open_version(&key, version)?;
                let (_, found) = opened.ok_or_else(|| self.wrong(&key, "it is no ref of this realm"))?;
                if found.is_removal() {
                    break;
                }
                packs.extend(found.packs);
            }
            Ok(packs)
        };
        let mut needed = BTreeSet::new();
        in_parallel(READERS, self.versions()?.into_iter(), needed_by, |packs| {
            needed.extend(packs);
            Ok(())
        })?;
        Ok(needed)
    }

    pub(crate) fn no_snapshot(&self, name: &RefName) -> SourceError {
        SourceError::NoSnapshot {
            place: self.place(),
            name: name.to_string(),
        }
    }

    /// All versions there are, by name in the realm.
    fn versions(&self) -> Result<BTreeMap<String, BTreeSet<u32>>> {
        let mut versions: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for entry in self.objects.list(Room::Refs)? {
            if let Some((name, version)) = entry.key.number() {
                versions.entry(name.to_owned()).or_default().insert(version);
            }
        }
        Ok(versions)
    }

    pub(crate) fn version_of(&self, name: &RefName, version: u32) -> Result<Option<Ref>> {
        let key = version_key(&self.ref_name(name), version);
        match self.open_version(&key, version) {
            Ok(Some((called, found))) if called == *name => Ok(Some(found)),
            Ok(_) => Err(self.wrong(&key, "it is a ref of another name, or another realm")),
            Err(SourceError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A ref and its name. None if it is not one of this realm.
    fn open_version(&self, key: &Key, version: u32) -> Result<Option<(RefName, Ref)>> {
        let sealed = self.objects.get(key, REF_BYTES_MAX as u64)?;
        let content = self.realm.open(key.name().as_bytes(), &sealed);
        let content = content.and_then(|content| Content::decode(&content));
        Ok(content.map(|content| (content.name.clone(), content.into_ref(version, &sealed))))
    }

    fn ref_name(&self, name: &RefName) -> String {
        let mut what = b"ref ".to_vec();
        what.extend(name.to_string().as_bytes());
        blake3::Hash::from_bytes(self.realm.name(&what))
            .to_hex()
            .to_string()
    }
}

/// What is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    snapshot: SnapshotId,
    before: [u8; 32],
    by: Stamp,
    name: RefName,
    lease: Option<Lease>,
    packs: BTreeSet<PackHash>,
}

impl Content {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let name = self.name.to_string();
        let mut bytes = self.snapshot.0.to_vec();
        bytes.extend(self.before);
        bytes.extend(self.by.encode());
        bytes.extend((name.len() as u16).to_le_bytes()); // at most twice 63 and a colon
        bytes.extend(name.as_bytes());
        bytes.extend(Lease::encode(self.lease.as_ref()));
        bytes.extend(self.packs.iter().flat_map(|pack| pack.0));
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (snapshot, rest) = bytes.split_first_chunk()?;
        let (before, rest) = rest.split_first_chunk()?;
        let (by, rest) = Stamp::decode(rest)?;
        let (len, rest) = rest.split_first_chunk()?;
        let (name, rest) = rest.split_at_checked(u16::from_le_bytes(*len).into())?;
        let (name, tag) = str::from_utf8(name).ok()?.split_once(':')?;
        let (lease, rest) = Lease::decode(rest)?;
        let (packs, rest) = rest.as_chunks();
        rest.is_empty().then_some(Self {
            snapshot: SnapshotId(*snapshot),
            before: *before,
            by,
            name: RefName::new(name, tag).ok()?,
            lease,
            packs: packs.iter().map(|pack| PackHash(*pack)).collect(),
        })
    }

    fn into_ref(self, version: u32, sealed: &[u8]) -> Ref {
        Ref {
            snapshot: self.snapshot,
            version,
            by: self.by,
            lease: self.lease,
            packs: self.packs,
            before: self.before,
            hash: *blake3::hash(sealed).as_bytes(),
        }
    }
}

fn version_key(realm_name: &str, version: u32) -> Key {
    Key::numbered(Room::Refs, realm_name, version).expect("hashes and digits fit")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LeaseId;

    #[test]
    fn a_content_comes_back_and_what_is_cut_off_is_none() {
        let lease = Lease {
            id: LeaseId([4; 16]),
            lasts_s: 60,
            until_unix_s: Some(5),
        };
        for (packs, lease) in [(0, None), (1, Some(lease.clone())), (3, Some(lease))] {
            let content = Content {
                snapshot: SnapshotId([1; 32]),
                before: [2; 32],
                by: Stamp {
                    unix_s: 3,
                    host: "here".into(),
                },
                name: RefName::new("web", "1").unwrap(),
                lease,
                packs: (0..packs).map(|pack| PackHash([pack; 32])).collect(),
            };
            let bytes = content.encode();
            assert_eq!(Content::decode(&bytes), Some(content));
            let whole = bytes.len() - 32 * usize::from(packs);
            for len in 0..bytes.len() {
                let is_whole = len >= whole && (len - whole).is_multiple_of(32);
                assert_eq!(Content::decode(&bytes[..len]).is_some(), is_whole, "{len}");
            }
        }
    }
}
