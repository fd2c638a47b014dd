//! Where an image's parts are read from: a layout's directory, or a tar archive of one (also `docker save`'s).

use crate::error::IoContext;
use crate::scratch::Scratch;
use crate::{BaseError, Job};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

/// Manifests and configurations are JSON of a few kilobytes.
const JSON_LIMIT_BYTES: u64 = 8 << 20;
const MEMBERS_MAX: usize = 100_000;

/// The parts of an image by name.
pub(super) enum Source {
    Directory(PathBuf),
    Archive {
        path: PathBuf,
        members: HashMap<String, Member>,
    },
}

/// Where a member's bytes lie in an archive, or which other member is meant.
pub(super) enum Member {
    Bytes { offset: u64, len: u64 },
    Link(String),
}

impl Source {
    /// Opens a directory or an archive; a compressed archive is unpacked into `scratch` first.
    pub(super) fn open(path: &Path, scratch: &Scratch, job: &Job) -> Result<Self, BaseError> {
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let mut magic = Vec::new();
        File::open(path)
            .and_then(|file| file.take(2).read_to_end(&mut magic))
            .during("read", path)?;
        let plain = if magic == [0x1f, 0x8b] {
            job.stage("unpacking the archive");
            let plain = scratch.path().join("archive.tar");
            let from = File::open(path).during("open", path)?;
            let mut to = File::create(&plain).during("create", &plain)?;
            std::io::copy(
                &mut flate2::read::MultiGzDecoder::new(from).take(super::layer::CONTENT_LIMIT_BYTES),
                &mut to,
            )
            .map_err(|error| BaseError::bad_source(path, format!("cannot be unpacked: {error}")))?;
            plain
        } else {
            path.to_owned()
        };
        let members = members(&plain, path)?;
        Ok(Self::Archive { path: plain, members })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(dir) => dir.join(name).is_file(),
            Self::Archive { members, .. } => members.contains_key(name),
        }
    }

    /// Opens a part. Names come out of the image, so they must not lead elsewhere.
    pub(super) fn part(&self, name: &str) -> Result<Box<dyn Read>, BaseError> {
        let (path, range) = match self {
            Self::Directory(dir) => {
                let inside = Path::new(name)
                    .components()
                    .all(|part| matches!(part, Component::Normal(_)));
                if !inside || name.len() > 1000 {
                    return Err(BaseError::bad_source(
                        dir,
                        format!("it names the part {name:.200?}, outside of itself"),
                    ));
                }
                (dir.join(name), None)
            }
            Self::Archive { path, members } => {
                let mut member = members.get(name);
                if let Some(Member::Link(target)) = member {
                    member = members.get(target);
                }
                let Some(Member::Bytes { offset, len }) = member else {
                    return Err(BaseError::bad_source(
                        path,
                        format!("the archive has no member {name:.200}"),
                    ));
                };
                (path.clone(), Some((*offset, *len)))
            }
        };
        if !path.is_file() {
            return Err(BaseError::bad_source(
                &path,
                "there is no such file in the layout",
            ));
        }
        let mut file = File::open(&path).during("open", &path)?;
        let Some((offset, len)) = range else {
            return Ok(Box::new(file));
        };
        file.seek(SeekFrom::Start(offset)).during("read", &path)?;
        Ok(Box::new(file.take(len)))
    }

    /// A part that is small by its nature.
    pub(super) fn small_part(&self, name: &str) -> Result<Vec<u8>, BaseError> {
        let mut bytes = Vec::new();
        self.part(name)?
            .take(JSON_LIMIT_BYTES)
            .read_to_end(&mut bytes)
            .during("read", Path::new(name))?;
        Ok(bytes)
    }
}

/// The table of an archive's members. Old `docker save` archives link layers that two images share.
fn members(plain: &Path, source: &Path) -> Result<HashMap<String, Member>, BaseError> {
    let damaged =
        |error: std::io::Error| BaseError::bad_source(source, format!("not a readable tar archive: {error}"));
    let mut archive = tar::Archive::new(File::open(plain).during("open", plain)?);
    let mut members = HashMap::new();
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        let name = String::from_utf8_lossy(&entry.path_bytes())
            .trim_start_matches("./")
            .to_owned();
        let kind = entry.header().entry_type();
        if kind.is_file() {
            members.insert(
                name,
                Member::Bytes {
                    offset: entry.raw_file_position(),
                    len: entry.size(),
                },
            );
        } else if let (true, Some(link)) = (kind.is_symlink() || kind.is_hard_link(), entry.link_name_bytes())
        {
            let link = String::from_utf8_lossy(&link).into_owned();
            // `ID/layer.tar -> ../OTHER/layer.tar`; anything else is found to be missing when it is asked for.
            members.insert(name, Member::Link(link.trim_start_matches("../").to_owned()));
        }
        if members.len() > MEMBERS_MAX {
            return Err(BaseError::bad_source(
                source,
                format!("the archive has more than {MEMBERS_MAX} members"),
            ));
        }
    }
    Ok(members)
}
