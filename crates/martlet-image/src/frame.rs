//! Frames: 1 to 16 pages compressed together, named by the BLAKE3 hash of their *uncompressed* bytes.
//!
//! The id does not depend on the codec, so a frame may be compressed again, better or worse, without any manifest
//! changing. Whoever reads a frame verifies it: [`decode_frame`] hands out nothing else than what the id promises.

use crate::wire::FormatError;
use crate::{FRAME_PAGES_MAX, FrameId, PAGE_SIZE};
use bytes::Bytes;
use std::cell::RefCell;

/// How stored bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As they are: compression did not pay.
    Raw = 0,
    /// One Zstandard frame.
    Zstd = 1,
}

impl TryFrom<u8> for Codec {
    type Error = FormatError;
    fn try_from(code: u8) -> Result<Self, FormatError> {
        match code {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Zstd),
            _ => Err(FormatError::Malformed {
                what: "record",
                why: "unknown codec",
            }),
        }
    }
}

/// Level 3 saves 4 % more and takes 1.4 times as long (docs/format.md has the figures).
const ZSTD_LEVEL: i32 = 1;

/// For what is sent more often than it is made: a tenth less.
const ZSTD_LEVEL_WELL: i32 = 6;

/// Compression must save at least 1/16, or reading would pay for nothing.
const WORTHWHILE_DIVISOR: usize = 16;

thread_local! {
    // A compression context is half a megabyte of tables; making one for each frame would cost more than the frame.
    static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Compresses `content` if that pays.
pub fn compress(content: &[u8]) -> (Codec, Vec<u8>) {
    let compressed = COMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
        }
        slot.as_mut()?.compress(content).ok()
    });
    if_worthwhile(content, compressed)
}

/// As [`compress`]; takes longer for less.
pub fn compress_well(content: &[u8]) -> (Codec, Vec<u8>) {
    if_worthwhile(content, zstd::bulk::compress(content, ZSTD_LEVEL_WELL).ok())
}

fn if_worthwhile(content: &[u8], compressed: Option<Vec<u8>>) -> (Codec, Vec<u8>) {
    match compressed {
        Some(bytes) if bytes.len() + content.len() / WORTHWHILE_DIVISOR < content.len() => {
            (Codec::Zstd, bytes)
        }
        _ => (Codec::Raw, content.to_vec()),
    }
}

/// Decompresses to exactly `content_len` bytes; more or fewer is an error. The caller has bounded `content_len`.
pub fn decompress(codec: Codec, bytes: &[u8], content_len: usize) -> Result<Bytes, FormatError> {
    let content = match codec {
        Codec::Raw => bytes.to_vec(),
        Codec::Zstd => DECOMPRESSOR
            .with_borrow_mut(|slot| {
                if slot.is_none() {
                    *slot = zstd::bulk::Decompressor::new().ok();
                }
                slot.as_mut()?.decompress(bytes, content_len).ok()
            })
            .ok_or(FormatError::Compression("content"))?,
    };
    if content.len() == content_len {
        Ok(content.into())
    } else {
        Err(FormatError::WrongContent("content"))
    }
}

/// A frame ready to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedFrame {
    /// Its name.
    pub id: FrameId,
    /// How `bytes` are compressed.
    pub codec: Codec,
    /// What to store.
    pub bytes: Vec<u8>,
    /// Pages in it.
    pub page_count: u8,
}

/// Makes a frame of 1 to [`FRAME_PAGES_MAX`] whole pages.
///
/// # Panics
/// If `pages` is not 1 to 16 whole pages: callers cut their own bytes.
pub fn encode_frame(pages: &[u8]) -> EncodedFrame {
    let page_count = pages.len() / PAGE_SIZE;
    assert!(
        pages.len().is_multiple_of(PAGE_SIZE) && (1..=FRAME_PAGES_MAX).contains(&page_count),
        "a frame is 1 to {FRAME_PAGES_MAX} whole pages, not {} bytes",
        pages.len()
    );
    let (codec, bytes) = compress(pages);
    EncodedFrame {
        id: FrameId::of(pages),
        codec,
        bytes,
        page_count: page_count as u8,
    }
}

/// The pages of frame `id`, verified against it.
pub fn decode_frame(
    id: &FrameId,
    codec: Codec,
    bytes: &[u8],
    page_count: usize,
) -> Result<Bytes, FormatError> {
    if !(1..=FRAME_PAGES_MAX).contains(&page_count) {
        return Err(FormatError::Malformed {
            what: "frame",
            why: "it must hold 1 to 16 pages",
        });
    }
    let pages = decompress(codec, bytes, page_count * PAGE_SIZE)?;
    if FrameId::of(&pages) == *id {
        Ok(pages)
    } else {
        Err(FormatError::WrongContent("frame"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn frames_of_every_size_round_trip() {
        for page_count in 1..=FRAME_PAGES_MAX {
            let text: Vec<u8> = (0..page_count * PAGE_SIZE).map(|i| (i / 37) as u8).collect();
            for pages in [text, noise(page_count * PAGE_SIZE)] {
                let frame = encode_frame(&pages);
                assert_eq!(
                    decode_frame(&frame.id, frame.codec, &frame.bytes, page_count),
                    Ok(pages.into())
                );
            }
        }
    }

    #[test]
    fn noise_is_kept_raw_and_text_is_compressed() {
        assert_eq!(encode_frame(&noise(PAGE_SIZE)).codec, Codec::Raw);
        let text = encode_frame(&b"martlet ".repeat(512));
        assert_eq!(text.codec, Codec::Zstd);
        assert!(text.bytes.len() < 100);
    }

    #[test]
    fn a_flipped_bit_never_passes() {
        let pages: Vec<u8> = (0..2 * PAGE_SIZE).map(|i| (i / 5) as u8).collect();
        let frame = encode_frame(&pages);
        for byte in (0..frame.bytes.len()).step_by(7) {
            let mut bytes = frame.bytes.clone();
            bytes[byte] ^= 1;
            // A flip in zstd's own slack may decode to the same content; anything else must be refused.
            if let Ok(decoded) = decode_frame(&frame.id, frame.codec, &bytes, 2) {
                assert_eq!(decoded, pages);
            }
        }
        assert!(decode_frame(&frame.id, frame.codec, &frame.bytes, 1).is_err());
        assert!(decode_frame(&frame.id, frame.codec, &frame.bytes, 3).is_err());
        assert!(decode_frame(&frame.id, frame.codec, &frame.bytes, 0).is_err());
        assert!(decode_frame(&frame.id, frame.codec, &frame.bytes, usize::MAX).is_err());
        assert!(decode_frame(&frame.id, Codec::Raw, &frame.bytes, 2).is_err());
    }
}
