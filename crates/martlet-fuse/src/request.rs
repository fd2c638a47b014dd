//! One request to its answer. Every error is an error number; nothing here panics on what a request says.

use crate::device::Device;
use crate::proto::{self, Args, Body, Header, IN_HEADER_BYTES, Opcode, Short, WRITE_IN_BYTES, fattr, fopen};
use crate::readahead::Handle;
use crate::reads::Answered;
use crate::registry::{Content, Registry};
use martlet_pager::{MemoryImage, Neighbours, SourceError, VmKey};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

type Errno = i32;

impl From<Short> for Failed {
    fn from(_: Short) -> Self {
        Failed(libc::EINVAL)
    }
}

/// The error number to answer with.
struct Failed(Errno);

impl From<martlet_disk::DiskError> for Failed {
    fn from(error: martlet_disk::DiskError) -> Self {
        if !matches!(error, martlet_disk::DiskError::OutOfRange { .. }) {
            tracing::warn!(%error, "a disk request failed");
        }
        Failed(error.errno())
    }
}

impl From<SourceError> for Failed {
    fn from(_: SourceError) -> Self {
        Failed(libc::EIO) // the pager said why
    }
}

/// What is answered.
enum Answer {
    /// A structure, or nothing but success.
    Body(Body),
    /// The first bytes of the worker's data buffer, and what is for afterwards.
    Data(usize, Option<Neighbours>),
    /// Not even success: the kernel expects none.
    Silence,
}

const DONE: Result<Answer, Failed> = Ok(Answer::Body(Body(Vec::new())));

/// One thread's way through requests.
pub(crate) struct Worker {
    pub(crate) device: Arc<Device>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) stopping: Arc<AtomicBool>,
    pub(crate) data: Vec<u8>, // what reads are answered from
}

impl Worker {
    /// Answers the request in `message`.
    pub(crate) fn handle(&mut self, message: &[u8]) {
        let Ok((header, args)) = proto::parse(message) else {
            tracing::warn!(bytes = message.len(), "not a request");
            return;
        };
        let device = self.device.clone();
        // Whoever waits for an answer cannot even be killed, so there is one also to a request that breaks its server.
        let dispatched = catch_unwind(AssertUnwindSafe(|| self.dispatch(header, args, message)));
        let answer = dispatched.unwrap_or_else(|_| {
            tracing::error!(
                opcode = header.opcode,
                node = header.node,
                "a request broke its server"
            );
            Err(Failed(libc::EIO))
        });
        match answer {
            Ok(Answer::Body(body)) => device.answer(header.unique, Ok([&body.0, &[]])),
            Ok(Answer::Data(count, neighbours)) => {
                device.answer(header.unique, Ok([&self.data[..count], &[]]));
                // A favour that breaks is no reason to answer no more.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(neighbours)));
            }
            Ok(Answer::Silence) => {}
            // A read that was given up for the stop is not one that failed: the successor is asked again.
            Err(Failed(libc::EIO)) if self.stopping.load(Ordering::SeqCst) => {}
            Err(Failed(errno)) => device.answer(header.unique, Err(errno)),
        }
    }

    fn dispatch(&mut self, header: Header, mut args: Args<'_>, message: &[u8]) -> Result<Answer, Failed> {
        use Opcode::*;
        let Some(opcode) = Opcode::of(header.opcode) else {
            return Err(Failed(libc::ENOSYS));
        };
        match opcode {
            Lookup => {
                let found = self
                    .registry
                    .lookup(header.node, args.name()?)
                    .ok_or(Failed(libc::ENOENT))?;
                Ok(Answer::Body(found.entry_out()))
            }
            Forget => {
                self.registry.forget(header.node, args.u64()?);
                Ok(Answer::Silence)
            }
            BatchForget => {
                let (count, _) = (args.u32()?, args.u32()?);
                for _ in 0..count {
                    let (node, references) = (args.u64()?, args.u64()?);
                    self.registry.forget(node, references);
                }
                Ok(Answer::Silence)
            }
            Interrupt => Ok(Answer::Silence), // requests are answered soon anyhow
            GetAttr => Ok(Answer::Body(
                self.registry
                    .attr(header.node)
                    .ok_or(Failed(libc::ESTALE))?
                    .attr_out(),
            )),
            SetAttr => self.set_attr(header, args),
            Open => self.open(header, args),
            Release | ReleaseDir | Destroy | FSyncDir | Flush => DONE,
            OpenDir => {
                self.registry.list(header.node).ok_or(Failed(libc::ENOTDIR))?;
                Ok(Answer::Body(Body::default().u64(0).u32(0).u32(0)))
            }
            ReadDir => self.read_dir(header, args),
            Read => self.read(header, args),
            Write => self.write(header, args, message),
            FSync => match self.content(header.node)? {
                Content::Disk(disk) => disk.flush().map_err(Failed::from).and(DONE),
                Content::Memory(_) => DONE,
            },
            FAllocate => self.allocate(header, args),
            LSeek => self.seek(header, args),
            StatFs => Ok(Answer::Body(
                Body::default()
                    .zeros(5 * 8)
                    .u32(4096)
                    .u32(255)
                    .u32(4096)
                    .u32(0)
                    .zeros(6 * 4),
            )),
            Init => Err(Failed(libc::EPROTO)), // the server answered the first before there were workers
            Create | Unlink | Rename | Rename2 | MkDir | MkNod | Link | SymLink | RmDir => {
                Err(Failed(libc::EPERM))
            }
        }
    }

    fn content(&self, node: u64) -> Result<Content, Failed> {
        self.registry.content(node).ok_or(Failed(libc::ESTALE))
    }

    /// Memory pages are kept in the page cache, where all VMs of the image share them.
    /// Disks bypass it: their blocks are in the page cache already as the layer's file, and guests cache themselves.
    fn open(&self, header: Header, mut args: Args<'_>) -> Result<Answer, Failed> {
        let only_to_read = args.u32()? as i32 & libc::O_ACCMODE == libc::O_RDONLY;
        let simple = Handle(header.pid.into());
        let (flags, handle) = match (self.content(header.node)?, self.registry.readahead()) {
            (Content::Memory(image), Some(readahead)) => {
                let is_zero = image.manifest().stored_count() == 0;
                (
                    fopen::KEEP_CACHE,
                    readahead.opens(header.pid, only_to_read, is_zero),
                )
            }
            (Content::Memory(_), None) => (fopen::KEEP_CACHE, simple),
            (Content::Disk(_), _) => (fopen::DIRECT_IO | fopen::PARALLEL_DIRECT_WRITES, simple),
        };
        Ok(Answer::Body(
            Body::default().u64(handle.0).u32(flags | fopen::NOFLUSH).u32(0),
        ))
    }

    fn read(&mut self, header: Header, mut args: Args<'_>) -> Result<Answer, Failed> {
        let (handle, offset, size) = (Handle(args.u64()?), args.u64()?, args.u32()?);
        let content = self.content(header.node)?;
        let left = content.size_bytes().saturating_sub(offset);
        let count = u64::from(size).min(left) as usize;
        let buf = self.data.get_mut(..count).ok_or(Failed(libc::EINVAL))?;
        let begun = Instant::now();
        if let Some(reads) = self.registry.reads() {
            reads.begun();
        }
        let neighbours = match &content {
            _ if count == 0 => None, // at the end or behind it, where a disk would refuse even nothing
            Content::Memory(image) => {
                if let Some(readahead) = self.registry.readahead() {
                    readahead.is_read(handle);
                }
                let neighbours = image.read(offset, buf)?;
                match handle.is_in_order(size) {
                    true => {
                        neighbours.let_be();
                        None
                    }
                    false => Some(neighbours),
                }
            }
            Content::Disk(disk) => disk.read_at(offset, buf).map(|()| None)?,
        };
        self.tell(header.pid, &content, offset, count as u64, begun);
        Ok(Answer::Data(count, neighbours))
    }

    /// Tells of a read, if anybody wants to know and knows whose it is.
    fn tell(&self, tid: u32, content: &Content, offset: u64, count: u64, begun: Instant) {
        let Some(reads) = self.registry.reads().filter(|_| count > 0) else {
            return;
        };
        let took = begun.elapsed();
        let owner = self.registry.owner_of_reader(tid, || self.owner_of_thread(tid));
        if let Some(vm) = owner {
            reads.answered(Answered {
                vm,
                is_disk: matches!(content, Content::Disk(_)),
                bytes: offset..offset + count,
                took,
            });
        }
    }

    fn write(&self, header: Header, mut args: Args<'_>, message: &[u8]) -> Result<Answer, Failed> {
        let (_handle, offset, size) = (args.u64()?, args.u64()?, args.u32()?);
        let data = message
            .get(IN_HEADER_BYTES + WRITE_IN_BYTES..)
            .unwrap_or_default();
        let data = data.get(..size as usize).ok_or(Failed(libc::EINVAL))?;
        let Content::Disk(disk) = self.content(header.node)? else {
            return Err(Failed(libc::EROFS));
        };
        let room = disk.size_bytes().saturating_sub(offset);
        if room == 0 && !data.is_empty() {
            return Err(Failed(libc::ENOSPC));
        }
        let data = &data[..data.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        disk.write_at(offset, data)?;
        Ok(Answer::Body(Body::default().u32(data.len() as u32).u32(0)))
    }

    /// Holes in a disk are discards. In a memory image they are a guest's report of pages that it does not use: noted,
    /// and answered as done so that QEMU drops its private copies, but the image does not change.
    fn allocate(&self, header: Header, mut args: Args<'_>) -> Result<Answer, Failed> {
        let (handle, offset, length, mode) = (args.u64()?, args.u64()?, args.u64()?, args.u32()? as i32);
        let content = self.content(header.node)?;
        let size_bytes = content.size_bytes();
        let end = offset.checked_add(length).ok_or(Failed(libc::EFBIG))?;
        let range = offset.min(size_bytes)..end.min(size_bytes);
        let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let zero = mode & !libc::FALLOC_FL_KEEP_SIZE == libc::FALLOC_FL_ZERO_RANGE;
        match content {
            Content::Memory(image) if mode == hole => self.note_free(&image, handle, header.pid, range),
            Content::Memory(_) => return Err(Failed(libc::EOPNOTSUPP)),
            Content::Disk(disk) if mode == hole || zero => disk.discard(range)?,
            Content::Disk(_) if mode & !libc::FALLOC_FL_KEEP_SIZE != 0 => {
                return Err(Failed(libc::EOPNOTSUPP));
            }
            Content::Disk(_) if end > size_bytes => return Err(Failed(libc::EFBIG)),
            Content::Disk(_) => {} // room is found when it is written
        }
        DONE
    }

    fn note_free(&self, image: &MemoryImage, handle: u64, pid: u32, range: std::ops::Range<u64>) {
        let opener = Handle(handle).pid();
        match self.registry.owner(opener).or_else(|| self.owner_of_thread(pid)) {
            Some(vm) => image.note_free(vm, range),
            None => tracing::debug!(opener, pid, "free pages reported by nobody known"),
        }
    }

    /// Requests name the thread; owners are processes.
    fn owner_of_thread(&self, tid: u32) -> Option<VmKey> {
        self.registry.owner(tid).or_else(|| {
            let status = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
            self.registry.owner(line.trim().parse().ok()?)
        })
    }

    fn seek(&self, header: Header, mut args: Args<'_>) -> Result<Answer, Failed> {
        let (_handle, offset, whence) = (args.u64()?, args.u64()?, args.u32()? as i32);
        let content = self.content(header.node)?;
        let size_bytes = content.size_bytes();
        if offset >= size_bytes {
            return Err(Failed(libc::ENXIO));
        }
        let found = match (whence, content) {
            (libc::SEEK_DATA, Content::Disk(disk)) => disk.next_data(offset).ok_or(Failed(libc::ENXIO))?,
            (libc::SEEK_HOLE, Content::Disk(disk)) => disk.next_hole(offset),
            (libc::SEEK_DATA, Content::Memory(_)) => offset,
            (libc::SEEK_HOLE, Content::Memory(_)) => size_bytes,
            _ => return Err(Failed(libc::EINVAL)),
        };
        Ok(Answer::Body(Body::default().u64(found)))
    }

    /// Sizes and owners are fixed; times do not count.
    fn set_attr(&self, header: Header, mut args: Args<'_>) -> Result<Answer, Failed> {
        let (valid, _, _handle, size) = (args.u32()?, args.u32()?, args.u64()?, args.u64()?);
        let attr = self.registry.attr(header.node).ok_or(Failed(libc::ESTALE))?;
        let resized = valid & fattr::SIZE != 0 && size != attr.size_bytes;
        if resized || valid & (fattr::MODE | fattr::UID | fattr::GID) != 0 {
            return Err(Failed(libc::EPERM));
        }
        Ok(Answer::Body(attr.attr_out()))
    }

    fn read_dir(&self, header: Header, mut args: Args<'_>) -> Result<Answer, Failed> {
        let (_handle, offset, size) = (args.u64()?, args.u64()?, args.u32()? as usize);
        let listed = self.registry.list(header.node).ok_or(Failed(libc::ENOTDIR))?;
        let dots = [
            (header.node, ".".to_owned(), true),
            (crate::registry::ROOT, "..".to_owned(), true),
        ];
        let mut body = Body::default();
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, (ino, name, is_dir)) in dots.into_iter().chain(listed).enumerate().skip(skip) {
            let padded = (24 + name.len()).next_multiple_of(8);
            if body.0.len() + padded > size {
                break;
            }
            let kind = if is_dir { libc::DT_DIR } else { libc::DT_REG };
            body = body
                .u64(ino)
                .u64(index as u64 + 1)
                .u32(name.len() as u32)
                .u32(u32::from(kind));
            body.0.extend_from_slice(name.as_bytes());
            let rest = body.0.len().next_multiple_of(8) - body.0.len();
            body = body.zeros(rest);
        }
        Ok(Answer::Body(body))
    }
}
