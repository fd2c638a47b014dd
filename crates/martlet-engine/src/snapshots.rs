//! Snapshots as people see them: list, log, diff, tag, rm; and the store's gc, verify, df.

use crate::crash;
use crate::engine::Engine;
use crate::problem::Told;
use crate::run::init_of;
use martlet_api::{
    DamagedFrame, GcReport, ImageDiff, Problem, ProblemCode, Progress, ProgressSink, ProgressUnit,
    SnapshotDiff, SnapshotInfo, StoreUsage, VerifyReport,
};
use martlet_image::{ManifestDiff, PAGE_SIZE, SnapshotId, SnapshotRecord};
use martlet_store::{LATEST, RefName};
use std::path::PathBuf;

const PAGE: u64 = PAGE_SIZE as u64;

impl Engine {
    /// All snapshots, newest first.
    pub fn snapshots(&self) -> Result<Vec<SnapshotInfo>, Problem> {
        let mut all = Vec::new();
        for id in self.store.snapshots() {
            all.push(self.describe(id, &self.store.snapshot(&id).told()?)?);
        }
        all.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.created_unix_ms));
        Ok(all)
    }

    /// One snapshot.
    pub fn snapshot(&self, reference: &str) -> Result<SnapshotInfo, Problem> {
        let (id, record) = self.snapshot_named(reference)?;
        self.describe(id, &record)
    }

    /// A machine's or snapshot's ancestry, newest first.
    pub fn log(&self, source: &str) -> Result<Vec<SnapshotInfo>, Problem> {
        let id = match self
            .find(source)
            .ok()
            .and_then(|machine| machine.record().snapshot)
        {
            Some(newest) => newest,
            None => self.snapshot_named(source)?.0,
        };
        let history = self.store.history(id).told()?;
        history
            .iter()
            .map(|(id, record)| self.describe(*id, record))
            .collect()
    }

    /// How two snapshots differ.
    pub fn diff(&self, from: &str, to: &str) -> Result<SnapshotDiff, Problem> {
        let ((from_id, _), (to_id, _)) = (self.snapshot_named(from)?, self.snapshot_named(to)?);
        let diff = self.store.diff(&from_id, &to_id).told()?;
        Ok(SnapshotDiff {
            from: from_id.to_string(),
            to: to_id.to_string(),
            memory: image_diff(diff.memory),
            disk: image_diff(diff.disks),
        })
    }

    /// Gives a snapshot one more reference.
    pub fn tag(&self, reference: &str, new: &str) -> Result<SnapshotInfo, Problem> {
        martlet_api::names::check_new_reference(new)?;
        let (id, record) = self.snapshot_named(reference)?;
        let name: RefName = new.parse().told()?;
        if self.store.refs().get(&name).is_some_and(|there| *there != id) {
            return Err(Problem::new(
                ProblemCode::AlreadyExists,
                format!("{new} names another snapshot already"),
            )
            .remediation(format!("`martlet images rm {new}` first, or choose another tag")));
        }
        self.store.set_ref(&name, id).told()?;
        self.describe(id, &record)
    }

    /// Removes a reference. When it is the last one and somebody uses the snapshot, that is refused, naming who.
    pub fn snapshot_remove(&self, reference: &str) -> Result<(), Problem> {
        let (id, _) = self.snapshot_named(reference)?;
        let by_name = reference
            .parse::<RefName>()
            .ok()
            .filter(|name| self.store.refs().contains_key(name));
        let others = self
            .store
            .refs_to(&id)
            .into_iter()
            .filter(|name| name.tag() != LATEST);
        let others: Vec<RefName> = others
            .filter(|name| Some(name) != by_name.as_ref() || by_name.is_none())
            .collect();
        let mut used_by = self.used_by(&id);
        let waiting = self.who_waits_for(&id)?;
        used_by.extend(waiting.iter().map(|other| {
            format!(
                "snapshot {}, which needs what is still to come of it",
                other.short()
            )
        }));
        // An id means all of its names.
        let last = by_name.is_none() || others.is_empty();
        if last && !used_by.is_empty() {
            return Err(Problem::new(
                ProblemCode::InUse,
                format!("{reference} is in use by {}", used_by.join(", ")),
            )
            .remediation("remove or roll back those first (`martlet rm --force NAME`), then it can go"));
        }
        let gone: Vec<RefName> = match by_name {
            Some(name) => vec![name],
            None => others,
        };
        for name in &gone {
            crash::step("end");
            self.move_latest(name, &id)?;
            crash::step("end");
            self.store.remove_ref(name).told()?;
        }
        if last {
            // The name that follows the newest goes with it.
            for name in self.store.refs_to(&id) {
                self.store.remove_ref(&name).told()?;
            }
            let _ = self.state.remove_trace(&id.to_string());
            self.forget_away(&id)?;
        }
        Ok(())
    }

    /// Takes the name of a snapshot that was made for something that is over. Machines that use it keep it for as long as
    /// they do.
    pub(crate) fn unname(&self, reference: &str) -> Result<(), Problem> {
        let (id, _) = self.snapshot_named(reference)?;
        let name: RefName = reference.parse().told()?;
        self.move_latest(&name, &id)?;
        self.store.drop_ref(&name).told()?;
        let left = self.store.refs_to(&id);
        if left.iter().all(|name| name.tag() == LATEST) {
            for name in left {
                self.store.drop_ref(&name).told()?;
            }
            self.forget_unused(&id)?;
        }
        Ok(())
    }

    /// When `name:latest` means the snapshot that loses `name`, it means the newest of the others from now on.
    fn move_latest(&self, name: &RefName, id: &SnapshotId) -> Result<(), Problem> {
        let latest = RefName::new(name.name(), LATEST).told()?;
        let refs = self.store.refs();
        if refs.get(&latest) != Some(id) || name.tag() == LATEST {
            return Ok(());
        }
        let others = refs
            .iter()
            .filter(|(other, _)| other.name() == name.name() && *other != name && **other != latest);
        let created = |id: &SnapshotId| self.store.snapshot(id).map_or(0, |record| record.created_unix_ms);
        match others.map(|(_, id)| *id).max_by_key(created) {
            Some(newest) => self.store.set_ref(&latest, newest).told(),
            None => Ok(()),
        }
    }

    /// Machines that use a snapshot.
    pub(crate) fn used_by(&self, id: &SnapshotId) -> Vec<String> {
        let mut users = self.store.users(id);
        users.sort();
        users.dedup();
        users
    }

    fn describe(&self, id: SnapshotId, record: &SnapshotRecord) -> Result<SnapshotInfo, Problem> {
        let (mut used_pages, mut trace_pages) = (0, 0);
        for manifest in record.manifests() {
            used_pages += self.store.manifest(&manifest).told()?.stored_count();
        }
        if let Some(trace) = self.trace(&id) {
            trace_pages = trace.pages().len() as u64;
        }
        let descriptor = record.memory.as_ref().map(|memory| memory.descriptor);
        let hardware = record.hardware.clone().unwrap_or_default();
        Ok(SnapshotInfo {
            references: self.store.refs_to(&id).iter().map(RefName::to_string).collect(),
            parent: record.parent.map(|parent| parent.to_string()),
            machine: record.machine.clone(),
            created_unix_ms: record.created_unix_ms,
            note: record.note.clone(),
            memory_bytes: record.memory.as_ref().map_or(0, |memory| memory.size_bytes),
            disk_bytes: record.disks.first().map_or(0, |disk| disk.size_bytes),
            used_bytes: used_pages * PAGE,
            unique_bytes: self.store.unique_bytes(&id).told()?,
            descriptor_bytes: match descriptor {
                Some(blob) => self.store.blob(&blob).map_or(0, |bytes| bytes.len() as u64),
                None => 0,
            },
            trace_pages,
            machine_type: hardware.machine_type,
            cpu_model: hardware.cpu_model,
            qemu_version: hardware.qemu_version,
            init: init_of(record),
            used_by: self.used_by(&id),
            id: id.to_string(),
        })
    }

    /// Frees what nothing refers to.
    pub fn gc(&self, dry_run: bool, progress: ProgressSink<'_>) -> Result<GcReport, Problem> {
        let report = self
            .store
            .gc(dry_run, &mut |done, total| {
                crash::step("gc");
                progress(items("collecting", done, total))
            })
            .told()?;
        crash::step("gc");
        if !dry_run {
            self.remove_unused_boot_files();
            crash::step("gc");
        }
        Ok(GcReport {
            dry_run: report.dry_run,
            frames_freed: report.objects_freed,
            freed_bytes: report.freed_bytes,
            packs_deleted: report.packs_deleted,
            packs_rewritten: report.packs_rewritten,
            kept_bytes: report.kept_bytes,
        })
    }

    /// Reads everything and compares it with its hash; mends from the stores in these directories.
    pub fn verify(
        &self,
        repair_from: Vec<String>,
        progress: ProgressSink<'_>,
    ) -> Result<VerifyReport, Problem> {
        // A state directory, or the store in one.
        let store_in = |place: PathBuf| match place.join("store") {
            store if store.is_dir() => store,
            _ => place,
        };
        let places: Vec<PathBuf> = repair_from.into_iter().map(PathBuf::from).map(store_in).collect();
        if let Some(missing) = places.iter().find(|place| !place.is_dir()) {
            return Err(Problem::new(
                ProblemCode::NotFound,
                format!("{} is not a directory", missing.display()),
            )
            .remediation(
                "name another state directory, or a copy of the `store` in one, for example /mnt/backup/store",
            ));
        }
        let report = self
            .store
            .verify(&places, &mut |done, total| {
                progress(bytes("verifying", done, total))
            })
            .told()?;
        let named = |id: &SnapshotId| {
            self.store
                .refs_to(id)
                .first()
                .map_or_else(|| id.to_string(), RefName::to_string)
        };
        Ok(VerifyReport {
            checked: report.checked,
            checked_bytes: report.checked_bytes,
            repaired: report.repaired,
            away: report.away,
            damaged: report
                .damaged
                .iter()
                .map(|damaged| DamagedFrame {
                    id: damaged.key.to_string(),
                    pack: damaged.pack().unwrap_or_default(),
                    reason: damaged.reason.clone(),
                    hurts: damaged.hurts.iter().map(named).collect(),
                    repaired: damaged.repaired,
                })
                .collect(),
        })
    }

    /// What is started ahead.
    pub fn pool(&self) -> martlet_api::PoolUsage {
        self.pool.usage()
    }

    /// Where the space goes.
    pub fn df(&self) -> Result<StoreUsage, Problem> {
        let usage = self.store.usage().told()?;
        let layers = self
            .all()
            .iter()
            .filter_map(|machine| machine.live())
            .map(|live| live.disk.usage().stored_bytes)
            .sum();
        Ok(StoreUsage {
            packs: usage.packs,
            frames: usage.frames,
            pack_bytes: usage.pack_bytes,
            content_bytes: usage.content_bytes,
            referenced_bytes: usage.referenced_bytes,
            garbage_bytes: usage.garbage_bytes,
            index_bytes: usage.index_bytes,
            layer_bytes: layers,
            free_bytes: free_bytes(&self.dirs.state),
            pool: self.pool.usage(),
        })
    }
}

fn image_diff(diff: ManifestDiff) -> ImageDiff {
    let ManifestDiff {
        same_pages,
        changed_pages,
        added_pages,
        removed_pages,
    } = diff;
    ImageDiff {
        same_bytes: same_pages * PAGE,
        changed_bytes: changed_pages * PAGE,
        added_bytes: added_pages * PAGE,
        removed_bytes: removed_pages * PAGE,
    }
}

fn items(stage: &str, done: u64, total: u64) -> Progress {
    Progress {
        stage: stage.into(),
        done,
        total: Some(total),
        unit: ProgressUnit::Items,
    }
}

fn bytes(stage: &str, done: u64, total: u64) -> Progress {
    Progress {
        stage: stage.into(),
        done,
        total: Some(total),
        unit: ProgressUnit::Bytes,
    }
}

fn free_bytes(dir: &std::path::Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |fs| fs.f_bavail * fs.f_frsize)
}
