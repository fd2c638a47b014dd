//! One layer: a tar archive, plain or compressed, applied to the tree.
//!
//! The bytes are hashed as they are read and compared with what the image promises once the layer has been read to its
//! end; a mismatch fails the whole import, and what was applied is never written out.

use super::tree::{Kind, Meta, Refusal, Tree, show};
use crate::error::IoContext;
use crate::{BaseError, Job};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use tar::EntryType;

/// An image larger than this, uncompressed, is not imported: archives can expand a thousandfold. A fuzzer would only
/// fill the disk up to it.
pub(super) const CONTENT_LIMIT_BYTES: u64 = if cfg!(fuzzing) { 1 << 20 } else { 64 << 30 };
const XATTR_LIMIT_BYTES: usize = 64 << 10;
const LINK_LIMIT_BYTES: usize = 4096;

/// Where the content of files goes, each into a file named by a number.
pub(super) struct Content {
    dir: PathBuf,
    files: u64,
    bytes: u64,
}

impl Content {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            files: 0,
            bytes: 0,
        }
    }

    fn store(&mut self, entry: &mut impl Read, job: &Job) -> Result<PathBuf, BaseError> {
        job.check()?;
        self.files += 1;
        let path = self.dir.join(self.files.to_string());
        let mut file = std::fs::File::create_new(&path).during("create", &path)?;
        let left = CONTENT_LIMIT_BYTES - self.bytes;
        self.bytes += std::io::copy(&mut entry.take(left), &mut file).during("write", &path)?;
        match self.bytes >= CONTENT_LIMIT_BYTES {
            true => Err(BaseError::Invalid(format!(
                "the image expands to more than {CONTENT_LIMIT_BYTES} bytes"
            ))),
            false => Ok(path),
        }
    }
}

/// What the image says about a layer's bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Promise {
    /// Of the blob as stored, lower-case hexadecimal.
    pub blob_sha256: Option<String>,
    /// Of the plain tar archive.
    pub plain_sha256: Option<String>,
}

/// Applies the layer read from `blob`.
pub(super) fn apply(
    blob: impl Read,
    promise: &Promise,
    tree: &mut Tree,
    content: &mut Content,
    source: &Path,
    job: &Job,
) -> Result<(), BaseError> {
    let damaged = |what: &str| BaseError::bad_source(source, what);
    tree.begin_layer();
    let mut stored = BufReader::with_capacity(128 << 10, Hashed::new(blob));
    let magic = stored.fill_buf().during("read a layer of", source)?;
    let gzip = magic.starts_with(&[0x1f, 0x8b]);
    let zstd = magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    let plain: Box<dyn Read + '_> = match (gzip, zstd) {
        (true, _) => Box::new(flate2::bufread::MultiGzDecoder::new(&mut stored)),
        (_, true) => Box::new(zstd::Decoder::with_buffer(&mut stored).during("read a layer of", source)?),
        _ => Box::new(&mut stored),
    };
    let mut plain = Hashed::new(plain);
    entries(&mut plain, tree, content, source, job)?;
    // tar stops at its end mark; the digests are of everything.
    drain(&mut plain, source)?;
    let plain_sha256 = plain.finish();
    drain(&mut stored, source)?;
    let blob_sha256 = stored.into_inner().finish();
    if promise
        .blob_sha256
        .as_ref()
        .is_some_and(|promised| *promised != blob_sha256)
    {
        return Err(damaged(
            "a layer's bytes do not have the digest that the image's manifest gives",
        ));
    }
    if promise
        .plain_sha256
        .as_ref()
        .is_some_and(|promised| *promised != plain_sha256)
    {
        return Err(damaged(
            "a layer's content does not have the digest that the image's configuration gives",
        ));
    }
    Ok(())
}

fn drain(reader: &mut impl Read, source: &Path) -> Result<(), BaseError> {
    let read = std::io::copy(&mut reader.take(CONTENT_LIMIT_BYTES), &mut std::io::sink());
    read.during("read a layer of", source).map(drop)
}

fn entries(
    plain: &mut impl Read,
    tree: &mut Tree,
    content: &mut Content,
    source: &Path,
    job: &Job,
) -> Result<(), BaseError> {
    let damaged =
        |error: std::io::Error| BaseError::bad_source(source, format!("a layer is damaged: {error}"));
    let mut archive = tar::Archive::new(plain);
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path_bytes().into_owned();
        let refused = |why: Refusal| {
            BaseError::bad_source(
                source,
                format!("a layer's entry {} is refused: {why}", show(&path)),
            )
        };
        let name_at = path
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |slash| slash + 1);
        let (dir, name) = path.split_at(name_at);
        let within = |prefix: &[u8]| {
            dir.split(|byte| *byte == b'/')
                .any(|step| step.starts_with(prefix))
        };
        if within(b".wh..wh.") {
            continue; // what aufs keeps its books in
        }
        if within(b".wh.") {
            return Err(refused(
                "it lies in a directory whose name is a whiteout's".into(),
            ));
        }
        if name == b".wh..wh..opq" {
            tree.opaque(dir).map_err(refused)?;
        } else if name.starts_with(b".wh..wh.") {
            // Book-keeping of aufs.
        } else if let Some(hidden) = name.strip_prefix(b".wh.") {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(refused("it names nothing that could be hidden".into()));
            }
            tree.whiteout(&[dir, hidden].concat()).map_err(refused)?;
        } else {
            let meta = meta(&mut entry).map_err(refused)?;
            let link = entry
                .link_name_bytes()
                .map(|link| link.into_owned())
                .unwrap_or_default();
            if link.len() > LINK_LIMIT_BYTES {
                return Err(refused("its link is too long".into()));
            }
            let device = |entry: &tar::Entry<_>| {
                let number = |field: std::io::Result<Option<u32>>| field.ok().flatten();
                match (
                    number(entry.header().device_major()),
                    number(entry.header().device_minor()),
                ) {
                    (Some(major @ ..=0xfff), Some(minor @ ..=0xf_ffff)) => Ok((major, minor)),
                    _ => Err(String::from("its device number is not one")),
                }
            };
            let kind = match entry.header().entry_type() {
                EntryType::Directory => Kind::Directory(BTreeMap::new()),
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    Kind::File(content.store(&mut entry, job)?)
                }
                EntryType::Link => {
                    tree.hard_link(&path, &link).map_err(refused)?;
                    continue;
                }
                EntryType::Symlink if link.is_empty() || link.contains(&0) => {
                    return Err(refused("its link is empty or contains NUL".into()));
                }
                EntryType::Symlink => Kind::Symlink(link),
                EntryType::Char => device(&entry)
                    .map(|(major, minor)| Kind::CharacterDevice(major, minor))
                    .map_err(refused)?,
                EntryType::Block => device(&entry)
                    .map(|(major, minor)| Kind::BlockDevice(major, minor))
                    .map_err(refused)?,
                EntryType::Fifo => Kind::Fifo,
                EntryType::XGlobalHeader => continue,
                other => {
                    return Err(refused(format!(
                        "its kind {:?} is unknown",
                        other.as_byte() as char
                    )));
                }
            };
            tree.put(&path, kind, meta).map_err(refused)?;
        }
    }
    Ok(())
}

/// From the header, and from the extended header where it says more.
fn meta(entry: &mut tar::Entry<impl Read>) -> Result<Meta, Refusal> {
    let header = entry.header();
    let bad = |_| String::from("a number in its header is not one");
    let mut meta = Meta {
        mode: header.mode().map_err(bad)? & 0o7777,
        uid: u32::try_from(header.uid().map_err(bad)?).map_err(|_| "its owner's number is too large")?,
        gid: u32::try_from(header.gid().map_err(bad)?).map_err(|_| "its group's number is too large")?,
        mtime: header.mtime().unwrap_or(0),
        xattrs: Vec::new(),
    };
    let Some(extensions) = entry.pax_extensions().map_err(|error| error.to_string())? else {
        return Ok(meta);
    };
    let mut xattr_bytes = 0;
    for extension in extensions {
        let extension = extension.map_err(|error| error.to_string())?;
        let number = || extension.value().ok().and_then(|value| value.parse().ok());
        let (key, value) = (extension.key_bytes(), extension.value_bytes());
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            xattr_bytes += name.len() + value.len();
            if xattr_bytes > XATTR_LIMIT_BYTES || name.is_empty() || name.len() > 255 || name.contains(&0) {
                return Err("its extended attributes are too large".into());
            }
            meta.xattrs
                .push((OsString::from_vec(name.to_vec()), value.to_vec()));
        } else if key == b"uid" {
            meta.uid = number().ok_or("its owner is not a number")?;
        } else if key == b"gid" {
            meta.gid = number().ok_or("its group is not a number")?;
        }
    }
    Ok(meta)
}

/// A reader that hashes what passes.
struct Hashed<R> {
    inner: R,
    sha256: Sha256,
}

impl<R: Read> Hashed<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            sha256: Sha256::new(),
        }
    }

    fn finish(self) -> String {
        super::hex(&self.sha256.finalize())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.sha256.update(&buffer[..read]);
        Ok(read)
    }
}
