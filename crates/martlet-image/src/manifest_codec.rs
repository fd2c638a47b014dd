//! Manifests as bytes.
//!
//! ```text
//!  0  magic "MARTMANI"        8     32  parent id (zeros: full)          32
//!  8  format version = 1      2     64  frame ids, 32 bytes each         frame_count * 32
//! 10  kind: 0 full, 1 delta   1     ..  runs, to the end:
//! 11  depth: parents above    1           varint  pages skipped since the last run
//! 12  frame_count             4           varint  pages << 1 | is_zero
//! 16  page_count              8           not zero: varint zigzag(frame index - last index), u8 first slot
//! 24  stored_count            8
//! ```
//!
//! A run is pages in a row that are all zero, or in consecutive slots of one frame. Pages in no run are as in the
//! parent, or zero in a full manifest. `stored_count` is that of the whole image, so the header alone tells how much
//! an image holds.

use crate::manifest::MANIFEST_PAGES_MAX;
use crate::wire::{FormatError, Reader, head, put_varint, unzigzag, zigzag};
use crate::{FRAME_PAGES_MAX, FrameId, Manifest, ManifestId, PageLocation};
use std::collections::HashMap;

const WHAT: &str = "manifest";
const MAGIC: &[u8; 8] = b"MARTMANI";
const VERSION: u16 = 1;

/// A manifest has at most this many parents above it; the next one is written in full.
pub const MANIFEST_DEPTH_MAX: u8 = 16;

/// What an encoded manifest says about itself before its body is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestHeader {
    /// The manifest this one is a delta to; `None` for a full one.
    pub parent: Option<ManifestId>,
    /// Parents above it.
    pub depth: u8,
    /// Frame ids in its own table.
    pub frame_count: u32,
    /// Pages in the image.
    pub page_count: u64,
    /// Pages of the whole image that are not zero.
    pub stored_count: u64,
}

/// The stored manifest that a new one may be a delta to.
#[derive(Debug, Clone, Copy)]
pub struct ManifestParent<'a> {
    /// Its id.
    pub id: ManifestId,
    /// Its depth, from its header.
    pub depth: u8,
    /// What it says.
    pub manifest: &'a Manifest,
}

impl Manifest {
    /// As bytes: a delta to `parent`, or in full where the chain would grow too deep or the delta is no smaller.
    pub fn encode(&self, parent: Option<ManifestParent<'_>>) -> Vec<u8> {
        let full = || {
            let pages = self
                .stored_pages()
                .map(|(page, frame, slot)| (page, PageLocation::Frame { frame, slot }));
            self.encode_runs(None, 0, pages)
        };
        let Some(parent) = parent.filter(|parent| parent.depth < MANIFEST_DEPTH_MAX) else {
            return full();
        };
        let changes = || self.changes_from(parent.manifest);
        if changes().count() as u64 >= self.stored_count() && self.stored_count() > 0 {
            return full();
        }
        self.encode_runs(
            Some(parent.id),
            parent.depth + 1,
            changes().map(|(page, _, now)| (page, now)),
        )
    }

    fn encode_runs(
        &self,
        parent: Option<ManifestId>,
        depth: u8,
        pages: impl Iterator<Item = (u64, PageLocation)>,
    ) -> Vec<u8> {
        let (ids, runs) = runs(pages);
        let flags = [u8::from(parent.is_some()), depth];
        let mut out = head(MAGIC, VERSION, flags, ids.len() as u32);
        out.reserve(48 + ids.len() * 32 + runs.len());
        out.extend_from_slice(&self.page_count().to_le_bytes());
        out.extend_from_slice(&self.stored_count().to_le_bytes());
        out.extend_from_slice(&parent.map_or([0; 32], |id| id.0));
        ids.iter().for_each(|id| out.extend_from_slice(&id.0));
        out.extend_from_slice(&runs);
        out
    }

    /// Reads the fixed header of an encoded manifest; the body may be absent.
    pub fn decode_header(bytes: &[u8]) -> Result<ManifestHeader, FormatError> {
        header(&mut Reader::new(WHAT, bytes))
    }

    /// Reads an encoded manifest, asking `load_parent` for the manifest it is a delta to.
    ///
    /// `load_parent` is called at most once, and has to bound the chain itself, for example by the headers' depths,
    /// which shrink towards the root.
    pub fn decode<E: From<FormatError>>(
        bytes: &[u8],
        load_parent: &mut dyn FnMut(&ManifestId) -> Result<Manifest, E>,
    ) -> Result<Manifest, E> {
        let mut reader = Reader::new(WHAT, bytes);
        let header = header(&mut reader)?;
        // Checked against what is there before anything of that size is allocated.
        let table = reader.take(header.frame_count as usize * 32)?;
        let ids: Vec<FrameId> = table.as_chunks::<32>().0.iter().map(|id| FrameId(*id)).collect();
        let mut manifest = match header.parent {
            Some(parent) => load_parent(&parent)?.resized(header.page_count),
            None => Manifest::zero(header.page_count),
        };
        read_runs(&mut reader, &ids, &mut manifest)?;
        let wrong_count = reader.malformed("its count of stored pages is wrong");
        reader.finish()?;
        if manifest.stored_count() != header.stored_count {
            return Err(wrong_count.into());
        }
        Ok(manifest)
    }
}

/// The frame table and the encoded runs of these pages.
fn runs(pages: impl Iterator<Item = (u64, PageLocation)>) -> (Vec<FrameId>, Vec<u8>) {
    let mut ids = Vec::new();
    let mut indices = HashMap::new();
    let mut out = Vec::new();
    let (mut end, mut last_index) = (0, 0);
    let mut pages = pages.peekable();
    while let Some((first, location)) = pages.next() {
        let mut len = 1;
        let follows = |len: u64| match location {
            PageLocation::Zero => PageLocation::Zero,
            PageLocation::Frame { frame, slot } => PageLocation::Frame {
                frame,
                slot: slot.wrapping_add(len as u8),
            },
        };
        while pages
            .next_if(|&(page, next)| page == first + len && next == follows(len))
            .is_some()
        {
            len += 1;
        }
        put_varint(&mut out, first - end);
        put_varint(&mut out, len << 1 | u64::from(location == PageLocation::Zero));
        if let PageLocation::Frame { frame, slot } = location {
            let index = *indices.entry(frame).or_insert_with(|| {
                ids.push(frame);
                ids.len() as i64 - 1
            });
            put_varint(&mut out, zigzag(index - last_index));
            out.push(slot);
            last_index = index;
        }
        end = first + len;
    }
    (ids, out)
}

fn read_runs(reader: &mut Reader<'_>, ids: &[FrameId], manifest: &mut Manifest) -> Result<(), FormatError> {
    let (mut page, mut index) = (0u64, 0i64);
    while reader.remaining() > 0 {
        let skipped = reader.varint()?;
        let len_and_kind = reader.varint()?;
        let (len, is_zero) = (len_and_kind >> 1, len_and_kind & 1 == 1);
        let first = page
            .checked_add(skipped)
            .filter(|&first| first < manifest.page_count());
        let first = first.ok_or_else(|| reader.malformed("a run begins beyond the image"))?;
        if len == 0 || len > manifest.page_count() - first {
            return Err(reader.malformed("a run is empty or ends beyond the image"));
        }
        page = first + len;
        if is_zero {
            manifest.set_zero(first..page);
            continue;
        }
        index = index
            .checked_add(unzigzag(reader.varint()?))
            .ok_or_else(|| reader.malformed("a frame index"))?;
        let id = usize::try_from(index).ok().and_then(|index| ids.get(index));
        let frame = *id.ok_or_else(|| reader.malformed("a run names a frame that is not in the table"))?;
        let slot = reader.u8()?;
        if u64::from(slot) + len > FRAME_PAGES_MAX as u64 {
            return Err(reader.malformed("a run leaves its frame"));
        }
        for at in 0..len as u8 {
            manifest.set(
                first + u64::from(at),
                PageLocation::Frame {
                    frame,
                    slot: slot + at,
                },
            );
        }
    }
    Ok(())
}

fn header(reader: &mut Reader<'_>) -> Result<ManifestHeader, FormatError> {
    reader.magic(MAGIC, VERSION)?;
    let kind = reader.u8()?;
    let depth = reader.u8()?;
    let frame_count = reader.u32()?;
    let page_count = reader.u64()?;
    let stored_count = reader.u64()?;
    let parent = reader.array()?;
    if page_count > MANIFEST_PAGES_MAX || stored_count > page_count {
        return Err(reader.malformed("its page counts are impossible"));
    }
    let parent = match (kind, depth, parent == [0; 32]) {
        (0, 0, true) => None,
        (1, 1..=MANIFEST_DEPTH_MAX, false) => Some(ManifestId(parent)),
        _ => return Err(reader.malformed("its kind, depth and parent contradict each other")),
    };
    Ok(ManifestHeader {
        parent,
        depth,
        frame_count,
        page_count,
        stored_count,
    })
}
