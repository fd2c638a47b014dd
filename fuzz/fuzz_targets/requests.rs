//! FUSE requests over a disk and a memory image: answers are well formed and no longer than was asked for, and the disk
//! reads as it was written.
#![no_main]
use bytes::Bytes;
use libfuzzer_sys::{arbitrary, fuzz_target};
use martlet_disk::CowDisk;
use martlet_fuse::fuzzing::Requests;
use martlet_fuse::{Placement, Registry};
use martlet_image::{FrameId, Manifest};
use martlet_pager::{FrameSource, MemoryImage, Pager, SourceError};
use std::cell::RefCell;
use std::sync::Arc;

const DISK: u64 = 17;
const MEMORY: u64 = 16;
const DISK_BYTES: usize = 64 << 10;
const HOLE: u32 = 3; // FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
const KEEP_SIZE: u32 = 1;
const ZERO_RANGE: u32 = 0x10;

#[derive(Debug, arbitrary::Arbitrary)]
enum Request<'a> {
    Read {
        node: u8,
        offset: u32,
        size: u32,
    },
    Write {
        node: u8,
        offset: u32,
        data: &'a [u8],
    },
    Allocate {
        node: u8,
        offset: u32,
        length: u32,
        mode: u8,
    },
    ReadDir {
        node: u8,
        offset: u8,
        size: u16,
    },
    Other {
        opcode: u8,
        node: u8,
        arguments: &'a [u8],
    },
    Raw(&'a [u8]),
}

/// Every frame is missing: images here are all zeros.
struct Nothing;

impl FrameSource for Nothing {
    fn frame(&self, id: &FrameId) -> Result<Bytes, SourceError> {
        Err(SourceError::Missing { frame: *id })
    }
}

fn start() -> Requests {
    let dir = std::env::temp_dir().join(format!("requests-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory for the disk");
    let pager = Pager::new(Arc::new(Nothing), 1 << 20);
    let zeros = Arc::new(Manifest::zero(16));
    let disk = CowDisk::create(&dir, pager.clone(), zeros.clone(), DISK_BYTES as u64).expect("a disk");
    let registry = Registry::new();
    let at = |ino| Placement {
        ino: Some(ino),
        ..Placement::default()
    };
    registry
        .add_memory("m", MemoryImage::new(pager, zeros), at(MEMORY))
        .expect("a memory image");
    registry.add_disk("d", disk, at(DISK)).expect("a disk");
    Requests::new(registry)
}

thread_local! {
    static REQUESTS: RefCell<Requests> = RefCell::new(start());
}

fn message(opcode: u32, node: u64, arguments: &[u8]) -> Vec<u8> {
    let mut message = (40 + arguments.len() as u32).to_ne_bytes().to_vec();
    message.extend_from_slice(&opcode.to_ne_bytes());
    message.extend_from_slice(&7_u64.to_ne_bytes());
    message.extend_from_slice(&node.to_ne_bytes());
    message.extend_from_slice(&[0; 16]);
    message.extend_from_slice(arguments);
    message
}

fn node_of(byte: u8) -> u64 {
    [DISK, DISK, DISK, MEMORY, 1, 2, 3, u64::from(byte)][usize::from(byte % 8)]
}

fn allocate(node: u64, offset: u64, length: u64, mode: u32) -> Vec<u8> {
    let numbers = [0, offset, length, u64::from(mode)];
    message(43, node, &numbers.map(u64::to_ne_bytes).concat())
}

fn send(requests: &mut Requests, message: &[u8]) -> Option<Result<Vec<u8>, i32>> {
    let answer = requests.handle(message)?;
    let (length, rest) = answer.split_first_chunk().expect("a length");
    let (error, rest) = rest.split_first_chunk().expect("an error");
    let (unique, body) = rest.split_first_chunk::<8>().expect("a number");
    assert_eq!(u32::from_ne_bytes(*length) as usize, answer.len());
    assert_eq!(*unique, message[8..16], "another request is answered");
    match i32::from_ne_bytes(*error) {
        0 => Some(Ok(body.to_vec())),
        error => {
            assert!((-4095..0).contains(&error) && body.is_empty(), "{error}");
            Some(Err(-error))
        }
    }
}

/// Does it, and what is to be expected of the disk's content then.
fn run(requests: &mut Requests, request: &Request<'_>, disk: &mut [u8]) {
    match *request {
        Request::Read { node, offset, size } => {
            let arguments = [0, u64::from(offset), u64::from(size), 0, 0]
                .map(u64::to_ne_bytes)
                .concat();
            let answer = send(requests, &message(15, node_of(node), &arguments)).expect("reads are answered");
            let Ok(read) = answer else {
                // Files are read, up to the longest transfer and up to their end.
                assert!(!matches!(node_of(node), DISK | MEMORY), "{answer:?}");
                return;
            };
            assert!(read.len() <= size as usize);
            if node_of(node) == DISK {
                let from = (offset as usize).min(disk.len());
                let to = (from + size as usize).min(disk.len());
                assert!(read == disk[from..to], "the disk does not read as it was written");
            } else {
                assert!(read.iter().all(|byte| *byte == 0));
            }
        }
        Request::Write { node, offset, data } => {
            let numbers = [0, u64::from(offset), data.len() as u64, 0, 0]
                .map(u64::to_ne_bytes)
                .concat();
            let answer = send(requests, &message(16, node_of(node), &[&numbers, data].concat()));
            let Ok(written) = answer.expect("writes are answered") else {
                return;
            };
            assert_eq!(node_of(node), DISK, "only disks are written to");
            let count = u32::from_ne_bytes(written[..4].try_into().expect("four bytes")) as usize;
            assert!(count <= data.len());
            if count > 0 {
                disk[offset as usize..][..count].copy_from_slice(&data[..count]);
            }
        }
        Request::Allocate {
            node,
            offset,
            length,
            mode,
        } => {
            let mode = u32::from(mode);
            let (offset, length) = (u64::from(offset), u64::from(length));
            let answer = send(requests, &allocate(node_of(node), offset, length, mode));
            let zeroed = mode == HOLE || mode & !KEEP_SIZE == ZERO_RANGE;
            if answer.expect("it is answered").is_ok() && node_of(node) == DISK && zeroed {
                let end = disk.len().min((offset + length) as usize);
                disk[(offset as usize).min(end)..end].fill(0);
            }
        }
        Request::ReadDir { node, offset, size } => {
            let numbers = [0, u64::from(offset), u64::from(size), 0, 0]
                .map(u64::to_ne_bytes)
                .concat();
            if let Ok(listed) = send(requests, &message(28, node_of(node), &numbers)).expect("it is answered")
            {
                assert!(listed.len() <= usize::from(size));
            }
        }
        Request::Other {
            opcode,
            node,
            arguments,
        } => {
            // What changes the disk is known above, in all its fields.
            let changes = matches!(opcode, 16 | 43);
            let node = if changes { MEMORY } else { node_of(node) };
            send(requests, &message(u32::from(opcode), node, arguments));
        }
        Request::Raw(bytes) => {
            let opcode = bytes
                .get(4..8)
                .map(|opcode| u32::from_ne_bytes(opcode.try_into().expect("four bytes")));
            if !matches!(opcode, Some(16 | 43)) {
                let mut bytes = bytes.to_vec();
                let length = (bytes.len() as u32).to_ne_bytes();
                bytes.iter_mut().zip(length).for_each(|(old, new)| *old = new);
                if bytes.len() >= 40 {
                    send(requests, &bytes);
                } else {
                    assert_eq!(requests.handle(&bytes), None);
                }
            }
        }
    }
}

fuzz_target!(|sequence: Vec<Request<'_>>| {
    REQUESTS.with_borrow_mut(|requests| {
        let mut disk = vec![0; DISK_BYTES];
        // What the input before left behind.
        let emptied = send(requests, &allocate(DISK, 0, DISK_BYTES as u64, HOLE));
        assert_eq!(emptied, Some(Ok(Vec::new())));
        sequence
            .iter()
            .for_each(|request| run(requests, request, &mut disk));
        let whole = Request::Read {
            node: 0,
            offset: 0,
            size: DISK_BYTES as u32,
        };
        run(requests, &whole, &mut disk);
    });
});
