//! Kernels and initramfs as files, because QEMU reads them from files: made of the store's blobs when a machine first
//! boots with them, and gone with the last snapshot that names them.

use crate::engine::Engine;
use crate::identity;
use crate::problem::{self, Told};
use martlet_api::Problem;
use martlet_image::BlobId;
use std::collections::HashSet;
use std::path::PathBuf;

impl Engine {
    /// A kernel or initramfs as a file that QEMU can read.
    pub(crate) fn boot_file(&self, id: &BlobId) -> Result<PathBuf, Problem> {
        let path = self.dirs.boot().join(id.to_string());
        if !path.exists() {
            let bytes = self
                .store
                .blob(id)
                .told_as("the guest's kernel cannot be read from the store")?;
            let scratch = path.with_extension(identity::machine_id());
            let made = std::fs::write(&scratch, bytes).and_then(|()| std::fs::rename(&scratch, &path));
            made.map_err(|error| {
                let _ = std::fs::remove_file(&scratch);
                problem::io("write", &path, &error)
            })?;
        }
        Ok(path)
    }

    /// Removes those that no snapshot boots with. What is about to boot has its snapshot pinned.
    pub(crate) fn remove_unused_boot_files(&self) {
        let mut used = HashSet::new();
        for id in self.store.snapshots() {
            // One that cannot be read may boot with any.
            let Ok(snapshot) = self.store.snapshot(&id) else {
                return;
            };
            used.extend(
                snapshot
                    .boot
                    .iter()
                    .flat_map(|boot| [boot.kernel.to_string(), boot.initrd.to_string()]),
            );
        }
        self.remove_boot_files(|name| !used.contains(name.split('.').next().unwrap_or_default()));
    }

    /// Removes those that a daemon which died was still writing.
    pub(crate) fn remove_half_boot_files(&self) {
        self.remove_boot_files(|name| name.contains('.'));
    }

    fn remove_boot_files(&self, is_useless: impl Fn(&str) -> bool) {
        let entries = std::fs::read_dir(self.dirs.boot());
        for entry in entries.into_iter().flatten().flatten() {
            if is_useless(&entry.file_name().to_string_lossy())
                && let Err(error) = std::fs::remove_file(entry.path())
            {
                tracing::warn!(%error, file = %entry.path().display(), "a kernel's file stays behind");
            }
        }
    }
}
