//! Garbage collection at a remote, while others push.
//!
//! ```text
//! collector   run: condemned C ──► intents W ──► run: waiting for W ─ ─ W have ended ─ ─► refs ──► run: doomed D
//!                                                                                    run: idle ◄── remove D ◄──┘
//! push        intent ──► run ──► indexes less what is condemned ──► packs ──► ref ──► intent ends
//! ```
//!
//! D is what of C no ref needs ([`Remote::needed_packs`]). Why no ref ever lists a pack that was removed:
//!
//! 1. A push whose intent was put after C sees C condemned, or later D, or D gone, and relies on none of D. Nor does it put
//!    one: the packs of a push are its own (`pack.rs`).
//! 2. One whose intent was put before C is in W, or has ended. So it has put its ref before the refs are looked at, which
//!    keeps its packs out of D; or it never will. Of an intent that ends by being a week old the push has given up six days
//!    before (`intent.rs`).
//! 3. Refs that are there already and are not needed then are not needed later: versions only get older.
//! 4. Steps follow each other one by one, and only one collector can put the next (`run.rs`). So D is one, whoever removes
//!    it, and however late: what is in D never comes again, and nothing else is removed.
//!
//! Cut short anywhere, the next collection goes on. An index goes before its pack, so what an index names is there.

use crate::pack::PackHash;
use crate::parallel::in_parallel;
use crate::run::{PACKS_MAX, Run, Stage};
use crate::unique::{DAY_S, age_s};
use crate::{Remote, Result, Room, SourceError, Stamp};
use std::collections::{BTreeMap, BTreeSet};

/// Packs that are removed at the same time.
const REMOVERS: usize = 4;

/// What to collect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcOptions {
    /// So many versions of each ref stay whole; at least one does.
    pub keep_versions: usize,
    /// Only say what is garbage.
    pub dry_run: bool,
}

/// What a collection did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Packs removed.
    pub packs: u64,
    /// What they and their indexes took.
    pub freed_bytes: u64,
    /// Packs that are still there, condemned ones too.
    pub kept_packs: u64,
    /// What they and their indexes take.
    pub kept_bytes: u64,
    /// Packs that go if nothing comes to need them, once those below have ended.
    pub condemned_packs: u64,
    /// Pushes that began before, or were killed within the last week. Collect again when they have ended.
    pub waiting_for: Vec<Stamp>,
}

/// Removes packs that no ref needs. `progress` is told of packs removed, and of packs to be removed.
pub fn gc(remote: &Remote, options: GcOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<GcReport> {
    let keep_versions = options.keep_versions.max(1);
    let mut report = GcReport::default();
    if options.dry_run {
        let sizes = sizes(remote)?;
        let needed = remote.needed_packs(keep_versions)?;
        for (pack, size_bytes) in sizes {
            let (packs, bytes) = match needed.contains(&pack) {
                true => (&mut report.kept_packs, &mut report.kept_bytes),
                false => (&mut report.packs, &mut report.freed_bytes),
            };
            *packs += 1;
            *bytes += size_bytes;
        }
        return Ok(report);
    }
    tidy(remote)?;
    let mut is_ours = false;
    loop {
        let (number, run) = remote.run()?;
        let step = |stage, packs, intents| {
            let by = remote.stamp();
            remote.put_run(
                number,
                &Run {
                    stage,
                    by,
                    packs,
                    intents,
                },
            )
        };
        not_another(remote, &run)?;
        match run.stage {
            Stage::Idle => {
                let needed = remote.needed_packs(keep_versions)?;
                let sizes = sizes(remote)?;
                let garbage = sizes.keys().filter(|pack| !needed.contains(pack));
                let garbage: BTreeSet<PackHash> = garbage.copied().take(PACKS_MAX).collect();
                // One run of our own is enough: what came meanwhile is for the next.
                if is_ours || garbage.is_empty() {
                    report.keeps(&sizes);
                    return Ok(report);
                }
                is_ours = true;
                step(Stage::Condemned, garbage, BTreeSet::new())?;
            }
            Stage::Condemned | Stage::Waiting => {
                let mut pushing = remote.intents()?;
                pushing.retain(|(id, _)| run.stage == Stage::Condemned || run.intents.contains(id));
                if pushing.is_empty() {
                    let needed = remote.needed_packs(keep_versions)?;
                    step(Stage::Doomed, &run.packs - &needed, BTreeSet::new())?;
                } else if run.stage == Stage::Condemned {
                    let intents = pushing.into_iter().map(|(id, _)| id).collect();
                    step(Stage::Waiting, run.packs.clone(), intents)?;
                } else {
                    report.condemned_packs = run.packs.len() as u64;
                    report.waiting_for = pushing.into_iter().map(|(_, stamp)| stamp).collect();
                    report.keeps(&sizes(remote)?);
                    return Ok(report);
                }
            }
            Stage::Doomed => {
                remove(remote, &run.packs, &mut report, progress)?;
                step(Stage::Idle, BTreeSet::new(), BTreeSet::new())?;
            }
        }
    }
}

impl GcReport {
    fn keeps(&mut self, sizes: &BTreeMap<PackHash, u64>) {
        self.kept_packs = sizes.len() as u64;
        self.kept_bytes = sizes.values().sum();
    }
}

/// Two would not harm each other, but do everything twice. One that has not gone on for a day is dead.
fn not_another(remote: &Remote, run: &Run) -> Result<()> {
    let us = remote.stamp();
    let age_s = us.unix_s.abs_diff(run.by.unix_s);
    if run.stage == Stage::Idle || run.by.host == us.host || age_s > DAY_S {
        return Ok(());
    }
    Err(SourceError::Collecting {
        place: remote.place(),
        host: run.by.host.clone(),
        minutes: age_s / 60,
    })
}

/// What each pack takes, with its index. One of the two may be missing.
fn sizes(remote: &Remote) -> Result<BTreeMap<PackHash, u64>> {
    let mut sizes = BTreeMap::new();
    for room in [Room::Indexes, Room::Packs] {
        for entry in remote.objects.list(room)? {
            if let Some(pack) = PackHash::of(&entry.key) {
                *sizes.entry(pack).or_default() += entry.size_bytes;
            }
        }
    }
    Ok(sizes)
}

fn remove(
    remote: &Remote,
    doomed: &BTreeSet<PackHash>,
    report: &mut GcReport,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let mut there = sizes(remote)?;
    there.retain(|pack, _| doomed.contains(pack));
    let all = there.len() as u64;
    let mut done = 0;
    progress(done, all);
    let remove = |(pack, size_bytes): (PackHash, u64)| {
        for room in [Room::Indexes, Room::Packs] {
            remote.objects.remove(&pack.key(room))?;
        }
        Ok(size_bytes)
    };
    in_parallel(REMOVERS, there.into_iter(), remove, |size_bytes| {
        done += 1;
        report.packs += 1;
        report.freed_bytes += size_bytes;
        progress(done, all);
        Ok(())
    })
}

/// What is left of tries and writers that died.
fn tidy(remote: &Remote) -> Result<()> {
    remote.objects.tidy()?;
    let now = remote.now();
    for entry in remote.objects.list(Room::Checks)? {
        if age_s(entry.key.name(), now).is_some_and(|age_s| age_s > DAY_S) {
            remote.objects.remove(&entry.key)?;
        }
    }
    remote.forget_ended_leases()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::PackBuilder;
    use crate::unique::unique_name;
    use crate::{Directory, Key, Objects, Realm};
    use martlet_store::faulty::FaultyFiles;
    use std::path::Path;
    use std::sync::Arc;

    const NOW: u64 = 1_800_000_000;

    fn place() -> Arc<dyn Objects> {
        Arc::new(Directory::on(Path::new("/remote"), Arc::new(FaultyFiles::new())))
    }

    fn remote(objects: &Arc<dyn Objects>, host: &str, clock: fn() -> u64) -> Remote {
        let remote = Remote::new(objects.clone(), Realm::new(&[7; 32]));
        remote.with_host(host).with_clock(clock)
    }

    fn collect(remote: &Remote) -> Result<GcReport> {
        let options = GcOptions {
            keep_versions: 1,
            dry_run: false,
        };
        gc(remote, options, &mut |_, _| ())
    }

    /// As one that is killed.
    fn push_some_of(remote: &Remote) {
        let intent = remote.intend().unwrap();
        let pack = PackBuilder::new(&intent.id).close(&remote.realm);
        remote.put_pack(&pack).unwrap();
        std::mem::forget(intent);
    }

    #[test]
    fn a_push_that_was_killed_holds_garbage_up_for_a_week() {
        let objects = place();
        let here = remote(&objects, "here", || NOW);
        push_some_of(&remote(&objects, "there", || NOW - 6 * DAY_S));
        let report = collect(&here).unwrap();
        assert_eq!(
            (report.packs, report.kept_packs, report.condemned_packs),
            (0, 1, 1)
        );
        assert_eq!(report.waiting_for[0].host, "there");
        // One that begins later is not waited for, and what it puts is not taken away.
        push_some_of(&here);
        assert_eq!(collect(&here).unwrap().waiting_for.len(), 1);
        let report = collect(&remote(&objects, "here", || NOW + 2 * DAY_S)).unwrap();
        assert_eq!(
            (report.packs, report.kept_packs, report.condemned_packs),
            (1, 1, 1)
        );
        assert_eq!(report.waiting_for[0].host, "here");
        let report = collect(&remote(&objects, "here", || NOW + 8 * DAY_S)).unwrap();
        assert_eq!(
            (report.packs, report.kept_packs, report.waiting_for.len()),
            (1, 0, 0)
        );
        assert_eq!(objects.list(Room::Intents).unwrap(), []);
    }

    #[test]
    fn another_host_collects_only_when_one_has_died() {
        let objects = place();
        let here = remote(&objects, "here", || NOW);
        push_some_of(&here);
        assert_eq!(collect(&here).unwrap().waiting_for.len(), 1);
        for clock in [|| NOW + DAY_S - 1, || NOW - 3600] {
            let error = collect(&remote(&objects, "there", clock)).unwrap_err();
            assert!(matches!(&error, SourceError::Collecting { host, .. } if host == "here"));
            assert!(error.is_retryable());
        }
        let there = remote(&objects, "there", || NOW + DAY_S + 1);
        assert_eq!(collect(&there).unwrap().waiting_for.len(), 1);
        let report = collect(&remote(&objects, "there", || NOW + 8 * DAY_S)).unwrap();
        assert_eq!((report.packs, report.kept_packs), (1, 0));
    }

    #[test]
    fn what_cannot_be_opened_may_need_anything() {
        for (room, name) in [
            (Room::Refs, format!("{}@00000001", "a".repeat(64))),
            (Room::Intents, "a".repeat(32)),
            (Room::Condemned, "run@00000001".to_owned()),
        ] {
            let objects = place();
            let here = remote(&objects, "here", || NOW);
            let intent = here.intend().unwrap();
            here.put_pack(&PackBuilder::new(&intent.id).close(&here.realm))
                .unwrap();
            drop(intent);
            let key = Key::new(room, name).unwrap();
            here.objects.put_new(&key, b"not sealed, or damaged").unwrap();
            let error = collect(&here).unwrap_err();
            assert!(matches!(error, SourceError::Wrong { key: wrong, .. } if wrong == key));
            here.objects.remove(&key).unwrap();
            assert_eq!(collect(&here).unwrap().packs, 1);
        }
    }

    #[test]
    fn what_tries_have_left_goes_after_a_day() {
        let objects = place();
        let names = [NOW - 100, NOW - 2 * DAY_S].map(unique_name);
        for name in &names {
            let key = Key::new(Room::Checks, name.as_str()).unwrap();
            objects.put_new(&key, b"tried").unwrap();
        }
        collect(&remote(&objects, "here", || NOW)).unwrap();
        let left = objects.list(Room::Checks).unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].key.name(), names[0]);
    }
}
