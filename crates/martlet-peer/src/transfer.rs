//! Snapshots from host to host: what is lacking where they go to, then their name.
//!
//! ```text
//! push   what is needed ──► less what is there ──► put (each durable) ──► record and name
//! pull   name ──► record ──► blobs, manifests and those below, frames: less what is here ──► record and name
//! ```
//!
//! Cut short anywhere, the next one goes on from what has come. Nothing that comes is believed.

use crate::wire::{FOUND, Head, KEY_BYTES, KEYS_MAX, LACKS, Pieces, Taken, encode_keys, put_key, put_object};
use crate::{Code, PeerClient, PeerError, Result};
use martlet_image::{FrameId, SnapshotId, SnapshotRecord};
use martlet_store::{Batch, Key, Kind, Part, RefName, Store, StoreError, Stored};
use std::collections::{BTreeMap, HashSet};

/// What has come is committed after so many bytes.
const COMMIT_BYTES: u64 = 64 << 20;
/// What is put at once, unless one object is larger.
pub(crate) const PUT_BYTES: usize = 16 << 20;
/// The answer to a name is an id.
const NAMED_BYTES_MAX: usize = 100;
/// A push begins again when what was there has gone meanwhile, but not for ever.
const PUSHES_MAX: usize = 3;

impl PeerClient {
    /// The names that it has.
    pub fn refs(&self) -> Result<BTreeMap<RefName, SnapshotId>> {
        let refs: BTreeMap<String, String> = self.get("/peer/refs")?;
        let read = |(name, id): (String, String)| Some((name.parse().ok()?, id.parse().ok()?));
        let read: Option<_> = refs.into_iter().map(read).collect();
        read.ok_or_else(|| PeerError::wrong(self.peer(), "its names", "they are no names of snapshots"))
    }

    /// Gets objects, and gives out each, verified, as it comes, in the order asked. Says which it lacks.
    pub fn objects(&self, keys: &[Key], each: &mut dyn FnMut(Stored) -> Result<()>) -> Result<Vec<Key>> {
        self.receive(keys, &mut |object| {
            object.content().map_err(|error| self.wrong(&object, error))?;
            each(object)
        })
    }

    /// Gets frames, as [`PeerClient::objects`].
    pub fn frames(
        &self,
        ids: &[FrameId],
        each: &mut dyn FnMut(Stored) -> Result<()>,
    ) -> Result<Vec<FrameId>> {
        let keys: Vec<Key> = ids.iter().map(|id| Key::new(Kind::Frame, id.0)).collect();
        let lacking = self.objects(&keys, each)?;
        Ok(lacking.into_iter().map(|key| FrameId(key.id)).collect())
    }

    /// Those of these objects that it does not have. The others it keeps for some minutes.
    pub fn lacks(&self, keys: &[Key]) -> Result<Vec<Key>> {
        let mut lacking = Vec::new();
        for part in keys.chunks(KEYS_MAX) {
            let bits_len = part.len().div_ceil(8);
            let answer = self.ask("/peer/lacks", encode_keys(part))?;
            let bits = answer.all(bits_len)?;
            if bits.len() != bits_len {
                return Err(PeerError::wrong(
                    self.peer(),
                    "what it lacks",
                    "it ends too early",
                ));
            }
            let is_lacking = |(at, _): &(usize, &Key)| bits[at / 8] >> (at % 8) & 1 == 1;
            lacking.extend(part.iter().enumerate().filter(is_lacking).map(|(_, key)| *key));
        }
        Ok(lacking)
    }

    /// As [`PeerClient::objects`], not verified.
    pub fn receive(&self, keys: &[Key], each: &mut dyn FnMut(Stored) -> Result<()>) -> Result<Vec<Key>> {
        if let [key] = keys {
            return Ok(match self.object(key)? {
                Some(object) => each(object).map(|()| Vec::new())?,
                None => vec![*key],
            });
        }
        let mut lacking = Vec::new();
        for part in keys.chunks(KEYS_MAX) {
            let mut answer = self.ask("/peer/objects", encode_keys(part))?;
            let mut pieces = Pieces::new(|| answer.chunk());
            for key in part {
                match pieces.array()? {
                    Some([FOUND]) => match pieces.object(*key)? {
                        Taken::Whole(object) => each(object)?,
                        Taken::Wrong(reason) => return Err(PeerError::wrong(self.peer(), key, reason)),
                    },
                    Some([LACKS]) => lacking.push(*key),
                    Some(_) => return Err(PeerError::wrong(self.peer(), key, "it is neither there nor not")),
                    None => return Err(PeerError::wrong(self.peer(), key, "the answer ends before it")),
                }
            }
            if !pieces.is_at_end()? {
                let what = format!("{} objects", part.len());
                return Err(PeerError::wrong(
                    self.peer(),
                    what,
                    "it gave more than was asked for",
                ));
            }
        }
        Ok(lacking)
    }

    fn wrong(&self, object: &Stored, error: StoreError) -> PeerError {
        PeerError::wrong(self.peer(), object.key, error)
    }
}

/// What a push did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PushReport {
    /// Objects that the snapshot consists of.
    pub objects: u64,
    /// Of these, what the other host lacked.
    pub sent_objects: u64,
    /// What they took on the way.
    pub sent_bytes: u64,
}

/// Pushes a snapshot and has the other host call it `name`. `progress` is told of bytes sent, and of bytes in all.
pub fn push(
    store: &Store,
    client: &PeerClient,
    id: SnapshotId,
    name: &RefName,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<PushReport> {
    let _pin = store.pin(id, "a push")?;
    let snapshot = Key::new(Kind::Snapshot, id.0);
    let record = store.stored(&snapshot)?.content()?;
    let mut needs = store.needs(&id)?;
    let mut report = PushReport {
        objects: needs.len() as u64,
        ..PushReport::default()
    };
    needs.retain(|(key, _)| *key != snapshot); // its record goes with the name
    let path = format!("/peer/ref?name={name}");
    for tried in 1.. {
        put_lacking(store, client, &needs, &mut report, progress)?;
        let named = client.ask(&path, record.clone());
        match named.and_then(|answer| answer.all(NAMED_BYTES_MAX)) {
            Ok(named) if named == format!("\"{id}\"").as_bytes() => break,
            Ok(_) => return Err(PeerError::wrong(client.peer(), name, "it names another snapshot")),
            Err(PeerError::Refused {
                code: Code::Lacks, ..
            }) if tried < PUSHES_MAX => {}
            Err(error) => return Err(error),
        }
    }
    Ok(report)
}

/// Sends what the other host lacks of these objects, in this order. It keeps them for some minutes without a name. `progress` is
/// told of bytes sent, and of bytes in all.
pub fn send(
    store: &Store,
    client: &PeerClient,
    needs: &[(Key, u32)],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<PushReport> {
    let mut report = PushReport {
        objects: needs.len() as u64,
        ..PushReport::default()
    };
    put_lacking(store, client, needs, &mut report, progress)?;
    Ok(report)
}

/// Puts what the other host lacks of these, in this order.
fn put_lacking(
    store: &Store,
    client: &PeerClient,
    needs: &[(Key, u32)],
    report: &mut PushReport,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let keys: Vec<Key> = needs.iter().map(|(key, _)| *key).collect();
    let lacking = HashSet::<Key>::from_iter(client.lacks(&keys)?);
    let lacking: Vec<&(Key, u32)> = needs.iter().filter(|(key, _)| lacking.contains(key)).collect();
    let total_bytes = lacking.iter().map(|(_, len)| put_bytes(*len)).sum::<u64>() + report.sent_bytes;
    let (mut body, mut count) = (Vec::new(), 0);
    for (at, (key, _)) in lacking.iter().enumerate() {
        put_key(&mut body, key);
        put_object(&mut body, &store.stored(key)?);
        count += 1;
        if body.len() >= PUT_BYTES || count == KEYS_MAX || at + 1 == lacking.len() {
            report.sent_objects += count as u64;
            report.sent_bytes += body.len() as u64;
            client.ask("/peer/put", std::mem::take(&mut body))?.all(0)?;
            count = 0;
            progress(report.sent_bytes, total_bytes);
        }
    }
    Ok(())
}

/// What an object takes on the way there.
fn put_bytes(stored_len: u32) -> u64 {
    (KEY_BYTES + Head::BYTES) as u64 + u64::from(stored_len)
}

/// What a pull did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PullReport {
    /// Objects that were lacking here.
    pub got_objects: u64,
    /// What they took on the way.
    pub got_bytes: u64,
}

/// Pulls the snapshot that the other host calls `name`, and calls it `called` here. `progress` is told of objects that have
/// come, and of objects in all, as far as is known.
pub fn pull(
    store: &Store,
    client: &PeerClient,
    name: &RefName,
    called: &RefName,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(PullReport, SnapshotId)> {
    let found = client.refs()?.remove(name);
    let id = found.ok_or_else(|| PeerError::NoSnapshot {
        peer: client.peer().to_owned(),
        name: name.to_string(),
    })?;
    let mut pull = Pull {
        store,
        client,
        keeper: store.begin()?, // of what comes, nothing is needed by anything yet
        report: PullReport::default(),
        total: 1,
        progress,
    };
    let record = pull.record(id)?;
    store.walk(&record, Part::Whole, &mut |keys| pull.all(keys))?;
    let mut batch = store.begin()?;
    let made = batch.put_snapshot(&record)?;
    if made != id {
        return Err(PeerError::wrong(
            client.peer(),
            format!("snapshot {id}"),
            "its record is of another form",
        ));
    }
    batch.commit(&[(called.clone(), id)])?;
    Ok((pull.report, id))
}

/// Gets all of a snapshot that the other host calls `name` but its frames and what is only booted by, which
/// [`PeerClient::objects`] then gets when they are needed. Nothing is named here: garbage collection spares what has come while the batch lives.
pub fn fetch_without_frames(
    store: &Store,
    client: &PeerClient,
    name: &RefName,
) -> Result<(PullReport, SnapshotId, SnapshotRecord, Batch)> {
    let found = client.refs()?.remove(name);
    let id = found.ok_or_else(|| PeerError::NoSnapshot {
        peer: client.peer().to_owned(),
        name: name.to_string(),
    })?;
    let mut ignored = |_, _| ();
    let mut pull = Pull {
        store,
        client,
        keeper: store.begin()?,
        report: PullReport::default(),
        total: 1,
        progress: &mut ignored,
    };
    let record = pull.record(id)?;
    store.walk(&record, Part::Outline, &mut |keys| pull.all(keys))?;
    Ok((pull.report, id, record, pull.keeper))
}

struct Pull<'a> {
    store: &'a Store,
    client: &'a PeerClient,
    keeper: Batch,
    report: PullReport,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Pull<'_> {
    /// The record of the snapshot, which is in the store only once all that it needs is.
    fn record(&mut self, id: SnapshotId) -> Result<SnapshotRecord> {
        let key = Key::new(Kind::Snapshot, id.0);
        if self.store.lacks(&[key])?.is_empty() {
            return Ok(self.store.snapshot(&id)?);
        }
        let (client, report) = (self.client, &mut self.report);
        let mut record = None;
        client.objects(&[key], &mut |object| {
            report.count(&object);
            let content = object.content()?;
            let decoded =
                SnapshotRecord::decode(&content).map_err(|error| client.wrong(&object, error.into()));
            record = Some(decoded?);
            Ok(())
        })?;
        record.ok_or_else(|| self.incomplete(key))
    }

    /// Gets those of these objects that are lacking.
    fn all(&mut self, keys: &[Key]) -> Result<()> {
        self.keeper.rely_on(keys.iter().copied());
        let lacking = self.store.lacks(keys)?;
        self.total += lacking.len() as u64;
        let (store, client) = (self.store, self.client);
        let mut batch = store.begin()?;
        let mut in_batch_bytes = 0;
        let missing = client.receive(&lacking, &mut |object| {
            batch.put_stored(&object).map_err(|error| match error {
                StoreError::Invalid(_) | StoreError::Format(_) => client.wrong(&object, error),
                error => error.into(),
            })?;
            in_batch_bytes += object.bytes.len() as u64;
            self.report.count(&object);
            (self.progress)(self.report.got_objects, self.total);
            if in_batch_bytes >= COMMIT_BYTES {
                std::mem::replace(&mut batch, store.begin()?).commit(&[])?;
                in_batch_bytes = 0;
            }
            Ok(())
        });
        // Also what came before it broke is kept.
        batch.commit(&[])?;
        match missing?.first() {
            Some(key) => Err(self.incomplete(*key)),
            None => Ok(()),
        }
    }

    fn incomplete(&self, key: Key) -> PeerError {
        PeerError::Incomplete {
            peer: self.client.peer().to_owned(),
            object: key.to_string(),
        }
    }
}

impl PullReport {
    fn count(&mut self, object: &Stored) {
        self.got_objects += 1;
        self.got_bytes += (1 + Head::BYTES + object.bytes.len()) as u64;
    }
}
