//! A full disk at every single write, and bytes that are not what they should be.

use martlet_image::SnapshotRecord;
use martlet_store::faulty::{Fault, FaultyFiles};
use martlet_store::{Key, Kind, RecordHeader, RefName, Root, Store, StoreError, scan};
use std::path::Path;
use std::sync::Arc;

fn save(store: &Store, name: &RefName, note: &str) -> Result<(), StoreError> {
    let mut batch = store.begin()?;
    let blob = batch.put_blob(note.repeat(50).as_bytes())?;
    assert_eq!(batch.put_blob(note.repeat(50).as_bytes())?, blob);
    let record = SnapshotRecord {
        note: Some(note.to_owned()),
        ..SnapshotRecord::default()
    };
    let id = batch.put_snapshot(&record)?;
    batch.commit(&[(name.clone(), id)]).map(drop)
}

#[test]
fn a_full_disk_is_said_and_leaves_the_old_state_whole() {
    let (old, new) = ("old:1".parse().unwrap(), "new:1".parse().unwrap());
    let mut failed = 0;
    for write in 0..80 {
        let files = FaultyFiles::new();
        let open = || Store::open(Path::new("/store"), Arc::new(files.clone())).unwrap();
        let store = open();
        save(&store, &old, "old").unwrap();
        let before = store.refs();
        files.fail_after(write, Fault::NoSpace);
        let Err(error) = save(&store, &new, "new") else {
            break;
        };
        failed += 1;
        assert!(
            matches!(error, StoreError::NoSpace { .. }) && error.is_retryable(),
            "write {write}: {error}"
        );
        assert_eq!(store.refs(), before);
        // Once there is room the old state reads and the same request works.
        files.mend();
        let id = store.resolve("old:1").unwrap();
        assert_eq!(
            store.snapshot(&id).unwrap().note.as_deref(),
            Some("old"),
            "write {write}"
        );
        save(&store, &new, "new").unwrap();
        assert_eq!(store.refs().len(), 2);
        assert_eq!(store.verify(&[], &mut |_, _| {}).unwrap().damaged, []);
    }
    assert!(failed > 3);
}

#[test]
fn scans_and_roots_bear_damaged_bytes() {
    let content = b"content".repeat(9);
    let header = RecordHeader {
        key: Key {
            kind: Kind::Blob,
            id: *blake3::hash(&content).as_bytes(),
        },
        codec: martlet_image::Codec::Raw,
        stored_len: content.len() as u32,
        content_len: content.len() as u32,
        stored_crc: crc32fast::hash(&content),
    };
    let pack = [&header.encode()[..], &content].concat().repeat(3);
    let mut root = Root {
        sequence: 3,
        ..Root::default()
    };
    for at in 0..5u8 {
        let id = martlet_image::SnapshotId([at; 32]);
        root.snapshots.insert(id);
        root.refs.insert(format!("name-{at}:tag").parse().unwrap(), id);
    }
    let root = root.encode();
    let mut random = 1u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    for round in 0..60_000 {
        let mut bytes = if round % 2 == 0 {
            pack.clone()
        } else {
            root.clone()
        };
        for _ in 0..1 + next() % 3 {
            let at = next() % bytes.len();
            match next() % 3 {
                0 => bytes[at] ^= 1 << (next() % 8),
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, next() as u8),
            }
        }
        let mut end = 0;
        for found in scan(&bytes, 0) {
            assert!(found.offset >= end);
            end = found.offset + 56 + u64::from(found.header.stored_len);
            assert!(end <= bytes.len() as u64);
        }
        if let Some(root) = Root::decode(&bytes) {
            assert!(root.refs.values().all(|id| root.snapshots.contains(id)));
        }
    }
}

#[test]
fn an_index_with_any_byte_damaged_is_mended() {
    let index = Path::new("/store/index.redb");
    for round in 0..120u64 {
        let files = FaultyFiles::new();
        let open = || Store::open(Path::new("/store"), Arc::new(files.clone())).unwrap();
        let names: Vec<RefName> = ["a:1", "b:1"].map(|name| name.parse().unwrap()).into();
        let store = open();
        for name in &names {
            save(&store, name, name.tag()).unwrap();
        }
        let refs = store.refs();
        drop(store);
        let size = files.size_of(index).unwrap() as u64;
        // Headers are where most of the damage can be done.
        let spread = if round % 2 == 0 { 512 } else { size };
        for flip in 0..3 {
            let at = (round * 7 + flip).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
            files.damage(index, (at % spread) as usize, 1 << (at % 8));
        }
        let store = open();
        assert_eq!(store.refs(), refs, "round {round}");
        assert_eq!(
            store.verify(&[], &mut |_, _| {}).unwrap().damaged,
            [],
            "round {round}"
        );
        save(&store, &"c:1".parse().unwrap(), "more").unwrap();
        assert_eq!(store.refs().len(), 3);
    }
}
