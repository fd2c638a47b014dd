//! What is away comes from the nearest place that has it: a carried disk, a host of the fleet, else the remote that was asked.
//!
//! Nearer places are looked for while reads are answered by the one that is known, so that one which does not answer holds up
//! nobody. One that gives something else than what it was asked for, or nothing, is asked no more.

use crate::place::{Open, Place};
use martlet_source::SourceError;
use martlet_store::{Key, Verified};
use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// A nearer place, and what of the wanted it has.
#[derive(Debug)]
struct Near {
    called: Arc<str>,
    place: Arc<dyn Place>,
    has: HashSet<Key>,
    is_dropped: AtomicBool,
}

/// See the module's documentation.
pub struct Nearest {
    near: RwLock<Vec<Arc<Near>>>,
    last: Arc<dyn Place>,
}

impl fmt::Debug for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nearest")
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

impl Nearest {
    /// All of it from a place that has it, until there are nearer ones.
    pub fn new(last: Arc<dyn Place>) -> Self {
        Self {
            near: RwLock::default(),
            last,
        }
    }

    /// One more place, farther than those that were added before.
    pub fn add(&self, called: &str, place: Arc<dyn Place>, has: HashSet<Key>) {
        if has.is_empty() {
            return;
        }
        tracing::info!(
            place = place.name(),
            objects = has.len(),
            "has some of it, and is nearer"
        );
        let near = Near {
            called: called.into(),
            place,
            has,
            is_dropped: AtomicBool::new(false),
        };
        let mut all = self.near.write().unwrap_or_else(PoisonError::into_inner);
        all.push(Arc::new(near));
    }
}

/// A place that is opened when it is first needed, so that nearer ones do without it as long as they can.
pub struct Later {
    /// What it is called.
    pub name: String,
    /// How to reach it.
    pub open: Open,
    /// It, once it was.
    pub opened: Mutex<Option<Arc<dyn Place>>>,
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Later")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Later {
    fn opened(&self) -> Result<Arc<dyn Place>, SourceError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        match &*opened {
            Some(place) => Ok(place.clone()),
            None => Ok(opened.insert((self.open)()?).clone()),
        }
    }
}

impl Place for Later {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn objects(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        self.opened()?.objects(keys, each)
    }

    fn in_turn(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        self.opened()?.in_turn(keys, each)
    }

    fn behind(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        self.opened()?.behind(keys, each)
    }
}

impl Place for Nearest {
    fn name(&self) -> String {
        self.last.name()
    }

    fn giver(&self, object: &Key) -> Option<Arc<str>> {
        let near = self.near.read().unwrap_or_else(PoisonError::into_inner);
        let has = |near: &&Arc<Near>| near.has.contains(object) && !near.is_dropped.load(Relaxed);
        near.iter().find(has).map(|near| near.called.clone())
    }

    fn objects(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        match &*self.of_near(keys, each)? {
            [] => Ok(()),
            rest => self.last.objects(rest, each),
        }
    }

    fn in_turn(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        match &*self.of_near(keys, each)? {
            [] => Ok(()),
            rest => self.last.in_turn(rest, each),
        }
    }

    fn behind(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        match &*self.of_near(keys, each)? {
            [] => Ok(()),
            rest => self.last.behind(rest, each),
        }
    }
}

impl Nearest {
    /// Gets what nearer places have; what they have not.
    fn of_near(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<Vec<Key>, SourceError> {
        let near = self.near.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut wanted: Vec<Key> = keys.to_vec();
        for near in near.iter().filter(|near| !near.is_dropped.load(Relaxed)) {
            let (has, rest): (Vec<Key>, Vec<Key>) = wanted.iter().partition(|key| near.has.contains(key));
            if has.is_empty() {
                continue;
            }
            let mut awaited: HashSet<Key> = has.iter().copied().collect();
            let mut refused = None;
            let got = near.place.objects(&has, &mut |object| {
                if awaited.remove(&object.stored().key)
                    && let Err(error) = each(object)
                {
                    refused = Some(error);
                    return Err(SourceError::Unavailable {
                        place: near.place.name(),
                        action: "be heard",
                        reason: "nobody listens any more".into(),
                    });
                }
                Ok(())
            });
            if let Some(error) = refused {
                return Err(error);
            }
            if got.is_err() || !awaited.is_empty() {
                let why = got
                    .err()
                    .map_or_else(|| "it lacks what it had".into(), |error| error.to_string());
                tracing::warn!(place = near.place.name(), why, "is asked no more");
                near.is_dropped.store(true, Relaxed);
            }
            wanted = rest;
            wanted.extend(awaited);
        }
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use martlet_store::faulty::FaultyFiles;
    use martlet_store::{Kind, Store, Stored};
    use std::path::Path;

    /// A place that has what these contents are, or says so.
    #[derive(Debug)]
    struct Shelf {
        name: &'static str,
        objects: Vec<Stored>,
        lies: bool,
        asked: Mutex<usize>,
    }

    /// As a store has it.
    fn object(content: u8) -> Stored {
        let store = Store::open(Path::new("/store"), Arc::new(FaultyFiles::new())).unwrap();
        let mut batch = store.begin().unwrap();
        let id = batch.put_blob(&[content; 100]).unwrap();
        let _kept = batch.commit(&[]).unwrap();
        store.stored(&Key::new(Kind::Blob, id.0)).unwrap()
    }

    fn shelf(name: &'static str, contents: &[u8], lies: bool) -> Arc<Shelf> {
        Arc::new(Shelf {
            name,
            objects: contents.iter().copied().map(object).collect(),
            lies,
            asked: Mutex::default(),
        })
    }

    impl Place for Shelf {
        fn name(&self) -> String {
            self.name.into()
        }

        fn objects(
            &self,
            keys: &[Key],
            each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
        ) -> Result<(), SourceError> {
            *self.asked.lock().unwrap() += keys.len();
            for object in self.objects.iter().filter(|object| keys.contains(&object.key)) {
                let mut object = object.clone();
                if self.lies {
                    object.bytes[0] ^= 1;
                }
                each(object.verify()?)?;
            }
            Ok(())
        }
    }

    fn asked(shelf: &Shelf) -> usize {
        std::mem::take(&mut shelf.asked.lock().unwrap())
    }

    fn get(place: &Nearest, contents: &[u8]) -> Result<usize, SourceError> {
        let keys: Vec<Key> = contents.iter().map(|content| object(*content).key).collect();
        let mut got = HashSet::new();
        place.objects(&keys, &mut |object| {
            assert!(got.insert(object.stored().key));
            Ok(())
        })?;
        Ok(got.len())
    }

    #[test]
    fn each_comes_from_the_nearest_that_has_it() {
        let (disk, lan, far) = (
            shelf("disk", &[1], false),
            shelf("lan", &[1, 2], false),
            shelf("far", &[1, 2, 3], false),
        );
        let nearest = Nearest::new(far.clone());
        assert_eq!(get(&nearest, &[1, 2, 3]).unwrap(), 3);
        assert_eq!(asked(&far), 3);
        for near in [&disk, &lan] {
            nearest.add(
                near.name,
                near.clone(),
                near.objects.iter().map(|object| object.key).collect(),
            );
        }
        assert_eq!(get(&nearest, &[1, 2, 3]).unwrap(), 3);
        assert_eq!([&disk, &lan, &far].map(|shelf| asked(shelf)), [1, 1, 1]);
        let givers = [1, 2, 3].map(|content| nearest.giver(&object(content).key));
        let givers = givers.map(|giver| giver.map(|giver| giver.to_string()));
        assert_eq!(givers, [Some("disk".into()), Some("lan".into()), None]);
    }

    #[test]
    fn who_lies_or_has_nothing_is_asked_once() {
        for liar in [shelf("disk", &[1, 2], true), shelf("disk", &[], false)] {
            let far = shelf("far", &[1, 2, 3], false);
            let nearest = Nearest::new(far.clone());
            nearest.add(
                "liar",
                liar.clone(),
                [1, 2].map(|content| object(content).key).into(),
            );
            for _ in 0..2 {
                assert_eq!(get(&nearest, &[1, 2, 3]).unwrap(), 3);
            }
            assert_eq!((asked(&liar), asked(&far)), (2, 6));
        }
    }

    #[test]
    fn who_listens_no_more_is_the_reason() {
        let disk = shelf("disk", &[1], false);
        let nearest = Nearest::new(shelf("far", &[1], false));
        nearest.add("disk", disk.clone(), [object(1).key].into());
        let full = || SourceError::Full { place: "here".into() };
        let failed = nearest.objects(&[object(1).key], &mut |_| Err(full()));
        assert!(matches!(failed, Err(SourceError::Full { .. })), "{failed:?}");
        assert_eq!(get(&nearest, &[1]).unwrap(), 1);
        assert_eq!(asked(&disk), 2, "it did nothing wrong");
    }
}
