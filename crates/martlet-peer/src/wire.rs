//! Objects between hosts.
//!
//! ```text
//! keys     n × (kind 1 | id 32), at most 4096
//! answer   n × (found 1 | codec 1 | content length 4 | stored length 4 | stored bytes), as asked; after found = 0 nothing
//! put      n × (kind 1 | id 32 | codec 1 | content length 4 | stored length 4 | stored bytes)
//! ```
//!
//! Lengths are checked before they are believed, and no more is allocated than has come.

use bytes::Bytes;
use martlet_image::{Codec, FRAME_PAGES_MAX, PAGE_SIZE};
use martlet_store::{CONTENT_BYTES_MAX, Key, Kind, Stored};

/// Objects asked for at once.
pub const KEYS_MAX: usize = 4096;
pub(crate) const KEY_BYTES: usize = 33;
/// The object is not here.
pub(crate) const LACKS: u8 = 0;
/// It follows.
pub(crate) const FOUND: u8 = 1;

pub(crate) fn put_key(out: &mut Vec<u8>, key: &Key) {
    out.push(key.kind as u8);
    out.extend_from_slice(&key.id);
}

pub(crate) fn encode_keys(keys: &[Key]) -> Vec<u8> {
    let mut out = Vec::with_capacity(keys.len() * KEY_BYTES);
    keys.iter().for_each(|key| put_key(&mut out, key));
    out
}

pub(crate) fn decode_key(bytes: &[u8; KEY_BYTES]) -> Option<Key> {
    let [code, id @ ..] = *bytes;
    let kinds = [Kind::Frame, Kind::Blob, Kind::Manifest, Kind::Snapshot];
    let kind = kinds.into_iter().find(|kind| *kind as u8 == code)?;
    Some(Key::new(kind, id))
}

/// Why not, otherwise.
pub(crate) fn decode_keys(bytes: &[u8]) -> Result<Vec<Key>, &'static str> {
    let (keys, rest) = bytes.as_chunks::<KEY_BYTES>();
    if !rest.is_empty() || keys.len() > KEYS_MAX {
        return Err("keys are of 33 bytes each, and at most 4096");
    }
    let keys: Option<Vec<Key>> = keys.iter().map(decode_key).collect();
    keys.ok_or("there is no such kind of object")
}

/// Codec and lengths, then the bytes.
pub(crate) fn put_object(out: &mut Vec<u8>, object: &Stored) {
    out.push(object.codec as u8);
    out.extend_from_slice(&object.content_len.to_le_bytes());
    out.extend_from_slice(&(object.bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(&object.bytes);
}

/// What an object's bytes are preceded by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) codec: Codec,
    pub(crate) content_len: u32,
    pub(crate) stored_len: u32,
}

impl Head {
    pub(crate) const BYTES: usize = 9;

    /// That of this object; what is wrong with it, otherwise.
    pub(crate) fn decode(key: &Key, bytes: [u8; Self::BYTES]) -> Result<Self, &'static str> {
        let [codec, a, b, c, d, e, f, g, h] = bytes;
        let head = Self {
            codec: Codec::try_from(codec).map_err(|_| "its codec is not known")?,
            content_len: u32::from_le_bytes([a, b, c, d]),
            stored_len: u32::from_le_bytes([e, f, g, h]),
        };
        let content = head.content_len as usize;
        let is_possible = match key.kind {
            Kind::Frame => {
                content.is_multiple_of(PAGE_SIZE) && (1..=FRAME_PAGES_MAX * PAGE_SIZE).contains(&content)
            }
            _ => content <= CONTENT_BYTES_MAX,
        };
        // What compression does not make smaller is not compressed.
        match is_possible && head.stored_len <= head.content_len {
            true => Ok(head),
            false => Err("its length is impossible"),
        }
    }

    /// The object of this key whose bytes these are, which is still to be verified.
    pub(crate) fn of(self, key: Key, bytes: Vec<u8>) -> Stored {
        Stored {
            key,
            codec: self.codec,
            content_len: self.content_len,
            bytes,
        }
    }
}

/// What comes in chunks of any size, to be taken in pieces.
pub(crate) struct Pieces<F> {
    next: F,
    ahead: Bytes,
}

/// What came is not what it has to be.
pub(crate) enum Taken<T> {
    Whole(T),
    Wrong(&'static str),
}

impl<E, F: FnMut() -> Result<Option<Bytes>, E>> Pieces<F> {
    pub(crate) fn new(next: F) -> Self {
        Self {
            next,
            ahead: Bytes::new(),
        }
    }

    /// Is there nothing more?
    pub(crate) fn is_at_end(&mut self) -> Result<bool, E> {
        while self.ahead.is_empty() {
            match (self.next)()? {
                Some(chunk) => self.ahead = chunk,
                None => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Takes all that is still to come.
    pub(crate) fn drain(&mut self) {
        self.ahead.clear();
        while let Ok(Some(_)) = (self.next)() {}
    }

    fn take(&mut self, len: usize) -> Result<Option<Vec<u8>>, E> {
        let mut taken = Vec::new();
        while taken.len() < len {
            if self.is_at_end()? {
                return Ok(None);
            }
            let part = self.ahead.split_to(self.ahead.len().min(len - taken.len()));
            taken.extend_from_slice(&part);
        }
        Ok(Some(taken))
    }

    /// So many bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<Option<[u8; N]>, E> {
        Ok(self.take(N)?.and_then(|bytes| bytes.try_into().ok()))
    }

    /// Codec, lengths and bytes of this object, which is still to be verified.
    pub(crate) fn object(&mut self, key: Key) -> Result<Taken<Stored>, E> {
        let Some(head) = self.array()? else {
            return Ok(Taken::Wrong("it ends too early"));
        };
        let head = match Head::decode(&key, head) {
            Ok(head) => head,
            Err(reason) => return Ok(Taken::Wrong(reason)),
        };
        Ok(match self.take(head.stored_len as usize)? {
            Some(bytes) => Taken::Whole(head.of(key, bytes)),
            None => Taken::Wrong("it ends too early"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn object(content: &[u8]) -> Stored {
        Stored {
            key: Key::new(Kind::Blob, *blake3::hash(content).as_bytes()),
            codec: Codec::Raw,
            content_len: content.len() as u32,
            bytes: content.to_vec(),
        }
    }

    fn read(bytes: &[u8], chunk_bytes: usize, key: Key) -> Option<Stored> {
        let mut chunks = bytes.chunks(chunk_bytes).map(Bytes::copy_from_slice);
        let mut pieces = Pieces::new(|| Ok::<_, Infallible>(chunks.next()));
        let Ok(taken) = pieces.object(key);
        match taken {
            Taken::Whole(object) => pieces.is_at_end().unwrap().then_some(object),
            Taken::Wrong(_) => None,
        }
    }

    #[test]
    fn objects_come_whole_in_chunks_of_any_size_or_not_at_all() {
        let object = object(b"some content");
        let mut bytes = Vec::new();
        put_object(&mut bytes, &object);
        for chunk_bytes in 1..=bytes.len() {
            assert_eq!(read(&bytes, chunk_bytes, object.key), Some(object.clone()));
        }
        for len in 0..bytes.len() {
            assert_eq!(read(&bytes[..len], 5, object.key), None);
        }
        for at in 0..Head::BYTES {
            bytes[at] ^= 0x80;
            assert_ne!(read(&bytes, 5, object.key), Some(object.clone()));
            bytes[at] ^= 0x80;
        }
        let as_frame = Key::new(Kind::Frame, object.key.id);
        assert_eq!(read(&bytes, 5, as_frame), None, "no frame is so short");
    }

    #[test]
    fn keys_are_bounded_and_of_known_kinds() {
        let keys = vec![object(b"x").key; KEYS_MAX];
        let mut bytes = encode_keys(&keys);
        assert_eq!(decode_keys(&bytes).unwrap(), keys);
        assert!(decode_keys(&bytes[1..]).is_err());
        bytes[0] = Kind::Root as u8;
        assert!(decode_keys(&bytes).is_err());
        assert!(decode_keys(&encode_keys(&vec![keys[0]; KEYS_MAX + 1])).is_err());
    }
}
