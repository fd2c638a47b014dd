//! Directories and files that vanish unless the build succeeds.

use crate::BaseError;
use crate::error::IoContext;
use crate::kernel::KERNELS;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const PREFIX: &str = "scratch-";

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A directory under the work directory, removed when dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(parent: &Path) -> Result<Self, BaseError> {
        let name = format!(
            "{PREFIX}{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = parent.join(name);
        std::fs::create_dir(&path).during("create", &path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a scratch directory stays behind");
        }
    }
}

/// Removes what builds that died left in the cache of downloads. Only for a time when nobody builds.
pub fn clear_abandoned(cache_dir: &Path) {
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    for suite in entries(&cache_dir.join(KERNELS)) {
        for entry in entries(&suite.path()).filter(|entry| is_scratch(&entry.file_name())) {
            match std::fs::remove_dir_all(entry.path()) {
                Ok(()) => tracing::info!(path = %entry.path().display(), "an unfinished download is removed"),
                Err(error) => {
                    tracing::warn!(path = %entry.path().display(), %error, "an unfinished download stays")
                }
            }
        }
    }
}

/// Is it a scratch directory's name?
pub(crate) fn is_scratch(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
}

/// Files of a build under way: removed when dropped, unless kept.
pub(crate) struct Unfinished(Vec<PathBuf>);

impl Unfinished {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// Takes responsibility for a file that is about to be written.
    pub(crate) fn add(&mut self, path: PathBuf) -> PathBuf {
        self.0.push(path.clone());
        path
    }

    /// The build succeeded; the files are the caller's.
    pub(crate) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        for path in &self.0 {
            // A file may not have been begun.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    #[test]
    fn what_a_dead_build_left_goes_and_what_it_finished_stays() {
        let bench = Bench::new();
        let suite = bench.path().join(KERNELS).join("bookworm");
        let dead = Scratch::new(bench.path()).unwrap();
        std::fs::create_dir_all(suite.join("6.1.0-56-cloud-amd64/lib")).unwrap();
        std::fs::rename(dead.path(), suite.join(dead.path().file_name().unwrap())).unwrap();
        std::mem::forget(dead);
        assert_eq!(std::fs::read_dir(&suite).unwrap().count(), 2);
        clear_abandoned(bench.path());
        let left: Vec<_> = std::fs::read_dir(&suite).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
        assert!(left[0].path().join("lib").is_dir());
    }
}
