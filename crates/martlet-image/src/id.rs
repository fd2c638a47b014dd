//! Content identifiers: BLAKE3 hashes, one type for each kind of thing so that they cannot be mixed up.

use std::fmt;
use std::str::FromStr;

/// The text is not 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an id: expected 64 hexadecimal digits")]
pub struct IdError;

macro_rules! id {
    ($name:ident, $what:literal) => {
        #[doc = concat!("BLAKE3-256 of ", $what, ".")]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The id of these bytes.
            pub fn of(bytes: &[u8]) -> Self {
                Self(*blake3::hash(bytes).as_bytes())
            }
            /// First 12 hexadecimal digits, for people.
            pub fn short(&self) -> String {
                self.to_string()[..12].to_owned()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let hex = text.as_bytes();
                if hex.len() != 64 {
                    return Err(IdError);
                }
                let digit = |b: u8| (b as char).to_digit(16).ok_or(IdError);
                let mut id = [0; 32];
                for (byte, pair) in id.iter_mut().zip(hex.chunks_exact(2)) {
                    *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
                }
                Ok(Self(id))
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(FrameId, "a frame's uncompressed pages");
id!(ManifestId, "an encoded manifest");
id!(
    BlobId,
    "a blob: a descriptor, kernel, initramfs, trace, or a part of a starter"
);
id!(SnapshotId, "an encoded snapshot record");
