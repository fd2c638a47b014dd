//! A connection being served.
//!
//! ```text
//!   mount ──► start(.., None)            INIT is read and answered ──► serving ──► unmounted: threads end
//!   keeper ─► start(.., Some(negotiated)) RESEND is written        ──► serving ──► stop: threads end, the
//!                                                                                  connection stays as it is
//! ```

use crate::device::{Arrival, Device, StorePush};
use crate::notifier::Notifier;
use crate::proto::{self, Body, MAJOR, MINOR, MINOR_MIN, Opcode, REQUEST_BYTES_MAX, TRANSFER_BYTES_MAX, cap};
use crate::registry::{Content, Registry};
use crate::threads::Threads;
use martlet_pager::{PagePush, PushQueue};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Pieces that wait to be pushed: a frame each, but for those who read in order eight.
const PUSH_DEPTH: usize = 256;
/// Requests the kernel lets be under way without anybody waiting: readahead.
const BACKGROUND_MAX: u16 = 64;

/// What kernel and server agreed on when the file system was mounted. A server that adopts the connection needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated {
    /// The kernel's minor protocol version.
    pub minor: u32,
    /// Most bytes of one write.
    pub max_write_bytes: u32,
    /// Most bytes the kernel reads ahead, unless it is told otherwise with [`set_readahead`](crate::set_readahead).
    pub max_readahead_bytes: u32,
    /// Capabilities in use.
    pub flags: u64,
}

impl Negotiated {
    /// Does the kernel give a successor the requests that its predecessor left unanswered? (Linux 6.9.)
    pub fn has_resend(&self) -> bool {
        self.flags & cap::HAS_RESEND != 0
    }
}

/// Why a connection cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The descriptor failed.
    #[error("cannot {what} the FUSE connection: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
    /// It is not a fresh connection, or its kernel is too old.
    #[error("cannot serve the FUSE connection: {reason}")]
    Protocol {
        /// What is wrong.
        reason: String,
    },
    /// The file system was unmounted.
    #[error("the file system is not mounted any more")]
    Unmounted,
}

impl ServerError {
    /// No: mount again.
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// A connection being served.
pub struct Server {
    device: Arc<Device>,
    notifier: Arc<Notifier>,
    registry: Arc<Registry>,
    negotiated: Negotiated,
    push: Arc<PushQueue>,
    threads: Arc<Threads>,
}

impl Server {
    /// Serves the files of `registry` on `threads` threads, or more while those wait. `adopted` is `None` for a fresh mount, else what the
    /// connection's first server negotiated; then the registry must have all files under their numbers already,
    /// and what the predecessor left unanswered is answered now.
    pub fn start(
        fd: OwnedFd,
        registry: Arc<Registry>,
        adopted: Option<Negotiated>,
        threads: usize,
    ) -> Result<Self, ServerError> {
        let device = Device::new(fd);
        let negotiated = match adopted {
            Some(negotiated) => negotiated,
            None => negotiate(&device)?,
        };
        let push = PushQueue::start(PUSH_DEPTH);
        let notifier = Arc::new(Notifier::start(&device));
        registry.set_push(Some((push.clone(), notifier.clone())));
        let started = Threads::start(device.clone(), registry.clone(), threads);
        let threads = started.map_err(|source| ServerError::Io {
            what: "start a thread for",
            source,
        })?;
        let server = Self {
            notifier,
            device,
            registry,
            negotiated,
            push,
            threads,
        };
        if adopted.is_some() {
            server.resend();
        }
        Ok(server)
    }

    fn resend(&self) {
        if let Err(error) = self.device.resend() {
            tracing::warn!(%error, "requests that the former server left unanswered stay so: the kernel cannot send them again");
        }
    }

    /// What to hand to a successor.
    pub fn negotiated(&self) -> Negotiated {
        self.negotiated
    }
    /// The files.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }
    /// Is any thread still serving? Not after an unmount.
    pub fn is_serving(&self) -> bool {
        self.threads.is_serving()
    }

    /// Stores pages into the page cache of memory image `ino`. Memory images in the registry have their path already;
    /// this is for callers with pages of their own (multicast). `None` for what is no memory image.
    pub fn pusher(&self, ino: u64) -> Option<Arc<dyn PagePush>> {
        match self.registry.content(ino)? {
            Content::Memory(image) => {
                let size_bytes = image.size_bytes();
                Some(Arc::new(StorePush {
                    notifier: self.notifier.clone(),
                    ino,
                    size_bytes,
                }))
            }
            Content::Disk(_) => None,
        }
    }

    /// Drops what the kernel has cached of a file. Not on a thread that handles requests.
    pub fn invalidate(&self, ino: u64) -> io::Result<()> {
        self.notifier.invalidate(ino)
    }

    /// Waits until the file system is unmounted.
    pub fn join(self) {
        self.threads.join();
    }

    /// Ends serving; requests under way are answered first, unless they fail: those are left to a successor, who may adopt
    /// the connection, which stays.
    pub fn stop(self) {}
}

impl Drop for Server {
    fn drop(&mut self) {
        self.registry.set_push(None);
        self.push.close();
        self.threads.end();
    }
}

/// Reads and answers the first request of a fresh mount.
fn negotiate(device: &Device) -> Result<Negotiated, ServerError> {
    let protocol = |reason: &str| ServerError::Protocol {
        reason: reason.to_owned(),
    };
    let mut message = vec![0; REQUEST_BYTES_MAX];
    loop {
        let length = match device.read(&mut message) {
            Ok(Arrival::Request(length)) => length,
            Ok(Arrival::Nothing) => continue,
            Ok(Arrival::Unmounted) => return Err(ServerError::Unmounted),
            Err(source) => return Err(ServerError::Io { what: "read", source }),
        };
        let short = |_| protocol("its first request is cut off");
        let (header, mut args) = proto::parse(&message[..length]).map_err(short)?;
        if Opcode::of(header.opcode) != Some(Opcode::Init) {
            return Err(protocol("it was served before; say what was negotiated then"));
        }
        let (major, minor) = (args.u32().map_err(short)?, args.u32().map_err(short)?);
        if major > MAJOR {
            // The kernel asks again in the version named here.
            device.answer(
                header.unique,
                Ok([&Body::default().u32(MAJOR).u32(MINOR).zeros(56).0, &[]]),
            );
            continue;
        }
        if major < MAJOR || minor < MINOR_MIN {
            device.answer(header.unique, Err(libc::EPROTO));
            return Err(protocol(&format!(
                "the kernel speaks {major}.{minor}; {MAJOR}.{MINOR_MIN} is needed"
            )));
        }
        let (readahead, low) = (args.u32().map_err(short)?, args.u32().map_err(short)?);
        let high = if u64::from(low) & cap::INIT_EXT != 0 {
            args.u32().unwrap_or(0)
        } else {
            0
        };
        let offered = u64::from(low) | u64::from(high) << 32;
        let wanted = cap::ASYNC_READ
            | cap::BIG_WRITES
            | cap::ASYNC_DIO
            | cap::PARALLEL_DIROPS
            | cap::HANDLE_KILLPRIV
            | cap::MAX_PAGES
            | cap::INIT_EXT
            | cap::DIRECT_IO_ALLOW_MMAP
            | cap::HAS_RESEND;
        let negotiated = Negotiated {
            minor: minor.min(MINOR),
            max_write_bytes: TRANSFER_BYTES_MAX,
            max_readahead_bytes: readahead,
            flags: offered & wanted,
        };
        let pages_max = (TRANSFER_BYTES_MAX / 4096) as u16;
        let body = Body::default()
            .u32(MAJOR)
            .u32(MINOR)
            .u32(readahead)
            .u32(negotiated.flags as u32);
        let body = body
            .u16(BACKGROUND_MAX)
            .u16(BACKGROUND_MAX / 4 * 3)
            .u32(TRANSFER_BYTES_MAX)
            .u32(1);
        let body = body
            .u16(pages_max)
            .u16(0)
            .u32((negotiated.flags >> 32) as u32)
            .zeros(7 * 4);
        device.answer(header.unique, Ok([&body.0, &[]]));
        return Ok(negotiated);
    }
}
