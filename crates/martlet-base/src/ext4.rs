//! A directory becomes an ext4 file system in a sparse file, by `mke2fs -d`: no mount, no loop device.
//!
//! Normal bases keep the journal, so that a guest whose checkpoint is lost comes back as after a power cut. Only tiny
//! bases go without: their content is a few files that the next build makes again, and the journal's recovery
//! would be a tenth of their boot. Tables are initialised here and now, so that no guest writes to its disk in
//! the background, and nothing is reserved for root, which is all there is.

use crate::command::Run;
use crate::error::IoContext;
use crate::{BaseError, Job};
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const BLOCK_BYTES: u64 = 4096;
const INODE_BYTES: u64 = 256;
/// What mke2fs takes by default: one inode for so many bytes.
const BYTES_PER_INODE: u64 = 16 << 10;
const ROUND_BYTES: u64 = 4 << 20;
const SLACK_BYTES: u64 = 64 << 20;
const SIZE_MIN_BYTES: u64 = 8 << 20;
/// More than any image needs, less than what overflows in anybody's tools.
pub(crate) const SIZE_MAX_BYTES: u64 = 4 << 40;

/// How a file system is made.
pub(crate) struct Ext4 {
    /// From the content when absent.
    pub size_bytes: Option<u64>,
    pub journal: bool,
}

/// Is a size possible at all? Asked before anything expensive is done.
pub(crate) fn check_size(size_bytes: Option<u64>) -> Result<(), BaseError> {
    match size_bytes {
        Some(size) if !(SIZE_MIN_BYTES..=SIZE_MAX_BYTES).contains(&size) => Err(BaseError::Invalid(format!(
            "a root disk of {size} bytes is not possible: it must have between {SIZE_MIN_BYTES} (8 MiB) and {SIZE_MAX_BYTES} (4 TiB)"
        ))),
        _ => Ok(()),
    }
}

/// What a tree will need.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
struct Content {
    bytes: u64,
    inodes: u64,
}

impl Content {
    fn measure(tree: &Path) -> Result<Self, BaseError> {
        let (mut content, mut links, mut left) = (Self::default(), HashSet::new(), vec![tree.to_owned()]);
        while let Some(dir) = left.pop() {
            for entry in std::fs::read_dir(&dir).during("list", &dir)? {
                let entry = entry.during("list", &dir)?;
                let path = entry.path();
                let meta = entry.metadata().during("look at", &path)?;
                if meta.is_dir() {
                    left.push(path);
                } else if meta.nlink() > 1 && !links.insert(meta.ino()) {
                    continue;
                }
                content.inodes += 1;
                // A directory's entries take a block, and so do the attributes of a few files.
                content.bytes += if meta.is_file() {
                    meta.len().next_multiple_of(BLOCK_BYTES)
                } else {
                    BLOCK_BYTES
                };
            }
        }
        Ok(content)
    }

    /// The least size that holds it: with inode tables, block maps and a journal.
    fn needed_bytes(self) -> u64 {
        self.bytes + self.bytes / 50 + self.inodes * INODE_BYTES + (4 << 20)
    }

    /// A size that also leaves room to work.
    fn roomy_bytes(self) -> u64 {
        let roomy = self.needed_bytes().saturating_mul(13) / 10 + SLACK_BYTES;
        roomy.next_multiple_of(ROUND_BYTES)
    }
}

/// Makes `image` out of everything in `tree`; the file's length is a multiple of 4 KiB.
pub(crate) fn make(tree: &Path, image: &Path, how: &Ext4, job: &Job) -> Result<(), BaseError> {
    job.stage("making the root file system");
    let content = Content::measure(tree)?;
    let size = how.size_bytes.unwrap_or_else(|| content.roomy_bytes()) / BLOCK_BYTES * BLOCK_BYTES;
    if content.needed_bytes() > size {
        return Err(BaseError::TooSmall {
            size_bytes: size,
            needed_bytes: content.needed_bytes(),
        });
    }
    let file = std::fs::File::create(image).during("create", image)?;
    file.set_len(size).during("size", image)?;
    drop(file);
    // Room for as many inodes again, so that images of many small files can grow.
    let inodes = (size / BYTES_PER_INODE).max(content.inodes * 2 + 1024);
    let made = Run::new("mke2fs", "e2fsprogs")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", "martlet"])
        .args([
            "-O",
            if how.journal {
                "has_journal"
            } else {
                "^has_journal"
            },
        ])
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"])
        .args(["-N", &inodes.to_string(), "-d"])
        .arg(tree)
        .arg(image)
        .output(job);
    match made {
        Err(BaseError::Tool { last_words, .. })
            if [
                "Could not allocate",
                "too small",
                "No free space",
                "not enough space",
            ]
            .iter()
            .any(|sign| last_words.contains(sign)) =>
        {
            Err(BaseError::TooSmall {
                size_bytes: size,
                needed_bytes: content.roomy_bytes(),
            })
        }
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    #[test]
    fn sizes() {
        for bad in [0, 1, SIZE_MIN_BYTES - 1, SIZE_MAX_BYTES + 1, u64::MAX] {
            assert!(check_size(Some(bad)).is_err(), "{bad}");
        }
        assert!(check_size(None).is_ok() && check_size(Some(64 << 20)).is_ok());
    }

    #[test]
    fn content_that_does_not_fit_is_refused_before_and_names_what_would_do() {
        let bench = Bench::new();
        let tree = bench.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("big"), vec![1; 12 << 20]).unwrap();
        std::fs::hard_link(tree.join("big"), tree.join("same")).unwrap();
        let image = bench.path().join("image");
        let how = Ext4 {
            size_bytes: Some(8 << 20),
            journal: true,
        };
        match make(&tree, &image, &how, &bench.job()).unwrap_err() {
            BaseError::TooSmall { needed_bytes, .. } => assert!((12 << 20..20 << 20).contains(&needed_bytes)),
            other => panic!("{other}"),
        }
        let how = Ext4 {
            size_bytes: None,
            journal: true,
        };
        make(&tree, &image, &how, &bench.job()).unwrap();
        let meta = std::fs::metadata(&image).unwrap();
        assert_eq!(meta.len() % ROUND_BYTES, 0);
        assert!(
            meta.blocks() * 512 < 40 << 20,
            "the image is not sparse: {} of {}",
            meta.blocks() * 512,
            meta.len()
        );
    }
}
