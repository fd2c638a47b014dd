//! Recently decoded manifests, and those that somebody has.

use crate::store::lock;
use martlet_image::{Manifest, ManifestId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

/// Kept though nobody has them: a snapshot has a few, and a large one takes megabytes.
const KEPT_MAX: usize = 16;
/// Entries of manifests that are gone are looked for when there are more than so many.
const ENTRIES_MAX: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct ManifestCache(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    clock: u64,
    manifests: HashMap<ManifestId, Entry>,
}

#[derive(Debug)]
struct Entry {
    used: u64,
    manifest: Weak<Manifest>,
    kept: Option<Arc<Manifest>>,
}

impl ManifestCache {
    pub(crate) fn get(&self, id: &ManifestId) -> Option<Arc<Manifest>> {
        let mut recent = lock(&self.0);
        let manifest = recent.manifests.get(id)?.manifest.upgrade()?;
        recent.put(*id, manifest.clone());
        Some(manifest)
    }

    pub(crate) fn put(&self, id: ManifestId, manifest: Arc<Manifest>) {
        lock(&self.0).put(id, manifest);
    }
}

impl Recent {
    fn put(&mut self, id: ManifestId, manifest: Arc<Manifest>) {
        self.clock += 1;
        let entry = Entry {
            used: self.clock,
            manifest: Arc::downgrade(&manifest),
            kept: Some(manifest),
        };
        self.manifests.insert(id, entry);
        let kept = self.manifests.values_mut().filter(|entry| entry.kept.is_some());
        let mut kept: Vec<&mut Entry> = kept.collect();
        if kept.len() > KEPT_MAX
            && let Some(oldest) = kept.iter_mut().min_by_key(|entry| entry.used)
        {
            oldest.kept = None;
        }
        if self.manifests.len() > ENTRIES_MAX {
            self.manifests
                .retain(|_, entry| entry.manifest.strong_count() > 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_has_is_found_and_of_the_rest_the_newest() {
        let cache = ManifestCache::default();
        let id = |number: usize| ManifestId::of(&number.to_le_bytes());
        let put = |number: usize| {
            let manifest = Arc::new(Manifest::zero(number as u64 + 1));
            cache.put(id(number), manifest.clone());
            manifest
        };
        let held = put(0);
        (1..=ENTRIES_MAX * 2).for_each(|number| drop(put(number)));
        assert!(Arc::ptr_eq(&cache.get(&id(0)).unwrap(), &held));
        let there = (1..=ENTRIES_MAX * 2).filter(|number| cache.get(&id(*number)).is_some());
        // The one that was asked for is one of them.
        assert_eq!(there.count(), KEPT_MAX - 1);
        assert!(lock(&cache.0).manifests.len() <= ENTRIES_MAX + 1);
    }
}
