//! Opening a store after whatever happened to it.
//!
//! What lies in a pack beyond its committed length is either a commit whose index transaction was lost, or the
//! rest of a batch that was never committed. The roots in there tell: a root newer than the index's makes it a commit.
//! A store without an index is the same case with every committed length at the start of its pack.

use crate::files::Files;
use crate::index::{Change, Index, Location};
use crate::pack::{Packs, list, pack_name};
use crate::record::{Key, Kind, PACK_HEADER, RECORD_HEADER, Scanned, scan};
use crate::store::open_content;
use crate::{Result, Root, StoreError};
use martlet_image::{FrameId, PAGE_SIZE, SnapshotId};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// Opens the index and brings it and the packs into agreement.
pub(crate) fn open(files: &Arc<dyn Files>, dir: &Path, packs: &Packs) -> Result<Index> {
    let mut rebuilt = !Index::exists(&**files, dir)?;
    let index = match Index::open(files.clone(), dir) {
        Err(StoreError::Index(why)) => {
            tracing::warn!(why, "the index is damaged: rebuilding it from the packs");
            rebuilt = true;
            Index::set_aside(&**files, dir)?;
            Index::open(files.clone(), dir)?
        }
        index => index?,
    };
    settle(&**files, dir, packs, &index, rebuilt)?;
    Ok(index)
}

fn settle(files: &dyn Files, dir: &Path, packs: &Packs, index: &Index, rebuilt: bool) -> Result<()> {
    let known: HashMap<u32, u64> = index.packs()?.into_iter().collect();
    let old_root = index.root()?;
    let mut root: Option<Root> = None;
    let mut found = Found::default();
    let mut tails = Vec::new();
    let on_disk = list(files, &dir.join("packs"))?;
    for number in &on_disk {
        let committed = known.get(number).copied().unwrap_or(PACK_HEADER);
        let doing = || StoreError::io(format!("reading {}", pack_name(*number)));
        let file = packs.file(*number).map_err(doing())?;
        let size = file.size().map_err(doing())?;
        if size <= committed && known.contains_key(number) {
            continue;
        }
        let mut tail = vec![0; size.saturating_sub(committed) as usize];
        file.read_at(committed, &mut tail).map_err(doing())?;
        let mut end = committed;
        for Scanned { offset, header } in scan(&tail, committed) {
            let location = Location {
                pack: *number,
                offset,
                stored_len: header.stored_len,
                content_len: header.content_len,
                codec: header.codec,
            };
            let at = (offset - committed) as usize + RECORD_HEADER;
            let stored = &tail[at..at + header.stored_len as usize];
            end = end.max(offset + (RECORD_HEADER + stored.len()) as u64);
            found.add(header.key, location, stored, &mut root);
        }
        tails.push((*number, committed, end, size));
    }

    let mut root = root.filter(|root| root.sequence > old_root.sequence);
    if root.is_none() && rebuilt && !found.snapshots.is_empty() {
        // Every root is lost, which takes damage to all of them: keep what there is, without names.
        root = Some(Root {
            sequence: 1,
            snapshots: found.snapshots.iter().copied().collect(),
            ..Root::default()
        });
    }
    let Some(root) = root else {
        // Nothing in the tails was ever committed.
        for (number, committed, _, size) in &tails {
            if known.contains_key(number) {
                if size > committed {
                    truncate(packs, *number, *committed)?;
                }
            } else {
                packs.delete(&[*number])?;
            }
        }
        packs.adopt(known);
        return Ok(());
    };
    tracing::info!(
        sequence = root.sequence,
        packs = tails.len(),
        "adopting commits that the index does not have"
    );
    let put = found.objects.into_iter();
    let change = Change {
        put: put
            .filter(|(key, _)| key.kind != Kind::Snapshot || root.snapshots.contains(&SnapshotId(key.id)))
            .collect(),
        pages: found.pages,
        packs: tails.iter().map(|(number, _, end, _)| (*number, *end)).collect(),
        ..Change::default()
    };
    for (number, _, end, size) in &tails {
        if size > end {
            truncate(packs, *number, *end)?;
        }
    }
    index.apply(&change, &root)?;
    packs.adopt(index.packs()?);
    Ok(())
}

fn truncate(packs: &Packs, number: u32, len: u64) -> Result<()> {
    let cut = packs
        .file(number)
        .and_then(|file| file.set_size(len).and_then(|()| file.sync()));
    cut.map_err(StoreError::io(format!("cutting {} back", pack_name(number))))
}

#[derive(Default)]
struct Found {
    objects: HashMap<Key, Location>,
    pages: Vec<([u8; 32], FrameId, u8)>,
    snapshots: HashSet<SnapshotId>,
}

impl Found {
    fn add(&mut self, key: Key, location: Location, stored: &[u8], root: &mut Option<Root>) {
        // Blobs and manifests are verified when they are read; here only what is looked into.
        if matches!(key.kind, Kind::Blob | Kind::Manifest) {
            self.objects.insert(key, location);
            return;
        }
        let Ok(content) = open_content(&key, &location, stored) else {
            tracing::warn!(%key, pack = location.pack, offset = location.offset, "skipping a damaged record");
            return;
        };
        match key.kind {
            Kind::Root => {
                let newer = Root::decode(&content)
                    .filter(|found| root.as_ref().is_none_or(|root| found.sequence > root.sequence));
                if newer.is_some() {
                    *root = newer;
                }
                return;
            }
            Kind::Frame => {
                let pages = content.chunks_exact(PAGE_SIZE).enumerate();
                let frame = FrameId(key.id);
                self.pages
                    .extend(pages.map(|(slot, page)| (*blake3::hash(page).as_bytes(), frame, slot as u8)));
            }
            Kind::Snapshot => drop(self.snapshots.insert(SnapshotId(key.id))),
            Kind::Blob | Kind::Manifest => {}
        }
        self.objects.insert(key, location);
    }
}
