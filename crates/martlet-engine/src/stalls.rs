//! What every running machine reads, and what it waited for: entered as the mount answers, by whose process it was, and
//! kept in the machine's directory, where it stays until the machine's next start.

use crate::answer;
use crate::engine::lock;
use crate::launch::now_unix_ms;
use crate::ledger::Ledger;
use martlet_fuse::{Answered, Reads};
use martlet_image::SnapshotId;
use martlet_pager::VmKey;
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

/// A daemon that is killed forgets no more than this.
const KEEP_EVERY: Duration = Duration::from_secs(2);

/// Reads of one run of a machine.
#[derive(Debug)]
pub struct Run {
    file: PathBuf,
    begun: Instant,
    /// How old it was at that instant, when a former daemon began it.
    age_ms: u64,
    ledger: Mutex<Ledger>,
    is_changed: AtomicBool,
}

impl Run {
    /// A machine was asked to start at `requested`.
    pub fn new(file: PathBuf, snapshot: Option<SnapshotId>, requested: Instant) -> Arc<Self> {
        let began_unix_ms = now_unix_ms().saturating_sub(requested.elapsed().as_millis() as u64);
        Arc::new(Self {
            file,
            begun: requested,
            age_ms: 0,
            ledger: Mutex::new(Ledger::new(snapshot, began_unix_ms)),
            is_changed: AtomicBool::new(true),
        })
    }

    /// Goes on with what a former daemon kept.
    pub fn go_on(file: PathBuf, snapshot: Option<SnapshotId>) -> Arc<Self> {
        let Some(ledger) = read(&file) else {
            return Self::new(file, snapshot, Instant::now());
        };
        Arc::new(Self {
            file,
            begun: Instant::now(),
            age_ms: now_unix_ms().saturating_sub(ledger.began_unix_ms),
            ledger: Mutex::new(ledger),
            is_changed: AtomicBool::new(false),
        })
    }

    /// All that is known of it.
    pub fn ledger(&self) -> Ledger {
        lock(&self.ledger).clone()
    }

    /// Adds what else there is to know.
    pub fn change(&self, change: impl FnOnce(&mut Ledger)) {
        change(&mut lock(&self.ledger));
        self.is_changed.store(true, Relaxed);
    }

    fn enter(&self, read: &Answered) {
        let ended_ms = self.age_ms as f64 + self.begun.elapsed().as_secs_f64() * 1e3;
        if lock(&self.ledger).enter(read, &answer::take(), ended_ms) {
            self.is_changed.store(true, Relaxed);
        }
    }

    /// Keeps it. What cannot be kept is no loss to the machine.
    pub fn keep(&self) {
        let kept = serde_json::to_vec(&self.ledger()) // reads go on meanwhile
            .map_err(io::Error::from)
            .and_then(|text| replace(&self.file, &text));
        if let Err(error) = kept {
            tracing::debug!(file = %self.file.display(), %error, "what a machine waited for is not kept");
        }
    }
}

/// The reads that a machine's last run has made.
pub fn read(file: &Path) -> Option<Ledger> {
    let text = std::fs::read(file).ok()?;
    serde_json::from_slice(&text)
        .inspect_err(|error| tracing::warn!(file = %file.display(), %error, "what a machine waited for"))
        .ok()
}

fn replace(file: &Path, text: &[u8]) -> io::Result<()> {
    let new = file.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(&new)?.write_all(text)?;
    std::fs::rename(&new, file)
}

/// All runs.
#[derive(Debug, Default)]
pub struct Stalls {
    runs: RwLock<HashMap<VmKey, Weak<Run>>>,
}

impl Stalls {
    /// None yet. They are kept as long as it lives.
    pub fn new() -> io::Result<Arc<Self>> {
        let stalls = Arc::new(Self::default());
        let weak = Arc::downgrade(&stalls);
        std::thread::Builder::new().name("stalls".into()).spawn(move || {
            while let Some(stalls) = weak.upgrade() {
                stalls.keep();
                drop(stalls);
                std::thread::sleep(KEEP_EVERY);
            }
        })?;
        Ok(stalls)
    }

    /// What this VM reads is of that run, as long as somebody holds it.
    pub fn watch(&self, vm: VmKey, run: &Arc<Run>) {
        let mut runs = self.runs.write().unwrap_or_else(PoisonError::into_inner);
        runs.retain(|_, run| run.strong_count() > 0);
        runs.insert(vm, Arc::downgrade(run));
    }

    /// Keeps what has changed.
    pub fn keep(&self) {
        let runs = self.runs();
        let changed = runs.iter().filter(|run| run.is_changed.swap(false, Relaxed));
        changed.for_each(|run| run.keep());
    }

    /// The run that is kept in this file, if it goes on.
    pub fn of(&self, file: &Path) -> Option<Arc<Run>> {
        self.runs().into_iter().find(|run| run.file == file)
    }

    fn runs(&self) -> Vec<Arc<Run>> {
        let runs = self.runs.read().unwrap_or_else(PoisonError::into_inner);
        runs.values().filter_map(Weak::upgrade).collect()
    }
}

impl Reads for Stalls {
    fn begun(&self) {
        answer::take(); // what was noted of other work
    }

    fn answered(&self, read: Answered) {
        let runs = self.runs.read().unwrap_or_else(PoisonError::into_inner);
        let run = runs.get(&read.vm).and_then(Weak::upgrade);
        drop(runs);
        if let Some(run) = run {
            run.enter(&read);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_page(stalls: &Stalls, vm: u64) {
        stalls.begun();
        answer::came(&Arc::from("remote far"), 100);
        stalls.answered(Answered {
            vm: VmKey(vm),
            is_disk: false,
            bytes: 0..4096,
            took: Duration::from_millis(2),
        });
    }

    #[test]
    fn reads_are_whose_process_made_them_and_outlive_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
        let stalls = Stalls::default();
        let [first, second] =
            [&one, &other].map(|file| Run::new(file.clone(), None, Instant::now() - Duration::from_secs(5)));
        stalls.watch(VmKey(1), &first);
        stalls.watch(VmKey(2), &second);
        for vm in [1, 1, 2, 3] {
            read_page(&stalls, vm);
        }
        // It is found again by another daemon.
        stalls.watch(VmKey(4), &first);
        read_page(&stalls, 4);
        let sums = |run: &Run| (run.ledger().sources[0].reads, run.ledger().sources[0].came_bytes);
        assert_eq!((sums(&first), sums(&second)), ((3, 300), (1, 100)));
        assert!(Arc::ptr_eq(&stalls.of(&one).unwrap(), &first));

        first.keep();
        let began_unix_ms = first.ledger().began_unix_ms;
        drop(first);
        assert!(stalls.of(&one).is_none());
        let again = Run::go_on(one, None);
        stalls.watch(VmKey(5), &again);
        read_page(&stalls, 5);
        let ledger = again.ledger();
        assert_eq!((ledger.began_unix_ms, ledger.stalls.len()), (began_unix_ms, 4));
        assert!(ledger.stalls.iter().all(|stall| stall.at_ms >= 4990.0));
        assert!(read(&other).is_none() && Run::go_on(other, None).ledger().stalls.is_empty());
    }
}
