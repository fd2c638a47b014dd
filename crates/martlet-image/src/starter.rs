//! A snapshot's starter: the pages that a start touches, apart from their frames and packed together in chunks, so that a start
//! over a slow link waits for few bytes beside those it needs.
//!
//! The index says which pages are in which chunk; a chunk is those pages, one after the other. Both are blobs that the
//! snapshot's record names, so a page of a starter is as sure as a page of a frame.
//!
//! ```text
//!  0  magic "MARTSTAR" 8 | 8  format version = 1  2 | 10  reserved 2 | 12  chunks 4
//! 16  of each chunk, as varints: pages | page - last page of the chunk - 1 (of the first: page)
//! ```

use crate::PAGE_SIZE;
use crate::wire::{FormatError, Reader, head, put_varint};
use std::collections::HashSet;

const WHAT: &str = "starter";
const MAGIC: &[u8; 8] = b"MARTSTAR";
const VERSION: u16 = 1;

/// Most chunks of a starter.
pub const STARTER_CHUNKS_MAX: usize = 64;
/// Most pages of a chunk: half a MiB, of which compression leaves a third.
pub const STARTER_CHUNK_PAGES: usize = 128;

/// Which pages are in which chunk of a starter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StarterIndex {
    chunks: Vec<Vec<u32>>,
}

impl StarterIndex {
    /// As many of these chunks as there may be, each page in the first that has it. A chunk with no page of its own, or with
    /// too many, is left out.
    pub fn new(chunks: impl IntoIterator<Item = Vec<u32>>) -> Self {
        let mut known = HashSet::new();
        let own = chunks.into_iter().map(|mut pages| {
            pages.retain(|page| known.insert(*page));
            pages.sort_unstable();
            pages
        });
        let chunks = own.filter(|pages| (1..=STARTER_CHUNK_PAGES).contains(&pages.len()));
        Self {
            chunks: chunks.take(STARTER_CHUNKS_MAX).collect(),
        }
    }

    /// The pages of each chunk, ascending; what is needed first comes first.
    pub fn chunks(&self) -> &[Vec<u32>] {
        &self.chunks
    }

    /// Is this the content of a chunk, as far as its length says?
    pub fn fits(&self, chunk: usize, content: &[u8]) -> bool {
        self.chunks
            .get(chunk)
            .is_some_and(|pages| content.len() == pages.len() * PAGE_SIZE)
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = head(MAGIC, VERSION, [0; 2], self.chunks.len() as u32);
        for pages in &self.chunks {
            put_varint(&mut out, pages.len() as u64);
            let mut next = 0;
            for &page in pages {
                put_varint(&mut out, u64::from(page) - next);
                next = u64::from(page) + 1;
            }
        }
        out
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(WHAT, bytes);
        reader.magic(MAGIC, VERSION)?;
        reader.u16()?;
        let count = reader.u32()? as usize;
        if count > STARTER_CHUNKS_MAX {
            return Err(reader.malformed("it has too many chunks"));
        }
        let mut known = HashSet::new();
        let mut chunks = Vec::with_capacity(count);
        for _ in 0..count {
            let len = reader.varint()?;
            if !(1..=STARTER_CHUNK_PAGES as u64).contains(&len) {
                return Err(reader.malformed("a chunk has no pages, or too many"));
            }
            let mut pages = Vec::with_capacity(len as usize);
            let mut next = 0u64;
            for _ in 0..len {
                let page = next
                    .checked_add(reader.varint()?)
                    .and_then(|page| u32::try_from(page).ok());
                let page = page.ok_or_else(|| reader.malformed("a page index is out of range"))?;
                if !known.insert(page) {
                    return Err(reader.malformed("a page is in two chunks"));
                }
                pages.push(page);
                next = u64::from(page) + 1;
            }
            chunks.push(pages);
        }
        reader.finish()?;
        Ok(Self { chunks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn starters_round_trip(chunks in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..140), 0..70)) {
            let index = StarterIndex::new(chunks);
            prop_assert!(index.chunks().len() <= STARTER_CHUNKS_MAX);
            prop_assert_eq!(StarterIndex::decode(&index.encode()), Ok(index));
        }

        #[test]
        fn what_is_changed_is_refused_or_another_starter(at in 0usize..400, to in any::<u8>()) {
            let index = StarterIndex::new([(0..100).map(|page| page * 3).collect(), (1000..1128).collect()]);
            let mut bytes = index.encode();
            let at = at % bytes.len();
            bytes[at] = to;
            if let Ok(other) = StarterIndex::decode(&bytes) {
                let mut pages: Vec<u32> = other.chunks().concat();
                prop_assert!(other.chunks().iter().all(|pages| pages.is_sorted() && !pages.is_empty()));
                let count = pages.len();
                pages.sort_unstable();
                pages.dedup();
                prop_assert_eq!(pages.len(), count);
            }
        }
    }

    #[test]
    fn counts_are_not_believed() {
        let mut bytes = StarterIndex::default().encode();
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(StarterIndex::decode(&bytes).is_err());
        let mut bytes = StarterIndex::new([vec![1]]).encode();
        bytes[16] = 0;
        assert!(StarterIndex::decode(&bytes).is_err());
    }

    #[test]
    fn a_page_is_in_one_chunk() {
        let index = StarterIndex::new([vec![7, 5], vec![5], vec![5, 6], (10..1000).collect()]);
        assert_eq!(index.chunks(), [vec![5, 7], vec![6]]);
        assert!(
            index.fits(0, &[0; 2 * PAGE_SIZE]) && !index.fits(1, &[0; 2 * PAGE_SIZE]) && !index.fits(2, &[])
        );
        // The second names a page of the first.
        let mut bytes = StarterIndex::new([vec![5], vec![6]]).encode();
        let last = bytes.len() - 1;
        bytes[last] = 5;
        assert!(StarterIndex::decode(&bytes).is_err());
    }
}
