//! Reading untrusted bytes: every length is checked before it is believed.
//!
//! All integers are little-endian. A `varint` is LEB128: seven bits a byte, lowest first, at most ten bytes.

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It does not begin with the magic bytes of what was expected.
    #[error("not a {0}: wrong magic bytes")]
    Magic(&'static str),
    /// A newer program wrote it.
    #[error("{what} has format version {version}, this program reads up to {newest}")]
    Version {
        /// What was read.
        what: &'static str,
        /// Its version.
        version: u16,
        /// Newest version this program knows.
        newest: u16,
    },
    /// It ends too early.
    #[error("{0} is truncated")]
    Truncated(&'static str),
    /// A field has a value that cannot be.
    #[error("{what} is malformed: {why}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// The field and what is wrong with it.
        why: &'static str,
    },
    /// The content is not what its id promises.
    #[error("{0} does not match its id")]
    WrongContent(&'static str),
    /// The compressed bytes cannot be decompressed.
    #[error("{0} cannot be decompressed")]
    Compression(&'static str),
}

/// A cursor over untrusted bytes of a `what`.
pub(crate) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    pub(crate) fn malformed(&self, why: &'static str) -> FormatError {
        FormatError::Malformed { what: self.what, why }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(FormatError::Truncated(self.what))?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(FormatError::Truncated(self.what))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn varint(&mut self) -> Result<u64, FormatError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(self.malformed("a number is too large"));
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed("a number is too long"))
    }

    /// Magic bytes and a version no newer than `newest`.
    pub(crate) fn magic(&mut self, magic: &[u8; 8], newest: u16) -> Result<u16, FormatError> {
        if self.array::<8>().map_err(|_| FormatError::Magic(self.what))? != *magic {
            return Err(FormatError::Magic(self.what));
        }
        let version = self.u16()?;
        if version == 0 || version > newest {
            return Err(FormatError::Version {
                what: self.what,
                version,
                newest,
            });
        }
        Ok(version)
    }

    pub(crate) fn finish(self) -> Result<(), FormatError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.malformed("bytes are left over at its end"))
        }
    }
}

/// What each format begins with; flags are zero where there are none.
pub(crate) fn head(magic: &[u8; 8], version: u16, flags: [u8; 2], count: u32) -> Vec<u8> {
    [&magic[..], &version.to_le_bytes(), &flags, &count.to_le_bytes()].concat()
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Signed to unsigned so that small numbers of either sign are short.
pub(crate) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_at_the_edges() {
        for value in [
            0,
            1,
            127,
            128,
            16383,
            16384,
            u64::from(u32::MAX),
            u64::MAX - 1,
            u64::MAX,
        ] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut reader = Reader::new("test", &out);
            assert_eq!(reader.varint(), Ok(value));
            assert_eq!(reader.remaining(), 0);
        }
        for value in [0, -1, 1, i64::MIN, i64::MAX] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
    }

    #[test]
    fn an_overlong_varint_is_refused() {
        assert!(Reader::new("test", &[0xff; 11]).varint().is_err());
        assert!(Reader::new("test", &[0x80; 3]).varint().is_err());
        let mut too_large = vec![0xff; 9];
        too_large.push(2);
        assert!(Reader::new("test", &too_large).varint().is_err());
    }
}
