//! Random histories against a reference model: whatever happens to the disk, a committed snapshot reads back to the
//! byte, and one that was not committed does not exist.

mod support;

use martlet_image::{DiskRecord, Manifest, ManifestId, MemoryRecord, PAGE_SIZE, SnapshotId, SnapshotRecord};
use martlet_store::faulty::{Fault, FaultyFiles};
use martlet_store::{Batch, Pin, RefName, Store, StoreError};
use proptest::prelude::*;
use std::collections::BTreeMap;
use support::{IMAGE_BYTES, IMAGE_PAGES, Image, assert_holds, dir, open, page};

const NAMES: u8 = 4;

#[derive(Debug, Clone)]
enum Step {
    /// Writes some pages over an earlier snapshot's image and commits it under a name.
    Commit {
        pages: Vec<(u64, u8)>,
        on: u8,
        name: u8,
    },
    /// The same without committing, then something else happens.
    Drop {
        pages: Vec<(u64, u8)>,
        on: u8,
    },
    /// A batch stays open over a garbage collection and is committed then.
    CommitAcrossGc {
        pages: Vec<(u64, u8)>,
        on: u8,
        name: u8,
    },
    Remove {
        name: u8,
    },
    Pin {
        name: u8,
    },
    Unpin,
    Gc,
    Reopen {
        lose_index: bool,
    },
    Crash {
        seed: u64,
    },
    /// The disk fails at some write of the next step.
    Fail {
        after: u64,
        full: bool,
        then_crash: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pages = || prop::collection::vec((0..IMAGE_PAGES, 0u8..12), 0..30);
    let step = prop_oneof![
        6 => (pages(), any::<u8>(), 0..NAMES).prop_map(|(pages, on, name)| Step::Commit { pages, on, name }),
        2 => (pages(), any::<u8>()).prop_map(|(pages, on)| Step::Drop { pages, on }),
        2 => (pages(), any::<u8>(), 0..NAMES).prop_map(|(pages, on, name)| Step::CommitAcrossGc { pages, on, name }),
        3 => (0..NAMES).prop_map(|name| Step::Remove { name }),
        1 => (0..NAMES).prop_map(|name| Step::Pin { name }),
        1 => Just(Step::Unpin),
        3 => Just(Step::Gc),
        1 => any::<bool>().prop_map(|lose_index| Step::Reopen { lose_index }),
        2 => any::<u64>().prop_map(|seed| Step::Crash { seed }),
        3 => (0u64..40, any::<bool>(), any::<bool>())
            .prop_map(|(after, full, then_crash)| Step::Fail { after, full, then_crash }),
    ];
    prop::collection::vec(step, 1..25)
}

/// What the store has to say.
#[derive(Default)]
struct Model {
    snapshots: BTreeMap<SnapshotId, Image>,
    refs: BTreeMap<RefName, SnapshotId>,
}

struct World {
    files: FaultyFiles,
    store: Option<Store>,
    model: Model,
    pins: Vec<Pin>,
    /// A commit that failed and whose outcome only the next opening tells.
    in_doubt: Option<(RefName, SnapshotId, Image)>,
    clock: u64,
}

fn name(number: u8) -> RefName {
    RefName::new("vm", &format!("t{number}")).unwrap()
}

impl World {
    fn new() -> Self {
        let files = FaultyFiles::new();
        let store = Some(open(&files).unwrap());
        Self {
            files,
            store,
            model: Model::default(),
            pins: Vec::new(),
            in_doubt: None,
            clock: 0,
        }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// Puts a snapshot based on an existing, named one into a batch.
    fn put(
        &mut self,
        batch: &mut Batch,
        pages: &[(u64, u8)],
        on: u8,
    ) -> Result<(SnapshotId, Image), StoreError> {
        self.clock += 1;
        let named: Vec<SnapshotId> = self.model.refs.values().copied().collect();
        let parent = (!named.is_empty()).then(|| named[on as usize % named.len()]);
        let (mut image, mut manifest, mut parent_manifest) =
            (Image::new(), Manifest::zero(IMAGE_PAGES), None);
        if let Some(parent) = parent {
            image = self.model.snapshots[&parent].clone();
            let id: ManifestId = self.store().snapshot(&parent)?.memory.unwrap().manifest;
            manifest = (*self.store().manifest(&id)?).clone();
            parent_manifest = Some(id);
        }
        let contents: Vec<(u64, [u8; PAGE_SIZE])> =
            pages.iter().map(|(at, content)| (*at, page(*content))).collect();
        for (at, location) in batch.put_pages(contents.iter().map(|(at, content)| (*at, content)))? {
            manifest.set(at, location);
        }
        for (at, content) in pages {
            image.insert(*at, *content);
        }
        let manifest = batch.put_manifest(&manifest, parent_manifest)?;
        let descriptor = batch.put_blob(&self.clock.to_le_bytes().repeat(20))?;
        let size_bytes = IMAGE_BYTES;
        let record = SnapshotRecord {
            machine: "vm".into(),
            created_unix_ms: self.clock,
            parent,
            memory: Some(MemoryRecord {
                manifest,
                size_bytes,
                descriptor,
                trace: None,
                starter: None,
                free_pages: 0,
            }),
            disks: vec![DiskRecord { manifest, size_bytes }],
            ..SnapshotRecord::default()
        };
        Ok((batch.put_snapshot(&record)?, image))
    }

    fn commit(&mut self, pages: &[(u64, u8)], on: u8, number: u8, gc: bool) -> Result<(), StoreError> {
        let mut batch = self.store().begin()?;
        let (id, image) = self.put(&mut batch, pages, on)?;
        if gc {
            self.gc()?;
        }
        let done = batch.commit(&[(name(number), id)]);
        match done {
            Ok(_) => {
                self.model.snapshots.insert(id, image);
                self.model.refs.insert(name(number), id);
                Ok(())
            }
            Err(error) => {
                self.in_doubt = Some((name(number), id, image));
                Err(error)
            }
        }
    }

    fn gc(&mut self) -> Result<(), StoreError> {
        self.store().gc(false, &mut |_, _| {}).map(drop)
    }

    fn step(&mut self, step: &Step) -> Result<(), StoreError> {
        match step {
            Step::Commit { pages, on, name } => self.commit(pages, *on, *name, false),
            Step::CommitAcrossGc { pages, on, name } => self.commit(pages, *on, *name, true),
            Step::Drop { pages, on } => {
                let mut batch = self.store().begin()?;
                self.put(&mut batch, pages, *on).map(drop)
            }
            Step::Remove { name: number } => {
                let Some(id) = self.model.refs.get(&name(*number)).copied() else {
                    return Ok(());
                };
                match self.store().remove_ref(&name(*number)) {
                    Err(StoreError::InUse { .. }) => {
                        assert!(self.pins.iter().any(|pin| pin.id() == id));
                        Ok(())
                    }
                    Ok(removed) => {
                        assert_eq!(removed, id);
                        self.model.refs.remove(&name(*number));
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            }
            Step::Pin { name: number } => {
                if let Some(id) = self.model.refs.get(&name(*number)) {
                    self.pins.push(self.store().pin(*id, "a test")?);
                }
                Ok(())
            }
            Step::Unpin => {
                self.pins.pop();
                Ok(())
            }
            Step::Gc => self.gc(),
            Step::Reopen { lose_index } => {
                self.close();
                if *lose_index {
                    use martlet_store::Files;
                    self.files.remove(&dir().join("index.redb")).unwrap();
                }
                self.reopen();
                Ok(())
            }
            Step::Crash { seed } => {
                self.files.crash(*seed);
                self.close();
                self.reopen();
                Ok(())
            }
            Step::Fail { after, full, .. } => {
                self.files
                    .fail_after(*after, if *full { Fault::NoSpace } else { Fault::Broken });
                Ok(())
            }
        }
    }

    fn close(&mut self) {
        self.pins.clear();
        self.store = None;
    }

    fn reopen(&mut self) {
        self.store = Some(open(&self.files).unwrap());
        self.settle_doubt();
    }

    fn settle_doubt(&mut self) {
        if let Some((name, id, image)) = self.in_doubt.take()
            && self.store().refs().get(&name) == Some(&id)
        {
            self.model.snapshots.insert(id, image);
            self.model.refs.insert(name, id);
        }
    }

    /// Compares everything.
    fn check(&mut self) {
        let store = self.store.clone().unwrap();
        assert_eq!(store.refs(), self.model.refs);
        let mut expected: Vec<SnapshotId> = self.model.refs.values().copied().collect();
        expected.extend(self.pins.iter().map(Pin::id));
        for id in store.snapshots() {
            assert!(
                self.model.snapshots.contains_key(&id),
                "a snapshot that was never committed exists"
            );
        }
        for id in expected {
            let record = store.snapshot(&id).unwrap();
            let memory = record.memory.unwrap();
            assert_eq!(
                store.blob(&memory.descriptor).unwrap(),
                record.created_unix_ms.to_le_bytes().repeat(20)
            );
            assert_holds(&store, &memory.manifest, &self.model.snapshots[&id]);
        }
    }
}

fn run(steps: &[Step]) {
    let mut world = World::new();
    let mut failing: Option<(bool, u64)> = None;
    for step in steps {
        if let Some((then_crash, seed)) = failing.take() {
            // A crash or a closing is not the step that meets the failing disk.
            if matches!(step, Step::Crash { .. } | Step::Reopen { .. } | Step::Fail { .. }) {
                world.files.mend();
            }
            let removed = if let Step::Remove { name: number } = step {
                Some(name(*number))
            } else {
                None
            };
            let failed = world.step(step).is_err();
            if then_crash {
                world.files.crash(seed);
            }
            world.files.mend();
            if then_crash {
                world.close();
                world.reopen();
            } else {
                // The disk works again, so a commit whose last step failed is settled by the next write.
                world.store().begin().unwrap();
                world.settle_doubt();
            }
            if let Some(name) = removed.filter(|_| failed) {
                // A removal that failed half-way may have happened.
                if !world.store().refs().contains_key(&name) {
                    world.model.refs.remove(&name);
                }
            }
            world.in_doubt = None;
        } else {
            world.step(step).unwrap();
            if let Step::Fail {
                after, then_crash, ..
            } = step
            {
                failing = Some((*then_crash, *after));
                continue;
            }
        }
        world.check();
    }
    world.files.mend();
    // At the end everything still works: nothing is damaged, and all can be let go.
    if failing.is_some() {
        world.close();
        world.reopen();
    }
    assert_eq!(world.store().verify(&[], &mut |_, _| {}).unwrap().damaged, []);
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn committed_snapshots_survive_anything(steps in steps()) {
        run(&steps);
    }
}
