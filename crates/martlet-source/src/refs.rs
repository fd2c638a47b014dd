//! What snapshots are called at a remote.
//!
//! ```text
//! refs/NAME@00000001 ◄── refs/NAME@00000002 ◄── …     NAME is that of the ref in the realm
//! sealed for the object's name:  0  snapshot 32 | 32  hash of the version before 32 | 64  the ref's name
//! ```
//!
//! A name never changes what it stands for: it gets another version, which only one of several can put. All versions stay
//! to be looked at, and a remote that shows an older one as the newest is found out by who has seen a newer one.

use crate::{Key, Put, Remote, Result, Room, SourceError};
use martlet_image::SnapshotId;
use martlet_store::RefName;
use std::collections::BTreeMap;

const REF_BYTES_MAX: u64 = 4 << 10;

/// A version of a ref.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ref {
    /// What it stands for.
    pub snapshot: SnapshotId,
    /// Which version it is: 1 is the first.
    pub version: u32,
    /// Its hash, which the next version names.
    pub(crate) hash: [u8; 32],
}

impl Remote {
    /// The newest version of a ref.
    pub fn find_ref(&self, name: &RefName) -> Result<Option<Ref>> {
        if self.objects.is_writable() {
            let versions = self.versions()?;
            let Some(version) = versions.get(&self.ref_name(name)) else {
                return Ok(None);
            };
            return self.version_of(name, *version);
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

    /// All refs, by what they are called.
    pub fn refs(&self) -> Result<BTreeMap<RefName, Ref>> {
        let mut refs = BTreeMap::new();
        for (realm_name, version) in self.versions()? {
            let key = version_key(&realm_name, version);
            if let Some((name, found)) = self.open_version(&key, version)? {
                refs.insert(name, found);
            }
        }
        Ok(refs)
    }

    /// Has a name stand for a snapshot from now on, if it stands for what `before` says. The new version.
    pub(crate) fn put_ref(&self, name: &RefName, snapshot: SnapshotId, before: Option<&Ref>) -> Result<Ref> {
        let version = before.map_or(0, |before| before.version) + 1;
        let key = version_key(&self.ref_name(name), version);
        let mut content = snapshot.0.to_vec();
        content.extend(before.map_or([0; 32], |before| before.hash));
        content.extend(name.to_string().as_bytes());
        let sealed = self.realm.seal(key.name().as_bytes(), &content);
        match self.objects.put_new(&key, &sealed)? {
            Put::Made => {}
            // By us, when an answer was lost on its way, or by somebody else.
            Put::WasThere if self.objects.get(&key, REF_BYTES_MAX)? == sealed => {}
            Put::WasThere => {
                return Err(SourceError::Changed {
                    place: self.place(),
                    name: name.to_string(),
                });
            }
        }
        Ok(Ref {
            snapshot,
            version,
            hash: *blake3::hash(&sealed).as_bytes(),
        })
    }

    /// Newest versions, by name in the realm.
    fn versions(&self) -> Result<BTreeMap<String, u32>> {
        let mut versions = BTreeMap::new();
        for entry in self.objects.list(Room::Refs)? {
            let parts = entry.key.name().split_once('@');
            if let Some((name, version)) =
                parts.and_then(|(name, version)| Some((name, version.parse().ok()?)))
            {
                let newest: &mut u32 = versions.entry(name.to_owned()).or_insert(version);
                *newest = version.max(*newest);
            }
        }
        Ok(versions)
    }

    fn version_of(&self, name: &RefName, version: u32) -> Result<Option<Ref>> {
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
        let sealed = self.objects.get(key, REF_BYTES_MAX)?;
        let open = || {
            let content = self.realm.open(key.name().as_bytes(), &sealed)?;
            let (snapshot, rest) = content.split_first_chunk::<32>()?;
            let (_before, name) = rest.split_first_chunk::<32>()?;
            let (name, tag) = std::str::from_utf8(name).ok()?.split_once(':')?;
            let found = Ref {
                snapshot: SnapshotId(*snapshot),
                version,
                hash: *blake3::hash(&sealed).as_bytes(),
            };
            Some((RefName::new(name, tag).ok()?, found))
        };
        Ok(open())
    }

    fn ref_name(&self, name: &RefName) -> String {
        let mut what = b"ref ".to_vec();
        what.extend(name.to_string().as_bytes());
        blake3::Hash::from_bytes(self.realm.name(&what))
            .to_hex()
            .to_string()
    }
}

fn version_key(realm_name: &str, version: u32) -> Key {
    Key::new(Room::Refs, format!("{realm_name}@{version:08}")).expect("hashes and digits fit")
}
