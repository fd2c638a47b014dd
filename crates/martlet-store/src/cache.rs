//! Recently decoded manifests, and those that somebody has.

use crate::store::lock;
use martlet_image::{Manifest, ManifestId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

/// Kept though nobody has them: so many, for a snapshot has a few, of no more memory than this together, for who looks at all of a store
/// comes by many. The newest is kept however large it is.
const KEPT_MAX: usize = 16;
const KEPT_BYTES: usize = 4 << 20;
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
        kept.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.used));
        let mut size_bytes = 0;
        for (at, entry) in kept.into_iter().enumerate() {
            size_bytes += entry.kept.as_ref().map_or(0, |manifest| manifest.size_bytes());
            if at >= KEPT_MAX || at > 0 && size_bytes > KEPT_BYTES {
                entry.kept = None;
            }
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

    #[test]
    fn large_ones_are_not_kept_beside_others() {
        let large = || {
            let mut manifest = Manifest::zero(1 << 20);
            for page in (0..1u64 << 20).step_by(16) {
                let frame = martlet_image::FrameId::of(&page.to_le_bytes());
                manifest.set(page, martlet_image::PageLocation::Frame { frame, slot: 0 });
            }
            assert!(manifest.size_bytes() > KEPT_BYTES && manifest.size_bytes() < 3 * KEPT_BYTES);
            Arc::new(manifest)
        };
        let cache = ManifestCache::default();
        let id = |number: usize| ManifestId::of(&number.to_le_bytes());
        cache.put(id(0), Arc::new(Manifest::zero(1)));
        cache.put(id(1), large());
        assert!(cache.get(&id(0)).is_none() && cache.get(&id(1)).is_some());
        cache.put(id(2), large());
        assert!(cache.get(&id(1)).is_none() && cache.get(&id(2)).is_some());
        cache.put(id(3), Arc::new(Manifest::zero(1)));
        assert!(cache.get(&id(2)).is_none() && cache.get(&id(3)).is_some());
    }
}
