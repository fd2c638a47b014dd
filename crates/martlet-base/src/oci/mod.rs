//! OCI images made bootable: a layout (directory or tar archive of one) or what `docker save` writes.
//!
//! ```text
//! index.json ─► [index ─►] manifest ─► config, layers     every blob checked against its SHA-256 digest
//! manifest.json ─────────────────────► config, layers     every layer checked against the config's diff_ids
//!                                             └► tree ─► files ─► ext4
//! ```
//!
//! The image's command becomes the machine's default command; the agent is process 1 and runs it.

mod document;
#[cfg(fuzzing)]
pub mod fuzzing;
mod layer;
mod source;
mod tree;
mod write_out;

use crate::boot::{Boot, DEFAULT_SUITE, ROOT_DISK};
use crate::error::IoContext;
use crate::ext4::{self, Ext4};
use crate::scratch::{Scratch, Unfinished};
use crate::{Artifacts, BaseError, Job, job};
use document::Image;
use layer::Content;
use martlet_api::InitKind;
use source::Source;
use std::path::Path;
use tree::{Kind, Meta, Tree};

/// Imports an OCI image layout or a `docker save` archive.
pub fn import_oci(path: &Path, size_bytes: Option<u64>, job: &Job) -> Result<Artifacts, BaseError> {
    ext4::check_size(size_bytes)?;
    job::need_root("importing an OCI image")?;
    let boot = Boot::new(DEFAULT_SUITE, job)?;
    let scratch = Scratch::new(job.work_dir)?;
    let mut unfinished = Unfinished::new();
    let root_disk = unfinished.add(job.work_dir.join("root.img"));
    let image = root_file_system(path, size_bytes, &root_disk, &scratch, job)?;
    drop(scratch);
    let origin = format!("oci {}", image.name);
    let mut artifacts = boot.artifacts(
        root_disk,
        ROOT_DISK,
        InitKind::Command,
        origin,
        &mut unfinished,
        job,
    )?;
    let config = image.config;
    artifacts.cmd = config.command();
    artifacts.env = config.env;
    artifacts.workdir = Some(config.working_dir).filter(|dir| !dir.is_empty());
    artifacts.user = Some(config.user).filter(|user| !user.is_empty());
    unfinished.keep();
    Ok(artifacts)
}

/// Everything but the kernel: reads, checks, merges, and makes the disk.
pub(crate) fn root_file_system(
    path: &Path,
    size_bytes: Option<u64>,
    root_disk: &Path,
    scratch: &Scratch,
    job: &Job,
) -> Result<Image, BaseError> {
    job.stage("reading the image");
    let source = Source::open(path, scratch, job)?;
    let image = document::read(&source, path)?;
    let content_dir = scratch.path().join("content");
    std::fs::create_dir(&content_dir).during("create", &content_dir)?;
    let (mut tree, mut content) = (Tree::new(), Content::new(content_dir));
    for (number, layer) in image.layers.iter().enumerate() {
        job.bytes(
            &format!("layer {} of {}", number + 1, image.layers.len()),
            0,
            layer.size_bytes,
        );
        layer::apply(
            source.part(&layer.part)?,
            &layer.promise,
            &mut tree,
            &mut content,
            path,
            job,
        )?;
    }
    furnish(&mut tree, scratch)
        .map_err(|why| BaseError::bad_source(path, format!("it cannot be made bootable: {why}")))?;
    job.stage("writing the merged layers");
    let root = scratch.path().join("tree");
    write_out::write_out(&tree, &root, job)?;
    ext4::make(
        &root,
        root_disk,
        &Ext4 {
            size_bytes,
            journal: true,
        },
        job,
    )?;
    Ok(image)
}

/// What a container gets from its engine and a machine must have in its image.
fn furnish(tree: &mut Tree, scratch: &Scratch) -> Result<(), String> {
    tree.begin_layer();
    for (dir, mode) in [
        ("dev", 0o755),
        ("proc", 0o755),
        ("sys", 0o755),
        ("run", 0o755),
        ("tmp", 0o1777),
        ("etc", 0o755),
    ] {
        if !tree.exists(dir.as_bytes()) {
            tree.put(
                dir.as_bytes(),
                Kind::Directory(Default::default()),
                Meta {
                    mode,
                    ..Meta::default()
                },
            )?;
        }
    }
    let files = [
        ("etc/hostname", "martlet\n".into(), true),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n".into(), false),
        ("etc/resolv.conf", String::new(), false),
        ("etc/machine-id", String::new(), true),
    ];
    for (number, (name, text, always)) in files.into_iter().enumerate() {
        if always || !tree.exists(name.as_bytes()) {
            let path = scratch.path().join(format!("furnish-{number}"));
            std::fs::write(&path, text).map_err(|error| error.to_string())?;
            tree.put(
                name.as_bytes(),
                Kind::File(path),
                Meta {
                    mode: 0o644,
                    ..Meta::default()
                },
            )?;
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
