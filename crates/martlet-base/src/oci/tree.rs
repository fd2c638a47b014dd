//! The merged file system of an image, as a value: layers are applied here, not on the host's file system.
//!
//! Names in a layer never become host paths. They are resolved in this tree, symbolic links included, with its own root
//! as the end of every `..`; so there is nothing a hostile archive could escape to. Only when all layers are merged
//! is the tree written out, into a new directory, every name below a real directory made just before.
//!
//! An inode is either a directory or has content elsewhere; several names of one inode are hard links.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Symbolic links followed before a path is taken for a loop, as in the kernel.
const LINKS_MAX: usize = 40;
const NAME_MAX: usize = 255;
const DEPTH_MAX: usize = 256;
const NODES_MAX: usize = 4 << 20;

/// Index of an inode in its tree.
pub(super) type Inode = usize;
/// A name in a directory. Linux names are bytes.
pub(super) type Name = Vec<u8>;

pub(super) const ROOT: Inode = 0;

/// Ownership, permissions, attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Meta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u64,
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Directory(BTreeMap<Name, Entry>),
    /// Content in this file of the scratch directory.
    File(PathBuf),
    Symlink(Vec<u8>),
    CharacterDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub kind: Kind,
    pub meta: Meta,
}

/// A name's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub inode: Inode,
    /// The layer that put it there; whiteouts hide only what lower layers put.
    layer: usize,
}

/// The tree, and which layer is being applied to it.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    layer: usize,
}

/// Why an entry cannot be applied.
pub(super) type Refusal = String;

impl Tree {
    pub(super) fn new() -> Self {
        let meta = Meta {
            mode: 0o755,
            ..Meta::default()
        };
        Self {
            nodes: vec![Node {
                kind: Kind::Directory(BTreeMap::new()),
                meta,
            }],
            layer: 0,
        }
    }

    pub(super) fn begin_layer(&mut self) {
        self.layer += 1;
    }

    pub(super) fn node(&self, inode: Inode) -> &Node {
        &self.nodes[inode]
    }

    fn children(&self, inode: Inode) -> Option<&BTreeMap<Name, Entry>> {
        match &self.nodes[inode].kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn children_mut(&mut self, inode: Inode) -> &mut BTreeMap<Name, Entry> {
        match &mut self.nodes[inode].kind {
            Kind::Directory(children) => children,
            _ => unreachable!("only directories are resolved to for their children"),
        }
    }

    fn add(&mut self, kind: Kind, meta: Meta) -> Result<Entry, Refusal> {
        if self.nodes.len() >= NODES_MAX {
            return Err(format!("the image has more than {NODES_MAX} files"));
        }
        self.nodes.push(Node { kind, meta });
        Ok(Entry {
            inode: self.nodes.len() - 1,
            layer: self.layer,
        })
    }

    fn look_up(&self, parent: Inode, name: &[u8]) -> Option<Entry> {
        self.children(parent)?.get(name).copied()
    }

    /// Puts an entry where a layer says it is; what is there already gives way, except that a directory keeps its
    /// children when a directory comes.
    pub(super) fn put(&mut self, path: &[u8], kind: Kind, meta: Meta) -> Result<(), Refusal> {
        let Some((parent, name)) = self.parent_of(path, true)? else {
            return match kind {
                Kind::Directory(_) => {
                    self.nodes[ROOT].meta = meta;
                    Ok(())
                }
                _ => Err("the root of a layer is not a directory".into()),
            };
        };
        if let (Kind::Directory(_), Some(there)) = (&kind, self.look_up(parent, &name))
            && self.children(there.inode).is_some()
        {
            self.nodes[there.inode].meta = meta;
            let entry = Entry {
                layer: self.layer,
                ..there
            };
            self.children_mut(parent).insert(name, entry);
            return Ok(());
        }
        let entry = self.add(kind, meta)?;
        self.children_mut(parent).insert(name, entry);
        Ok(())
    }

    /// Is there anything of this name? The last name is not followed.
    pub(super) fn exists(&mut self, path: &[u8]) -> bool {
        matches!(self.parent_of(path, false), Ok(Some((parent, name))) if self.look_up(parent, &name).is_some())
    }

    /// Another name for what `target` is.
    pub(super) fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Refusal> {
        let found = match self.parent_of(target, false)? {
            Some((parent, name)) => self.look_up(parent, &name).map(|entry| entry.inode),
            None => Some(ROOT),
        };
        let inode = found.ok_or_else(|| format!("hard link to {}, which is not there", show(target)))?;
        if self.children(inode).is_some() {
            return Err(format!("hard link to the directory {}", show(target)));
        }
        let (parent, name) = self
            .parent_of(path, true)?
            .ok_or("hard link in place of the root")?;
        let entry = Entry {
            inode,
            layer: self.layer,
        };
        self.children_mut(parent).insert(name, entry);
        Ok(())
    }

    /// `.wh.NAME`: a lower layer's NAME is gone.
    pub(super) fn whiteout(&mut self, path: &[u8]) -> Result<(), Refusal> {
        if let Some((parent, name)) = self.parent_of(path, false)?
            && let Some(entry) = self.look_up(parent, &name)
        {
            self.hide_lower(entry.inode);
            if self.is_lower(entry) {
                self.children_mut(parent).remove(&name);
            }
        }
        Ok(())
    }

    /// `.wh..wh..opq`: nothing that lower layers put into this directory is left.
    pub(super) fn opaque(&mut self, path: &[u8]) -> Result<(), Refusal> {
        let inode = match self.parent_of(path, false)? {
            None => Some(ROOT),
            Some((parent, name)) => self.look_up(parent, &name).map(|entry| entry.inode),
        };
        inode.into_iter().for_each(|inode| self.hide_lower(inode));
        Ok(())
    }

    /// Is it a lower layer's, and does nothing of this layer lie below it?
    fn is_lower(&self, entry: Entry) -> bool {
        entry.layer < self.layer && self.children(entry.inode).is_none_or(BTreeMap::is_empty)
    }

    /// Removes what lower layers put below a directory. Whiteouts may come after this layer's own entries, which stay,
    /// and so do the directories that lead to them.
    fn hide_lower(&mut self, top: Inode) {
        // Children before parents, without recursion: depth is the archive's choice.
        let (mut order, mut at) = (vec![top], 0);
        while let Some(&inode) = order.get(at) {
            order.extend(
                self.children(inode)
                    .into_iter()
                    .flatten()
                    .map(|(_, entry)| entry.inode),
            );
            at += 1;
        }
        for &inode in order.iter().rev() {
            let Some(children) = self.children(inode) else {
                continue;
            };
            let gone: Vec<Name> = children
                .iter()
                .filter(|&(_, &entry)| self.is_lower(entry))
                .map(|(name, _)| name.clone())
                .collect();
            for name in gone {
                self.children_mut(inode).remove(&name);
            }
        }
    }

    /// The directory that holds the last name of `path`, and that name; none for the root itself. Links on the way are
    /// followed inside the tree. With `make`, missing directories are made, since layers may leave them out.
    fn parent_of(&mut self, path: &[u8], make: bool) -> Result<Option<(Inode, Name)>, Refusal> {
        let mut names = components(path)?;
        let Some(last) = names.pop() else { return Ok(None) };
        // An empty name is in no directory: looking it up finds nothing, and `make` never gets here.
        Ok(Some(
            self.descend(&names, make)?
                .map_or((ROOT, Name::new()), |dir| (dir, last)),
        ))
    }

    /// Where `names` lead; none when something on the way is missing and not to be made.
    fn descend(&mut self, names: &[Name], make: bool) -> Result<Option<Inode>, Refusal> {
        let mut stack = vec![ROOT];
        let mut left: Vec<Name> = names.iter().rev().cloned().collect();
        let mut links = 0;
        while let Some(name) = left.pop() {
            let here = *stack.last().expect("the root is never popped");
            if name == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let next = match self.look_up(here, &name) {
                Some(entry) => entry.inode,
                None if !make => return Ok(None),
                None => {
                    let entry = self.add(
                        Kind::Directory(BTreeMap::new()),
                        Meta {
                            mode: 0o755,
                            ..Meta::default()
                        },
                    )?;
                    self.children_mut(here).insert(name, entry);
                    entry.inode
                }
            };
            match &self.nodes[next].kind {
                Kind::Directory(_) if stack.len() >= DEPTH_MAX => {
                    return Err("directories are nested too deeply".into());
                }
                Kind::Directory(_) => stack.push(next),
                Kind::Symlink(target) => {
                    links += 1;
                    if links > LINKS_MAX || left.len() > DEPTH_MAX {
                        return Err("too many symbolic links on the way".into());
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    left.extend(target_components(target).rev());
                }
                _ => return Err("a directory of its path is not a directory".into()),
            }
        }
        Ok(stack.last().copied())
    }
}

/// A member's path as names. `..` is refused: no tool that makes layers writes it.
fn components(path: &[u8]) -> Result<Vec<Name>, Refusal> {
    let names: Vec<Name> = path
        .split(|byte| *byte == b'/')
        .filter(|name| !matches!(name, [] | [b'.']))
        .map(<[u8]>::to_vec)
        .collect();
    if names.iter().any(|name| name == b"..") {
        return Err("its path contains `..`".into());
    }
    if names.len() > DEPTH_MAX
        || names
            .iter()
            .any(|name| name.len() > NAME_MAX || name.contains(&0))
    {
        return Err("its path is too long or contains NUL".into());
    }
    Ok(names)
}

fn target_components(target: &[u8]) -> impl DoubleEndedIterator<Item = Name> {
    target
        .split(|byte| *byte == b'/')
        .filter(|name| !matches!(name, [] | [b'.']))
        .map(<[u8]>::to_vec)
}

/// A path for people.
pub(super) fn show(path: &[u8]) -> String {
    OsString::from_vec(path.iter().copied().take(200).collect())
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
