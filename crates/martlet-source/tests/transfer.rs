//! Snapshots go to a remote and come from it: whole, once, and whatever happens on the way.

use martlet_image::{Manifest, MemoryRecord, PAGE_SIZE, SnapshotId, SnapshotRecord};
use martlet_source::{
    Directory, Entry, Key, Objects, Put, Realm, Remote, Result, Room, SourceError, Under,
    fetch_without_frames, pull, push,
};
use martlet_store::{Key as ObjectKey, Kind, RealFiles, RefName, Store};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use tempfile::TempDir;

const IMAGE_PAGES: u64 = 12_000;

fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 20
    }
}

fn name(text: &str) -> RefName {
    let (name, tag) = text.split_once(':').unwrap();
    RefName::new(name, tag).unwrap()
}

/// A store with a directory of its own.
struct Host {
    store: Store,
    _dir: TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Arc::new(RealFiles)).unwrap();
        Self { store, _dir: dir }
    }

    /// A snapshot that differs from `parent` in these pages, which no compression makes much smaller.
    fn save(&self, parent: Option<SnapshotId>, pages: Range<u64>, called: &str) -> SnapshotId {
        let before = parent.map(|id| self.store.snapshot(&id).unwrap());
        let below = before
            .and_then(|record| record.memory)
            .map(|memory| memory.manifest);
        let mut memory = match &below {
            Some(id) => (*self.store.manifest(id).unwrap()).clone(),
            None => Manifest::zero(IMAGE_PAGES),
        };
        let mut next = random(pages.start + 1);
        let content: Vec<(u64, [u8; PAGE_SIZE])> = pages
            .map(|page| (page, std::array::from_fn(|_| next() as u8)))
            .collect();
        let mut batch = self.store.begin().unwrap();
        let located = batch
            .put_pages(content.iter().map(|(page, bytes)| (*page, bytes)))
            .unwrap();
        for (page, location) in located {
            memory.set(page, location);
        }
        let record = SnapshotRecord {
            parent,
            memory: Some(MemoryRecord {
                manifest: batch.put_manifest(&memory, below).unwrap(),
                size_bytes: IMAGE_PAGES * PAGE_SIZE as u64,
                descriptor: batch.put_blob(called.as_bytes()).unwrap(),
                trace: None,
                starter: None,
                free_pages: 0,
            }),
            ..SnapshotRecord::default()
        };
        let id = batch.put_snapshot(&record).unwrap();
        batch.commit(&[(name(called), id)]).unwrap();
        id
    }

    fn push(&self, remote: &Remote, id: SnapshotId, called: &str) -> Result<martlet_source::PushReport> {
        push(
            &self.store,
            remote,
            id,
            &name(called),
            Under::Nothing,
            false,
            &mut |_, _| (),
        )
        .map(|(report, _)| report)
    }

    fn pull(&self, remote: &Remote, called: &str) -> Result<martlet_source::PullReport> {
        pull(
            &self.store,
            remote,
            &name(called),
            &name(called),
            false,
            &mut |_, _| (),
        )
        .map(|(report, _)| report)
    }

    fn would_pull(&self, remote: &Remote, called: &str) -> Result<martlet_source::PullReport> {
        pull(
            &self.store,
            remote,
            &name(called),
            &name(called),
            true,
            &mut |_, _| (),
        )
        .map(|(report, _)| report)
    }

    /// Whether it has anything at all.
    fn is_empty(&self, needs: &[ObjectKey]) -> bool {
        self.store.lacks(needs).unwrap().len() == needs.len() && self.store.snapshots().is_empty()
    }

    fn needs(&self, id: SnapshotId) -> Vec<ObjectKey> {
        let needs = self.store.needs(&id).unwrap();
        needs.into_iter().map(|(key, _)| key).collect()
    }

    /// It has a snapshot as another host has it, and can read all of it.
    fn assert_has(&self, id: SnapshotId, called: &str) {
        assert_eq!(self.store.resolve(called).unwrap(), id);
        let needs = self.needs(id);
        assert_eq!(self.store.lacks(&needs).unwrap(), []);
        for key in needs {
            self.store.stored(&key).unwrap().content().unwrap();
        }
    }
}

fn at(dir: &Path) -> Remote {
    Remote::new(Arc::new(Directory::new(dir)), Realm::new(&[7; 32]))
}

/// Bytes in all objects of a remote.
fn size_bytes(dir: &Path) -> u64 {
    let remote = Directory::new(dir);
    let entries = Room::ALL.into_iter().flat_map(|room| remote.list(room).unwrap());
    entries.map(|entry| entry.size_bytes).sum()
}

#[test]
fn a_snapshot_comes_back_and_only_what_is_lacking_moves() {
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = (Host::new(), Host::new());
    let first = here.save(None, 0..9_000, "web:1");
    let dry = push(
        &here.store,
        &at(dir.path()),
        first,
        &name("web:1"),
        Under::Nothing,
        true,
        &mut |_, _| (),
    )
    .unwrap();
    assert!(dry.1.is_none() && size_bytes(dir.path()) == 0);

    let pushed = here.push(&at(dir.path()), first, "web:1").unwrap();
    assert_eq!(pushed.sent_objects, pushed.objects);
    assert_eq!((pushed.sent_bytes, pushed.packs), (dry.0.sent_bytes, 3));
    let again = here.push(&at(dir.path()), first, "web:1").unwrap();
    assert_eq!((again.sent_objects, again.sent_bytes, again.packs), (0, 0, 0));

    let pulled = there.pull(&at(dir.path()), "web:1").unwrap();
    assert_eq!(
        (pulled.got_objects, pulled.got_bytes),
        (pushed.objects, pushed.sent_bytes)
    );
    there.assert_has(first, "web:1");
    assert_eq!(there.pull(&at(dir.path()), "web:1").unwrap().got_objects, 0);

    // Of a second one only what is new moves, and little is said about the rest.
    let second = here.save(Some(first), 5_000..5_500, "web:2");
    let new_bytes = 500 * PAGE_SIZE as u64;
    let before_bytes = size_bytes(dir.path());
    here.push(&at(dir.path()), second, "web:2").unwrap();
    let pushed_bytes = size_bytes(dir.path()) - before_bytes;
    let pulled = there.pull(&at(dir.path()), "web:2").unwrap();
    there.assert_has(second, "web:2");
    for bytes in [pushed_bytes, pulled.got_bytes] {
        assert!(
            (new_bytes..new_bytes * 11 / 10).contains(&bytes),
            "{bytes} for {new_bytes}"
        );
    }

    let refs = at(dir.path()).refs().unwrap();
    let refs: Vec<_> = refs
        .into_iter()
        .map(|(name, found)| (name.to_string(), found.snapshot))
        .collect();
    assert_eq!(refs, [("web:1".to_owned(), first), ("web:2".to_owned(), second)]);
}

#[test]
fn another_realm_sees_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = (Host::new(), Host::new());
    let id = here.save(None, 0..100, "web:1");
    here.push(&at(dir.path()), id, "web:1").unwrap();
    let other = Remote::new(Arc::new(Directory::new(dir.path())), Realm::new(&[8; 32]));
    let error = there.pull(&other, "web:1").unwrap_err();
    assert!(matches!(error, SourceError::NoSnapshot { .. }), "{error}");
    assert!(other.refs().unwrap().is_empty());
    // No content and no name is to be seen in what is kept.
    let mut page = [0; PAGE_SIZE];
    let mut next = random(1);
    page.fill_with(|| next() as u8);
    for entry in walk(dir.path()) {
        let bytes = std::fs::read(&entry).unwrap();
        assert!(
            !bytes.windows(64).any(|window| window == &page[..64]),
            "{entry:?}"
        );
        assert!(
            !bytes.windows(3).any(|window| window == b"web") || bytes.len() > 1 << 16,
            "{entry:?}"
        );
    }
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let entries = entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] });
    entries.collect()
}

/// A remote whose link is cut after some requests, and which may be a web server.
#[derive(Debug)]
struct Link {
    objects: Directory,
    left: AtomicI64,
    put_bytes: AtomicU64,
    is_writable: bool,
}

impl Link {
    fn to(dir: &Path, left: i64) -> Arc<Self> {
        Arc::new(Self {
            objects: Directory::new(dir),
            left: AtomicI64::new(left),
            put_bytes: AtomicU64::new(0),
            is_writable: true,
        })
    }

    fn request(&self) -> Result<()> {
        match self.left.fetch_sub(1, Ordering::Relaxed) {
            1.. => Ok(()),
            _ => Err(SourceError::Unavailable {
                place: self.place(),
                action: "answer",
                reason: "the link is cut".into(),
            }),
        }
    }
}

impl Objects for Link {
    fn place(&self) -> String {
        self.objects.place()
    }
    fn is_writable(&self) -> bool {
        self.is_writable
    }
    fn get(&self, key: &Key, size_bytes_max: u64) -> Result<Vec<u8>> {
        self.request()?;
        self.objects.get(key, size_bytes_max)
    }
    fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        self.request()?;
        self.objects.get_range(key, range)
    }
    fn put_new(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.request()?;
        let put = self.objects.put_new(key, bytes)?;
        self.put_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        // The answer may be what is lost.
        self.request()?;
        Ok(put)
    }
    fn list(&self, room: Room) -> Result<Vec<Entry>> {
        self.request()?;
        assert!(self.is_writable, "a web server lists nothing");
        self.objects.list(room)
    }
    fn remove(&self, key: &Key) -> Result<()> {
        self.request()?;
        self.objects.remove(key)
    }
}

#[test]
fn what_is_cut_short_anywhere_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let here = Host::new();
    let id = here.save(None, 0..9_000, "web:1");
    let (mut pushes, mut put_bytes) = (0, 0);
    loop {
        let link = Link::to(dir.path(), pushes);
        let pushed = here.push(&Remote::new(link.clone(), Realm::new(&[7; 32])), id, "web:1");
        put_bytes += link.put_bytes.load(Ordering::Relaxed);
        pushes += 1;
        assert!(pushes < 100);
        match pushed {
            Ok(_) => break,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
    assert!(pushes > 5, "{pushes}");
    let kept_bytes = size_bytes(dir.path());
    assert!(
        put_bytes < kept_bytes * 3,
        "{put_bytes} were sent for {kept_bytes}"
    );

    for left in 0.. {
        let there = Host::new();
        let cut = there.pull(
            &Remote::new(Link::to(dir.path(), left), Realm::new(&[7; 32])),
            "web:1",
        );
        if cut.is_ok() {
            assert!(left > 10, "{left} requests");
            there.assert_has(id, "web:1");
            break;
        }
        assert!(there.store.refs().is_empty());
        there.pull(&at(dir.path()), "web:1").unwrap();
        there.assert_has(id, "web:1");
    }
}

#[test]
fn whatever_is_changed_is_found_and_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let here = Host::new();
    let id = here.save(None, 0..1_000, "web:1");
    here.push(&at(dir.path()), id, "web:1").unwrap();
    let mut objects = walk(dir.path());
    objects.retain(|path| !path.ends_with("martlet-remote")); // says that it is a remote, and has nothing in it
    assert_eq!(objects.len(), 3, "{objects:?}");
    let mut next = random(1);
    for path in objects {
        let whole = std::fs::read(&path).unwrap();
        for _ in 0..5 {
            let mut changed = whole.clone();
            let at_byte = next() as usize % whole.len();
            changed[at_byte] ^= 1 << (next() % 8);
            for bad in [changed, whole[..at_byte].to_vec()] {
                std::fs::write(&path, bad).unwrap();
                let there = Host::new();
                let error = there.pull(&at(dir.path()), "web:1").unwrap_err();
                assert!(matches!(error, SourceError::Wrong { .. }), "{path:?}: {error}");
                assert!(there.store.refs().is_empty());
            }
        }
        std::fs::remove_file(&path).unwrap();
        let error = Host::new().pull(&at(dir.path()), "web:1").unwrap_err();
        assert!(!error.is_retryable(), "{path:?}: {error}");
        std::fs::write(&path, whole).unwrap();
    }
    let there = Host::new();
    there.pull(&at(dir.path()), "web:1").unwrap();
    there.assert_has(id, "web:1");
}

#[test]
fn a_name_stands_for_what_was_pushed_last_also_where_nothing_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let here = Host::new();
    let mut parent = None;
    let mut versions = 0;
    for number in 0..11 {
        let id = here.save(parent, number..number + 1, &format!("web:{number}"));
        here.push(&at(dir.path()), id, "web:latest").unwrap();
        versions += 1;
        parent = Some(id);
        let web = Arc::new(Link {
            is_writable: false,
            ..Arc::into_inner(Link::to(dir.path(), i64::MAX)).unwrap()
        });
        let web = Remote::new(web, Realm::new(&[7; 32]));
        for remote in [&at(dir.path()), &web] {
            let found = remote.find_ref(&name("web:latest")).unwrap().unwrap();
            assert_eq!((found.snapshot, found.version), (id, versions));
            assert_eq!(remote.find_ref(&name("web:other")).unwrap(), None);
        }
        let there = Host::new();
        there.pull(&web, "web:latest").unwrap();
        there.assert_has(id, "web:latest");
        if number % 4 == 3 {
            parent = None;
            at(dir.path()).remove_ref(&name("web:latest")).unwrap();
            for remote in [&at(dir.path()), &web] {
                assert_eq!(remote.find_ref(&name("web:latest")).unwrap(), None);
                let error = there.pull(remote, "web:latest").unwrap_err();
                assert!(matches!(error, SourceError::NoSnapshot { .. }), "{error}");
                let history = remote.history(&name("web:latest")).unwrap();
                assert_eq!(history.len(), versions as usize + 1);
                assert!(history[0].is_removal() && history[1].snapshot == id);
            }
            versions += 1;
        }
    }
}

#[test]
fn of_two_who_push_at_once_both_come_through_and_one_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = [Host::new(), Host::new()];
    let ids = [0, 1].map(|at| hosts[at].save(None, at as u64..200, "web:1"));
    let dir = dir.path();
    let ended: Vec<Result<_>> = std::thread::scope(|scope| {
        let pushing: Vec<_> = hosts
            .iter()
            .zip(ids)
            .map(|(host, id)| scope.spawn(move || host.push(&at(dir), id, "web:latest")))
            .collect();
        pushing
            .into_iter()
            .map(|pushing| pushing.join().unwrap())
            .collect()
    });
    let failed = ended.iter().filter_map(|ended| ended.as_ref().err());
    let failed: Vec<String> = failed.map(ToString::to_string).collect();
    assert!(failed.len() < 2, "{failed:?}");
    assert!(
        failed.iter().all(|words| words.contains("somebody else")),
        "{failed:?}"
    );
    let found = at(dir).find_ref(&name("web:latest")).unwrap().unwrap();
    assert!(ids.contains(&found.snapshot));
    Host::new().pull(&at(dir), "web:latest").unwrap();
}

#[test]
fn what_would_come_is_what_comes_and_nothing_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let here = Host::new();
    let first = here.save(None, 0..300, "web:1");
    let second = here.save(Some(first), 100..120, "web:2");
    here.push(&at(dir.path()), first, "web:1").unwrap();
    here.push(&at(dir.path()), second, "web:2").unwrap();
    let there = Host::new();
    for has_first in [false, true] {
        let host = if has_first { &there } else { &Host::new() };
        if has_first {
            host.pull(&at(dir.path()), "web:1").unwrap();
        }
        let would = host.would_pull(&at(dir.path()), "web:2").unwrap();
        assert!(has_first || host.is_empty(&here.needs(second)));
        assert_eq!(host.pull(&at(dir.path()), "web:2").unwrap(), would);
        assert!(would.got_objects > 0 && would.got_bytes > 20 * PAGE_SIZE as u64);
        assert_eq!(
            host.would_pull(&at(dir.path()), "web:2").unwrap(),
            Default::default()
        );
    }
}

#[test]
fn frames_come_when_they_are_needed() {
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = (Host::new(), Host::new());
    let first = here.save(None, 0..300, "web:1");
    let id = here.save(Some(first), 100..120, "web:2");
    here.push(&at(dir.path()), id, "web:2").unwrap();
    let remote = at(dir.path());
    let web = name("web:2");
    let found = remote.find_ref(&web).unwrap().unwrap();
    let (report, found, record, batch) = fetch_without_frames(&there.store, &remote, &web, found).unwrap();
    assert_eq!(record, here.store.snapshot(&id).unwrap());
    assert_eq!(
        (
            found.snapshot,
            there.store.refs().len(),
            there.store.snapshots().len()
        ),
        (id, 0, 0)
    );
    let (frames, others): (Vec<_>, Vec<_>) = here
        .needs(id)
        .into_iter()
        .partition(|key| key.kind == Kind::Frame);
    assert_eq!(report.got_objects, others.len() as u64);
    // Kept as long as the batch lives.
    there.store.gc(false, &mut |_, _| ()).unwrap();
    let mut lacking = there.store.lacks(&here.needs(id)).unwrap();
    let mut sorted = frames.clone();
    sorted.push(ObjectKey::new(Kind::Snapshot, id.0)); // it exists when whoever has its record says so
    lacking.sort_unstable();
    sorted.sort_unstable();
    assert_eq!(lacking, sorted);
    let manifest = there.store.manifest(&record.memory.unwrap().manifest).unwrap();
    assert_eq!(manifest.frames().len(), frames.len());

    std::thread::scope(|scope| {
        for part in 0..3 {
            let (remote, frames, here) = (&remote, &frames, &here);
            scope.spawn(move || {
                let wanted: Vec<_> = frames.iter().skip(part).step_by(2).copied().collect();
                let mut came = Vec::new();
                let each = |object: martlet_store::Stored| {
                    assert_eq!(
                        object.content().unwrap(),
                        here.store.stored(&object.key)?.content()?
                    );
                    came.push(object.key);
                    Ok(())
                };
                remote.frames(wanted.iter().copied(), each).unwrap();
                came.sort_unstable();
                let mut wanted = wanted;
                wanted.sort_unstable();
                assert_eq!(came, wanted);
                let one = remote.frame(&wanted[0]).unwrap();
                assert_eq!(one, here.store.stored(&wanted[0]).unwrap());
            });
        }
    });
    let error = remote.frame(&ObjectKey::new(Kind::Frame, [0; 32])).unwrap_err();
    assert!(matches!(error, SourceError::Incomplete { .. }), "{error}");
    // What has come already need not come again.
    let pulled = there.pull(&at(dir.path()), "web:2").unwrap();
    assert_eq!(pulled.got_objects, frames.len() as u64 + 1);
    there.assert_has(id, "web:2");
    drop(batch);
    there.store.gc(false, &mut |_, _| ()).unwrap();
    there.assert_has(id, "web:2");
}

#[test]
fn progress_goes_up_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = (Host::new(), Host::new());
    let id = here.save(None, 0..9_000, "web:1");
    let web = name("web:1");
    let mut told = Vec::new();
    let mut tell = |done, total| told.push((done, total));
    let (report, _) = push(
        &here.store,
        &at(dir.path()),
        id,
        &web,
        Under::Nothing,
        false,
        &mut tell,
    )
    .unwrap();
    assert_eq!(told.len() as u64, 1 + report.packs);
    assert!(told.is_sorted() && told.iter().all(|(_, total)| *total == report.sent_bytes));
    assert_eq!(told.last(), Some(&(report.sent_bytes, report.sent_bytes)));
    let mut told = Vec::new();
    let mut tell = |done, total| told.push((done, total));
    let (report, _) = pull(&there.store, &at(dir.path()), &web, &web, false, &mut tell).unwrap();
    assert!(told.is_sorted() && told.len() as u64 == report.got_objects);
    assert_eq!(told.last(), Some(&(report.got_objects, report.got_objects)));
}
