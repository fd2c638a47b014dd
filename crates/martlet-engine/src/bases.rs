//! Bases: made by `martlet-base` as plain files, taken into the store as cold snapshots.

use crate::crash;
use crate::engine::Engine;
use crate::identity;
use crate::launch::now_unix_ms;
use crate::problem::{self, Told};
use crate::run::{BASE_TAG, init_of, init_text};
use crate::storing::put_pages;
use martlet_api::{
    BaseBuildRequest, BaseImportRequest, BaseInfo, Problem, ProblemCode, Progress, ProgressSink, ProgressUnit,
};
use martlet_base::{Artifacts, DebianRecipe, ImportOptions, Job, build_debian, build_tiny, import};
use martlet_image::{BootRecord, DiskRecord, Manifest, PAGE_SIZE, SnapshotId, SnapshotRecord, pages_for};
use martlet_store::{Batch, LATEST, RefName};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Bytes of a disk read at a time.
const CHUNK_BYTES: usize = 4 << 20;
/// A kernel or initramfs larger than this is none.
const BOOT_FILE_MAX_BYTES: u64 = 256 << 20;

/// A directory for one build, removed whatever happens.
struct WorkDir(PathBuf);

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Engine {
    /// Builds a base from Debian packages.
    pub fn base_build(
        &self,
        request: BaseBuildRequest,
        progress: ProgressSink<'_>,
    ) -> Result<BaseInfo, Problem> {
        self.make_base(&request.name, progress, |job| match request.tiny {
            true => build_tiny(request.size_bytes, job),
            false => {
                let recipe = DebianRecipe {
                    suite: request.suite.clone(),
                    packages: request.packages.clone(),
                    size_bytes: request.size_bytes,
                    init: request.init,
                };
                build_debian(&recipe, job)
            }
        })
    }

    /// Makes a base of a disk or an OCI image.
    pub fn base_import(
        &self,
        request: BaseImportRequest,
        progress: ProgressSink<'_>,
    ) -> Result<BaseInfo, Problem> {
        let path = PathBuf::from(&request.path);
        if !path.exists() {
            return Err(Problem::new(ProblemCode::NotFound, format!("there is no {}", path.display()))
                .remediation("name a raw or qcow2 disk, an OCI layout directory or a `docker save` archive on the daemon's host"));
        }
        let options = ImportOptions {
            size_bytes: request.size_bytes,
            init: request.init,
        };
        self.make_base(&request.name, progress, |job| import(&path, &options, job))
    }

    fn make_base(
        &self,
        name: &str,
        progress: ProgressSink<'_>,
        make: impl FnOnce(&Job<'_>) -> Result<Artifacts, martlet_base::BaseError>,
    ) -> Result<BaseInfo, Problem> {
        martlet_api::names::check_name(name)?;
        let reference = RefName::new(name, BASE_TAG).told()?;
        if self.store.refs().contains_key(&reference) {
            return Err(Problem::new(
                ProblemCode::AlreadyExists,
                format!("there is a base {name} already"),
            )
            .remediation(format!("`martlet base rm {name}` first, or choose another name")));
        }
        let progress: ProgressSink<'_> = &|said| {
            crash::step("import");
            progress(said);
        };
        let work = WorkDir(self.dirs.work().join(identity::machine_id()));
        std::fs::create_dir_all(&work.0).map_err(|error| problem::io("make", &work.0, &error))?;
        let (tools, cancel) = (self.tools(), AtomicBool::new(false));
        let job = Job {
            tools: &tools,
            work_dir: &work.0,
            progress,
            cancel: &cancel,
        };
        let artifacts = make(&job).told_as(format!("the base {name} could not be made"))?;
        crash::step("import");
        self.take_in(name, &reference, artifacts, progress)
    }

    fn take_in(
        &self,
        name: &str,
        reference: &RefName,
        made: Artifacts,
        progress: ProgressSink<'_>,
    ) -> Result<BaseInfo, Problem> {
        let full = "the base could not be written to the store";
        let mut batch = self.store.begin().told_as(full)?;
        let (manifest, size_bytes) = put_disk(&mut batch, &made.root_disk, progress)?;
        let disk = batch.put_manifest(&manifest, None).told_as(full)?;
        let boot = match (&made.kernel, &made.initrd) {
            (Some(kernel), Some(initrd)) => Some(BootRecord {
                kernel: batch.put_blob(&read_boot_file(kernel)?).told_as(full)?,
                initrd: batch.put_blob(&read_boot_file(initrd)?).told_as(full)?,
                cmdline: made.cmdline.clone(),
            }),
            _ => None,
        };
        let labels = [("workdir", made.workdir), ("user", made.user)];
        let record = SnapshotRecord {
            machine: name.to_owned(),
            created_unix_ms: now_unix_ms(),
            disks: vec![DiskRecord {
                manifest: disk,
                size_bytes,
            }],
            boot,
            init: init_text(made.init).into(),
            origin: made.origin,
            kernel_version: made.kernel_version,
            cmd: made.cmd,
            env: made.env,
            labels: labels
                .into_iter()
                .filter_map(|(k, v)| Some((k.to_owned(), v?)))
                .collect::<BTreeMap<_, _>>(),
            ..SnapshotRecord::default()
        };
        let id = batch.put_snapshot(&record).told_as(full)?;
        crash::step("import");
        batch.commit(&[(reference.clone(), id)]).told_as(full)?;
        crash::step("import");
        self.base(name)
    }

    /// All bases.
    pub fn bases(&self) -> Result<Vec<BaseInfo>, Problem> {
        let refs = self.store.refs();
        let bases = refs.iter().filter(|(name, _)| name.tag() == BASE_TAG);
        bases
            .map(|(name, id)| self.describe_base(name.name(), *id))
            .collect()
    }

    /// One base.
    pub fn base(&self, name: &str) -> Result<BaseInfo, Problem> {
        let id = self.base_id(name)?;
        self.describe_base(name, id)
    }

    fn base_id(&self, name: &str) -> Result<SnapshotId, Problem> {
        martlet_api::names::check_name(name)?;
        let reference = RefName::new(name, BASE_TAG).told()?;
        self.store.refs().get(&reference).copied().ok_or_else(|| {
            Problem::new(ProblemCode::NotFound, format!("there is no base {name}")).remediation(format!(
                "`martlet base ls` lists them; `martlet base build {name}` makes one"
            ))
        })
    }

    fn describe_base(&self, name: &str, id: SnapshotId) -> Result<BaseInfo, Problem> {
        let record = self.store.snapshot(&id).told()?;
        let used_pages = self.disk_of(&record)?.stored_count();
        Ok(BaseInfo {
            name: name.to_owned(),
            id: id.to_string(),
            created_unix_ms: record.created_unix_ms,
            disk_bytes: record.disks.first().map_or(0, |disk| disk.size_bytes),
            used_bytes: used_pages * PAGE_SIZE as u64,
            stored_bytes: self.store.unique_bytes(&id).told()?,
            init: init_of(&record),
            origin: record.origin,
            kernel: record.kernel_version,
            cmd: record.cmd,
            env: record.env,
        })
    }

    /// Removes a base. Machines that were started from it keep what they need of it; they are only told of it when
    /// `force` is not given.
    pub fn base_remove(&self, name: &str, force: bool) -> Result<(), Problem> {
        let id = self.base_id(name)?;
        let used_by = self.used_by(&id);
        if !force && !used_by.is_empty() {
            return Err(Problem::new(ProblemCode::InUse, format!("base {name} is in use by {}", used_by.join(", ")))
                .remediation("remove those first, or add --force: they go on, and what they need is kept until they are gone"));
        }
        for tag in [BASE_TAG, LATEST] {
            let reference = RefName::new(name, tag).told()?;
            if self.store.refs().get(&reference) == Some(&id) {
                self.store.drop_ref(&reference).told()?;
            }
        }
        Ok(())
    }
}

/// Reads a sparse disk; holes are neither read nor stored.
fn put_disk(batch: &mut Batch, path: &Path, progress: ProgressSink<'_>) -> Result<(Manifest, u64), Problem> {
    let failed = |error: &std::io::Error| problem::io("read", path, error);
    let file = File::open(path).map_err(|error| failed(&error))?;
    let size_bytes = file.metadata().map_err(|error| failed(&error))?.len();
    let mut manifest = Manifest::zero(pages_for(size_bytes));
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    while offset < size_bytes {
        let Some(data) = next_data(&file, offset).map_err(|error| failed(&error))? else {
            break;
        };
        offset = data - data % PAGE_SIZE as u64;
        let want = CHUNK_BYTES.min((size_bytes - offset) as usize);
        file.read_exact_at(&mut buffer[..want], offset)
            .map_err(|error| failed(&error))?;
        buffer[want..].fill(0);
        let pages = buffer
            .as_chunks::<PAGE_SIZE>()
            .0
            .iter()
            .take(want.div_ceil(PAGE_SIZE));
        let first = offset / PAGE_SIZE as u64;
        let numbered: Vec<_> = (first..).zip(pages).collect();
        put_pages(batch, &numbered, &mut manifest).told_as("the disk could not be written to the store")?;
        offset += want as u64;
        progress(Progress {
            stage: "storing the disk".into(),
            done: offset,
            total: Some(size_bytes),
            unit: ProgressUnit::Bytes,
        });
    }
    Ok((manifest, size_bytes))
}

/// Where data begins at or after `offset`; `None`: only holes follow.
fn next_data(file: &File, offset: u64) -> std::io::Result<Option<u64>> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(data) => Ok(Some(data)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        // A file system that knows no holes.
        Err(rustix::io::Errno::INVAL) => Ok(Some(offset)),
        Err(error) => Err(error.into()),
    }
}

fn read_boot_file(path: &Path) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(BOOT_FILE_MAX_BYTES).read_to_end(&mut bytes));
    read.map_err(|error| problem::io("read", path, &error))?;
    Ok(bytes)
}
