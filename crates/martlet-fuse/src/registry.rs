//! Which files there are.
//!
//! A node is a file's content under a number that the kernel keeps; a name leads to a node, and several names may lead
//! to one memory image, and several nodes to one disk. A node without a name lives on until the kernel forgets it, so who has it open goes on.

use crate::attr::Attr;
use crate::device::StorePush;
use crate::notifier::Notifier;
use crate::readahead::Readahead;
use crate::reads::Reads;
use martlet_disk::CowDisk;
use martlet_pager::{MemoryImage, PushQueue, VmKey};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

pub(crate) const ROOT: u64 = 1;
const MEMORY_DIR: u64 = 2;
const DISK_DIR: u64 = 3;
const FIRST_FILE: u64 = 16;
const NAME_BYTES_MAX: usize = 255;
/// Threads whose process is remembered; they come and go.
const THREADS_MAX: usize = 4096;

/// What a file shows.
#[derive(Clone)]
pub enum Content {
    /// A memory image: never changes.
    Memory(Arc<MemoryImage>),
    /// A writable disk.
    Disk(Arc<CowDisk>),
}

impl Content {
    /// Is it the same file? A memory image is one however often it is shown, so that all share its pages in the cache;
    /// a disk is one file for each that it is shown to.
    fn same(&self, other: &Content) -> bool {
        match (self, other) {
            (Self::Memory(one), Self::Memory(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
    pub(crate) fn size_bytes(&self) -> u64 {
        match self {
            Self::Memory(image) => image.size_bytes(),
            Self::Disk(disk) => disk.size_bytes(),
        }
    }
}

/// Under which number a file is shown, and to whom. The kernel enforces owner and mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The number; none takes the next free one. A restarted daemon gives the numbers of its predecessor. Within a
    /// mount's life a number never shows another content: the kernel has pages of it.
    pub ino: Option<u64>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits. QEMU opens memory images for writing, though it never writes.
    pub mode: u32,
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            ino: None,
            uid: 0,
            gid: 0,
            mode: 0o600,
        }
    }
}

/// Why a file cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Not a file's name.
    #[error("{name:?} cannot be a file's name")]
    BadName {
        /// The name.
        name: String,
    },
    /// The name is taken.
    #[error("{name} is there already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The number shows something else.
    #[error("file number {ino} is taken or reserved")]
    NumberTaken {
        /// The number.
        ino: u64,
    },
}

struct Node {
    content: Content,
    placement: Placement,
    names: u64,
    lookups: u64, // references the kernel holds, as far as they were given since the connection was taken over
}

#[derive(Default)]
struct Files {
    nodes: HashMap<u64, Node>,
    memory: BTreeMap<String, u64>,
    disk: BTreeMap<String, u64>,
    owners: HashMap<u32, VmKey>,
    threads: HashMap<u32, Option<VmKey>>,
    highest: u64,
    push: Option<(Arc<PushQueue>, Arc<Notifier>)>,
}

/// The files of a mount. Changes show at once.
#[derive(Default)]
pub struct Registry {
    files: Mutex<Files>,
    reads: OnceLock<Arc<dyn Reads>>,
    readahead: OnceLock<Readahead>,
}

impl Files {
    fn names(&mut self, dir: u64) -> Option<&mut BTreeMap<String, u64>> {
        match dir {
            MEMORY_DIR => Some(&mut self.memory),
            DISK_DIR => Some(&mut self.disk),
            _ => None,
        }
    }

    fn attr(&self, ino: u64) -> Option<Attr> {
        if matches!(ino, ROOT | MEMORY_DIR | DISK_DIR) {
            return Some(Attr::directory(ino));
        }
        let node = self.nodes.get(&ino)?;
        Some(Attr::file(ino, node.content.size_bytes(), &node.placement))
    }

    fn attach(&self, ino: u64, node: &Node) {
        if let (Content::Memory(image), Some((queue, notifier))) = (&node.content, &self.push) {
            let size_bytes = image.size_bytes();
            let push = StorePush {
                notifier: notifier.clone(),
                ino,
                size_bytes,
            };
            image.set_push(Some((queue.clone(), Arc::new(push))));
        }
    }

    fn drop_unused(&mut self, ino: u64) {
        let unused = self
            .nodes
            .get(&ino)
            .is_some_and(|node| node.names == 0 && node.lookups == 0);
        if unused
            && let Some(Node {
                content: Content::Memory(image),
                ..
            }) = self.nodes.remove(&ino)
        {
            image.set_push(None);
        }
    }
}

impl Registry {
    /// No files.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows `image` as `mem/NAME`; yields its number. The same image under another name is the same file: its
    /// placement stays that of the first.
    pub fn add_memory(
        &self,
        name: &str,
        image: Arc<MemoryImage>,
        placement: Placement,
    ) -> Result<u64, RegistryError> {
        self.add(MEMORY_DIR, name, Content::Memory(image), placement)
    }

    /// Shows `disk` as `disk/NAME`; yields its number. Under another name it is another file, with a placement of its own.
    pub fn add_disk(
        &self,
        name: &str,
        disk: Arc<CowDisk>,
        placement: Placement,
    ) -> Result<u64, RegistryError> {
        self.add(DISK_DIR, name, Content::Disk(disk), placement)
    }

    fn add(
        &self,
        dir: u64,
        name: &str,
        content: Content,
        placement: Placement,
    ) -> Result<u64, RegistryError> {
        if name.is_empty()
            || name.len() > NAME_BYTES_MAX
            || name == "."
            || name == ".."
            || name.contains(['/', '\0'])
        {
            return Err(RegistryError::BadName {
                name: name.to_owned(),
            });
        }
        let mut files = self.files();
        if files.names(dir).is_some_and(|names| names.contains_key(name)) {
            return Err(RegistryError::NameTaken {
                name: name.to_owned(),
            });
        }
        let there = files
            .nodes
            .iter()
            .find(|(_, node)| node.content.same(&content))
            .map(|(&ino, _)| ino);
        let next = files.highest.max(FIRST_FILE - 1) + 1;
        let ino = placement.ino.or(there).unwrap_or(next);
        if !(FIRST_FILE..1 << 62).contains(&ino) || there.is_some_and(|there| there != ino) {
            return Err(RegistryError::NumberTaken { ino });
        }
        if there.is_none() {
            if files.nodes.contains_key(&ino) {
                return Err(RegistryError::NumberTaken { ino });
            }
            let node = Node {
                content,
                placement,
                names: 0,
                lookups: 0,
            };
            files.attach(ino, &node);
            files.nodes.insert(ino, node);
        }
        files.highest = files.highest.max(ino);
        files.nodes.get_mut(&ino).expect("there since above").names += 1;
        files
            .names(dir)
            .expect("one of the two directories")
            .insert(name.to_owned(), ino);
        Ok(ino)
    }

    /// Takes a name away; was it there? Who has the file open goes on. Not on a thread that handles requests.
    pub fn remove_memory(&self, name: &str) -> bool {
        self.remove(MEMORY_DIR, name)
    }
    /// Takes a name away; was it there? Who has the file open goes on. Not on a thread that handles requests.
    pub fn remove_disk(&self, name: &str) -> bool {
        self.remove(DISK_DIR, name)
    }
    fn remove(&self, dir: u64, name: &str) -> bool {
        let mut files = self.files();
        let Some(ino) = files.names(dir).and_then(|names| names.remove(name)) else {
            return false;
        };
        if let Some(node) = files.nodes.get_mut(&ino) {
            node.names -= 1;
        }
        files.drop_unused(ino);
        let notifier = files.push.as_ref().map(|(_, notifier)| notifier.clone());
        drop(files); // requests are handled while the kernel forgets
        if let Some(Err(error)) = notifier.map(|notifier| notifier.forget_name(dir, name)) {
            tracing::debug!(%error, name, "the kernel keeps a removed file for a while");
        }
        true
    }

    /// Numbers up to `ino` are not given any more.
    pub fn reserve(&self, ino: u64) {
        let mut files = self.files();
        files.highest = files.highest.max(ino.min(1 << 61));
    }

    /// Process `pid` is `vm`'s: its free-page reports are kept as that VM's.
    pub fn set_owner(&self, pid: u32, vm: VmKey) {
        let mut files = self.files();
        files.owners.insert(pid, vm);
        files.threads.clear();
    }
    /// The process is gone; its number may come again.
    pub fn clear_owner(&self, pid: u32) {
        let mut files = self.files();
        files.owners.remove(&pid);
        files.threads.clear();
    }
    /// Whose a process is.
    pub(crate) fn owner(&self, pid: u32) -> Option<VmKey> {
        self.files().owners.get(&pid).copied()
    }

    /// Whose a thread is, as `find` says; that is asked once for a thread. Its number may come again before this is noticed:
    /// good enough to count by, and for nothing else.
    pub(crate) fn owner_of_reader(&self, tid: u32, find: impl FnOnce() -> Option<VmKey>) -> Option<VmKey> {
        if let Some(known) = self.files().threads.get(&tid) {
            return *known;
        }
        let found = find();
        let mut files = self.files();
        if files.threads.len() >= THREADS_MAX {
            files.threads.clear();
        }
        files.threads.insert(tid, found);
        found
    }

    /// `reads` is told of every read from now on. Once for a registry: later calls change nothing.
    pub fn set_reads(&self, reads: Arc<dyn Reads>) {
        let _ = self.reads.set(reads);
    }
    /// Who opens an image only to read it gets a larger window of readahead from now on. Once for a registry.
    pub fn set_readahead(&self, readahead: Readahead) {
        let _ = self.readahead.set(readahead);
    }
    pub(crate) fn readahead(&self) -> Option<&Readahead> {
        self.readahead.get()
    }
    pub(crate) fn reads(&self) -> Option<&dyn Reads> {
        self.reads.get().map(|reads| &**reads)
    }

    /// What a number shows.
    pub fn content(&self, ino: u64) -> Option<Content> {
        self.files().nodes.get(&ino).map(|node| node.content.clone())
    }

    pub(crate) fn set_push(&self, push: Option<(Arc<PushQueue>, Arc<Notifier>)>) {
        let mut files = self.files();
        files.push = push;
        for (&ino, node) in &files.nodes {
            match (&files.push, &node.content) {
                (None, Content::Memory(image)) => image.set_push(None),
                _ => files.attach(ino, node),
            }
        }
    }

    pub(crate) fn attr(&self, ino: u64) -> Option<Attr> {
        self.files().attr(ino)
    }

    /// A name in a directory; the kernel holds a reference from now on.
    pub(crate) fn lookup(&self, dir: u64, name: &[u8]) -> Option<Attr> {
        let mut files = self.files();
        let ino = match (dir, name) {
            (ROOT, b"mem") => MEMORY_DIR,
            (ROOT, b"disk") => DISK_DIR,
            _ => *files.names(dir)?.get(std::str::from_utf8(name).ok()?)?,
        };
        if let Some(node) = files.nodes.get_mut(&ino) {
            node.lookups += 1;
        }
        files.attr(ino)
    }

    /// The kernel gave up `count` references.
    pub(crate) fn forget(&self, ino: u64, count: u64) {
        let mut files = self.files();
        if let Some(node) = files.nodes.get_mut(&ino) {
            node.lookups = node.lookups.saturating_sub(count);
        }
        files.drop_unused(ino);
    }

    /// A directory's entries: number, name, is it a directory. `None` for what is none.
    pub(crate) fn list(&self, dir: u64) -> Option<Vec<(u64, String, bool)>> {
        let mut files = self.files();
        if dir == ROOT {
            return Some(vec![
                (MEMORY_DIR, "mem".into(), true),
                (DISK_DIR, "disk".into(), true),
            ]);
        }
        Some(
            files
                .names(dir)?
                .iter()
                .map(|(name, &ino)| (ino, name.clone(), false))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use martlet_image::{FrameId, Manifest};
    use martlet_pager::{FrameSource, Pager, SourceError};

    struct Nothing;
    impl FrameSource for Nothing {
        fn frame(&self, id: &FrameId) -> Result<Bytes, SourceError> {
            Err(SourceError::Missing { frame: *id })
        }
    }
    fn image() -> Arc<MemoryImage> {
        MemoryImage::new(Pager::new(Arc::new(Nothing), 0), Arc::new(Manifest::zero(4)))
    }

    #[test]
    fn one_image_is_one_file_under_any_name() {
        let (registry, one, other) = (Registry::new(), image(), image());
        let ino = registry
            .add_memory("a", one.clone(), Placement::default())
            .unwrap();
        assert_eq!(
            registry.add_memory("b", one.clone(), Placement::default()),
            Ok(ino)
        );
        assert_ne!(
            registry.add_memory("c", other.clone(), Placement::default()),
            Ok(ino)
        );
        let given = Placement {
            ino: Some(ino),
            ..Placement::default()
        };
        assert_eq!(
            registry.add_memory("d", image(), given),
            Err(RegistryError::NumberTaken { ino })
        );
        for ino in [0, 1, 3, 15, u64::MAX] {
            let given = Placement {
                ino: Some(ino),
                ..Placement::default()
            };
            assert_eq!(
                registry.add_memory("d", image(), given),
                Err(RegistryError::NumberTaken { ino })
            );
        }
        assert_eq!(
            registry.add_memory("a", other, given),
            Err(RegistryError::NameTaken { name: "a".into() })
        );
    }

    #[test]
    fn names_that_are_no_names_are_refused() {
        let registry = Registry::new();
        for name in ["", ".", "..", "a/b", "a\0", &"x".repeat(256)] {
            let refused = registry.add_memory(name, image(), Placement::default());
            assert_eq!(refused, Err(RegistryError::BadName { name: name.into() }));
        }
        assert!(
            registry
                .add_memory(&"é".repeat(127), image(), Placement::default())
                .is_ok()
        );
    }

    #[test]
    fn what_is_removed_lives_until_the_kernel_forgets_it() {
        let registry = Registry::new();
        let ino = registry.add_memory("a", image(), Placement::default()).unwrap();
        assert_eq!(registry.lookup(MEMORY_DIR, b"a").map(|attr| attr.ino), Some(ino));
        assert!(registry.remove_memory("a") && !registry.remove_memory("a"));
        assert!(registry.lookup(MEMORY_DIR, b"a").is_none());
        assert!(registry.content(ino).is_some());
        registry.forget(ino, 1);
        assert!(registry.content(ino).is_none());
        let next = registry.add_memory("a", image(), Placement::default());
        assert_ne!(next, Ok(ino), "numbers are never given twice");
    }
}
