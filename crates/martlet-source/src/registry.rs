//! A registry of OCI images, over its distribution API: `oci://HOST[:PORT]/REPOSITORY`.
//!
//! ```text
//! tag refs.NAME ──► image manifest ──► layer: the object's bytes
//!                   │ artifactType application/vnd.martlet.object.v1
//!                   │ annotations  vnd.martlet.object refs/NAME | vnd.martlet.writer RANDOM
//!                   └─► config: the empty one, {}
//! ```
//!
//! Objects have manifests of their own also if their bytes are the same, as one is removed by the digest of its manifest.
//! The registry's garbage collection takes away what no manifest needs any more.
//!
//! **Who was first.** The API knows no condition: a tag that is put again is replaced. What is named by its content (packs,
//! their indexes) does not mind. Of anything else a writer sees that there is no such tag, puts it, waits until whoever saw
//! the same has put theirs too, and looks whose it is: the last one's (Fischer's algorithm). That holds if
//!
//! - a put takes effect within the wait after the look before it. Who notices that one took longer waits for as long again,
//!   but cannot tell those who believe already that they are first;
//! - a put is seen by all who read after its end;
//! - nobody acts on what was put within the last wait: it may be a loser's.
//!
//! A registry that is told to keep tags as they are needs none of this, and is asked in the same way.

mod auth;
mod client;
mod document;

use crate::{Entry, Key, Objects, Patience, Put, Result, Room, SourceError};
use bytes::Bytes;
use client::{Client, Failure, Tried};
use document::{Blob, Digest, Found, Tags};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;
use url::Url;

pub use auth::Login;

/// How long a writer waits for others, unless told.
const WAIT: Duration = Duration::from_secs(1);
/// Manifests that are asked for at the same time.
const AT_ONCE: usize = 16;
/// More objects are none of ours.
const OBJECTS_MAX: usize = 1 << 20;

/// See the module's documentation.
#[derive(Debug)]
pub struct Registry {
    client: Client,
    place: String,
    wait: Duration,
    /// The empty config is there.
    config: OnceCell<()>,
    /// What is named by its content, and so stays what it is.
    known: Mutex<HashMap<Key, Blob>>,
}

impl Registry {
    /// A repository of a registry, at `oci://HOST[:PORT]/REPOSITORY`. On this host it is asked without TLS, elsewhere only
    /// if told: `oci+http://`.
    pub fn new(address: &Url, login: Option<Login>, patience: Patience) -> Result<Self> {
        Ok(Self {
            client: Client::new(address, login, patience)?,
            place: address.to_string(),
            wait: WAIT,
            config: OnceCell::new(),
            known: Mutex::default(),
        })
    }

    /// Has writers wait so long for others. All have to wait for the same time, a second unless told.
    pub fn with_wait(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    fn ask<T>(
        &self,
        key: Option<&Key>,
        action: &'static str,
        request: impl Future<Output = Tried<T>>,
    ) -> Result<T> {
        crate::cloud::RUNTIME.block_on(request).map_err(|failure| {
            let place = self.place();
            match (failure, key) {
                (Failure::Missing(_), Some(key)) => SourceError::NotFound {
                    place,
                    key: key.clone(),
                },
                (Failure::Wrong(reason), Some(key)) => SourceError::Wrong {
                    place,
                    key: key.clone(),
                    reason,
                },
                (Failure::Unavailable(reason), _) => SourceError::Unavailable {
                    place,
                    action,
                    reason,
                },
                (Failure::Missing(reason) | Failure::Refused(reason) | Failure::Wrong(reason), _) => {
                    SourceError::Refused {
                        place,
                        action,
                        reason,
                    }
                }
            }
        })
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Key, Blob>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is there now.
    async fn find(&self, key: &Key) -> Tried<Found> {
        let tag = tag_of(key)?;
        let manifest = self.client.again(async || self.client.manifest(&tag).await);
        let found = Found::read(key, &manifest.await?)?;
        if is_named_by_content(key) {
            self.known().insert(key.clone(), found.blob.clone());
        }
        Ok(found)
    }

    /// What is there, or was.
    async fn recall(&self, key: &Key) -> Tried<Blob> {
        let known = self.known().get(key).cloned();
        match known {
            Some(blob) => Ok(blob),
            None => Ok(self.find(key).await?.blob),
        }
    }

    async fn put(&self, key: &Key, bytes: &[u8]) -> Tried<Put> {
        let tag = tag_of(key)?;
        match self.find(key).await {
            Ok(_) => return Ok(Put::WasThere),
            Err(Failure::Missing(_)) => {}
            Err(failure) => return Err(failure),
        }
        let (client, empty) = (&self.client, Blob::of(document::EMPTY));
        let config = client.again(async || client.upload(&empty, Bytes::from_static(document::EMPTY)).await);
        self.config.get_or_try_init(|| config).await?;
        let (blob, bytes) = (Blob::of(bytes), Bytes::copy_from_slice(bytes));
        client
            .again(async || client.upload(&blob, bytes.clone()).await)
            .await?;
        if is_named_by_content(key) {
            let manifest = document::manifest(key, &blob, None);
            client
                .again(async || client.put_manifest(&tag, manifest.clone()).await)
                .await?;
            self.known().insert(key.clone(), blob);
            return Ok(Put::Made);
        }
        let writer = RandomState::new().build_hasher().finish();
        let manifest = document::manifest(key, &blob, Some(writer));
        client
            .again(async || self.contend(key, &tag, manifest.clone()).await)
            .await
    }

    /// See the module's documentation.
    async fn contend(&self, key: &Key, tag: &str, manifest: Bytes) -> Tried<Put> {
        let ours = Digest::of(&manifest);
        let begun = Instant::now();
        match self.find(key).await {
            Ok(found) if found.manifest != ours => return Ok(Put::WasThere),
            Ok(_) => {} // by a try whose answer was lost
            Err(Failure::Missing(_)) => {
                if let Err(failure) = self.client.put_manifest(tag, manifest).await {
                    // Perhaps a tag that is there stays as it is.
                    return match self.find(key).await {
                        Ok(found) if found.manifest != ours => Ok(Put::WasThere),
                        _ => Err(failure),
                    };
                }
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(self.wait.max(begun.elapsed())).await;
        match self.find(key).await {
            Ok(found) if found.manifest == ours => Ok(Put::Made),
            Ok(_) => Ok(Put::WasThere),
            Err(Failure::Missing(_)) => Err(Failure::Unavailable("it was removed meanwhile".into())),
            Err(failure) => Err(failure),
        }
    }

    /// All objects of a room.
    async fn keys(&self, room: Room) -> Tried<Vec<Key>> {
        let mut keys = Vec::new();
        let mut next = Some(self.client.tags());
        while let Some(page) = next {
            let Tags { tags, next: after } =
                match self.client.again(async || self.client.page(&page).await).await {
                    Err(Failure::Missing(_)) if keys.is_empty() => break, // nobody has put anything yet
                    page => page?,
                };
            // Other tags are none of ours.
            keys.extend(tags.iter().filter_map(|tag| key_of(room, tag)));
            if keys.len() > OBJECTS_MAX || after.as_ref() == Some(&page) {
                return Err(Failure::Wrong("it lists more and more".into()));
            }
            next = after;
        }
        Ok(keys)
    }
}

impl Objects for Registry {
    fn place(&self) -> String {
        self.place.clone()
    }

    fn get(&self, key: &Key, size_bytes_max: u64) -> Result<Vec<u8>> {
        self.ask(Some(key), "read", async {
            let Found { blob, .. } = self.find(key).await?;
            if blob.size_bytes > size_bytes_max {
                let size_bytes = blob.size_bytes;
                let reason = format!("{size_bytes} bytes; at most {size_bytes_max} are expected");
                return Err(Failure::Wrong(reason));
            }
            let read = self.client.again(async || self.client.blob(&blob, None).await);
            let bytes = read.await?;
            match Digest::of(&bytes) == blob.digest {
                true => Ok(bytes),
                false => Err(Failure::Wrong(format!("it is not {}", blob.digest))),
            }
        })
    }

    fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        self.ask(Some(key), "read a part of", async {
            let blob = self.recall(key).await?;
            if range.end > blob.size_bytes {
                return Err(Failure::Wrong(format!("it ends before byte {}", range.end)));
            }
            if range.is_empty() {
                return Ok(Vec::new());
            }
            let read = async || self.client.blob(&blob, Some(range.clone())).await;
            let part = self.client.again(read).await;
            if matches!(part, Err(Failure::Missing(_))) {
                self.known().remove(key);
            }
            part
        })
    }

    fn put_new(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.ask(Some(key), "write", self.put(key, bytes))
    }

    fn list(&self, room: Room) -> Result<Vec<Entry>> {
        let entry = async |key: Key| match self.recall(&key).await {
            Ok(Blob { size_bytes, .. }) => Ok(Some(Entry { key, size_bytes })),
            Err(Failure::Missing(_)) => Ok(None), // removed meanwhile
            Err(failure) => Err(failure),
        };
        let mut entries: Vec<Entry> = self.ask(None, "list", async {
            // Sizes are in the manifests only.
            stream::iter(self.keys(room).await?)
                .map(entry)
                .buffer_unordered(AT_ONCE)
                .try_filter_map(async |entry| Ok(entry))
                .try_collect()
                .await
        })?;
        entries.sort();
        entries.dedup(); // of pages that changed meanwhile
        Ok(entries)
    }

    fn remove(&self, key: &Key) -> Result<()> {
        self.known().remove(key);
        self.ask(Some(key), "remove", async {
            let removed = match self.find(key).await {
                Ok(found) => {
                    let remove = async || self.client.remove_manifest(&found.manifest).await;
                    self.client.again(remove).await
                }
                missing => missing.map(drop),
            };
            self.known().remove(key);
            match removed {
                Err(Failure::Missing(_)) => Ok(()),
                removed => removed,
            }
        })
    }
}

/// Do all who put it put the same?
fn is_named_by_content(key: &Key) -> bool {
    matches!(key.room(), Room::Packs | Room::Indexes)
}

/// `ROOM.NAME`, with `_` before what a tag cannot have: `__` is `_`, `_a` is `@`, `_e` is `=`.
fn tag_of(key: &Key) -> Tried<String> {
    let mut tag = format!("{}.", key.room().as_str());
    for letter in key.name().chars() {
        match letter {
            '_' => tag.push_str("__"),
            '@' => tag.push_str("_a"),
            '=' => tag.push_str("_e"),
            _ => tag.push(letter),
        }
    }
    match tag.len() {
        ..=128 => Ok(tag),
        len => Err(Failure::Refused(format!(
            "a tag has 128 letters, and {key} needs {len}"
        ))),
    }
}

/// None if it is the tag of no object of the room.
fn key_of(room: Room, tag: &str) -> Option<Key> {
    let escaped = tag.strip_prefix(room.as_str())?.strip_prefix('.')?;
    let mut name = String::with_capacity(escaped.len());
    let mut letters = escaped.chars();
    while let Some(letter) = letters.next() {
        name.push(match letter {
            '_' => match letters.next()? {
                '_' => '_',
                'a' => '@',
                'e' => '=',
                _ => return None,
            },
            _ => letter,
        });
    }
    Key::new(room, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_of_one_object() {
        let key = |name: &str| Key::new(Room::Refs, name).unwrap();
        for (name, tag) in [
            ("web@latest@00000001", "refs.web_alatest_a00000001"),
            ("a_a=-.B", "refs.a__a_e-.B"),
            ("_@", "refs.___a"),
        ] {
            assert_eq!(tag_of(&key(name)).unwrap_or_default(), tag);
            assert_eq!(key_of(Room::Refs, tag), Some(key(name)));
            assert_eq!(key_of(Room::Packs, tag), None);
        }
        for foreign in [
            "refs.",
            "refs._",
            "refs._x",
            "refs",
            "latest",
            "refs-x",
            "refs.a@b/c",
        ] {
            assert_eq!(key_of(Room::Refs, foreign), None, "{foreign}");
        }
        assert!(tag_of(&key(&"x".repeat(123))).is_ok());
        for long in ["x".repeat(124), "@".repeat(62)] {
            assert!(matches!(tag_of(&key(&long)), Err(Failure::Refused(_))));
        }
    }
}
