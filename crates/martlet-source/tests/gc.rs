//! Garbage is collected at a remote while others push, at every point of each other, and either may be killed there.

use martlet_image::{DiskRecord, Manifest, PAGE_SIZE, SnapshotId, SnapshotRecord};
use martlet_source::{
    Entry, GcOptions, GcReport, Key, Objects, Put, Realm, Remote, Result, Room, SourceError, Under, gc, pull,
    push,
};
use martlet_store::faulty::FaultyFiles;
use martlet_store::{Key as ObjectKey, RefName, Store};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

/// A place in memory.
#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<BTreeMap<Key, Vec<u8>>>>);

impl Memory {
    fn missing(key: &Key) -> SourceError {
        SourceError::NotFound {
            place: "memory".into(),
            key: key.clone(),
        }
    }

    /// A copy that goes on by itself.
    fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.0.lock().unwrap().clone())))
    }

    fn count(&self, room: Room) -> usize {
        self.list(room).unwrap().len()
    }
}

impl Objects for Memory {
    fn place(&self) -> String {
        "memory".into()
    }
    fn get(&self, key: &Key, size_bytes_max: u64) -> Result<Vec<u8>> {
        let objects = self.0.lock().unwrap();
        let bytes = objects.get(key).ok_or_else(|| Self::missing(key))?;
        assert!(bytes.len() as u64 <= size_bytes_max);
        Ok(bytes.clone())
    }
    fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        let bytes = self.get(key, u64::MAX)?;
        Ok(bytes[range.start as usize..range.end as usize].to_vec())
    }
    fn put_new(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        let mut objects = self.0.lock().unwrap();
        if objects.contains_key(key) {
            return Ok(Put::WasThere);
        }
        objects.insert(key.clone(), bytes.to_vec());
        Ok(Put::Made)
    }
    fn list(&self, room: Room) -> Result<Vec<Entry>> {
        let objects = self.0.lock().unwrap();
        let of_room = objects.iter().filter(|(key, _)| key.room() == room);
        let entries = of_room.map(|(key, bytes)| Entry {
            key: key.clone(),
            size_bytes: bytes.len() as u64,
        });
        Ok(entries.collect())
    }
    fn remove(&self, key: &Key) -> Result<()> {
        self.0.lock().unwrap().remove(key);
        Ok(())
    }
}

/// The same, where something happens before the `at`-th request.
struct Interrupted<'a> {
    memory: Memory,
    left: AtomicI64,
    happens: Mutex<Option<Happens<'a>>>,
}

/// Something that happens; if it says so, whoever made the request has been killed and makes no more.
type Happens<'a> = Box<dyn FnOnce() -> bool + Send + 'a>;

impl fmt::Debug for Interrupted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interrupted")
    }
}

impl Interrupted<'static> {
    fn at(memory: &Memory, at: i64, happens: impl FnOnce() -> bool + Send + 'static) -> Arc<Self> {
        Arc::new(Self {
            memory: memory.clone(),
            left: AtomicI64::new(at),
            happens: Mutex::new(Some(Box::new(happens))),
        })
    }

    /// Has it come to that?
    fn has_happened(&self) -> bool {
        self.happens.lock().unwrap().is_none()
    }
}

impl Interrupted<'_> {
    fn request(&self) -> Result<()> {
        let left = self.left.fetch_sub(1, Ordering::Relaxed);
        let happens = (left == 0).then(|| self.happens.lock().unwrap().take()).flatten();
        if happens.is_some_and(|happens| happens()) {
            self.left.store(i64::MIN / 2, Ordering::Relaxed);
        }
        match self.left.load(Ordering::Relaxed) < i64::MIN / 4 {
            false => Ok(()),
            true => Err(SourceError::Unavailable {
                place: "memory".into(),
                action: "answer",
                reason: "killed".into(),
            }),
        }
    }
}

impl Objects for Interrupted<'_> {
    fn place(&self) -> String {
        self.memory.place()
    }
    fn get(&self, key: &Key, size_bytes_max: u64) -> Result<Vec<u8>> {
        self.request()?;
        self.memory.get(key, size_bytes_max)
    }
    fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Vec<u8>> {
        self.request()?;
        self.memory.get_range(key, range)
    }
    fn put_new(&self, key: &Key, bytes: &[u8]) -> Result<Put> {
        self.request()?;
        self.memory.put_new(key, bytes)
    }
    fn list(&self, room: Room) -> Result<Vec<Entry>> {
        self.request()?;
        self.memory.list(room)
    }
    fn remove(&self, key: &Key) -> Result<()> {
        self.request()?;
        self.memory.remove(key)
    }
}

fn name(text: &str) -> RefName {
    text.parse().unwrap()
}

fn remote(objects: Arc<dyn Objects>) -> Remote {
    Remote::new(objects, Realm::new(&[7; 32])).with_host("here")
}

fn at(memory: &Memory) -> Remote {
    remote(Arc::new(memory.clone()))
}

fn collect(remote: &Remote) -> Result<GcReport> {
    let options = GcOptions {
        keep_versions: 1,
        dry_run: false,
    };
    gc(remote, options, &mut |_, _| ())
}

fn store() -> Store {
    Store::open(Path::new("/store"), Arc::new(FaultyFiles::new())).unwrap()
}

/// A host with two snapshots, which have something in common.
struct Host {
    store: Store,
    snapshots: Vec<SnapshotId>,
    needs: BTreeMap<SnapshotId, Vec<ObjectKey>>,
}

impl Host {
    fn new() -> Self {
        let store = store();
        let snapshots: Vec<SnapshotId> = (0..2).map(|number| save(&store, number)).collect();
        let needs = snapshots.iter().map(|id| {
            let needs = store.needs(id).unwrap();
            (*id, needs.into_iter().map(|(key, _)| key).collect())
        });
        Self {
            needs: needs.collect(),
            snapshots,
            store,
        }
    }

    fn push(&self, remote: &Remote, snapshot: usize, called: &str) -> Result<()> {
        let id = self.snapshots[snapshot];
        push(
            &self.store,
            remote,
            id,
            &name(called),
            Under::Nothing,
            false,
            &mut |_, _| (),
        )
        .map(drop)
    }

    /// Everything that a ref stands for is there.
    fn all_is_there(&self, memory: &Memory) {
        for found in at(memory).refs().unwrap().into_values() {
            let remote = at(memory);
            remote.learn(&found).unwrap();
            let needs = &self.needs[&found.snapshot];
            let mut came = 0;
            let each = |object: martlet_store::Stored| {
                came += 1;
                Ok(object.content().map(drop)?)
            };
            remote.frames(needs.iter().copied(), each).unwrap();
            assert_eq!(came, needs.len());
        }
    }
}

/// A disk of pages of which each second one is in both snapshots.
fn save(store: &Store, number: u8) -> SnapshotId {
    let pages: Vec<[u8; PAGE_SIZE]> = (0..4)
        .map(|page| [1 + page + (page % 2) * 10 * number; PAGE_SIZE])
        .collect();
    let mut disk = Manifest::zero(100);
    let mut batch = store.begin().unwrap();
    for (at, page) in pages.iter().enumerate() {
        // Each in a frame of its own.
        let located = batch.put_pages([(at as u64, page)]).unwrap();
        disk.set(at as u64, located[0].1);
    }
    let record = SnapshotRecord {
        machine: format!("machine {number}"),
        disks: vec![DiskRecord {
            manifest: batch.put_manifest(&disk, None).unwrap(),
            size_bytes: 100 * PAGE_SIZE as u64,
        }],
        ..SnapshotRecord::default()
    };
    let id = batch.put_snapshot(&record).unwrap();
    batch.commit(&[(name(&format!("saved:{number}")), id)]).unwrap();
    id
}

/// Collects until nothing more goes, with nobody pushing: then all that is left is needed.
fn in_the_end(host: &Host, memory: &Memory) {
    host.all_is_there(memory);
    // Those who were killed; weeks later their intents are gone.
    for entry in memory.list(Room::Intents).unwrap() {
        memory.remove(&entry.key).unwrap();
    }
    let report = collect(&at(memory)).unwrap();
    assert_eq!((report.waiting_for, report.condemned_packs), (Vec::new(), 0));
    host.all_is_there(memory);
    let again = collect(&at(memory)).unwrap();
    assert_eq!((again.packs, again.kept_packs), (0, report.kept_packs));
    assert_eq!(memory.count(Room::Packs) as u64, report.kept_packs);
    assert_eq!(memory.count(Room::Indexes) as u64, report.kept_packs);
    // A new push of anything works, and a pull of it.
    host.push(&at(memory), 0, "new:1").unwrap();
    host.all_is_there(memory);
    assert_eq!(memory.count(Room::Intents), 0);
}

/// Places to begin with, each with some garbage or something that becomes garbage.
fn beginnings(host: &Host) -> Vec<Memory> {
    let empty = Memory::default();
    // Both snapshots' packs are garbage.
    let garbage = empty.fork();
    host.push(&at(&garbage), 0, "web:1").unwrap();
    host.push(&at(&garbage), 1, "web:2").unwrap();
    at(&garbage).remove_ref(&name("web:1")).unwrap();
    at(&garbage).remove_ref(&name("web:2")).unwrap();
    // Of two packs one is needed, and the other half of what the next push needs.
    let half = empty.fork();
    host.push(&at(&half), 1, "web:1").unwrap();
    host.push(&at(&half), 0, "web:1").unwrap();
    at(&half).remove_ref(&name("web:1")).unwrap();
    host.push(&at(&half), 1, "web:2").unwrap();
    // A collection waits for a push that was killed.
    let waiting = garbage.fork();
    let killed = Interrupted::at(&waiting, 7, || true);
    host.push(&remote(killed), 0, "web:1").unwrap_err();
    assert_eq!(collect(&at(&waiting)).unwrap().waiting_for.len(), 1);
    // One was killed when it had removed an index, and not its pack.
    let removing = (0..).find_map(|requests| {
        let memory = garbage.fork();
        collect(&remote(Interrupted::at(&memory, requests, || true))).unwrap_err();
        (memory.count(Room::Indexes) < memory.count(Room::Packs)).then_some(memory)
    });
    vec![garbage, half, waiting, removing.unwrap()]
}

#[test]
fn a_push_is_whole_wherever_it_is_collected() {
    let host = Arc::new(Host::new());
    for (beginning, memory) in beginnings(&host).into_iter().enumerate() {
        for at_request in 0.. {
            let mut is_over = false;
            for killed in [false, true] {
                // The collection may be killed in the push, too, and another go on from there.
                for collection_ends_at in (at_request % 4..40).step_by(4) {
                    let memory = memory.fork();
                    let (inside, end) = (memory.clone(), collection_ends_at);
                    let interrupted = Interrupted::at(&memory, at_request, move || {
                        let cut_short = Interrupted::at(&inside, end, || true);
                        let collected = collect(&remote(cut_short.clone()));
                        assert_eq!(collected.is_err(), cut_short.has_happened(), "{collected:?}");
                        let _ = collect(&at(&inside)).unwrap();
                        killed
                    });
                    let pushed = host.push(&remote(interrupted.clone()), 0, "web:1");
                    is_over = !interrupted.has_happened();
                    // At its end it only takes back its intent.
                    let found = at(&memory).find_ref(&name("web:1")).unwrap();
                    assert!(killed || pushed.is_ok(), "{beginning} {at_request}: {pushed:?}");
                    assert!(pushed.is_err() || found.is_some());
                    in_the_end(&host, &memory);
                }
            }
            if is_over {
                assert!(at_request > 5, "{at_request}");
                break;
            }
        }
    }
}

#[test]
fn a_collection_is_right_wherever_it_is_pushed() {
    let host = Arc::new(Host::new());
    for memory in beginnings(&host) {
        for at_request in 0.. {
            let mut is_over = false;
            for killed in [false, true] {
                for push_ends_at in (at_request % 2..14).step_by(2) {
                    let memory = memory.fork();
                    let (inside, pushing) = (memory.clone(), host.clone());
                    let interrupted = Interrupted::at(&memory, at_request, move || {
                        let cut_short = Interrupted::at(&inside, push_ends_at, || true);
                        let _ = pushing.push(&remote(cut_short), 0, "web:1");
                        pushing.push(&at(&inside), 1, "web:3").unwrap();
                        killed
                    });
                    let collected = collect(&remote(interrupted.clone()));
                    is_over = !interrupted.has_happened();
                    assert_eq!(collected.is_err(), killed && !is_over, "{collected:?}");
                    in_the_end(&host, &memory);
                }
            }
            if is_over {
                assert!(at_request > 5, "{at_request}");
                break;
            }
        }
    }
}

/// A collector is late: all of another's collection, and pushes, come between two of its requests.
#[test]
fn a_late_collector_removes_nothing_that_came_after() {
    let host = Arc::new(Host::new());
    for memory in beginnings(&host) {
        for at_request in 0.. {
            let memory = memory.fork();
            let (inside, pushing) = (memory.clone(), host.clone());
            let interrupted = Interrupted::at(&memory, at_request, move || {
                pushing.push(&at(&inside), 0, "web:1").unwrap();
                let _ = collect(&at(&inside)).unwrap();
                at(&inside).remove_ref(&name("web:1")).unwrap();
                pushing.push(&at(&inside), 0, "web:4").unwrap();
                let _ = collect(&at(&inside)).unwrap();
                pushing.push(&at(&inside), 1, "web:4").unwrap();
                pushing.push(&at(&inside), 0, "web:4").unwrap();
                false
            });
            let _ = collect(&remote(interrupted.clone())).unwrap();
            in_the_end(&host, &memory);
            if !interrupted.has_happened() {
                assert!(at_request > 5, "{at_request}");
                break;
            }
        }
    }
}

/// What is pulled is replaced and collected meanwhile.
#[test]
fn a_pull_is_whole_or_is_told_to_begin_again() {
    let host = Arc::new(Host::new());
    let mut failed = 0;
    for at_request in 0.. {
        let memory = Memory::default();
        host.push(&at(&memory), 0, "web:1").unwrap();
        let (inside, pushing) = (memory.clone(), host.clone());
        let interrupted = Interrupted::at(&memory, at_request, move || {
            at(&inside).remove_ref(&name("web:1")).unwrap();
            collect(&at(&inside)).unwrap();
            pushing.push(&at(&inside), 1, "web:1").unwrap();
            false
        });
        let (there, web) = (store(), name("web:1"));
        let pull_once = |remote| pull(&there, &remote, &web, &web, false, &mut |_, _| ());
        if let Err(error) = pull_once(remote(interrupted.clone())) {
            assert!(matches!(error, SourceError::Changed { .. }), "{error}");
            assert!(there.refs().is_empty());
            failed += 1;
            pull_once(at(&memory)).unwrap();
        }
        let id = there.refs()[&web];
        let needs = there.needs(&id).unwrap();
        assert_eq!(needs.len(), host.needs[&id].len());
        for (key, _) in needs {
            there.stored(&key).unwrap().content().unwrap();
        }
        if !interrupted.has_happened() {
            break;
        }
    }
    assert!(failed > 3, "{failed}");
}

#[test]
fn versions_are_kept_as_long_as_is_asked_for() {
    let host = Host::new();
    let memory = Memory::default();
    let web = name("web:1");
    host.push(&at(&memory), 0, "web:1").unwrap();
    host.push(&at(&memory), 1, "web:1").unwrap();
    let gc_of = |keep_versions, dry_run| {
        let mut told = Vec::new();
        let options = GcOptions {
            keep_versions,
            dry_run,
        };
        let report = gc(&at(&memory), options, &mut |done, total| told.push((done, total))).unwrap();
        assert!(
            told.is_sorted()
                && (told.is_empty() || dry_run || told.last() == Some(&(report.packs, report.packs)))
        );
        report
    };
    let bytes = |rooms: &[Room]| -> u64 {
        let entries = rooms.iter().flat_map(|room| memory.list(*room).unwrap());
        entries.map(|entry| entry.size_bytes).sum()
    };
    let all_bytes = bytes(&[Room::Packs, Room::Indexes]);
    for dry_run in [true, false] {
        let report = gc_of(2, dry_run);
        assert_eq!((report.packs, report.kept_packs), (0, 2));
        assert_eq!((report.freed_bytes, report.kept_bytes), (0, all_bytes));
    }
    // The second one needs something of the first one's pack.
    assert_eq!(gc_of(1, true).packs, 0);
    at(&memory).remove_ref(&web).unwrap();
    host.push(&at(&memory), 1, "web:1").unwrap();
    assert_eq!(at(&memory).find_ref(&web).unwrap().unwrap().version, 4);
    at(&memory).remove_ref(&web).unwrap();
    assert_eq!(at(&memory).find_ref(&web).unwrap(), None);
    assert!(at(&memory).refs().unwrap().is_empty());
    let error = at(&memory).remove_ref(&web).unwrap_err();
    assert!(matches!(error, SourceError::NoSnapshot { .. }), "{error}");
    // What was removed is not kept, however many versions are.
    let report = gc_of(9, true);
    assert_eq!(
        (report.packs, report.freed_bytes, memory.count(Room::Packs)),
        (2, all_bytes, 2)
    );
    let report = gc_of(9, false);
    assert_eq!(
        (report.packs, report.freed_bytes, memory.count(Room::Packs)),
        (2, all_bytes, 0)
    );
    assert_eq!((report.kept_packs, report.kept_bytes), (0, 0));

    let history = at(&memory).history(&web).unwrap();
    let seen: Vec<_> = history
        .iter()
        .map(|found| (found.version, found.is_removal()))
        .collect();
    assert_eq!(seen, [(5, true), (4, false), (3, true), (2, false), (1, false)]);
    assert_eq!(
        (history[1].snapshot, history[4].snapshot),
        (host.snapshots[1], host.snapshots[0])
    );
    assert!(
        history
            .iter()
            .all(|found| found.by.host == "here" && found.by.unix_s > 0)
    );
    assert_eq!(at(&memory).history(&name("web:2")).unwrap(), []);
}

#[test]
fn a_ref_whose_packs_are_gone_is_made_again() {
    let host = Host::new();
    let memory = Memory::default();
    for _ in 0..2 {
        host.push(&at(&memory), 0, "web:1").unwrap();
        assert_eq!(memory.count(Room::Refs), 1);
    }
    for room in [Room::Indexes, Room::Packs] {
        for entry in memory.list(room).unwrap() {
            memory.remove(&entry.key).unwrap();
        }
    }
    host.push(&at(&memory), 0, "web:1").unwrap();
    assert_eq!(memory.count(Room::Refs), 2);
    host.all_is_there(&memory);
}
