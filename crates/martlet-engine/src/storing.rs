//! Writing what a checkpoint has taken into the store.

use crate::checkpoint::{Captured, Own};
use crate::crash;
use crate::engine::Engine;
use crate::launch::now_unix_ms;
use crate::live::Live;
use crate::machine::Record;
use crate::problem::Told;
use martlet_api::{
    Accel, Avoided, AvoidedMeans, CheckpointMethod, CheckpointReport, Problem, ProblemCode, Progress,
    ProgressSink, ProgressUnit,
};
use martlet_disk::{BlockChange, FrozenLayer};
use martlet_image::{
    DiskRecord, FrameId, Hardware, Manifest, MemoryRecord, PAGE_SIZE, PageLocation, PageSet, SnapshotRecord,
};
use martlet_store::{Batch, Pin, RefName};
use martlet_vm::capture::{CapturedMemory, PausedMemory};
use std::collections::BTreeSet;

/// A memory image as far as its pages were put into the store ahead of the pause in which the rest is taken.
pub(crate) struct PutAhead {
    /// The image.
    manifest: Manifest,
    /// Those pages.
    pages: PageSet,
}

impl PutAhead {
    /// No page yet, over an image.
    pub(crate) fn over(image: &Manifest) -> Self {
        Self {
            manifest: image.clone(),
            pages: PageSet::new(),
        }
    }
}

/// Pages handed to the store at a time.
const PAGES_AT_ONCE: usize = 4096;

impl Engine {
    /// Writes all of it to the store and commits it: only now the snapshot exists.
    pub(crate) fn put(
        &self,
        live: &Live,
        record: &Record,
        captured: &mut Captured,
        reference: &RefName,
        note: Option<String>,
        progress: ProgressSink<'_>,
    ) -> Result<(Pin, CheckpointReport), Problem> {
        let full = "the checkpoint could not be written";
        let parent = match record.snapshot {
            Some(id) => Some((id, self.store.snapshot(&id).told()?)),
            None => None,
        };
        let mut batch = self.store.begin().told_as(full)?;
        let memory = self.put_memory(&mut batch, live, captured, full, progress)?;
        crash::step("checkpoint");
        let disk = put_disk(&mut batch, &captured.disk)?;
        crash::step("checkpoint");
        let parent_memory = parent
            .as_ref()
            .and_then(|(_, snapshot)| snapshot.memory.as_ref())
            .map(|m| m.manifest);
        let parent_disk = parent
            .as_ref()
            .and_then(|(_, snapshot)| snapshot.disks.first())
            .map(|disk| disk.manifest);
        let memory_manifest = batch
            .put_manifest(&memory.manifest, parent_memory)
            .told_as(full)?;
        let disk_manifest = batch.put_manifest(&disk.manifest, parent_disk).told_as(full)?;
        let descriptor = batch.put_blob(&captured.descriptor).told_as(full)?;
        let touched = self.wanted_next(live, &memory.manifest);
        let trace = match touched.pages().is_empty() {
            true => None,
            false => Some(batch.put_blob(&touched.encode()).told_as(full)?),
        };
        let starter = match captured.ends {
            true => self.put_starter(&mut batch, live, captured, &memory.manifest)?,
            false => None,
        };
        let base = self.store.snapshot(&record.disk_base).told()?;
        let snapshot = SnapshotRecord {
            machine: record.name.clone(),
            machine_id: record.id.clone(),
            created_unix_ms: now_unix_ms(),
            parent: record.snapshot,
            note,
            memory: Some(MemoryRecord {
                manifest: memory_manifest,
                size_bytes: record.config.memory_bytes,
                descriptor,
                trace,
                starter,
                free_pages: memory.unstored_pages,
            }),
            disks: vec![DiskRecord {
                manifest: disk_manifest,
                size_bytes: record.config.disk_bytes,
            }],
            hardware: Some(hardware(record)?),
            agent: captured.agent,
            generation: record.generation,
            hostname: record.hostname.clone(),
            // What it boots and what its base said of it go along, so that it can be started cold too.
            ..base
        };
        let id = batch.put_snapshot(&snapshot).told_as(full)?;
        crash::step("checkpoint");
        let committed = batch.commit(&[(reference.clone(), id)]).told_as(full)?;
        crash::step("checkpoint");
        let stats = committed.stats;
        let private_bytes = captured.own.size_bytes();
        let clean = record
            .config
            .memory_bytes
            .saturating_sub(private_bytes + memory.unstored_pages * PAGE_SIZE as u64);
        let avoided = [
            (AvoidedMeans::Clean, clean),
            (AvoidedMeans::Zero, stats.zero_pages * PAGE_SIZE as u64),
            (
                AvoidedMeans::FreePageReporting,
                memory.unstored_pages * PAGE_SIZE as u64,
            ),
            (AvoidedMeans::Discard, disk.unstored_pages * PAGE_SIZE as u64),
            (AvoidedMeans::Duplicate, stats.duplicate_pages * PAGE_SIZE as u64),
        ];
        let report = CheckpointReport {
            snapshot: id.to_string(),
            reference: reference.to_string(),
            give_up_ms: 0.0,
            pause_ms: 0.0,
            stop_ms: 0.0,
            total_ms: 0.0,
            method: CheckpointMethod::Auto,
            memory_bytes: record.config.memory_bytes,
            private_bytes,
            stored_bytes: stats.stored_bytes,
            new_bytes: stats.new_bytes,
            avoided: avoided
                .into_iter()
                .map(|(means, bytes)| Avoided { means, bytes })
                .collect(),
            published: None,
            unpublished: None,
        };
        let pin = committed.pins.into_iter().next().expect("one snapshot was put");
        Ok((pin, report))
    }

    /// Puts pages that were copied while their guest runs, and returns the frames that they are in.
    pub(crate) fn put_ahead(
        &self,
        ahead: &mut PutAhead,
        copied: &CapturedMemory,
    ) -> Result<Vec<FrameId>, Problem> {
        let full = "the machine's memory could not be written";
        let mut batch = self.store.begin().told_as(full)?;
        let mut frames = BTreeSet::new();
        let mut pages = copied.iter().peekable();
        while pages.peek().is_some() {
            for (page, location) in batch
                .put_pages(pages.by_ref().take(PAGES_AT_ONCE))
                .told_as(full)?
            {
                ahead.manifest.set(page, location);
                if let PageLocation::Frame { frame, .. } = location {
                    frames.insert(frame);
                }
            }
        }
        ahead.pages.or(copied.pages());
        batch.commit(&[]).told_as(full)?;
        Ok(frames.into_iter().collect())
    }

    fn put_memory(
        &self,
        batch: &mut Batch,
        live: &Live,
        captured: &mut Captured,
        full: &'static str,
        progress: ProgressSink<'_>,
    ) -> Result<PutImage, Problem> {
        let image = live.memory.image.manifest();
        let total = Some(captured.own.size_bytes());
        let ahead = match &mut captured.own {
            Own::Copied { ahead, .. } => ahead.take(),
            Own::Twin(_) | Own::InPlace(_) => None,
        };
        let ahead = ahead.unwrap_or_else(|| PutAhead::over(&image));
        let (mut manifest, mut gone) = (ahead.manifest, ahead.pages);
        let mut done = 0;
        let mut put = |batch: &mut Batch, manifest: &mut Manifest, some: &[(u64, &[u8; PAGE_SIZE])]| {
            put_pages(batch, some, manifest)?;
            done += (some.len() * PAGE_SIZE) as u64;
            progress(Progress {
                stage: "storing memory".into(),
                done,
                total,
                unit: ProgressUnit::Bytes,
            });
            Ok::<_, martlet_store::StoreError>(())
        };
        let mut put_in_place = |batch: &mut Batch, manifest: &mut Manifest, memory: &PausedMemory| {
            read_in_place(memory, |some| put(batch, manifest, some).told_as(full))
        };
        match &captured.own {
            Own::Twin(twin) => put_in_place(batch, &mut manifest, twin.memory())?,
            Own::InPlace(memory) => put_in_place(batch, &mut manifest, memory)?,
            Own::Copied { memory, .. } => {
                // Of what was put ahead the guest has given up some since.
                gone.and_not(memory.pages());
                gone.iter()
                    .for_each(|page| manifest.set(page, image.locate(page)));
                let mut pages = memory.iter().peekable();
                while pages.peek().is_some() {
                    let some: Vec<_> = pages.by_ref().take(PAGES_AT_ONCE).collect();
                    put(batch, &mut manifest, &some).told_as(full)?;
                }
            }
        }
        let mut free = captured.free.clone();
        free.and_not(captured.own.pages());
        // What the guest reported free and has not touched since: it does not care what is there, and zero is free.
        let mut free_pages = 0;
        for range in free.iter_ranges() {
            free_pages += range.end - range.start;
            manifest.set_zero(range);
        }
        Ok(PutImage {
            manifest,
            unstored_pages: free_pages,
        })
    }
}

/// An image's new manifest and what it took.
struct PutImage {
    manifest: Manifest,
    /// Pages given up by the guest: reported free, or discarded.
    unstored_pages: u64,
}

/// Hands over all pages that are where they were, some at a time.
fn read_in_place(
    memory: &PausedMemory,
    mut put: impl FnMut(&[(u64, &[u8; PAGE_SIZE])]) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let mut buffer = vec![0; PAGES_AT_ONCE * PAGE_SIZE];
    let mut numbers: Vec<u64> = Vec::with_capacity(PAGES_AT_ONCE);
    let mut flush = |numbers: &mut Vec<u64>, buffer: &[u8]| {
        let pages = buffer.as_chunks::<PAGE_SIZE>().0;
        let some: Vec<_> = numbers.drain(..).zip(pages).collect();
        put(&some)
    };
    for range in memory.pages().iter_ranges() {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + (PAGES_AT_ONCE - numbers.len()) as u64);
            let bytes = numbers.len() * PAGE_SIZE..(numbers.len() + (end - start) as usize) * PAGE_SIZE;
            let read = memory.read(start..end, &mut buffer[bytes]);
            read.told_as("the guest's memory could not be read")?;
            numbers.extend(start..end);
            if numbers.len() == PAGES_AT_ONCE {
                flush(&mut numbers, &buffer)?;
            }
            start = end;
        }
    }
    flush(&mut numbers, &buffer)
}

/// Puts pages and writes their places into the manifest.
pub(crate) fn put_pages(
    batch: &mut Batch,
    pages: &[(u64, &[u8; PAGE_SIZE])],
    manifest: &mut Manifest,
) -> martlet_store::Result<()> {
    for (page, location) in batch.put_pages(pages.iter().copied())? {
        manifest.set(page, location);
    }
    Ok(())
}

fn put_disk(batch: &mut Batch, frozen: &FrozenLayer) -> Result<PutImage, Problem> {
    let pages = martlet_image::pages_for(frozen.size_bytes());
    let mut manifest = match frozen.base().page_count() {
        count if count == pages => (**frozen.base()).clone(),
        _ => frozen.base().resized(pages),
    };
    let mut discarded_pages = 0;
    let mut waiting: Vec<(u64, Box<[u8; PAGE_SIZE]>)> = Vec::new();
    let flush =
        |batch: &mut Batch, waiting: &mut Vec<(u64, Box<[u8; PAGE_SIZE]>)>, manifest: &mut Manifest| {
            let borrowed: Vec<_> = waiting.iter().map(|(page, bytes)| (*page, &**bytes)).collect();
            let put = put_pages(batch, &borrowed, manifest);
            waiting.clear();
            put.told_as("the disk could not be written to the store")
        };
    for (page, change) in frozen.changes() {
        match change {
            BlockChange::Zero => {
                discarded_pages += u64::from(manifest.locate(page) != PageLocation::Zero);
                manifest.set(page, PageLocation::Zero);
            }
            BlockChange::Data => {
                let mut bytes = Box::new([0; PAGE_SIZE]);
                frozen
                    .read_block(page, &mut bytes)
                    .told_as("the disk could not be read")?;
                waiting.push((page, bytes));
            }
        }
        if waiting.len() == PAGES_AT_ONCE {
            flush(batch, &mut waiting, &mut manifest)?;
        }
    }
    flush(batch, &mut waiting, &mut manifest)?;
    Ok(PutImage {
        manifest,
        unstored_pages: discarded_pages,
    })
}

fn hardware(record: &Record) -> Result<Hardware, Problem> {
    let config = serde_json::to_value(&record.config).map_err(|error| {
        Problem::new(ProblemCode::Internal, "the configuration cannot be recorded").cause(error)
    })?;
    Ok(Hardware {
        machine_type: record.hardware.machine_type.clone(),
        cpu_model: record.hardware.cpu_model.clone(),
        cpus: record.config.cpus,
        accel: match record.hardware.accel {
            Accel::Kvm => "kvm".into(),
            Accel::Tcg => "tcg".into(),
        },
        qemu_version: record.hardware.qemu_version.clone(),
        nic_mac: crate::identity::mac_text(crate::identity::mac(record.number)),
        address: crate::identity::address(record.number)
            .map(|byte| byte.to_string())
            .join("."),
        config,
    })
}
