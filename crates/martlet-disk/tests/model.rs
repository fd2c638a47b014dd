//! The disk against an array of bytes.

mod support;

use martlet_disk::{BLOCK_SIZE, BlockChange, CowDisk, DiskError, FrozenLayer};
use martlet_image::Manifest;
use proptest::prelude::*;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use support::Shelf;

#[derive(Debug, Clone)]
enum Step {
    Write {
        at: usize,
        length: usize,
        byte: u8,
    },
    Discard {
        at: usize,
        length: usize,
    },
    Read {
        at: usize,
        length: usize,
    },
    Freeze,
    /// Stores the frozen state with this number (of those at hand) and puts it below.
    Rebase {
        which: usize,
    },
    Flush,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![1usize..600, Just(BLOCK_SIZE), 1usize..40_000];
    let at = prop_oneof![
        0usize..SIZE,
        (0usize..SIZE / BLOCK_SIZE).prop_map(|block| block * BLOCK_SIZE)
    ];
    let range = (at, length).prop_map(|(at, length)| (at, length.min(SIZE - at)));
    prop_oneof![
        4 => (range.clone(), any::<u8>()).prop_map(|((at, length), byte)| Step::Write { at, length, byte }),
        2 => range.clone().prop_map(|(at, length)| Step::Discard { at, length }),
        2 => range.prop_map(|(at, length)| Step::Read { at, length }),
        2 => Just(Step::Freeze),
        1 => (0usize..4).prop_map(|which| Step::Rebase { which }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ]
}

/// Not whole blocks, and longer than the image.
const SIZE: usize = 70 * BLOCK_SIZE + 1024;
const IMAGE: usize = 50 * BLOCK_SIZE;

fn image_bytes() -> Vec<u8> {
    (0..IMAGE)
        .map(|at| {
            if (at / BLOCK_SIZE).is_multiple_of(4) {
                0
            } else {
                (at / 7) as u8 ^ (at / BLOCK_SIZE) as u8
            }
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn is_an_array_of_bytes(steps in prop::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("disk");
        let shelf = Arc::new(Shelf::default());
        let mut model = image_bytes();
        let mut base = shelf.image(&model);
        model.resize(SIZE, 0);
        let mut disk = CowDisk::create(&dir, shelf.pager(), base.clone(), SIZE as u64).unwrap();
        let mut frozen: Vec<(FrozenLayer, Vec<u8>)> = Vec::new();
        for step in steps {
            match step {
                Step::Write { at, length, byte } => {
                    model[at..at + length].fill(byte);
                    disk.write_at(at as u64, &model[at..at + length]).unwrap();
                }
                Step::Discard { at, length } => {
                    model[at..at + length].fill(0);
                    disk.discard(at as u64..(at + length) as u64).unwrap();
                }
                Step::Read { at, length } => {
                    let mut buf = vec![0xEE; length];
                    disk.read_at(at as u64, &mut buf).unwrap();
                    prop_assert!(buf == model[at..at + length]);
                }
                Step::Freeze => frozen.push((disk.freeze().unwrap(), model.clone())),
                Step::Rebase { which } => {
                    if let Some((frozen, _)) = frozen.get(which) {
                        let manifest = shelf.checkpoint(frozen);
                        disk.rebase(manifest, frozen).unwrap();
                        base = disk.base();
                    }
                }
                Step::Flush => disk.flush().unwrap(),
                Step::Reopen => {
                    frozen.clear();
                    drop(disk);
                    disk = CowDisk::open(&dir, shelf.pager(), base.clone(), SIZE as u64).unwrap();
                    prop_assert_eq!(disk.size_bytes(), SIZE as u64);
                }
            }
            prop_assert!(whole(&disk) == model);
        }
        for (frozen, then) in &frozen {
            let mut buf = vec![0; SIZE];
            frozen.read_at(0, &mut buf).unwrap();
            prop_assert!(buf == *then, "a frozen state changed");
        }
        check_seek(&disk, &model);
    }
}

fn whole(disk: &CowDisk) -> Vec<u8> {
    let mut buf = vec![0xEE; disk.size_bytes() as usize];
    disk.read_at(0, &mut buf).unwrap();
    buf
}

/// What is called a hole is zeros, and what is not zeros is called data.
fn check_seek(disk: &CowDisk, model: &[u8]) {
    let mut at = 0;
    while let Some(data) = disk.next_data(at) {
        assert!(model[at as usize..data as usize].iter().all(|&byte| byte == 0));
        at = disk.next_hole(data);
        assert!(at > data);
    }
    assert!(model[at as usize..].iter().all(|&byte| byte == 0));
}

const EMPTY_BYTES: u64 = 16 * BLOCK_SIZE as u64;

fn empty(dir: &Path) -> (Arc<Shelf>, Arc<Manifest>, Arc<CowDisk>) {
    let shelf = Arc::new(Shelf::default());
    let base = shelf.image(&[0xBA; 16 * BLOCK_SIZE]);
    let disk = CowDisk::create(dir, shelf.pager(), base.clone(), EMPTY_BYTES).unwrap();
    (shelf, base, disk)
}

/// Makes the next open believe that the host was restarted.
fn restart_host(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "map") {
            File::options()
                .write(true)
                .open(path)
                .unwrap()
                .write_all_at(b"another boot", 24)
                .unwrap();
        }
    }
}

fn block(disk: &CowDisk, block: u64) -> u8 {
    let mut buf = [0; BLOCK_SIZE];
    disk.read_at(block * BLOCK_SIZE as u64, &mut buf).unwrap();
    assert!(buf.iter().all(|byte| *byte == buf[0]), "block {block} is torn");
    buf[0]
}

#[test]
fn after_the_host_went_down_what_was_flushed_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (shelf, base, disk) = empty(dir.path());
    let write = |disk: &CowDisk, at: u64, byte| disk.write_at(at * 4096, &[byte; 4096]).unwrap();
    write(&disk, 0, 1);
    disk.discard(4096..8192).unwrap();
    let first = disk.freeze().unwrap();
    write(&disk, 2, 2);
    disk.flush().unwrap();
    write(&disk, 3, 3);
    disk.discard(0..4096).unwrap();
    let second = disk.freeze().unwrap();
    write(&disk, 5, 5);
    drop((first, second, disk));

    let disk = CowDisk::open(dir.path(), shelf.pager(), base.clone(), EMPTY_BYTES).unwrap();
    assert_eq!(
        [0, 1, 2, 3, 4, 5].map(|at| block(&disk, at)),
        [0, 0, 2, 3, 0xBA, 5],
        "only the process was killed"
    );
    drop(disk);
    restart_host(dir.path());
    let disk = CowDisk::open(dir.path(), shelf.pager(), base.clone(), EMPTY_BYTES).unwrap();
    assert_eq!(
        [0, 1, 2, 3, 4, 5].map(|at| block(&disk, at)),
        [1, 0, 2, 0xBA, 0xBA, 0xBA]
    );
    drop(disk);
    // A layer whose map never reached the disk.
    fs::write(dir.path().join("layer-00000009.map"), []).unwrap();
    let disk = CowDisk::open(dir.path(), shelf.pager(), base, EMPTY_BYTES).unwrap();
    assert_eq!(block(&disk, 2), 2);
    assert!(!dir.path().join("layer-00000009.map").exists());
}

#[test]
fn changes_are_those_since_the_base_and_a_rebase_deletes_them() {
    let dir = tempfile::tempdir().unwrap();
    let (shelf, _, disk) = empty(dir.path());
    disk.write_at(4096 * 3 + 1, b"x").unwrap();
    let first = disk.freeze().unwrap();
    disk.discard(4096 * 3..4096 * 5).unwrap();
    disk.write_at(0, &[9; 4096]).unwrap();
    let second = disk.freeze().unwrap();
    let changes = |frozen: &FrozenLayer| frozen.changes().collect::<Vec<_>>();
    assert_eq!(changes(&first), [(3, BlockChange::Data)]);
    assert_eq!(
        changes(&second),
        [
            (0, BlockChange::Data),
            (3, BlockChange::Zero),
            (4, BlockChange::Zero)
        ]
    );
    assert_eq!(
        changes(&disk.freeze().unwrap()),
        changes(&second),
        "nothing was written since"
    );
    assert_eq!(disk.usage().layers, 3);
    let older = shelf.checkpoint(&first);
    disk.rebase(shelf.checkpoint(&second), &second).unwrap();
    disk.rebase(older, &first).unwrap(); // late: contained already
    assert_eq!([0, 3, 4].map(|at| block(&disk, at)), [9, 0, 0]);
    assert_eq!((disk.usage().layers, disk.usage().data_bytes), (1, 0));
    assert_eq!(changes(&disk.freeze().unwrap()), []);
    let maps = fs::read_dir(dir.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().path().extension() == Some("map".as_ref()));
    assert_eq!(maps.count(), 2, "the top layer and the next");
    let mut buf = [0; BLOCK_SIZE];
    first.read_block(3, &mut buf).unwrap();
    assert_eq!(&buf[..3], b"\xBAx\xBA", "a frozen state outlives its files");
}

#[test]
fn ranges_outside_and_sizes_that_are_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (shelf, base, disk) = empty(dir.path());
    let end = disk.size_bytes();
    assert!(matches!(
        disk.read_at(end - 1, &mut [0; 2]),
        Err(DiskError::OutOfRange { .. })
    ));
    assert!(matches!(
        disk.write_at(u64::MAX, &[0; 2]),
        Err(DiskError::OutOfRange { .. })
    ));
    assert!(matches!(
        disk.discard(0..end + 1),
        Err(DiskError::OutOfRange { .. })
    ));
    assert_eq!((disk.next_data(end), disk.next_hole(u64::MAX)), (None, end));
    let again = CowDisk::open(dir.path(), shelf.pager(), base.clone(), EMPTY_BYTES);
    assert!(matches!(again.err(), Some(DiskError::InUse { .. })));
    drop(disk);
    for size in [0, 511, u64::MAX, 1 << 60] {
        let refused = CowDisk::create(&dir.path().join("other"), shelf.pager(), base.clone(), size);
        assert!(
            matches!(refused.err(), Some(DiskError::Unsuitable { .. })),
            "{size}"
        );
    }
    let there = CowDisk::create(dir.path(), shelf.pager(), base.clone(), 4096);
    assert!(matches!(there.err(), Some(DiskError::Unsuitable { .. })));
    assert!(CowDisk::open(&dir.path().join("nothing"), shelf.pager(), base, EMPTY_BYTES).is_err());
}

#[test]
fn damaged_layers_are_refused_by_name() {
    let (map, data) = ("layer-00000001.map", "layer-00000001.data");
    type Damage = (&'static str, fn(&File));
    let damages: [Damage; 6] = [
        (map, |file| file.set_len(5000).unwrap()),
        (map, |file| file.write_all_at(b"X", 0).unwrap()),
        (map, |file| file.write_all_at(&[99], 8).unwrap()),
        (map, |file| {
            file.write_all_at(&u64::MAX.to_le_bytes(), 16).unwrap()
        }),
        (map, |file| file.write_all_at(&[0xFF], 4096).unwrap()),
        (data, |file| file.set_len(4096).unwrap()),
    ];
    for (name, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        let (shelf, base, disk) = empty(dir.path());
        disk.write_at(0, b"x").unwrap();
        drop(disk);
        damage(&File::options().write(true).open(dir.path().join(name)).unwrap());
        match CowDisk::open(dir.path(), shelf.pager(), base, EMPTY_BYTES).err() {
            Some(DiskError::Damaged { path, .. }) => assert!(path.ends_with(name)),
            other => panic!("{name}: {other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_map_of_any_bytes_is_refused_or_is_a_disk(
        changes in prop::collection::vec((prop_oneof![0usize..64, 0usize..12288], any::<u8>()), 1..6),
        length in prop::option::of(0u64..20_000),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (shelf, base, disk) = empty(dir.path());
        disk.write_at(0, &[1; 3 * BLOCK_SIZE]).unwrap();
        drop((disk.freeze().unwrap(), disk));
        let map = File::options().write(true).open(dir.path().join("layer-00000001.map")).unwrap();
        for (at, byte) in changes {
            map.write_all_at(&[byte], at as u64).unwrap();
        }
        if let Some(length) = length {
            map.set_len(length).unwrap();
        }
        if let Ok(disk) = CowDisk::open(dir.path(), shelf.pager(), base, EMPTY_BYTES) {
            prop_assert_eq!(whole(&disk).len() as u64, EMPTY_BYTES);
            disk.write_at(0, &[2; BLOCK_SIZE]).unwrap();
            disk.flush().unwrap();
            prop_assert_eq!(block(&disk, 0), 2);
        }
    }
}
