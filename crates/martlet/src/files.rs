//! `cp`: tar streams in and out of a guest.
//!
//! Names follow `cp`: into a directory that exists (or is written with a `/` at its end) goes the source under its own
//! name, anything else names the copy itself. What comes from a guest is hostile: entries are unpacked only below the
//! destination, and a copy under a new name is unpacked beside it first and then moved into place.

use crate::client::Client;
use crate::failure::{Failure, Outcome};
use crate::place::Place;
use hyper::body::Bytes;
use martlet_api::{Problem, ProblemCode};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use tokio::sync::mpsc as async_mpsc;

/// Chunks between the connection and the thread that packs or unpacks.
const QUEUE: usize = 8;
const CHUNK_BYTES: usize = 64 << 10;
/// Enough of a tar stream to hold its first header, with long names before it.
const FIRST_HEADER_BYTES: usize = 16 << 10;

/// Copies.
pub fn copy(client: &Client, source: &str, destination: &str) -> Outcome {
    match (Place::parse(source)?, Place::parse(destination)?) {
        (Place::Here(from), Place::Guest { name, path }) => copy_in(client, &from, &name, &path),
        (Place::Stream, Place::Guest { name, path }) => upload(client, &name, &path, |out| {
            io::copy(&mut io::stdin().lock(), out).map(drop)
        }),
        (Place::Guest { name, path }, Place::Here(to)) => copy_out(client, &name, &path, &to),
        (Place::Guest { name, path }, Place::Stream) => {
            let mut out = io::stdout().lock();
            client.download(&files(&name, &path), |chunk| out.write_all(&chunk).map(|()| true))?;
            out.flush()
                .map_err(|error| Failure::io("cannot write to standard output", error))
        }
        (Place::Guest { .. }, Place::Guest { .. }) => Err(usage(
            "both ends are machines",
            format!("martlet cp {source} - | martlet cp - {destination}"),
        )),
        _ => Err(usage(
            "neither end is a machine",
            "martlet cp file NAME:/path, or martlet cp NAME:/path file".into(),
        )),
    }
}

fn usage(message: &str, remediation: String) -> Failure {
    Problem::new(ProblemCode::InvalidArgument, message)
        .remediation(remediation)
        .into()
}

/// The route of a path in a guest.
fn files(name: &str, path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    let encoded: String = path
        .bytes()
        .map(|b| {
            if plain(b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect();
    format!("/v1/machines/{name}/files?path={encoded}")
}

// ---- into a guest

fn copy_in(client: &Client, from: &Path, name: &str, path: &str) -> Outcome {
    let failed = |error| Failure::io(format!("cannot read {}", from.display()), error);
    fs::symlink_metadata(from).map_err(failed)?;
    let own_name = || -> Outcome<PathBuf> {
        match from.file_name() {
            Some(own) => Ok(own.into()),
            None => Ok(fs::canonicalize(from)
                .map_err(failed)?
                .file_name()
                .unwrap_or_default()
                .into()),
        }
    };
    let bare = path.trim_end_matches('/');
    let (dir, entry) = match bare.rsplit_once('/') {
        Some((parent, last)) if bare.len() == path.len() && !is_directory(client, name, bare)? => {
            (if parent.is_empty() { "/" } else { parent }, PathBuf::from(last))
        }
        _ => (if bare.is_empty() { "/" } else { bare }, own_name()?),
    };
    upload(client, name, dir, |out| {
        let mut archive = tar::Builder::new(out);
        pack(&mut archive, from, &entry)?;
        archive.into_inner().map(drop)
    })
}

/// Packs a file or a whole directory. What it packs belongs to root in the guest.
fn pack(archive: &mut tar::Builder<impl Write>, from: &Path, entry: &Path) -> io::Result<()> {
    let told = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", from.display()));
    let meta = fs::symlink_metadata(from).map_err(told)?;
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&meta);
    header.set_uid(0);
    header.set_gid(0);
    if meta.is_symlink() {
        header.set_size(0);
        archive.append_link(&mut header, entry, fs::read_link(from).map_err(told)?)
    } else if meta.is_dir() {
        header.set_size(0);
        archive.append_data(&mut header, entry, io::empty())?;
        let mut children: Vec<_> = fs::read_dir(from).map_err(told)?.collect::<Result<_, _>>()?;
        children.sort_by_key(fs::DirEntry::file_name);
        children
            .iter()
            .try_for_each(|child| pack(archive, &child.path(), &entry.join(child.file_name())))
    } else if meta.is_file() {
        // A file that grows or shrinks meanwhile must not shift what follows it.
        let content = File::open(from)
            .map_err(told)?
            .take(meta.len())
            .chain(io::repeat(0))
            .take(meta.len());
        archive.append_data(&mut header, entry, content)
    } else {
        eprintln!("left out {}: neither file, directory nor link", from.display());
        Ok(())
    }
}

fn upload(
    client: &Client,
    name: &str,
    dir: &str,
    pack: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send,
) -> Outcome {
    let (chunks, body) = async_mpsc::channel(QUEUE);
    std::thread::scope(|scope| {
        let packing = scope.spawn(move || {
            let mut out = io::BufWriter::with_capacity(CHUNK_BYTES, ChunkWriter(chunks.clone()));
            let packed = pack(&mut out).and_then(|()| out.flush());
            if packed.is_err() {
                // Cut short, the stream is no whole one: nothing is believed to have been copied.
                let _ = chunks.blocking_send(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            packed
        });
        let sent = client.upload(&files(name, dir), body);
        let packed = packing.join().expect("packing does not panic");
        match packed {
            // The daemon has stopped reading, and says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe && sent.is_err() => sent,
            Err(error) => Err(Failure::io("cannot read what is to be copied", error)),
            Ok(()) => sent,
        }
    })
}

struct ChunkWriter(async_mpsc::Sender<io::Result<Bytes>>);

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len())
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Looks at the first header only, however much is behind it.
fn is_directory(client: &Client, name: &str, path: &str) -> Outcome<bool> {
    let mut head = Vec::new();
    let received = client.download(&files(name, path), |chunk| {
        head.extend_from_slice(&chunk);
        Ok(head.len() < FIRST_HEADER_BYTES)
    });
    match received {
        Err(failure) if failure.problem.code == ProblemCode::NotFound => {
            // Is it the path that is not there, or the machine?
            client.get(&format!("/v1/machines/{name}")).map(|_| false)
        }
        Err(failure) => Err(failure),
        Ok(()) => {
            let mut archive = tar::Archive::new(&head[..]);
            let first = archive
                .entries()
                .ok()
                .and_then(|mut entries| entries.next()?.ok());
            Ok(first.is_some_and(|entry| entry.header().entry_type().is_dir()))
        }
    }
}

// ---- out of a guest

fn copy_out(client: &Client, name: &str, path: &str, to: &Path) -> Outcome {
    let into_dir = to.is_dir() || to.as_os_str().to_string_lossy().ends_with('/');
    if into_dir && !to.is_dir() {
        return Err(Failure::new(
            ProblemCode::NotFound,
            format!("there is no directory {}", to.display()),
        ));
    }
    let (chunks, received) = mpsc::sync_channel(QUEUE);
    std::thread::scope(|scope| {
        let unpacking = scope.spawn(move || {
            let source = ChunkReader {
                chunks: received,
                chunk: Bytes::new(),
            };
            if into_dir {
                unpack(source, to).map(drop)
            } else {
                unpack_as(source, to)
            }
        });
        let sent = client.download(&files(name, path), |chunk| Ok(chunks.send(Ok(chunk)).is_ok()));
        if sent.is_err() {
            let _ = chunks.send(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        drop(chunks);
        let unpacked = unpacking.join().expect("unpacking does not panic");
        sent?;
        unpacked.map_err(|error| Failure::io(format!("cannot write {}", to.display()), error))
    })
}

/// Unpacks below a directory that exists; answers with the first component of the first entry.
fn unpack(source: impl Read, dir: &Path) -> io::Result<PathBuf> {
    let mut archive = tar::Archive::new(source);
    let mut first = None;
    for entry in archive.entries()? {
        let mut entry = entry?;
        entry.set_preserve_permissions(false);
        entry.set_unpack_xattrs(false);
        let path = entry.path()?.into_owned();
        use tar::EntryType::*;
        if !matches!(
            entry.header().entry_type(),
            Regular | Continuous | GNUSparse | Directory | Symlink | Link
        ) {
            eprintln!("left out {}: neither file, directory nor link", path.display());
            continue;
        }
        if !entry.unpack_in(dir)? {
            let message = format!(
                "the machine sent an entry that leads out of the destination: {}",
                path.display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        if first.is_none() {
            let mut parts = path
                .components()
                .filter(|part| matches!(part, std::path::Component::Normal(_)));
            first = parts.next().map(|part| PathBuf::from(part.as_os_str()));
        }
    }
    first.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the machine sent nothing"))
}

/// Unpacks under another name.
fn unpack_as(source: impl Read, to: &Path) -> io::Result<()> {
    let parent = to
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let scratch = Scratch::below(parent)?;
    let first = unpack(source, &scratch.0)?;
    fs::rename(scratch.0.join(first), to)
}

/// A directory that goes away with its guard.
struct Scratch(PathBuf);

impl Scratch {
    fn below(parent: &Path) -> io::Result<Self> {
        let path = parent.join(format!(".martlet-cp-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct ChunkReader {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.chunks.recv() {
                Ok(chunk) => self.chunk = chunk?,
                Err(_) => return Ok(0),
            }
        }
        let taken = self.chunk.split_to(buffer.len().min(self.chunk.len()));
        buffer[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o4755);
            // Set by hand: the builder itself refuses hostile paths.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            let data = if matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link) {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
                ""
            } else {
                content
            };
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn hostile_archives_do_not_leave_the_destination() {
        use tar::EntryType::{Link, Regular, Symlink};
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().to_str().unwrap();
        let secret = outside.path().join("secret");
        fs::write(&secret, "before").unwrap();
        let secret_text = secret.to_str().unwrap();
        let through = [("l", Symlink, target), ("l/planted", Regular, "x")];
        let cases: [&[(&str, tar::EntryType, &str)]; 3] = [
            &[("../planted", Regular, "x")],
            &through,
            &[("h", Link, secret_text), ("h", Regular, "after")],
        ];
        for case in cases {
            let dir = outside.path().join("dir");
            fs::create_dir(&dir).unwrap();
            let refused = unpack(&archive(case)[..], &dir);
            assert!(refused.is_err(), "{case:?}");
            assert!(!outside.path().join("planted").exists(), "{case:?}");
            assert_eq!(fs::read(&secret).unwrap(), b"before", "{case:?}");
            fs::remove_dir_all(&dir).unwrap();
        }
    }

    #[test]
    fn copies_under_another_name_replace_files_and_leave_no_scratch() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("b");
        fs::write(&to, "old").unwrap();
        unpack_as(&archive(&[("a", tar::EntryType::Regular, "new")])[..], &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"new");
        assert_eq!(
            fs::metadata(&to).unwrap().permissions().mode() & 0o7000,
            0,
            "set-uid does not come along"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(unpack_as(&archive(&[("a", tar::EntryType::Regular, "new")])[..700], &to).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
