//! The store on real files: what it says, what it finds, and what it refuses.

use martlet_image::{
    DiskRecord, FrameId, Manifest, ManifestId, PAGE_SIZE, PageLocation, SnapshotId, SnapshotRecord,
};
use martlet_store::{Options, RealFiles, Store, StoreError};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn open(dir: &Path) -> Store {
    Store::open(dir, Arc::new(RealFiles)).unwrap()
}

/// Pages of which half compress.
fn pages(count: usize, seed: u8) -> Vec<[u8; PAGE_SIZE]> {
    let mut out = vec![[0; PAGE_SIZE]; count];
    for (at, page) in out.iter_mut().enumerate() {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[seed]).update(&(at as u64).to_le_bytes());
        hasher
            .finalize_xof()
            .fill(&mut page[..if at % 2 == 0 { PAGE_SIZE } else { 100 }]);
    }
    out
}

struct Saved {
    id: SnapshotId,
    manifest: ManifestId,
    frames: Vec<FrameId>,
}

fn save(store: &Store, name: &str, content: &[[u8; PAGE_SIZE]], parent: Option<&Saved>) -> Saved {
    let mut batch = store.begin().unwrap();
    let mut manifest = Manifest::zero(content.len() as u64);
    for (at, location) in batch.put_pages((0..).zip(content)).unwrap() {
        manifest.set(at, location);
    }
    let id = batch
        .put_manifest(&manifest, parent.map(|parent| parent.manifest))
        .unwrap();
    let record = SnapshotRecord {
        machine: name.into(),
        created_unix_ms: store.snapshots().len() as u64,
        parent: parent.map(|parent| parent.id),
        disks: vec![DiskRecord {
            manifest: id,
            size_bytes: (content.len() * PAGE_SIZE) as u64,
        }],
        ..SnapshotRecord::default()
    };
    let snapshot = batch.put_snapshot(&record).unwrap();
    batch.commit(&[(name.parse().unwrap(), snapshot)]).unwrap();
    Saved {
        id: snapshot,
        manifest: id,
        frames: manifest.frames(),
    }
}

fn assert_reads(store: &Store, saved: &Saved, content: &[[u8; PAGE_SIZE]]) {
    let manifest = store.manifest(&saved.manifest).unwrap();
    for (at, expected) in content.iter().enumerate() {
        let PageLocation::Frame { frame, slot } = manifest.locate(at as u64) else {
            panic!("page {at} is zero")
        };
        let frame = store.frame(&frame).unwrap();
        assert!(
            frame[usize::from(slot) * PAGE_SIZE..][..PAGE_SIZE] == *expected,
            "page {at}"
        );
    }
}

fn packs(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir.join("packs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

fn gc(store: &Store) -> martlet_store::GcReport {
    store.gc(false, &mut |_, _| {}).unwrap()
}

#[test]
fn content_is_stored_once_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let content = pages(100, 1);
    let saved = save(&store, "web:1", &content, None);
    let mut batch = store.begin().unwrap();
    let mut again = content.clone();
    again.extend([[0; PAGE_SIZE]; 3]);
    again.extend(pages(2, 2));
    again.push(again[103]);
    batch.put_pages((0..).zip(&again)).unwrap();
    let stats = batch.stats();
    assert_eq!(
        (stats.zero_pages, stats.duplicate_pages, stats.new_pages),
        (3, 101, 2)
    );
    drop(batch);
    assert_reads(&store, &saved, &content);
    let before = store.usage().unwrap();
    assert_eq!(before.referenced_bytes, 100 * PAGE_SIZE as u64);
    assert_eq!(before.frames, 13);
}

#[test]
fn names_and_prefixes_resolve() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let first = save(&store, "web:1", &pages(3, 1), None);
    let second = save(&store, "web:2", &pages(3, 2), Some(&first));
    assert_eq!(store.resolve("web:1").unwrap(), first.id);
    assert_eq!(store.resolve("web").unwrap(), second.id);
    assert_eq!(store.resolve(&first.id.to_string()).unwrap(), first.id);
    assert_eq!(store.resolve(&first.id.to_string()[..8]).unwrap(), first.id);
    for text in ["web:3", "other", "0123456789", "a/b", "", "ab"] {
        assert!(store.resolve(text).is_err(), "{text:?}");
    }
    assert!(store.resolve("a/b").unwrap_err().to_string().contains("'/'"));
    let history: Vec<_> = store
        .history(second.id)
        .unwrap()
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(history, [second.id, first.id]);
    assert_eq!(store.children(&first.id).unwrap(), [second.id]);
    let diff = store.diff(&first.id, &second.id).unwrap();
    assert_eq!(diff.disks.changed_pages, 3);
}

#[test]
fn a_store_is_open_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let error = Store::open(dir.path(), Arc::new(RealFiles)).unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)) && error.is_retryable());
    drop(store);
    open(dir.path());
}

#[test]
fn gc_frees_what_nothing_needs_and_says_so_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(
        dir.path(),
        Arc::new(RealFiles),
        Options {
            pack_bytes_max: 200_000,
        },
    )
    .unwrap();
    let (old, new) = (pages(300, 1), pages(300, 2));
    let mut mixed = new.clone();
    mixed[..20].clone_from_slice(&old[..20]);
    let first = save(&store, "web:1", &old, None);
    let second = save(&store, "web:2", &mixed, Some(&first));
    let pin = store.pin(first.id, "machine web").unwrap();
    let error = store.remove_ref(&"web:1".parse().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "web:1 is in use by machine web");
    drop(pin);
    store.remove_ref(&"web:1".parse().unwrap()).unwrap();

    let promised = store.gc(true, &mut |_, _| {}).unwrap();
    assert_reads(&store, &first, &old);
    let before = store.usage().unwrap().pack_bytes;
    let report = gc(&store);
    assert_eq!(
        (promised.objects_freed, promised.snapshots_freed),
        (report.objects_freed, 1)
    );
    assert!(before - store.usage().unwrap().pack_bytes > 500_000, "{report:?}");
    assert_reads(&store, &second, &mixed);
    assert!(matches!(store.snapshot(&first.id), Err(StoreError::NotFound(_))));
    assert_eq!(store.history(second.id).unwrap().len(), 1);
    drop(store);
    assert_reads(&open(dir.path()), &second, &mixed);
    assert_eq!(gc(&open(dir.path())).objects_freed, 0);
}

#[test]
fn readers_and_writers_go_on_while_gc_moves_what_they_use() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(
        dir.path(),
        Arc::new(RealFiles),
        Options {
            pack_bytes_max: 100_000,
        },
    )
    .unwrap();
    let kept = pages(120, 1);
    let saved = save(&store, "kept:1", &kept, None);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| (0..20).for_each(|_| assert_reads(&store, &saved, &kept)));
        for round in 0..10u8 {
            // Half of each pack becomes garbage, and the next round's pages are duplicates of what gc looks at.
            let doomed = save(&store, "doomed:1", &pages(60, round), None);
            let mut batch = store.begin().unwrap();
            let content = pages(60, round);
            let located = batch.put_pages((0..).zip(&content)).unwrap();
            store.remove_ref(&"doomed:1".parse().unwrap()).unwrap();
            gc(&store);
            assert!(matches!(store.snapshot(&doomed.id), Err(StoreError::NotFound(_))));
            for (at, location) in located {
                let PageLocation::Frame { frame, slot } = location else {
                    panic!("page {at} is zero")
                };
                let frame = store.frame(&frame).unwrap();
                assert!(frame[usize::from(slot) * PAGE_SIZE..][..PAGE_SIZE] == content[at as usize]);
            }
        }
        reader.join().unwrap();
    });
}

#[test]
fn damage_is_found_named_and_repaired() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(dir.path());
    let (one, two) = (pages(64, 1), pages(64, 2));
    let hurt = save(&store, "hurt:1", &one, None);
    let whole = save(&store, "whole:1", &two, None);
    save(&open(other.path()), "elsewhere:1", &one, None);

    // The first frame's record is the first in the pack.
    let pack = &packs(dir.path())[0];
    let mut bytes = fs::read(pack).unwrap();
    bytes[16 + 56 + 1000] ^= 1;
    fs::write(pack, &bytes).unwrap();

    let error = store.frame(&hurt.frames[0]).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { offset: 16, .. }), "{error}");
    let report = store.verify(&[], &mut |_, _| {}).unwrap();
    assert_eq!(report.damaged.len(), 1);
    assert_eq!(report.damaged[0].key.id, hurt.frames[0].0);
    assert_eq!(report.damaged[0].hurts, [hurt.id]);
    assert!(!report.damaged[0].repaired);
    assert_reads(&store, &whole, &two);

    let report = store.verify(&[other.path().to_owned()], &mut |_, _| {}).unwrap();
    assert_eq!((report.damaged.len(), report.repaired), (1, 1));
    assert_reads(&store, &hurt, &one);
    assert_eq!(store.verify(&[], &mut |_, _| {}).unwrap().damaged, []);

    // A pack that is cut off, or gone, is found as well.
    drop(store);
    fs::write(pack, &bytes[..bytes.len() / 2]).unwrap();
    let store = open(dir.path());
    let report = store.verify(&[], &mut |_, _| {}).unwrap();
    assert!(!report.damaged.is_empty());
    fs::remove_file(pack).unwrap();
    drop(store);
    let store = open(dir.path());
    assert!(!store.verify(&[], &mut |_, _| {}).unwrap().damaged.is_empty());
    save(&store, "new:1", &one, None);
}

#[test]
fn pages_of_a_damaged_frame_are_stored_again_when_they_come_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let content = pages(16, 1);
    save(&store, "a:1", &content, None);
    let pack = &packs(dir.path())[0];
    let mut bytes = fs::read(pack).unwrap();
    bytes[16 + 56 + 1000] ^= 1;
    fs::write(pack, &bytes).unwrap();
    store.verify(&[], &mut |_, _| {}).unwrap();
    let again = save(&store, "b:1", &content, None);
    assert_reads(&store, &again, &content);
}

#[test]
fn a_missing_or_damaged_index_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let content = pages(200, 1);
    let saved = save(&open(dir.path()), "web:1", &content, None);
    let index = dir.path().join("index.redb");
    let sound = fs::read(&index).unwrap();
    let damaged: Vec<Option<Vec<u8>>> = vec![
        None,
        Some(Vec::new()),
        Some(vec![0xa5; 5000]),
        Some(sound[..sound.len() / 2].to_vec()),
        Some(
            sound
                .iter()
                .enumerate()
                .map(|(at, byte)| byte ^ u8::from(at % 997 == 0))
                .collect(),
        ),
        Some(
            sound
                .iter()
                .enumerate()
                .map(|(at, byte)| byte ^ u8::from(at > 5000 && at % 4096 == 77))
                .collect(),
        ),
    ];
    for (case, bytes) in damaged.into_iter().enumerate() {
        let _ = fs::remove_file(&index);
        if let Some(bytes) = bytes {
            fs::write(&index, bytes).unwrap();
        }
        let store = open(dir.path());
        assert_eq!(store.resolve("web:1").unwrap(), saved.id, "case {case}");
        assert_reads(&store, &saved, &content);
        let mut batch = store.begin().unwrap();
        batch.put_pages((0..).zip(&content)).unwrap();
        assert_eq!(batch.stats().duplicate_pages, 200, "case {case}");
    }
}

#[test]
fn what_does_not_exist_cannot_be_committed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut batch = store.begin().unwrap();
    let mut manifest = Manifest::zero(1);
    manifest.set(
        0,
        PageLocation::Frame {
            frame: FrameId([7; 32]),
            slot: 0,
        },
    );
    assert!(matches!(
        batch.put_manifest(&manifest, None),
        Err(StoreError::NotFound(_))
    ));
    assert!(matches!(
        batch.put_manifest(&Manifest::zero(u64::MAX), None),
        Err(StoreError::Invalid(_))
    ));
    let disks = vec![DiskRecord {
        manifest: ManifestId([7; 32]),
        size_bytes: 4096,
    }];
    let record = SnapshotRecord {
        disks,
        ..SnapshotRecord::default()
    };
    assert!(matches!(
        batch.put_snapshot(&record),
        Err(StoreError::NotFound(_))
    ));
    assert!(
        batch
            .commit(&[("a:b".parse().unwrap(), SnapshotId([7; 32]))])
            .is_err()
    );
    assert!(store.refs().is_empty());
}

/// A store as the first version wrote it.
#[test]
fn an_old_store_stays_readable() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/000000.pack");
    let content = pages(20, 42);
    if std::env::var_os("MARTLET_WRITE_GOLDEN").is_some() {
        let dir = tempfile::tempdir().unwrap();
        save(&open(dir.path()), "golden:1", &content, None);
        fs::create_dir_all(golden.parent().unwrap()).unwrap();
        fs::copy(&packs(dir.path())[0], &golden).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("packs")).unwrap();
    fs::copy(&golden, dir.path().join("packs/000000.pack")).unwrap();
    let store = open(dir.path());
    let id = store.resolve("golden:1").unwrap();
    let manifest = store.snapshot(&id).unwrap().disks[0].manifest;
    assert_reads(
        &store,
        &Saved {
            id,
            manifest,
            frames: Vec::new(),
        },
        &content,
    );
}

/// Figures for docs/format.md: `cargo test --release -p martlet-store --test store -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a test"]
fn figures() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let store = open(dir.path());
    let mut content = pages(40_000, 1);
    for (at, page) in content.iter_mut().enumerate() {
        // Like memory: words with few values.
        for (word, bytes) in page.chunks_exact_mut(8).enumerate() {
            let value = (at * 31 + word * word % 251) as u64 | (word as u64 % 7) << 40;
            if word % 3 > 0 {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
    let start = std::time::Instant::now();
    let mut batch = store.begin().unwrap();
    let located = batch.put_pages((0..).zip(&content)).unwrap();
    println!("put_pages 40k: {:?} {:?}", start.elapsed(), batch.stats());
    let mut manifest = Manifest::zero(262_144);
    for (at, location) in located {
        manifest.set(at, location);
    }
    let id = batch.put_manifest(&manifest, None).unwrap();
    let disks = vec![DiskRecord {
        manifest: id,
        size_bytes: 1 << 30,
    }];
    let record = SnapshotRecord {
        disks,
        ..SnapshotRecord::default()
    };
    let snapshot = batch.put_snapshot(&record).unwrap();
    println!("+ manifest: {:?}", start.elapsed());
    batch.commit(&[("bench:1".parse().unwrap(), snapshot)]).unwrap();
    println!("+ commit: {:?}", start.elapsed());
    let start = std::time::Instant::now();
    let mut batch = store.begin().unwrap();
    batch.put_pages((0..).zip(&content)).unwrap();
    println!("all duplicates: {:?}", start.elapsed());
    let frames = manifest.frames();
    let start = std::time::Instant::now();
    frames.iter().for_each(|frame| drop(store.frame(frame).unwrap()));
    println!("frame: {:?}", start.elapsed() / frames.len() as u32);
    let start = std::time::Instant::now();
    let sum: usize = (0..262_144)
        .filter(|page| manifest.locate(*page) == PageLocation::Zero)
        .count();
    println!("locate: {:?} ({sum} zero)", start.elapsed() / 262_144);
    let start = std::time::Instant::now();
    let clone = manifest.clone();
    println!("clone: {:?} {}", start.elapsed(), clone.page_count());
    drop((batch, store));
    let start = std::time::Instant::now();
    drop(open(dir.path()));
    println!("open: {:?}", start.elapsed());
    fs::remove_file(dir.path().join("index.redb")).unwrap();
    let start = std::time::Instant::now();
    drop(open(dir.path()));
    println!("rebuild: {:?}", start.elapsed());
}
