//! The merged tree as files, for `mke2fs -d` to take: every name is made in a directory that was made just before, so
//! nothing that exists is ever followed or overwritten. Needs root, for owners and device nodes.

use super::tree::{Inode, Kind, Meta, ROOT, Tree};
use crate::error::IoContext;
use crate::{BaseError, Job};
use rustix::fs::{FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Writes the tree into `root`, which must not exist. Content files are moved, not copied.
pub(super) fn write_out(tree: &Tree, root: &Path, job: &Job) -> Result<(), BaseError> {
    let mut names: HashMap<Inode, PathBuf> = HashMap::new();
    let mut directories = Vec::new();
    let mut left = vec![(ROOT, root.to_owned())];
    while let Some((inode, path)) = left.pop() {
        job.check()?;
        if let Some(first) = names.get(&inode) {
            std::fs::hard_link(first, &path).during("link", &path)?;
            continue;
        }
        let node = tree.node(inode);
        match &node.kind {
            Kind::Directory(children) => {
                std::fs::create_dir(&path).during("create", &path)?;
                left.extend(
                    children
                        .iter()
                        .map(|(name, entry)| (entry.inode, path.join(OsStr::from_bytes(name)))),
                );
                directories.push((inode, path));
                continue;
            }
            Kind::File(content) => std::fs::rename(content, &path).during("create", &path)?,
            Kind::Symlink(target) => symlink(OsStr::from_bytes(target), &path).during("create", &path)?,
            Kind::CharacterDevice(major, minor) => {
                make_node(&path, FileType::CharacterDevice, *major, *minor)?
            }
            Kind::BlockDevice(major, minor) => make_node(&path, FileType::BlockDevice, *major, *minor)?,
            Kind::Fifo => make_node(&path, FileType::Fifo, 0, 0)?,
        }
        dress(&path, &node.kind, &node.meta)?;
        names.insert(inode, path);
    }
    // Last, and the deepest first: making a directory's entries would change its time again.
    for (inode, path) in directories.iter().rev() {
        let node = tree.node(*inode);
        dress(path, &node.kind, &node.meta)?;
    }
    Ok(())
}

fn make_node(path: &Path, kind: FileType, major: u32, minor: u32) -> Result<(), BaseError> {
    mknodat(rustix::fs::CWD, path, kind, Mode::empty(), makedev(major, minor)).during("create", path)
}

/// Owner first: changing it clears set-user-id bits and capabilities.
fn dress(path: &Path, kind: &Kind, meta: &Meta) -> Result<(), BaseError> {
    lchown(path, Some(meta.uid), Some(meta.gid)).during("change the owner of", path)?;
    let is_link = matches!(kind, Kind::Symlink(_));
    if !is_link {
        let permissions = std::fs::Permissions::from_mode(meta.mode);
        std::fs::set_permissions(path, permissions).during("change the permissions of", path)?;
    }
    for (name, value) in &meta.xattrs {
        match lsetxattr(path, name, value, XattrFlags::empty()) {
            // Labels of a security module that this host does not run mean nothing in the guest either.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM | rustix::io::Errno::INVAL)
                if name.as_bytes() != b"security.capability" =>
            {
                tracing::debug!(path = %path.display(), ?name, "an extended attribute is left out");
            }
            set => set.during("set an attribute of", path)?,
        }
    }
    if matches!(kind, Kind::File(_) | Kind::Directory(_)) {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(meta.mtime.min(u64::from(u32::MAX)));
        std::fs::File::open(path)
            .and_then(|file| file.set_modified(modified))
            .during("set the time of", path)?;
    }
    Ok(())
}
