//! Importing whatever a file is: told from its content, never from its name.

use crate::error::IoContext;
use crate::{Artifacts, BaseError, Job, import_disk, import_oci};
use martlet_api::InitKind;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// How to import.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Size of the root disk for OCI images; from the content when absent. Disks keep theirs.
    pub size_bytes: Option<u64>,
    /// Told from the content when absent.
    pub init: Option<InitKind>,
}

/// Imports a raw or qcow2 disk, an OCI image layout (directory or tar archive) or a `docker save` archive.
pub fn import(path: &Path, options: &ImportOptions, job: &Job) -> Result<Artifacts, BaseError> {
    match is_oci(path)? {
        true if options.init.is_some_and(|init| init != InitKind::Command) => Err(BaseError::Invalid(
            "an OCI image runs its command under the agent: its init can only be `command`".into(),
        )),
        true => import_oci(path, options.size_bytes, job),
        false if options.size_bytes.is_some() => Err(BaseError::Invalid(
            "an imported disk keeps its size; `martlet run --disk` gives a machine a larger one".into(),
        )),
        false => import_disk(path, options.init, job),
    }
}

/// A directory, a compressed file or a tar archive is an image; anything else a disk.
fn is_oci(path: &Path) -> Result<bool, BaseError> {
    let meta = std::fs::metadata(path).during("open", path)?;
    if meta.is_dir() {
        return Ok(true);
    }
    if !meta.is_file() {
        return Err(BaseError::bad_source(
            path,
            "it is neither a file nor a directory",
        ));
    }
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(512).read_to_end(&mut head))
        .during("read", path)?;
    let tar = head.get(257..262).is_some_and(|magic| magic == b"ustar");
    Ok(tar || head.starts_with(&[0x1f, 0x8b]))
}
