//! A snapshot goes to a remote: what that lacks of it, in packs, then its name.
//!
//! ```text
//! what is needed ──► less what is there ──► pack, index (each) ──► contents ──► ref
//! ```
//!
//! Cut short anywhere, a push leaves whole packs, and the next one of anything goes on from them.

use crate::pack::{PackBuilder, sealed_bytes};
use crate::{Ref, Remote, Result};
use martlet_image::SnapshotId;
use martlet_store::{Key, Kind, RefName, Store};

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

/// Pushes a snapshot and has the remote call it `name`. With `dry_run` it only says what would be sent. `progress` is told
/// of bytes sent, and of bytes in all.
pub fn push(
    store: &Store,
    remote: &Remote,
    id: SnapshotId,
    name: &RefName,
    dry_run: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(PushReport, Option<Ref>)> {
    let _pin = store.pin(id, "a push")?;
    let needs = store.needs(&id)?;
    remote.learn_all()?;
    let lacking: Vec<&(Key, u32)> = needs.iter().filter(|(key, _)| !remote.has(key)).collect();
    let total_bytes = lacking
        .iter()
        .map(|(_, stored_len)| sealed_bytes(*stored_len))
        .sum();
    let mut report = PushReport {
        objects: needs.len() as u64,
        sent_objects: lacking.len() as u64,
        sent_bytes: total_bytes,
        packs: 0,
    };
    if dry_run {
        return Ok((report, None));
    }
    let mut sent_bytes = 0;
    progress(sent_bytes, total_bytes);
    let mut builder = PackBuilder::default();
    let mut close = |builder: &mut PackBuilder| -> Result<()> {
        let pack = std::mem::take(builder).close(&remote.realm);
        sent_bytes += pack.bytes.len() as u64;
        remote.put_pack(pack)?;
        report.packs += 1;
        progress(sent_bytes, total_bytes);
        Ok(())
    };
    for (key, _) in lacking {
        builder.add(&remote.realm, &store.stored(key)?);
        if builder.is_full() {
            close(&mut builder)?;
        }
    }
    if !builder.is_empty() {
        close(&mut builder)?;
    }
    let packs = remote.packs_of(needs.iter().map(|(key, _)| key));
    remote.put_contents(&Key::new(Kind::Snapshot, id.0), &packs)?;
    let before = remote.find_ref(name)?;
    let called = match before {
        Some(before) if before.snapshot == id => before,
        before => remote.put_ref(name, id, before.as_ref())?,
    };
    Ok((report, Some(called)))
}
