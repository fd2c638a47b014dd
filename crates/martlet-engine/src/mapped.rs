//! Memory images as VMs map them: one file for each image, however many VMs share it, there as long as one of them
//! lives.

use crate::problem::Told;
use martlet_api::Problem;
use martlet_fuse::{Placement, Registry};
use martlet_image::{Manifest, SnapshotId};
use martlet_pager::{MemoryImage, Pager};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Group of every QEMU of ours: only they may open memory images.
pub const QEMU_GID: u32 = 0x4d40_ffff;

/// A memory image that VMs map.
pub struct Mapped {
    /// The image.
    pub image: Arc<MemoryImage>,
    /// The snapshot it belongs to; `None`: zeros, for a first boot.
    pub snapshot: Option<SnapshotId>,
    /// Its name below `mem/`.
    pub name: String,
    /// Its inode.
    pub inode: u64,
    registry: Arc<Registry>,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.registry.remove_memory(&self.name);
    }
}

/// All images that are mapped now.
pub struct Images {
    registry: Arc<Registry>,
    pager: Arc<Pager>,
    mapped: Mutex<HashMap<String, Weak<Mapped>>>,
}

impl Images {
    /// None yet.
    pub fn new(registry: Arc<Registry>, pager: Arc<Pager>) -> Self {
        Self {
            registry,
            pager,
            mapped: Mutex::default(),
        }
    }

    /// The image of `snapshot`, or of zeros. `shown` is given when a predecessor showed it: number and name.
    pub fn map(
        &self,
        snapshot: Option<SnapshotId>,
        manifest: Arc<Manifest>,
        shown: Option<(u64, String)>,
    ) -> Result<Arc<Mapped>, Problem> {
        // Each boot from zeros has an image of its own: a guest's free-page reports drop pages of the file's cache,
        // and nothing is gained by sharing zeros.
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        mapped.retain(|_, image| image.strong_count() > 0);
        if let Some(there) = snapshot
            .and_then(|id| mapped.get(&id.to_string()))
            .and_then(Weak::upgrade)
        {
            return Ok(there);
        }
        let (inode, name) = match (shown, snapshot) {
            (Some((inode, name)), _) => (Some(inode), name),
            (None, Some(id)) => (None, id.to_string()),
            (None, None) => (None, format!("zero-{}", crate::identity::uuid())),
        };
        let image = MemoryImage::new(self.pager.clone(), manifest);
        // An ordinary user's QEMU runs as that user.
        let (uid, gid) = match crate::launch::current_ids() {
            (0, _) => (0, QEMU_GID),
            own => own,
        };
        let placement = Placement {
            ino: inode,
            uid,
            gid,
            mode: 0o660,
        };
        let inode = self.registry.add_memory(&name, image.clone(), placement).told()?;
        let new = Arc::new(Mapped {
            image,
            snapshot,
            name: name.clone(),
            inode,
            registry: self.registry.clone(),
        });
        mapped.insert(name, Arc::downgrade(&new));
        Ok(new)
    }
}
