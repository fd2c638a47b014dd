//! Records: what a pack consists of.
//!
//! ```text
//! pack    0  magic "MARTPACK" 8 | 8  format version = 1  2 | 10  reserved 2 | 12  pack number 4 | 16  records
//! record  0  magic "MREC"     4 |  4  kind 1 | 5  codec 1 | 6  reserved 2
//!         8  stored length    4 | 12  content length 4 | 16  id 32 | 48  CRC-32 of the stored bytes 4
//!        52  CRC-32 of bytes 0 to 52 4 | 56  stored bytes
//! ```
//!
//! A record describes itself, so that the index can be rebuilt from the packs alone. Its header has a checksum of its
//! own: a reader that has lost its way finds the next header by magic and checksum.

use martlet_image::Codec;

pub(crate) const PACK_HEADER: u64 = 16;
/// Bytes of a record's header; its content follows.
pub const RECORD_HEADER: usize = 56;
const PACK_MAGIC: &[u8; 8] = b"MARTPACK";
const PACK_VERSION: u16 = 1;
pub(crate) const RECORD_MAGIC: &[u8; 4] = b"MREC";

/// Longest content of a record: kernels, initramfs images and manifests are far smaller.
pub const CONTENT_BYTES_MAX: usize = 256 << 20;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Pages.
    Frame = 1,
    /// A descriptor, kernel, initramfs or trace.
    Blob = 2,
    /// An encoded manifest.
    Manifest = 3,
    /// An encoded snapshot record.
    Snapshot = 4,
    /// The store's root: every ref and snapshot there is.
    Root = 5,
}

impl Kind {
    fn from_code(code: u8) -> Option<Self> {
        [
            Self::Frame,
            Self::Blob,
            Self::Manifest,
            Self::Snapshot,
            Self::Root,
        ]
        .into_iter()
        .find(|k| *k as u8 == code)
    }
}

/// Names an object: its kind and the BLAKE3 hash of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// What it is.
    pub kind: Kind,
    /// Its id.
    pub id: [u8; 32],
}

impl Key {
    /// The object of this kind with this id.
    pub fn new(kind: Kind, id: [u8; 32]) -> Self {
        Self { kind, id }
    }

    pub(crate) fn to_bytes(self) -> [u8; 33] {
        let mut bytes = [0; 33];
        bytes[0] = self.kind as u8;
        bytes[1..].copy_from_slice(&self.id);
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; 33]) -> Option<Self> {
        let (kind, id) = bytes.split_first()?;
        Some(Self {
            kind: Kind::from_code(*kind)?,
            id: id.try_into().ok()?,
        })
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            Kind::Frame => "frame",
            Kind::Blob => "blob",
            Kind::Manifest => "manifest",
            Kind::Snapshot => "snapshot",
            Kind::Root => "root",
        };
        write!(f, "{kind} {}", martlet_image::BlobId(self.id))
    }
}

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// Which object.
    pub key: Key,
    /// How its bytes are compressed.
    pub codec: Codec,
    /// Bytes after the header.
    pub stored_len: u32,
    /// Bytes when decompressed.
    pub content_len: u32,
    /// CRC-32 of the bytes after the header.
    pub stored_crc: u32,
}

impl RecordHeader {
    /// As bytes.
    pub fn encode(&self) -> [u8; RECORD_HEADER] {
        let mut out = [0; RECORD_HEADER];
        out[..4].copy_from_slice(RECORD_MAGIC);
        out[4] = self.key.kind as u8;
        out[5] = self.codec as u8;
        out[8..12].copy_from_slice(&self.stored_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.content_len.to_le_bytes());
        out[16..48].copy_from_slice(&self.key.id);
        out[48..52].copy_from_slice(&self.stored_crc.to_le_bytes());
        let crc = crc32fast::hash(&out[..52]);
        out[52..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header at the start of `bytes`, if there is a sound one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<RECORD_HEADER>()?;
        let word = |at: usize| {
            bytes[at..]
                .first_chunk::<4>()
                .map_or(0, |word| u32::from_le_bytes(*word))
        };
        if &bytes[..4] != RECORD_MAGIC || word(52) != crc32fast::hash(&bytes[..52]) {
            return None;
        }
        let header = Self {
            key: Key::new(Kind::from_code(bytes[4])?, bytes[16..48].try_into().ok()?),
            codec: Codec::try_from(bytes[5]).ok()?,
            stored_len: word(8),
            content_len: word(12),
            stored_crc: word(48),
        };
        (header.stored_len.max(header.content_len) as usize <= CONTENT_BYTES_MAX).then_some(header)
    }
}

pub(crate) fn pack_header(number: u32) -> [u8; PACK_HEADER as usize] {
    let mut out = [0; PACK_HEADER as usize];
    out[..8].copy_from_slice(PACK_MAGIC);
    out[8..10].copy_from_slice(&PACK_VERSION.to_le_bytes());
    out[12..].copy_from_slice(&number.to_le_bytes());
    out
}

/// A record found by scanning a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// Where its header begins.
    pub offset: u64,
    /// Its header.
    pub header: RecordHeader,
}

/// Finds the sound records in `bytes`, which begin at `base` in a pack, skipping whatever is damaged.
/// Sound means that both checksums hold; the content is still to be verified against its id.
pub fn scan(bytes: &[u8], base: u64) -> Vec<Scanned> {
    let mut records = Vec::new();
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= RECORD_HEADER) {
        if let Some(header) = RecordHeader::decode(rest) {
            let end = RECORD_HEADER + header.stored_len as usize;
            if rest
                .get(RECORD_HEADER..end)
                .is_some_and(|body| crc32fast::hash(body) == header.stored_crc)
            {
                records.push(Scanned {
                    offset: base + at as u64,
                    header,
                });
                at += end;
                continue;
            }
        }
        // Damaged: the next record begins wherever the next sound header is.
        at += 1 + rest[1..]
            .windows(4)
            .position(|word| word == RECORD_MAGIC)
            .unwrap_or(rest.len());
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(content: &[u8]) -> Vec<u8> {
        let header = RecordHeader {
            key: Key::new(Kind::Blob, *blake3::hash(content).as_bytes()),
            codec: Codec::Raw,
            stored_len: content.len() as u32,
            content_len: content.len() as u32,
            stored_crc: crc32fast::hash(content),
        };
        [&header.encode()[..], content].concat()
    }

    #[test]
    fn a_scan_finds_every_sound_record_around_a_damaged_one() {
        let records = [
            record(b"one"),
            record(&[7; 3000]),
            record(b""),
            record(b"MREC in the content MREC"),
        ];
        let bytes = records.concat();
        let sound = scan(&bytes, 16);
        assert_eq!(sound.len(), 4);
        for byte in (0..bytes.len()).step_by(11) {
            let mut damaged = bytes.clone();
            damaged[byte] ^= 0x40;
            let mut end = 0;
            let hit = records.iter().position(|r| {
                end += r.len();
                byte < end
            });
            let mut expected = sound.clone();
            expected.remove(hit.unwrap());
            assert_eq!(scan(&damaged, 16), expected, "byte {byte}");
        }
        for len in 0..bytes.len() {
            assert!(scan(&bytes[..len], 0).len() < 4);
        }
    }
}
