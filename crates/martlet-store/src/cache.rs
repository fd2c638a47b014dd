//! Recently decoded manifests.

use crate::store::lock;
use martlet_image::{Manifest, ManifestId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// A machine has a few, and each shares most of its leaves with its parent.
const MANIFESTS_MAX: usize = 48;

#[derive(Debug, Default)]
pub(crate) struct ManifestCache(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    clock: u64,
    manifests: HashMap<ManifestId, (u64, Arc<Manifest>)>,
}

impl ManifestCache {
    pub(crate) fn get(&self, id: &ManifestId) -> Option<Arc<Manifest>> {
        let mut recent = lock(&self.0);
        recent.clock += 1;
        let clock = recent.clock;
        let (used, manifest) = recent.manifests.get_mut(id)?;
        *used = clock;
        Some(manifest.clone())
    }

    pub(crate) fn put(&self, id: ManifestId, manifest: Arc<Manifest>) {
        let mut recent = lock(&self.0);
        recent.clock += 1;
        let clock = recent.clock;
        recent.manifests.insert(id, (clock, manifest));
        if recent.manifests.len() > MANIFESTS_MAX {
            let oldest = recent
                .manifests
                .iter()
                .min_by_key(|(_, (used, _))| *used)
                .map(|(id, _)| *id);
            oldest.and_then(|id| recent.manifests.remove(&id));
        }
    }
}
