//! The root: every ref and every snapshot there is, in one small object.
//!
//! Each commit appends a new root with the next sequence number to a pack; the root with the highest number says
//! what exists. The index keeps a copy. So refs survive the loss of the index, and any one readable root is enough.
//!
//! ```text
//! 0  magic "MARTROOT" 8 | 8  format version = 1  2 | 10  reserved 2 | 12  snapshots 4 | 16  refs 4 | 20  reserved 4
//! 24 sequence 8 | 32  snapshot ids, ascending, 32 each | refs: u8 length, name:tag, index of its snapshot 4
//! ```

use crate::RefName;
use martlet_image::SnapshotId;
use std::collections::{BTreeMap, BTreeSet};

const MAGIC: &[u8; 8] = b"MARTROOT";
const VERSION: u16 = 1;

/// What exists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Root {
    /// Counts commits.
    pub sequence: u64,
    /// Snapshots, referred to or not.
    pub snapshots: BTreeSet<SnapshotId>,
    /// Names.
    pub refs: BTreeMap<RefName, SnapshotId>,
}

impl Root {
    /// As bytes. Refs to snapshots that are not listed are left out.
    pub fn encode(&self) -> Vec<u8> {
        let ids: Vec<SnapshotId> = self.snapshots.iter().copied().collect();
        let refs: Vec<(String, u32)> = self
            .refs
            .iter()
            .filter_map(|(name, id)| Some((name.to_string(), ids.binary_search(id).ok()? as u32)))
            .collect();
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&(ids.len() as u32).to_le_bytes());
        out.extend_from_slice(&(refs.len() as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.sequence.to_le_bytes());
        ids.iter().for_each(|id| out.extend_from_slice(&id.0));
        for (name, index) in refs {
            out.push(name.len() as u8); // at most 63 + 1 + 63
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(&index.to_le_bytes());
        }
        out
    }

    /// From bytes; `None` if they are not a root that this program can read.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize);
        if bytes.get(..8)? != MAGIC || u16::from_le_bytes(*bytes.get(8..)?.first_chunk()?) != VERSION {
            return None;
        }
        let (snapshot_count, ref_count) = (word(12)?, word(16)?);
        let sequence = u64::from_le_bytes(*bytes.get(24..)?.first_chunk()?);
        let (ids, mut rest) = bytes
            .get(32..)?
            .split_at_checked(snapshot_count.checked_mul(32)?)?;
        let ids: Vec<SnapshotId> = ids.as_chunks::<32>().0.iter().map(|id| SnapshotId(*id)).collect();
        let mut refs = BTreeMap::new();
        for _ in 0..ref_count {
            let (len, tail) = rest.split_first()?;
            let (name, tail) = tail.split_at_checked(*len as usize)?;
            let (index, tail) = tail.split_first_chunk::<4>()?;
            let id = *ids.get(u32::from_le_bytes(*index) as usize)?;
            refs.insert(std::str::from_utf8(name).ok()?.parse().ok()?, id);
            rest = tail;
        }
        rest.is_empty().then(|| Self {
            sequence,
            snapshots: ids.into_iter().collect(),
            refs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_round_trip_and_cut_ones_are_refused() {
        let ids = [SnapshotId([1; 32]), SnapshotId([9; 32])];
        let refs = [("a:b", ids[1]), ("c:latest", ids[1]), ("z:1", ids[0])];
        let root = Root {
            sequence: 77,
            snapshots: ids.into_iter().collect(),
            refs: refs
                .into_iter()
                .map(|(name, id)| (name.parse().unwrap(), id))
                .collect(),
        };
        let bytes = root.encode();
        assert_eq!(Root::decode(&bytes), Some(root));
        for len in 0..bytes.len() {
            assert_eq!(Root::decode(&bytes[..len]), None);
        }
    }
}
