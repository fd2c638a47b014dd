//! The disk on a host that loses power, at any time and in the middle of a flush, against a model of what each block may
//! hold then: what it held at the last flush, or anything that was written since.
//!
//! What is on the host's disk then is made up: of what was not synced, each page of a file is there or is not. Names and
//! lengths are taken to come in order, as file systems with a journal keep them.

mod support;

use martlet_disk::{BLOCK_SIZE, CowDisk};
use martlet_image::Manifest;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::Shelf;

const BLOCKS: usize = 12;
const SIZE: usize = BLOCKS * BLOCK_SIZE;

#[derive(Debug, Clone)]
enum Step {
    Write {
        at: usize,
        length: usize,
        byte: u8,
    },
    Discard {
        block: usize,
        blocks: usize,
    },
    Freeze,
    /// A checkpoint: frozen, stored, recorded, and the layers that it contains deleted.
    Checkpoint,
    Flush,
    PowerLoss {
        seed: u64,
    },
    /// The power goes when so many layers have been flushed.
    PowerLossInFlush {
        seed: u64,
        layers: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let whole = (0..BLOCKS, 1..4usize).prop_map(|(block, blocks)| (block * BLOCK_SIZE, blocks * BLOCK_SIZE));
    let range = prop_oneof![whole, (0..SIZE, 1..9000usize)];
    prop_oneof![
        6 => (range, any::<u8>()).prop_map(|((at, length), byte)| {
            Step::Write { at, length: length.min(SIZE - at), byte }
        }),
        2 => (0..BLOCKS, 1..4usize).prop_map(|(block, blocks)| {
            Step::Discard { block, blocks: blocks.min(BLOCKS - block) }
        }),
        2 => Just(Step::Freeze),
        1 => Just(Step::Checkpoint),
        2 => Just(Step::Flush),
        1 => any::<u64>().prop_map(|seed| Step::PowerLoss { seed }),
        2 => (any::<u64>(), 0..3usize).prop_map(|(seed, layers)| Step::PowerLossInFlush { seed, layers }),
    ]
}

/// The files of a disk, by name.
type Files = BTreeMap<String, Vec<u8>>;

fn files_in(dir: &Path) -> Files {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let named = entries.map(|entry| {
        (
            entry.file_name().into_string().unwrap(),
            fs::read(entry.path()).unwrap(),
        )
    });
    named.filter(|(name, _)| name.starts_with("layer-")).collect()
}

/// Numbers that follow from a seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    /// Each page is the old one or the new one; of a file that was not there, zeros or the new one.
    fn mix(&mut self, old: Option<&Vec<u8>>, new: &[u8]) -> Vec<u8> {
        let pages = new.chunks(BLOCK_SIZE).enumerate();
        let mixed = pages.flat_map(|(page, new)| {
            let start = page * BLOCK_SIZE;
            match (
                self.next(2),
                old.and_then(|old| old.get(start..start + new.len())),
            ) {
                (0, Some(old)) => old.to_vec(),
                (0, None) => vec![0; new.len()],
                _ => new.to_vec(),
            }
        });
        mixed.collect()
    }
}

/// Makes the next open believe that the host was restarted.
fn of_another_boot(mut map: Vec<u8>) -> Vec<u8> {
    if map[..64] != [0; 64] {
        map[24..36].copy_from_slice(b"another boot");
    }
    map
}

struct World {
    shelf: Arc<Shelf>,
    dir: PathBuf,
    disk: Option<Arc<CowDisk>>,
    base: Arc<Manifest>,
    /// Files as they were last synced.
    synced: Files,
    now: Vec<u8>,
    /// What each block may hold after a power failure.
    allowed: Vec<Vec<Vec<u8>>>,
}

impl World {
    fn new(dir: &Path) -> Self {
        let shelf = Arc::new(Shelf::default());
        let mut now: Vec<u8> = (0..SIZE).map(|at| (at / BLOCK_SIZE) as u8 + 100).collect();
        let base = shelf.image(&now[..SIZE / 2]);
        now[SIZE / 2..].fill(0);
        let disk = CowDisk::create(dir, shelf.pager(), base.clone(), SIZE as u64).unwrap();
        // As an engine does before it records that there is one.
        disk.flush().unwrap();
        let mut world = Self {
            shelf,
            dir: dir.to_owned(),
            disk: Some(disk),
            base,
            synced: files_in(dir),
            now,
            allowed: Vec::new(),
        };
        world.nothing_else_is_allowed();
        world
    }

    fn disk(&self) -> &Arc<CowDisk> {
        self.disk.as_ref().unwrap()
    }

    fn nothing_else_is_allowed(&mut self) {
        self.allowed = self
            .now
            .chunks(BLOCK_SIZE)
            .map(|block| vec![block.to_vec()])
            .collect();
    }

    fn changed(&mut self) {
        for (allowed, block) in self.allowed.iter_mut().zip(self.now.chunks(BLOCK_SIZE)) {
            if allowed.last().is_none_or(|last| last != block) {
                allowed.push(block.to_vec());
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write { at, length, byte } => {
                self.now[at..at + length].fill(byte);
                self.disk()
                    .write_at(at as u64, &self.now[at..at + length])
                    .unwrap();
                self.changed();
            }
            Step::Discard { block, blocks } => {
                let range = block * BLOCK_SIZE..(block + blocks) * BLOCK_SIZE;
                self.now[range.clone()].fill(0);
                self.disk().discard(range.start as u64..range.end as u64).unwrap();
                self.changed();
            }
            Step::Freeze => drop(self.disk().freeze().unwrap()),
            Step::Checkpoint => {
                let frozen = self.disk().freeze().unwrap();
                self.base = self.shelf.checkpoint(&frozen);
                self.disk().rebase(self.base.clone(), &frozen).unwrap();
                self.base = self.disk().base();
                // Deletions are synced one by one.
                let there = files_in(&self.dir);
                self.synced.retain(|name, _| there.contains_key(name));
            }
            Step::Flush => {
                self.disk().flush().unwrap();
                self.synced = files_in(&self.dir);
                self.nothing_else_is_allowed();
            }
            Step::PowerLoss { seed } => {
                let now = files_in(&self.dir);
                self.lose_power(&now, &now, 0, false, seed);
            }
            Step::PowerLossInFlush { seed, layers } => {
                let before = files_in(&self.dir);
                self.disk().flush().unwrap();
                let after = files_in(&self.dir);
                self.lose_power(&before, &after, layers, true, seed);
            }
        }
    }

    /// `flushed` layers were flushed from `before` to `after`, and if `in_flush` the next one was about to be.
    fn lose_power(&mut self, before: &Files, after: &Files, flushed: usize, in_flush: bool, seed: u64) {
        let mut chance = Chance(seed);
        let mut left = Files::new();
        for (index, (map_name, map)) in before
            .iter()
            .filter(|(name, _)| name.ends_with(".map"))
            .enumerate()
        {
            let data_name = map_name.replace(".map", ".data");
            let (map_after, data_after) = (&after[map_name], &after[&data_name]);
            let (map_synced, data_synced) = (self.synced.get(map_name), self.synced.get(&data_name));
            let (data, map) = match index {
                _ if index < flushed => (data_after.clone(), map_after.clone()),
                // Its data first, then its map.
                _ if in_flush && index == flushed => (data_after.clone(), chance.mix(map_synced, map_after)),
                // Names come in order: without one there is none after it.
                _ if map_synced.is_none() && chance.next(3) == 0 => break,
                _ => (
                    chance.mix(data_synced, &before[&data_name]),
                    chance.mix(map_synced, map),
                ),
            };
            left.insert(map_name.clone(), of_another_boot(map));
            left.insert(data_name, data);
        }
        self.disk = None;
        for name in before.keys() {
            fs::remove_file(self.dir.join(name)).unwrap();
        }
        for (name, bytes) in &left {
            fs::write(self.dir.join(name), bytes).unwrap();
        }
        // Held open, so that no file which is made meanwhile has the number of one that is removed.
        let held = left.keys().map(|name| File::open(self.dir.join(name)).unwrap());
        let held: Vec<File> = held.collect();
        self.disk =
            Some(CowDisk::open(&self.dir, self.shelf.pager(), self.base.clone(), SIZE as u64).unwrap());
        // Of a layer that was not used the files are gone: nothing of them is in others of the same name.
        let is_there = |name: &str, file: &File| {
            let there = fs::metadata(self.dir.join(name));
            there.is_ok_and(|there| there.ino() == file.metadata().unwrap().ino())
        };
        let kept = left.into_iter().zip(&held);
        let kept = kept.filter(|((name, _), file)| is_there(name, file));
        self.synced = kept.map(|(left, _)| left).collect();
        let mut found = vec![0; SIZE];
        self.disk().read_at(0, &mut found).unwrap();
        for (block, (allowed, found)) in self.allowed.iter().zip(found.chunks(BLOCK_SIZE)).enumerate() {
            assert!(
                allowed.iter().any(|allowed| allowed == found),
                "block {block} holds {:?} where {:?} may be",
                found[0],
                allowed.iter().map(|block| block[0]).collect::<Vec<_>>()
            );
        }
        self.now = found;
        self.nothing_else_is_allowed();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn after_a_power_failure_each_block_is_flushed_or_newer(steps in prop::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut world = World::new(&dir.path().join("disk"));
        for step in &steps {
            world.step(step);
        }
        world.step(&Step::PowerLoss { seed: 7 });
    }
}
