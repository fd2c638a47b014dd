//! Frames that are promised from elsewhere are as good as here.

mod support;

use martlet_image::{Manifest, ManifestId, PageLocation};
use martlet_store::faulty::FaultyFiles;
use martlet_store::{Elsewhere, Key, Kind, Result, Store, StoreError, Verified};
use std::sync::{Arc, Weak};
use support::{IMAGE_PAGES, Image, assert_holds, open, page};

/// Another store, that may give something else than what was asked for.
#[derive(Debug)]
struct Other {
    store: Store,
    lies: bool,
}

impl Elsewhere for Other {
    fn promises(&self, key: &Key) -> bool {
        self.store.lacks(&[*key]).is_ok_and(|lacking| lacking.is_empty())
    }

    fn fetch(&self, key: &Key) -> Option<Result<Verified>> {
        let mut stored = self.store.stored(key).ok()?;
        if self.lies {
            stored.bytes[0] ^= 1;
        }
        Some(stored.verify())
    }
}

/// A store that has an image, and one that has only its manifest.
fn stores() -> (Store, Store, ManifestId, Image) {
    let [there, here] = [(); 2].map(|()| open(&FaultyFiles::new()).unwrap());
    let image: Image = (0..IMAGE_PAGES).map(|at| (at, at as u8 + 1)).collect();
    let pages: Vec<_> = image.iter().map(|(at, content)| (*at, page(*content))).collect();
    let mut batch = there.begin().unwrap();
    let located = batch
        .put_pages(pages.iter().map(|(at, bytes)| (*at, bytes)))
        .unwrap();
    let mut manifest = Manifest::zero(IMAGE_PAGES);
    located
        .into_iter()
        .for_each(|(at, location)| manifest.set(at, location));
    let id = batch.put_manifest(&manifest, None).unwrap();
    batch.commit(&[]).unwrap();
    let mut batch = here.begin().unwrap();
    batch
        .put_stored(&there.stored(&Key::new(Kind::Manifest, id.0)).unwrap())
        .unwrap();
    batch.commit(&[]).unwrap();
    (there, here, id, image)
}

/// The image with its first page gone, as a checkpoint would put it.
fn put_changed(store: &Store, id: &ManifestId) -> Result<ManifestId> {
    let mut manifest = (*store.manifest(id)?).clone();
    manifest.set(0, PageLocation::Zero);
    let mut batch = store.begin()?;
    let changed = batch.put_manifest(&manifest, Some(*id))?;
    batch.commit(&[])?;
    Ok(changed)
}

#[test]
fn what_is_promised_is_read_relied_on_and_not_missing() {
    let (there, here, id, mut image) = stores();
    assert!(matches!(put_changed(&here, &id), Err(StoreError::NotFound(_))));
    let other = Arc::new(Other {
        store: there,
        lies: false,
    });
    let weak: Weak<Other> = Arc::downgrade(&other);
    here.set_elsewhere(weak);
    assert_holds(&here, &id, &image);
    let changed = put_changed(&here, &id).unwrap();
    image.remove(&0);
    assert_holds(&here, &changed, &image);
    // A promise ends with who made it.
    drop(other);
    assert!(matches!(
        put_changed(&here, &changed),
        Err(StoreError::NotFound(_))
    ));
}

#[test]
fn what_comes_is_not_believed() {
    let (there, here, id, _) = stores();
    let other = Arc::new(Other {
        store: there,
        lies: true,
    });
    let weak: Weak<Other> = Arc::downgrade(&other);
    here.set_elsewhere(weak);
    let frame = here.manifest(&id).unwrap().frames()[0];
    let error = here.frame(&frame).unwrap_err();
    assert!(matches!(error, StoreError::Invalid(_)), "{error}");
}

#[test]
fn what_is_still_to_come_is_in_no_collections_way() {
    let (there, here, id, image) = stores();
    let manifest = Key::new(Kind::Manifest, id.0);
    let outline = there.stored(&manifest).unwrap();
    here.gc(false, &mut |_, _| ()).unwrap();
    assert_eq!(here.lacks(&[manifest]).unwrap(), [manifest], "nothing needed it");
    // As a pull does it: relied on, then got.
    let keeper = here.begin().unwrap();
    keeper.rely_on([Key::new(Kind::Snapshot, [1; 32]), manifest]);
    here.gc(false, &mut |_, _| ()).unwrap();
    let mut batch = here.begin().unwrap();
    batch.put_stored(&outline).unwrap();
    batch.commit(&[]).unwrap();
    here.gc(false, &mut |_, _| ()).unwrap();
    let frames = there.manifest(&id).unwrap().frames();
    let mut batch = here.begin().unwrap();
    for frame in frames {
        let key = Key::new(Kind::Frame, frame.0);
        keeper.rely_on([key]);
        batch.put_stored(&there.stored(&key).unwrap()).unwrap();
    }
    batch.commit(&[]).unwrap();
    here.gc(false, &mut |_, _| ()).unwrap();
    assert_holds(&here, &id, &image);
}
