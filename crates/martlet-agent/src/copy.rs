//! Files both ways, as tar streams.
//!
//! Out: the guest goes on while it is read, so a file that grows is cut at the size it had and one that shrinks is
//! filled up with zeros. Sockets, devices and named pipes are left out. In: entries cannot leave the directory they are
//! unpacked in, neither by `..` nor by a symbolic link.

use crate::fault::{Result, failed, fault, io_failed};
use crate::stream::{InputReader, OutputWriter, Stream};
use martlet_agent_api::{Finished, RemoteErrorKind};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Files of /proc and /sys say that they are empty; this much of such a file is read.
const UNSIZED_MAX_BYTES: u64 = 1 << 20;

/// A path the host may name.
pub fn check_path(path: &str) -> Result<PathBuf> {
    let path = PathBuf::from(path);
    let plain = path.is_absolute() && path.components().all(|c| c != Component::ParentDir);
    if plain {
        Ok(path)
    } else {
        Err(fault(
            RemoteErrorKind::Invalid,
            format!("{path:?} must be absolute, without .."),
        ))
    }
}

/// Sends a file or directory.
pub fn send(path: &Path, stream: &Stream) -> Finished {
    let mut output = io::BufWriter::with_capacity(32 * 1024, OutputWriter(stream));
    match pack(path, &mut output).and_then(|()| output.flush()) {
        Ok(()) => Finished::Copied,
        Err(error) => Finished::Failed(io_failed(format_args!("cannot read {path:?}"), &error)),
    }
}

/// Unpacks what the host sends into a directory.
pub fn receive(dir: &Path, stream: &Stream) -> Finished {
    let mut input = InputReader::new(stream);
    match unpack(dir, &mut input) {
        Ok(()) => {
            // Past the archive's end there may be padding; take it, so that the host is not left waiting.
            let _ = io::copy(&mut input, &mut io::sink());
            Finished::Copied
        }
        Err(error) => Finished::Failed(error),
    }
}

fn pack(path: &Path, output: &mut dyn Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(output);
    let name = path
        .file_name()
        .map_or_else(|| PathBuf::from("root"), PathBuf::from);
    let mut waiting = vec![(path.to_path_buf(), name)];
    while let Some((path, name)) = waiting.pop() {
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            // Gone since its directory was read; but what was asked for must be there.
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.components().count() > 1 => {
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut header = tar::Header::new_gnu();
        header.set_metadata(&metadata);
        if metadata.is_dir() {
            archive.append_data(&mut header, &name, io::empty())?;
            let mut children: Vec<_> = fs::read_dir(&path)?.collect::<io::Result<_>>()?;
            children.sort_by_key(|child| std::cmp::Reverse(child.file_name()));
            waiting.extend(
                children
                    .iter()
                    .map(|child| (child.path(), name.join(child.file_name()))),
            );
        } else if metadata.is_symlink() {
            header.set_size(0);
            archive.append_link(&mut header, &name, fs::read_link(&path)?)?;
        } else if metadata.is_file() {
            append_file(&mut archive, &mut header, &path, &name, metadata.size())?;
        }
    }
    archive.finish()
}

fn append_file(
    archive: &mut tar::Builder<&mut dyn Write>,
    header: &mut tar::Header,
    path: &Path,
    name: &Path,
    size_bytes: u64,
) -> io::Result<()> {
    let mut file = File::open(path)?;
    if size_bytes == 0 {
        let mut content = Vec::new();
        file.take(UNSIZED_MAX_BYTES).read_to_end(&mut content)?;
        header.set_size(content.len() as u64);
        return archive.append_data(header, name, content.as_slice());
    }
    let exact = (&mut file).chain(io::repeat(0)).take(size_bytes);
    archive.append_data(header, name, exact)
}

fn unpack(dir: &Path, input: &mut dyn Read) -> Result<()> {
    fs::create_dir_all(dir).map_err(|error| io_failed(format_args!("cannot make {dir:?}"), &error))?;
    let mut archive = tar::Archive::new(input);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_overwrite(true);
    let bad = |error: io::Error| failed("the tar stream is damaged", error);
    for entry in archive.entries().map_err(bad)? {
        let mut entry = entry.map_err(bad)?;
        let name = entry.path().map_err(bad)?.into_owned();
        let inside = entry
            .unpack_in(dir)
            .map_err(|error| failed(format_args!("cannot write {name:?}"), error))?;
        if !inside {
            return Err(fault(
                RemoteErrorKind::Invalid,
                format!("{name:?} leads out of {dir:?}"),
            ));
        }
    }
    Ok(())
}
