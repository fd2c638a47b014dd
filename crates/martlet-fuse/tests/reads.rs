//! Reads are told of, with whose they were, what of, and how long they took.

mod support;

use martlet_disk::CowDisk;
use martlet_fuse::{Answered, Placement, Reads, Registry};
use martlet_pager::{MemoryImage, Pager, VmKey};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Mapping, Mounted, image};

#[derive(Default)]
struct Told(Mutex<Vec<Answered>>);

impl Reads for Told {
    fn begun(&self) {}
    fn answered(&self, read: Answered) {
        self.0.lock().unwrap().push(read);
    }
}

#[test]
fn reads_are_told_of_by_whose_process_made_them() {
    let (shelf, manifest, content) = image(64, 1);
    let pager = Pager::new(shelf, 16 << 20);
    let registry = Registry::new();
    let told = Arc::new(Told::default());
    registry.set_reads(told.clone());
    let memory = MemoryImage::new(pager.clone(), manifest.clone());
    registry.add_memory("a", memory, Placement::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let disk = CowDisk::create(&dir.path().join("disk"), pager, manifest, 64 * 4096).unwrap();
    registry.add_disk("a", disk, Placement::default()).unwrap();
    let (mounted, _server) = Mounted::served(&registry);

    let disk = File::open(mounted.disk("a")).unwrap();
    let mut bytes = [0; 4096];
    disk.read_exact_at(&mut bytes, 0).unwrap();
    assert!(told.0.lock().unwrap().is_empty(), "nobody knows whose that was");

    // A vCPU is a thread of its process, and requests name the thread.
    registry.set_owner(std::process::id(), VmKey(7));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            disk.read_exact_at(&mut bytes, 5 * 4096).unwrap();
            assert_eq!(bytes, content[5 * 4096..6 * 4096]);
            let mapping = Mapping::private(&mounted.mem("a"));
            assert_eq!(mapping.page(40), &content[40 * 4096..41 * 4096]);
        });
    });
    let told = std::mem::take(&mut *told.0.lock().unwrap());
    assert!(
        told.iter()
            .all(|read| read.vm == VmKey(7) && read.took < Duration::from_secs(60))
    );
    let mut of_disk = told.iter().filter(|read| read.is_disk);
    assert_eq!(
        of_disk.next().map(|read| read.bytes.clone()),
        Some(5 * 4096..6 * 4096)
    );
    assert!(of_disk.next().is_none());
    let page = 40 * 4096;
    assert!(
        told.iter()
            .any(|read| !read.is_disk && read.bytes.contains(&page))
    );
}
