//! Doors for the fuzz targets: an image's documents, and its layers merged.

use super::document;
use super::layer::{self, Content, Promise};
use super::source::Source;
use super::tree::{Kind, ROOT, Tree};
use crate::{BaseError, Job, Tools};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// The layers of the layout in `dir`: the digests promised for each, and the first bytes of those that are there.
#[allow(clippy::type_complexity)] // for one target, which takes it apart at once
pub fn image_parts(dir: &Path) -> Result<Vec<(Vec<String>, Option<Vec<u8>>)>, BaseError> {
    let source = Source::Directory(dir.to_owned());
    let image = document::read(&source, dir)?;
    let parts = image.layers.into_iter().map(|layer| {
        let promise = layer.promise;
        let digests = [promise.blob_sha256, promise.plain_sha256].into_iter().flatten();
        let first = source.part(&layer.part).ok().map(|part| {
            let mut bytes = Vec::new();
            part.take(64).read_to_end(&mut bytes).ok();
            bytes
        });
        (digests.collect(), first)
    });
    Ok(parts.collect())
}

/// A name in a merged tree.
pub struct TreeName {
    /// The names that lead to it from the root.
    pub path: Vec<Vec<u8>>,
    /// Has it names below it?
    pub is_directory: bool,
    /// Bytes of its content.
    pub content_bytes: u64,
}

/// The names in the tree that these tar archives give one over the other. Files' content goes into `content`.
pub fn merged(layers: &[Vec<u8>], content: &Path) -> Result<Vec<TreeName>, BaseError> {
    let tools = Tools {
        agent: content.to_owned(),
        cache_dir: content.to_owned(),
    };
    let job = Job {
        tools: &tools,
        work_dir: content,
        progress: &|_| {},
        cancel: &AtomicBool::new(false),
    };
    let (mut tree, mut files) = (Tree::new(), Content::new(content.to_owned()));
    for blob in layers {
        layer::apply(
            &blob[..],
            &Promise::default(),
            &mut tree,
            &mut files,
            content,
            &job,
        )?;
    }
    let (mut names, mut left) = (Vec::new(), vec![(ROOT, Vec::new())]);
    while let Some((inode, path)) = left.pop() {
        let kind = &tree.node(inode).kind;
        if let Kind::Directory(children) = kind {
            left.extend(children.iter().map(|(name, entry)| {
                let below = path.iter().chain([name]).cloned().collect();
                (entry.inode, below)
            }));
        }
        names.push(TreeName {
            path,
            is_directory: matches!(kind, Kind::Directory(_)),
            content_bytes: match kind {
                Kind::File(file) => std::fs::metadata(file)
                    .expect("content is where the tree says")
                    .len(),
                _ => 0,
            },
        });
    }
    Ok(names)
}
