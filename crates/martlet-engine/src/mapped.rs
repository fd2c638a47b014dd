//! Memory images as VMs map them: one file for each image, however many VMs share it, there as long as one of them
//! lives.

use crate::engine::lock;
use crate::problem::Told;
use martlet_api::Problem;
use martlet_fuse::{Placement, Registry};
use martlet_image::{Manifest, SnapshotId};
use martlet_pager::{MemoryImage, Pager};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

/// Group of every QEMU of ours: only they may open memory images.
pub const QEMU_GID: u32 = 0x4d40_ffff;

/// A memory image that VMs map.
pub struct Mapped {
    /// The image.
    pub image: Arc<MemoryImage>,
    /// Its name below `mem/`.
    pub name: String,
    /// Its inode.
    pub inode: u64,
    /// The snapshot whose memory it is; `None`: zeros.
    pub snapshot: Option<SnapshotId>,
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
    shared: Mutex<HashMap<SnapshotId, Weak<Mapped>>>,
}

impl Images {
    /// None yet.
    pub fn new(registry: Arc<Registry>, pager: Arc<Pager>) -> Self {
        Self {
            registry,
            pager,
            shared: Mutex::default(),
        }
    }

    /// The image of a snapshot, if it is mapped now.
    pub fn shown(&self, snapshot: &SnapshotId) -> Option<Arc<Mapped>> {
        lock(&self.shared).get(snapshot).and_then(Weak::upgrade)
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
        let Some(id) = snapshot else {
            let shown = match shown {
                Some((inode, name)) => (Some(inode), name),
                None => (None, format!("zero-{}", crate::identity::uuid())),
            };
            return self.show(None, manifest, shown);
        };
        let mut shared = lock(&self.shared);
        // The kernel knows a file by its number, and there may have been two of one image.
        let is_it = |there: &Arc<Mapped>| shown.as_ref().is_none_or(|(inode, _)| *inode == there.inode);
        if let Some(there) = shared.get(&id).and_then(Weak::upgrade).filter(is_it) {
            return Ok(there);
        }
        let shown = match shown {
            Some((inode, name)) => (Some(inode), name),
            None => (None, id.to_string()),
        };
        let new = self.show(Some(id), manifest, shown)?;
        shared.retain(|_, image| image.strong_count() > 0);
        // Whoever wants this snapshot's image has this one, unless there is another already.
        shared.entry(id).or_insert_with(|| Arc::downgrade(&new));
        Ok(new)
    }

    fn show(
        &self,
        snapshot: Option<SnapshotId>,
        manifest: Arc<Manifest>,
        (ino, name): (Option<u64>, String),
    ) -> Result<Arc<Mapped>, Problem> {
        let image = MemoryImage::new(self.pager.clone(), manifest);
        // An ordinary user's QEMU runs as that user.
        let (uid, gid) = match crate::launch::current_ids() {
            (0, _) => (0, QEMU_GID),
            own => own,
        };
        let placement = Placement {
            ino,
            uid,
            gid,
            mode: 0o660,
        };
        let inode = self.registry.add_memory(&name, image.clone(), placement).told()?;
        Ok(Arc::new(Mapped {
            image,
            name,
            inode,
            snapshot,
            registry: self.registry.clone(),
        }))
    }
}
