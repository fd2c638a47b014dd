//! Which pages a run touched first, in order: what the next run will want.
//!
//! ```text
//!  0  magic "MARTTRAC" 8 | 8  format version = 1  2 | 10  reserved 2 | 12  count 4 | 16  zigzag varints: page - last page
//! ```

use crate::wire::{FormatError, Reader, head, put_varint, unzigzag, zigzag};

const WHAT: &str = "trace";
const MAGIC: &[u8; 8] = b"MARTTRAC";
const VERSION: u16 = 1;

/// Most pages in a trace: 1 GiB of them. A trace is a hint, and a longer one would prefetch more than it helps.
pub const TRACE_PAGES_MAX: usize = 1 << 18;

/// Page indices in first-touch order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    pages: Vec<u32>,
}

impl Trace {
    /// The first [`TRACE_PAGES_MAX`] of these pages.
    pub fn new(mut pages: Vec<u32>) -> Self {
        pages.truncate(TRACE_PAGES_MAX);
        Self { pages }
    }

    /// Page indices in first-touch order.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = head(MAGIC, VERSION, [0; 2], self.pages.len() as u32);
        let mut last = 0;
        for &page in &self.pages {
            put_varint(&mut out, zigzag(i64::from(page) - last));
            last = i64::from(page);
        }
        out
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(WHAT, bytes);
        reader.magic(MAGIC, VERSION)?;
        reader.u16()?;
        let count = reader.u32()? as usize;
        // Each page takes at least a byte, so a count that is believed has been paid for.
        if count > TRACE_PAGES_MAX || count > reader.remaining() {
            return Err(reader.malformed("its count is impossible"));
        }
        let mut pages = Vec::with_capacity(count);
        let mut last = 0i64;
        for _ in 0..count {
            let page = last
                .checked_add(unzigzag(reader.varint()?))
                .and_then(|page| u32::try_from(page).ok());
            let page = page.ok_or_else(|| reader.malformed("a page index is out of range"))?;
            pages.push(page);
            last = i64::from(page);
        }
        reader.finish()?;
        Ok(Self { pages })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_round_trip() {
        for pages in [
            vec![],
            vec![0],
            vec![u32::MAX, 0, u32::MAX],
            (0..5000).map(|i| i * 7 % 4096).collect(),
        ] {
            let trace = Trace::new(pages);
            assert_eq!(Trace::decode(&trace.encode()), Ok(trace));
        }
    }

    #[test]
    fn a_trace_is_bounded() {
        assert_eq!(
            Trace::new(vec![1; TRACE_PAGES_MAX + 5]).pages().len(),
            TRACE_PAGES_MAX
        );
        let mut bytes = Trace::default().encode();
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Trace::decode(&bytes).is_err());
    }
}
