//! What a registry says of objects. **A format**: what is put stays.

use super::client::{Failure, Tried};
use crate::Key;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use url::Url;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OBJECT: &str = "application/vnd.martlet.object.v1";
const EMPTY_CONFIG: &str = "application/vnd.oci.empty.v1+json";
/// The content of the config that says nothing.
pub const EMPTY: &[u8] = b"{}";
/// Annotations: which object it is, and who wrote it.
const NAME: &str = "vnd.martlet.object";
const WRITER: &str = "vnd.martlet.writer";

/// `sha256:` and 64 digits.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(format!("sha256:{:x}", Sha256::digest(bytes)))
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(digest: String) -> Result<Self, Self::Error> {
        let digits = digest.strip_prefix("sha256:").unwrap_or_default();
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match digits.len() == 64 && digits.bytes().all(is_digit) {
            true => Ok(Self(digest)),
            false => Err("no sha256 digest"),
        }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    pub digest: Digest,
    pub size_bytes: u64,
}

impl Blob {
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            digest: Digest::of(bytes),
            size_bytes: bytes.len() as u64,
        }
    }
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    size: u64,
}

impl Descriptor {
    fn new(media_type: &str, blob: &Blob) -> Self {
        Self {
            media_type: media_type.into(),
            digest: blob.digest.clone(),
            size: blob.size_bytes,
        }
    }
}

/// The manifest of an object, which is different for each writer.
pub fn manifest(key: &Key, blob: &Blob, writer: Option<u64>) -> Bytes {
    let mut annotations = BTreeMap::from([(NAME.to_owned(), key.to_string())]);
    annotations.extend(writer.map(|writer| (WRITER.to_owned(), format!("{writer:016x}"))));
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST.into(),
        artifact_type: OBJECT.into(),
        config: Descriptor::new(EMPTY_CONFIG, &Blob::of(EMPTY)),
        layers: vec![Descriptor::new(OBJECT, blob)],
        annotations,
    };
    serde_json::to_vec(&manifest)
        .expect("names and numbers are JSON")
        .into()
}

/// An object that is there.
#[derive(Debug)]
pub struct Found {
    /// The digest of its manifest.
    pub manifest: Digest,
    pub blob: Blob,
}

impl Found {
    pub fn read(key: &Key, manifest: &[u8]) -> Tried<Self> {
        let wrong = |reason: String| Failure::Wrong(format!("its manifest is none of ours: {reason}"));
        let read: Manifest = serde_json::from_slice(manifest).map_err(|error| wrong(error.to_string()))?;
        let name = read.annotations.get(NAME);
        match &read.layers[..] {
            [Descriptor { digest, size, .. }]
                if read.artifact_type == OBJECT && name.is_some_and(|name| *name == key.to_string()) =>
            {
                Ok(Self {
                    manifest: Digest::of(manifest),
                    blob: Blob {
                        digest: digest.clone(),
                        size_bytes: *size,
                    },
                })
            }
            _ => Err(wrong(format!("{} {name:?}", read.artifact_type))),
        }
    }
}

/// A page of a list of tags.
#[derive(Debug)]
pub struct Tags {
    pub tags: Vec<String>,
    pub next: Option<Url>,
}

impl Tags {
    pub fn read(page: &[u8], next: Option<Url>) -> Tried<Self> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>, // null if there are none
        }
        let page: Page = serde_json::from_slice(page)
            .map_err(|error| Failure::Wrong(format!("its list of tags is none: {error}")))?;
        Ok(Self {
            tags: page.tags.unwrap_or_default(),
            next,
        })
    }
}
