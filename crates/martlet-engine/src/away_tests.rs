//! What is away, over a place that is slow, gone or lies, and a disk that is full.

use super::*;
use crate::starter;
use bytes::Bytes;
use martlet_image::{BlobId, Manifest, MemoryRecord, PAGE_SIZE, StarterIndex, StarterRecord};
use martlet_pager::{FrameSource, MemoryImage, Pager, Starter};
use martlet_store::faulty::{Fault, FaultyFiles};
use std::path::Path;
use std::thread;

const PAGES: u64 = 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    There,
    Gone,
    Lying,
    /// Of what is no frame.
    LyingOfBlobs,
}

/// A store that can be gone or lie, and counts what it gave.
#[derive(Debug)]
struct There {
    store: Store,
    is: Mutex<Is>,
    given: Mutex<Vec<Key>>,
}

impl Place for There {
    fn name(&self) -> String {
        "there".into()
    }

    fn objects(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        thread::sleep(Duration::from_millis(5));
        for key in keys {
            let is = *lock(&self.is);
            if is == Is::Gone {
                return Err(SourceError::Unavailable {
                    place: self.name(),
                    action: "answer",
                    reason: "it is gone".into(),
                });
            }
            let mut stored = self.store.stored(key)?;
            if is == Is::Lying || is == Is::LyingOfBlobs && key.kind == Kind::Blob {
                stored.bytes[0] ^= 1;
            }
            lock(&self.given).push(*key);
            each(stored.verify()?)?;
        }
        Ok(())
    }
}

fn starter_index() -> StarterIndex {
    StarterIndex::new([vec![3, 11, 19], vec![27, 35]])
}

struct Frames(Arc<Store>);

impl FrameSource for Frames {
    fn frame(&self, id: &FrameId) -> Result<Bytes, martlet_pager::SourceError> {
        let missing = |_| martlet_pager::SourceError::Missing { frame: *id };
        self.0.frame(id).map_err(missing)
    }
}

/// A snapshot that is there, and of which its record and manifest are here.
struct Case {
    files: FaultyFiles,
    pages: Vec<[u8; PAGE_SIZE]>,
    record: SnapshotRecord,
    here: Arc<Store>,
    there: Arc<There>,
    away: Arc<Away>,
    id: SnapshotId,
    leaves: Vec<Key>,
}

impl Case {
    fn new() -> Self {
        let files = FaultyFiles::new();
        let [here, store] = [files.clone(), FaultyFiles::new()]
            .map(|files| Store::open(Path::new("/store"), Arc::new(files)).unwrap());
        let pages: Vec<(u64, [u8; PAGE_SIZE])> = (0..PAGES)
            .map(|page| {
                let mut state = page + 1;
                let bytes = std::array::from_fn(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 40) as u8
                });
                (page, bytes)
            })
            .collect();
        let mut batch = store.begin().unwrap();
        let located = batch.put_pages(pages.iter().map(|(page, bytes)| (*page, bytes)));
        let mut manifest = Manifest::zero(PAGES);
        located
            .unwrap()
            .into_iter()
            .for_each(|(page, location)| manifest.set(page, location));
        let manifest = batch.put_manifest(&manifest, None).unwrap();
        let chunk = |batch: &mut martlet_store::Batch, chunk: &[u32]| {
            let pages = chunk.iter().flat_map(|page| pages[*page as usize].1);
            batch.put_blob(&pages.collect::<Vec<u8>>()).unwrap()
        };
        let starter = StarterRecord {
            index: batch.put_blob(&starter_index().encode()).unwrap(),
            chunks: starter_index()
                .chunks()
                .iter()
                .map(|pages| chunk(&mut batch, pages))
                .collect(),
        };
        let record = SnapshotRecord {
            memory: Some(MemoryRecord {
                manifest,
                size_bytes: PAGES * PAGE_SIZE as u64,
                descriptor: batch.put_blob(b"descriptor").unwrap(),
                trace: None,
                starter: Some(starter),
                free_pages: 0,
            }),
            ..SnapshotRecord::default()
        };
        let id = batch.put_snapshot(&record).unwrap();
        batch.commit(&[]).unwrap();

        let here = Arc::new(here);
        let away = Away::new(here.clone()).unwrap();
        let mut batch = here.begin().unwrap();
        let outline = store.stored(&Key::new(Kind::Manifest, manifest.0)).unwrap();
        batch.put_stored(&outline).unwrap();
        batch.commit(&[]).unwrap();
        let there = Arc::new(There {
            store,
            is: Mutex::new(Is::There),
            given: Mutex::default(),
        });
        let mut leaves: Vec<Key> = here.leaves(&record).unwrap().into_iter().collect();
        leaves.sort_unstable();
        let place: Arc<dyn Place> = there.clone();
        away.promise(
            id,
            &record,
            "remote there",
            true,
            Box::new(move || Ok(place.clone())),
        )
        .unwrap();
        let mut batch = here.begin().unwrap();
        assert_eq!(batch.put_snapshot(&record).unwrap(), id);
        batch.commit(&[]).unwrap();
        Self {
            files,
            pages: pages.into_iter().map(|(_, bytes)| bytes).collect(),
            record,
            here,
            there,
            away,
            id,
            leaves,
        }
    }

    /// Has the starter come, as far as it does, and reads pages of it; tells how many frames that took.
    fn start(&self) -> usize {
        let manifest = self.record.memory.as_ref().unwrap().manifest;
        let manifest = self.here.manifest(&manifest).unwrap();
        let starter = Starter::new(starter_index(), &manifest);
        let chunks: &[BlobId] = &self.record.starter().unwrap().chunks;
        let image = MemoryImage::new(Pager::new(Arc::new(Frames(self.here.clone())), 1 << 20), manifest);
        image.set_starter(Some(starter.clone()));
        starter::bring(&self.here, &self.away, &self.id, &starter, chunks);
        for page in starter_index().chunks().concat() {
            let mut bytes = [0; PAGE_SIZE];
            image
                .read(u64::from(page) * PAGE_SIZE as u64, &mut bytes)
                .unwrap();
            assert!(bytes == self.pages[page as usize]);
        }
        let frames = self.given().into_iter().filter(|key| key.kind == Kind::Frame);
        frames.count()
    }

    fn is(&self, is: Is) {
        *lock(&self.there.is) = is;
    }

    fn a_frame(&self) -> FrameId {
        let frame = self.leaves.iter().find(|key| key.kind == Kind::Frame);
        FrameId(frame.unwrap().id)
    }

    fn given(&self) -> Vec<Key> {
        let mut given = lock(&self.there.given).clone();
        given.sort_unstable();
        given
    }
}

#[test]
fn what_nobody_asked_for_is_taken_once_and_only_if_it_is_promised() {
    let case = Case::new();
    let frame = case.a_frame();
    let object = case.there.store.stored(&Key::new(Kind::Frame, frame.0)).unwrap();
    let object = object.verify().unwrap();
    assert!(case.away.overhear(&object).unwrap());
    assert!(!case.away.overhear(&object).unwrap(), "it is here");
    assert_eq!(
        &case.here.frame(&frame).unwrap()[..],
        object.clone().into_content()
    );
    assert_eq!(case.given(), [], "nobody was asked for it");
    let blob = case.leaves.iter().find(|key| key.kind == Kind::Blob).unwrap();
    let blob = case.there.store.stored(blob).unwrap().verify().unwrap();
    case.away.forget(&case.id);
    assert!(
        !case.away.overhear(&blob).unwrap(),
        "nobody waits for it any more"
    );
}

#[test]
fn what_is_read_comes_once_and_stays() {
    let case = Case::new();
    let frame = case.a_frame();
    thread::scope(|scope| {
        let reads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| case.here.frame(&frame).unwrap()))
            .collect();
        let frames: Vec<_> = reads.into_iter().map(|read| read.join().unwrap()).collect();
        assert!(frames.windows(2).all(|pair| pair[0] == pair[1]));
    });
    assert_eq!(case.given(), [Key::new(Kind::Frame, frame.0)]);
    while !case.here.lacks(&case.given()).unwrap().is_empty() {
        thread::sleep(Duration::from_millis(5));
    }
    let progress = case.away.progress(&case.id).unwrap().unwrap();
    assert_eq!(progress.missing_objects, progress.objects - 1);
    assert_eq!(progress.read_objects, 1);
    // What is about to be read comes at the same time, and what is here does not come again.
    let frames: Vec<FrameId> = case
        .leaves
        .iter()
        .filter(|key| key.kind == Kind::Frame)
        .map(|key| FrameId(key.id))
        .collect();
    case.away.prepare(&frames);
    frames
        .iter()
        .for_each(|frame| drop(case.here.frame(frame).unwrap()));
    assert_eq!(case.given().len(), frames.len());
}

#[test]
fn a_read_waits_while_the_place_is_gone() {
    let case = &Case::new();
    case.is(Is::Gone);
    thread::scope(|scope| {
        let read = scope.spawn(|| case.here.frame(&case.a_frame()));
        thread::sleep(Duration::from_millis(50));
        assert!(!read.is_finished());
        case.is(Is::There);
        read.join().unwrap().unwrap();
        // Unless all is to end, or nobody wants it any more.
        case.is(Is::Gone);
        let [.., other] = case.leaves[..] else {
            panic!("it has leaves")
        };
        let read = scope.spawn(move || case.away.fetch(&other).unwrap().map(drop));
        thread::sleep(Duration::from_millis(50));
        case.away.stop();
        read.join().unwrap().unwrap_err();
    });
}

#[test]
fn what_is_wrong_is_neither_given_nor_stored() {
    let case = Case::new();
    case.is(Is::Lying);
    case.here.frame(&case.a_frame()).unwrap_err();
    case.away.complete(&case.id, Vec::new()).unwrap_err();
    thread::sleep(2 * STORE_AFTER);
    assert_eq!(case.here.lacks(&case.leaves).unwrap(), case.leaves);
    case.is(Is::There);
    assert!(case.away.complete(&case.id, Vec::new()).unwrap());
}

#[test]
fn the_rest_comes_first_things_first_also_after_a_full_disk() {
    let case = Case::new();
    case.files.fail_after(0, Fault::NoSpace);
    case.away.complete(&case.id, Vec::new()).unwrap_err();
    case.files.mend();
    lock(&case.there.given).clear();
    let first = Key::new(Kind::Frame, case.a_frame().0);
    assert!(case.away.complete(&case.id, vec![first]).unwrap());
    assert_eq!(case.given(), case.leaves);
    assert_eq!(case.here.lacks(&case.leaves).unwrap(), []);
    // A place that is gone for a while is waited for.
    let case = Case::new();
    case.is(Is::Gone);
    thread::scope(|scope| {
        let rest = scope.spawn(|| case.away.complete(&case.id, Vec::new()));
        thread::sleep(Duration::from_millis(50));
        case.is(Is::There);
        assert!(rest.join().unwrap().unwrap());
    });
    case.away.forget(&case.id);
    assert!(case.away.progress(&case.id).unwrap().is_none() && !case.away.is_any());
}

#[test]
fn a_starter_spares_frames_and_a_wrong_one_is_refused() {
    assert_eq!(Case::new().start(), 0);
    let case = Case::new();
    case.is(Is::LyingOfBlobs);
    assert_eq!(case.start(), 5, "each page is in a frame of its own");
    thread::sleep(2 * STORE_AFTER);
    let chunks = case.record.starter().unwrap().chunks.iter();
    let chunks: Vec<Key> = chunks.map(|chunk| Key::new(Kind::Blob, chunk.0)).collect();
    assert_eq!(
        case.here.lacks(&chunks).unwrap().len(),
        2,
        "nothing of it was stored"
    );
}
