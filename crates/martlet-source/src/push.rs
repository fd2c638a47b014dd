//! A snapshot goes to a remote: what that lacks of it, in packs, then its name.
//!
//! ```text
//! intent ──► what is condemned ──► what is needed, less what is there ──► pack, index (each) ──► ref ──► intent ends
//! ```
//!
//! Cut short anywhere, a push leaves whole packs, and the next one of anything goes on from them. What is condemned counts as
//! not there ([`crate::gc()`]).

use crate::index::Index;
use crate::intent::Intent;
use crate::pack::{Name, PackBuilder, PackHash, SALT_BYTES, SealedPack, name_of, sealed_bytes};
use crate::parallel::in_parallel;
use crate::{Ref, Remote, Result, Room, SourceError, Under};
use martlet_image::SnapshotId;
use martlet_store::{Key, RefName, Store};
use std::collections::BTreeMap;

/// Packs that are made and put at the same time.
const WRITERS: usize = 2;

/// What a push did, or would do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PushReport {
    /// Objects that the snapshot consists of.
    pub objects: u64,
    /// Of these, what the remote lacked.
    pub sent_objects: u64,
    /// What they take there.
    pub sent_bytes: u64,
    /// Packs they are in.
    pub packs: u64,
}

/// Pushes a snapshot and has the remote call it `name`, which nobody else may hold. With `dry_run` it only says what would
/// be sent. `progress` is told of bytes sent, and of bytes in all.
pub fn push(
    store: &Store,
    remote: &Remote,
    id: SnapshotId,
    name: &RefName,
    under: Under<'_>,
    dry_run: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(PushReport, Option<Ref>)> {
    let _pin = store.pin(id, "a push")?;
    remote.may_follow(name, remote.newest(name)?.as_ref(), under)?; // before anything is sent
    let intent = match dry_run {
        true => None,
        false => Some(remote.intend()?),
    };
    let (report, index, names) = send(store, remote, id, intent.as_ref(), progress)?;
    let Some(intent) = intent else {
        return Ok((report, None));
    };
    let before = remote.newest(name)?;
    intent.check()?;
    // Packs that an older ref relies on may be gone, and others in their place.
    let lease = remote.may_follow(name, before.as_ref(), under)?;
    let stands = |before: &Ref| {
        before.snapshot == id && before.lease == lease && before.packs.iter().all(|pack| index.knows(pack))
    };
    let called = match before {
        Some(before) if stands(&before) => before,
        before => remote.put_ref(name, id, index.packs_of(&names), lease, before.as_ref())?,
    };
    Ok((report, Some(called)))
}

/// Sends what the remote lacks of a snapshot, so that a push of it, or of one that follows on it, has little left to send.
pub fn upload(
    store: &Store,
    remote: &Remote,
    id: SnapshotId,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<PushReport> {
    let _pin = store.pin(id, "an upload")?;
    let intent = remote.intend()?;
    let (report, _, _) = send(store, remote, id, Some(&intent), progress)?;
    Ok(report)
}

/// Sends what the remote lacks; without an intent it only says what that is. Tells where everything is, and what is needed.
fn send(
    store: &Store,
    remote: &Remote,
    id: SnapshotId,
    intent: Option<&Intent<'_>>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(PushReport, Index, Vec<Name>)> {
    let needs = store.needs(&id)?;
    let mut index = index_of_all(remote)?;
    let (mut lacking, mut names) = (Vec::new(), Vec::with_capacity(needs.len()));
    let mut report = PushReport::default();
    for (key, stored_len) in needs {
        let name = name_of(&remote.realm, &key);
        if index.place(&name).is_none() {
            report.sent_bytes += sealed_bytes(stored_len as usize);
            lacking.push(key);
        }
        names.push(name);
    }
    report.objects = names.len() as u64;
    report.sent_objects = lacking.len() as u64;
    let Some(intent) = intent else {
        return Ok((report, index, names));
    };
    report.packs = put_packs(
        store,
        remote,
        intent,
        lacking,
        report.sent_bytes,
        &mut index,
        progress,
    )?;
    Ok((report, index, names))
}

/// Has a name, which nobody may hold, stand for what another version stands for: of it or of another name.
pub fn point(remote: &Remote, name: &RefName, to: &Ref) -> Result<Ref> {
    let intent = remote.intend()?;
    let index = index_of_all(remote)?;
    if let Some(gone) = to.packs.iter().find(|pack| !index.knows(pack)) {
        return Err(SourceError::Incomplete {
            place: remote.place(),
            object: gone.key(Room::Packs).to_string(),
        });
    }
    let before = remote.newest(name)?;
    let lease = remote.may_follow(name, before.as_ref(), Under::Nothing)?;
    intent.check()?;
    remote.put_ref(name, to.snapshot, to.packs.clone(), lease, before.as_ref())
}

/// Puts objects there, in this order. How many packs they are in.
fn put_packs(
    store: &Store,
    remote: &Remote,
    intent: &Intent<'_>,
    objects: Vec<Key>,
    size_bytes: u64,
    index: &mut Index,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<u64> {
    let (mut sent_bytes, mut count) = (0, 0);
    progress(sent_bytes, size_bytes);
    let put = |pack: Result<SealedPack>| {
        let pack = pack?;
        remote.put_pack(&pack)?;
        Ok((pack.hash, pack.entries, (pack.bytes.len() - SALT_BYTES) as u64))
    };
    let packs = packs(store, remote, &intent.id, objects);
    in_parallel(WRITERS, packs, put, |(hash, entries, bytes)| {
        index.add(hash, entries);
        sent_bytes += bytes;
        count += 1;
        progress(sent_bytes, size_bytes);
        Ok(())
    })?;
    Ok(count)
}

/// Sends at most so many bytes of what the remote lacks of a snapshot, for whoever finds it there ([`Remote::which`]): these
/// objects first, as far as they are of it, then the rest. Says what was sent, and what there was to send.
pub fn carry(
    store: &Store,
    remote: &Remote,
    id: SnapshotId,
    first: &[Key],
    size_bytes_max: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(PushReport, u64)> {
    let _pin = store.pin(id, "carrying")?;
    let intent = remote.intend()?;
    let mut index = index_of_all(remote)?;
    let mut lacking: BTreeMap<Key, u64> = BTreeMap::new();
    for (key, stored_len) in store.needs(&id)? {
        if index.place(&name_of(&remote.realm, &key)).is_none() {
            lacking.insert(key, sealed_bytes(stored_len as usize));
        }
    }
    let wanted_bytes = lacking.values().sum();
    let mut sizes: Vec<(Key, u64)> = first.iter().filter_map(|key| lacking.remove_entry(key)).collect();
    sizes.extend(lacking);
    let mut report = PushReport::default();
    let mut chosen = Vec::new();
    for (key, size_bytes) in sizes {
        if report.sent_bytes + size_bytes > size_bytes_max {
            break;
        }
        report.sent_bytes += size_bytes;
        chosen.push(key);
    }
    report.sent_objects = chosen.len() as u64;
    report.objects = report.sent_objects;
    report.packs = put_packs(
        store,
        remote,
        &intent,
        chosen,
        report.sent_bytes,
        &mut index,
        progress,
    )?;
    Ok((report, wanted_bytes))
}

/// Where everything is that may be relied on. To be asked for after the intent.
fn index_of_all(remote: &Remote) -> Result<Index> {
    let (_, run) = remote.run()?;
    let listed = remote.objects.list(Room::Indexes)?;
    let packs = listed.iter().filter_map(|entry| PackHash::of(&entry.key));
    let packs = packs.filter(|pack| !run.packs.contains(pack)).collect();
    let mut index = Index::default();
    remote.read_indexes(packs, |pack, entries| index.add(pack, entries))?;
    Ok(index)
}

/// Packs of these objects, each made when it is asked for.
fn packs<'a>(
    store: &'a Store,
    remote: &'a Remote,
    salt: &'a [u8; SALT_BYTES],
    objects: Vec<Key>,
) -> impl Iterator<Item = Result<SealedPack>> + Send + 'a {
    let mut objects = objects.into_iter().peekable();
    std::iter::from_fn(move || {
        objects.peek()?;
        let mut builder = PackBuilder::new(salt);
        while let Some(key) = objects.next_if(|_| !builder.is_full()) {
            match store.stored(&key) {
                Ok(object) => builder.add(&remote.realm, &object),
                Err(error) => return Some(Err(error.into())),
            }
        }
        Some(Ok(builder.close(&remote.realm)))
    })
}
