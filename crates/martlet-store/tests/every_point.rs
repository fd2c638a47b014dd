//! What the engine does to a store, from an import to a garbage collection, against a reference model: the power goes
//! before every single operation on the disk, the disk is full at every single write, the device fails at every single
//! write. What was committed is whole, to the byte; what was not does not exist; and the same request works afterwards.

mod support;

use martlet_image::{BootRecord, DiskRecord, Manifest, MemoryRecord, SnapshotId, SnapshotRecord};
use martlet_store::faulty::{Fault, FaultyFiles};
use martlet_store::{Batch, Files, Pin, RefName, Store, StoreError};
use std::collections::BTreeMap;
use support::{IMAGE_BYTES, IMAGE_PAGES, Image, assert_holds, dir, open, page};

/// After a power failure any part of what was not synced may be there: this many parts are tried at each point.
const OUTCOMES: u64 = 2;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A disk and what it boots become the base of this name.
    Import(&'static str),
    /// A machine of this name starts from a base.
    Run(&'static str, &'static str),
    /// A machine has worked, and is saved under this tag.
    Checkpoint(&'static str, &'static str),
    /// A machine is saved, and others start from what was saved.
    Fork(&'static str, [&'static str; 2]),
    /// A snapshot gets one more name.
    Tag(&'static str, &'static str),
    /// A snapshot loses a name.
    Untag(&'static str),
    /// A machine is forgotten.
    Forget(&'static str),
    Gc,
}

use Step::*;

/// Two generations of clones, garbage in packs that others share, and work that goes on after each collection.
const HISTORY: [Step; 17] = [
    Import("base"),
    Run("a", "base"),
    Checkpoint("a", "1"),
    Fork("a", ["b", "c"]),
    Checkpoint("b", "1"),
    Untag("a:1"),
    Gc,
    Fork("b", ["d", "e"]),
    Checkpoint("a", "2"),
    Tag("a:2", "a:kept"),
    Import("other"),
    Forget("b"),
    Untag("b:1"),
    Untag("a:fork"),
    Gc,
    Checkpoint("c", "1"),
    Gc,
];

/// What a snapshot holds.
#[derive(Debug, Clone, Default)]
struct Content {
    memory: Option<Image>,
    disk: Image,
    boot: Vec<u8>,
}

/// What the store has to say, and who uses it.
#[derive(Debug, Clone, Default)]
struct Model {
    refs: BTreeMap<RefName, SnapshotId>,
    /// Of each machine the snapshot that it goes back to and its disk lies on, as its record says.
    machines: BTreeMap<&'static str, SnapshotId>,
    contents: BTreeMap<SnapshotId, Content>,
}

struct World {
    files: FaultyFiles,
    store: Option<Store>,
    pins: Vec<Pin>,
    model: Model,
    /// What the model is once the step under way is done.
    then: Model,
    clock: u64,
}

impl World {
    fn new() -> Self {
        let files = FaultyFiles::new();
        Self {
            store: Some(open(&files).unwrap()),
            files,
            pins: Vec::new(),
            model: Model::default(),
            then: Model::default(),
            clock: 0,
        }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn step(&mut self, step: Step) -> Result<(), StoreError> {
        self.then = self.model.clone();
        self.clock += 1;
        match step {
            Import(base) => self.import(name(base, "base"))?,
            Run(machine, base) => {
                let id = self.model.refs[&name(base, "base")];
                self.then.machines.insert(machine, id);
            }
            Checkpoint(machine, tag) => self.save(machine, tag, &[])?,
            Fork(machine, clones) => self.save(machine, "fork", &clones)?,
            Tag(from, to) => {
                let id = self.model.refs[&parse(from)];
                self.then.refs.insert(parse(to), id);
                self.store().set_ref(&parse(to), id)?;
            }
            Untag(gone) => {
                self.then.refs.remove(&parse(gone));
                self.store().drop_ref(&parse(gone))?;
            }
            Forget(machine) => drop(self.then.machines.remove(machine)),
            Gc => {
                self.store().gc(false, &mut |_, _| ())?;
            }
        }
        self.done();
        Ok(())
    }

    /// The step is done: machines pin what they need.
    fn done(&mut self) {
        self.model = self.then.clone();
        let store = self.store.clone().unwrap();
        let ids = self.model.machines.values();
        self.pins = ids.map(|id| store.pin(*id, "a machine").unwrap()).collect();
    }

    fn import(&mut self, base: RefName) -> Result<(), StoreError> {
        let boot = self.clock.to_le_bytes().repeat(700);
        // Chunk by chunk, as a disk is read.
        let disk: Image = (0..IMAGE_PAGES - 8).map(|at| (at, (at % 11) as u8)).collect();
        let mut batch = self.store().begin()?;
        let mut manifest = Manifest::zero(IMAGE_PAGES);
        for chunk in disk.iter().collect::<Vec<_>>().chunks(10) {
            put(
                &mut batch,
                chunk.iter().map(|(at, content)| (**at, **content)),
                &mut manifest,
            )?;
        }
        let manifest = batch.put_manifest(&manifest, None)?;
        let record = SnapshotRecord {
            created_unix_ms: self.clock,
            disks: vec![disk_record(manifest)],
            boot: Some(BootRecord {
                kernel: batch.put_blob(&boot)?,
                initrd: batch.put_blob(&boot[1..])?,
                cmdline: "quiet".into(),
            }),
            ..SnapshotRecord::default()
        };
        let content = Content {
            memory: None,
            disk,
            boot,
        };
        self.commit(batch, &record, base, content, &[])
    }

    /// What the engine's checkpoint does: memory and disk over those of the snapshot that it goes on from. It, and its
    /// clones, go on from this one.
    fn save(&mut self, machine: &'static str, tag: &str, clones: &[&'static str]) -> Result<(), StoreError> {
        let parent = self.model.machines[machine];
        let before = self.store().snapshot(&parent)?;
        let mut content = self.model.contents[&parent].clone();
        let memory_parent = before.memory.as_ref().map(|memory| memory.manifest);
        let disk_parent = before.disks[0].manifest;
        let mut batch = self.store().begin()?;
        let mut memory = match &memory_parent {
            Some(id) => (*self.store().manifest(id)?).clone(),
            None => Manifest::zero(IMAGE_PAGES),
        };
        let mut disk = (*self.store().manifest(&disk_parent)?).clone();
        let (at, byte) = (self.clock * 7 % 20, 20 + self.clock as u8);
        let changed: Image = (at..at + 9)
            .map(|page| (page, byte + (page - at) as u8 % 3))
            .collect();
        put(
            &mut batch,
            changed.iter().map(|(at, content)| (*at, *content)),
            &mut memory,
        )?;
        put(&mut batch, [(at, byte), (at + 3, 5)], &mut disk)?;
        disk.set_zero(at + 1..at + 3);
        let memory = batch.put_manifest(&memory, memory_parent)?;
        let disk = batch.put_manifest(&disk, Some(disk_parent))?;
        let record = SnapshotRecord {
            machine: machine.into(),
            created_unix_ms: self.clock,
            parent: Some(parent),
            memory: Some(MemoryRecord {
                manifest: memory,
                size_bytes: IMAGE_BYTES,
                descriptor: batch.put_blob(&self.clock.to_be_bytes().repeat(300))?,
                trace: None,
                starter: None,
                free_pages: 0,
            }),
            disks: vec![disk_record(disk)],
            ..before
        };
        content.memory.get_or_insert_default().extend(changed);
        content
            .disk
            .extend([(at, byte), (at + 3, 5), (at + 1, 0), (at + 2, 0)]);
        let users: Vec<_> = clones.iter().copied().chain([machine]).collect();
        self.commit(batch, &record, name(machine, tag), content, &users)
    }

    fn commit(
        &mut self,
        mut batch: Batch,
        record: &SnapshotRecord,
        name: RefName,
        content: Content,
        users: &[&'static str],
    ) -> Result<(), StoreError> {
        let id = batch.put_snapshot(record)?;
        self.then.contents.insert(id, content);
        self.then.refs.insert(name.clone(), id);
        self.then.machines.extend(users.iter().map(|user| (*user, id)));
        batch.commit(&[(name, id)]).map(drop)
    }

    /// The machine has power again.
    fn start_again(&mut self, seed: u64) {
        self.pins.clear();
        self.store = None;
        self.files.crash(seed);
        self.store = Some(open(&self.files).unwrap());
    }

    /// Of a step that failed: it was done all the same, or nothing of it was.
    fn settle(&mut self) -> bool {
        let changes = self.then.refs != self.model.refs;
        let done = changes && self.store().refs() == self.then.refs;
        if !done {
            self.then = self.model.clone();
        }
        self.done();
        done
    }

    /// Compares everything.
    fn check(&self) {
        let (store, model) = (self.store(), &self.model);
        assert_eq!(store.refs(), model.refs);
        for id in store.snapshots() {
            assert!(
                model.contents.contains_key(&id),
                "a snapshot that was never committed exists"
            );
        }
        for id in model.refs.values().chain(model.machines.values()) {
            let record = store.snapshot(id).unwrap();
            let content = &model.contents[id];
            assert_holds(store, &record.disks[0].manifest, &content.disk);
            let boot = record.boot.unwrap();
            assert_eq!(store.blob(&boot.kernel).unwrap(), content.boot);
            assert_eq!(store.blob(&boot.initrd).unwrap(), content.boot[1..]);
            match (&record.memory, &content.memory) {
                (Some(memory), Some(image)) => {
                    assert_holds(store, &memory.manifest, image);
                    let descriptor = record.created_unix_ms.to_be_bytes().repeat(300);
                    assert_eq!(store.blob(&memory.descriptor).unwrap(), descriptor);
                }
                (memory, _) => assert!(memory.is_none() && content.memory.is_none()),
            }
        }
    }

    /// Nothing is damaged, nothing is lost by a collection, and no file is there that the store does not count.
    fn check_at_the_end(&self) {
        let store = self.store();
        store.gc(false, &mut |_, _| ()).unwrap();
        self.check();
        assert_eq!(store.verify(&[], &mut |_, _| ()).unwrap().damaged, []);
        let usage = store.usage().unwrap();
        let packs = self.files.list(&dir().join("packs")).unwrap();
        assert_eq!(packs.len() as u64, usage.packs, "{packs:?}");
        // What is left is of packs too full of live records to be rewritten.
        assert!(usage.garbage_bytes * 2 < usage.pack_bytes, "{usage:?}");
    }
}

fn put(
    batch: &mut Batch,
    pages: impl IntoIterator<Item = (u64, u8)>,
    manifest: &mut Manifest,
) -> Result<(), StoreError> {
    let pages: Vec<_> = pages
        .into_iter()
        .map(|(at, content)| (at, page(content)))
        .collect();
    for (at, location) in batch.put_pages(pages.iter().map(|(at, bytes)| (*at, bytes)))? {
        manifest.set(at, location);
    }
    Ok(())
}

fn disk_record(manifest: martlet_image::ManifestId) -> DiskRecord {
    DiskRecord {
        manifest,
        size_bytes: IMAGE_BYTES,
    }
}

fn name(name: &str, tag: &str) -> RefName {
    RefName::new(name, tag).unwrap()
}

fn parse(text: &str) -> RefName {
    text.parse().unwrap()
}

/// Plays the history with a fault at one point; did it come to that point?
fn play(after: u64, fault: Fault, seed: u64) -> bool {
    let mut world = World::new();
    let so_far = |files: &FaultyFiles| match fault {
        Fault::NoPower => files.operations(),
        Fault::NoSpace | Fault::Broken => files.writes(),
    };
    let begun = so_far(&world.files);
    world.files.fail_after(after, fault);
    let mut failed = false;
    for step in HISTORY {
        let Err(error) = world.step(step) else { continue };
        assert!(!failed, "{step:?} fails without a cause: {error}");
        failed = true;
        if fault == Fault::NoSpace {
            assert!(
                matches!(error, StoreError::NoSpace { .. }) && error.is_retryable(),
                "{error}"
            );
        }
        match fault {
            Fault::NoPower => world.start_again(seed),
            Fault::NoSpace | Fault::Broken => {
                world.files.mend();
                // A commit whose last step failed is settled by whoever writes next.
                drop(world.store().begin().unwrap());
            }
        }
        let done = world.settle();
        world.check();
        if !done {
            world.step(step).unwrap();
        }
    }
    // A fault that nobody noticed, as in what is done after the answer, is no less of one.
    let met = failed || so_far(&world.files) > begun + after;
    if met && fault == Fault::NoPower && !failed {
        world.start_again(seed);
    }
    world.files.mend();
    world.check();
    world.check_at_the_end();
    met
}

/// Plays it with the fault at each point in turn; how many there are.
fn at_every_point(fault: Fault, outcomes: u64) -> u64 {
    let at = |point| {
        (0..outcomes).fold(false, |met, outcome| {
            met | play(point, fault, point * outcomes + outcome)
        })
    };
    (0..).take_while(|point| at(*point)).count() as u64
}

#[test]
fn the_power_goes_before_every_operation() {
    let points = at_every_point(Fault::NoPower, OUTCOMES);
    assert!(points > 150, "only {points} operations");
}

#[test]
fn the_disk_is_full_at_every_write() {
    let points = at_every_point(Fault::NoSpace, 1);
    assert!(points > 100, "only {points} writes");
}

#[test]
fn the_device_fails_at_every_write() {
    let points = at_every_point(Fault::Broken, 1);
    assert!(points > 100, "only {points} writes");
}
