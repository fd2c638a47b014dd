//! The end: every snapshot can be resumed, and when all is removed nothing is left that an empty state does not have.

use crate::Daemon;
use crate::driver::{Discrepancy, Driver};
use crate::model::{Machine, Reference, State};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Daemon and keeper end within this time.
const PATIENCE: Duration = Duration::from_secs(30);
/// The database of what there is may stay larger than it began.
const LEFT_BYTES_MAX: u64 = 8 << 20;

/// A pack of this size has nothing but roots, of which one says that there is nothing.
const ROOTS_BYTES_MAX: u64 = 64 << 10;

/// Files of a state directory, and their bytes.
pub struct Files {
    names: BTreeSet<PathBuf>,
    bytes: u64,
}

impl Files {
    /// Those of a daemon that does not run. Logs say what was, and are no state.
    pub fn of(daemon: &Daemon) -> Self {
        let mut files = Self {
            names: BTreeSet::new(),
            bytes: 0,
        };
        files.add(daemon.state_dir(), daemon.state_dir());
        files
    }

    fn add(&mut self, root: &Path, dir: &Path) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let (path, meta) = (entry.path(), entry.metadata());
            let extension = path.extension().unwrap_or_default();
            let has_roots_only =
                extension == "pack" && meta.as_ref().is_ok_and(|meta| meta.len() <= ROOTS_BYTES_MAX);
            if extension == "log" || has_roots_only {
                continue;
            }
            self.names
                .insert(path.strip_prefix(root).unwrap_or(&path).to_owned());
            match meta {
                Ok(meta) if meta.is_dir() => self.add(root, &path),
                Ok(meta) => self.bytes += meta.len(),
                Err(_) => {}
            }
        }
    }
}

impl Driver<'_> {
    /// Everything that is there holds what it must.
    pub fn verify_all(&mut self) -> Result<(), Discrepancy> {
        self.say("verifying the store");
        let report = self.must(&["verify"])?.json();
        if report["damaged"] != json!([]) {
            return Err(format!("the store is damaged: {}", report["damaged"]));
        }
        self.say("resuming and verifying every machine");
        let names: Vec<String> = self.model.machines.keys().cloned().collect();
        for name in &names {
            let machine = self.model.machines[name].clone();
            match machine.state {
                State::Running => self.verify(name)?,
                State::Suspended => {
                    self.must(&["resume", name])?;
                    self.verify(name)?;
                }
                State::Stopped | State::Failed => {}
            }
            self.must(&["rm", "--force", name])?;
        }
        self.model.machines.clear();
        self.say("resuming every snapshot");
        let references: Vec<Reference> = self.model.snapshots.keys().cloned().collect();
        for reference in &references {
            let name = "resumed";
            self.must(&["run", reference, "--name", name])?;
            let contents = &self.model.snapshots[reference].contents;
            let machine = Machine::restored(reference, contents);
            self.model.machines.insert(name.to_owned(), machine);
            self.verify(name)
                .map_err(|wrong| format!("snapshot {reference}: {wrong}"))?;
            self.model.machines.clear();
            self.must(&["rm", "--force", name])?;
            self.report.snapshots_resumed += 1;
        }
        Ok(())
    }

    /// Removes everything; then there must be nothing but what was there when the state was empty.
    pub fn remove_all(&mut self, base: &str, empty: &Files) -> Result<(), Discrepancy> {
        self.say("removing everything");
        let references: Vec<Reference> = self.model.snapshots.keys().cloned().collect();
        for reference in &references {
            self.must(&["images", "rm", reference])?;
        }
        self.must(&["base", "rm", base])?;
        self.must(&["gc"])?;
        for list in ["ps", "images"] {
            let listed = self.must(&[list])?.json();
            if listed != json!([]) {
                return Err(format!("{list} lists something at the end: {listed}"));
            }
        }
        self.must(&["daemon", "stop"])?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let processes = self.daemon.processes("");
            let mounts: Vec<String> = self
                .daemon
                .mounts()
                .into_iter()
                .filter(|at| Path::new(at) != self.daemon.state_dir())
                .collect();
            if processes.is_empty() && mounts.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "left at the end: processes {processes:?}, mounts {mounts:?}"
                ));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let left = Files::of(self.daemon);
        let more: Vec<&PathBuf> = left.names.difference(&empty.names).collect();
        if !more.is_empty() {
            return Err(format!("files left at the end: {more:?}"));
        }
        if left.bytes > empty.bytes + LEFT_BYTES_MAX {
            return Err(format!(
                "{} bytes are left at the end, and {} were there when it was empty",
                left.bytes, empty.bytes
            ));
        }
        Ok(())
    }

    fn say(&mut self, words: &str) {
        self.note(words);
        let at = self.report.elapsed().as_secs();
        self.report.say(&format!("{at:4} s  {words}"));
    }
}
