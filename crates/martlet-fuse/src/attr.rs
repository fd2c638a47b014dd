//! What the kernel is told of files and directories.

use crate::proto::Body;
use crate::registry::Placement;

/// Files never change their size or owner, so their attributes may be kept; names are asked for each time.
const ATTR_VALID_S: u64 = 3600;
const NAME_VALID_S: u64 = 0;

/// `fuse_attr`, as far as it says something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attr {
    pub(crate) ino: u64,
    pub(crate) size_bytes: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Attr {
    pub(crate) fn directory(ino: u64) -> Self {
        Self {
            ino,
            size_bytes: 0,
            mode: libc::S_IFDIR | 0o755,
            uid: 0,
            gid: 0,
        }
    }
    pub(crate) fn file(ino: u64, size_bytes: u64, placement: &Placement) -> Self {
        let mode = libc::S_IFREG | placement.mode & 0o777;
        Self {
            ino,
            size_bytes,
            mode,
            uid: placement.uid,
            gid: placement.gid,
        }
    }

    fn put(&self, body: Body) -> Body {
        let links = if self.mode & libc::S_IFMT == libc::S_IFDIR {
            2
        } else {
            1
        };
        let body = body
            .u64(self.ino)
            .u64(self.size_bytes)
            .u64(self.size_bytes.div_ceil(512));
        let body = body.zeros(3 * 8 + 3 * 4); // times
        body.u32(self.mode)
            .u32(links)
            .u32(self.uid)
            .u32(self.gid)
            .u32(0)
            .u32(4096)
            .u32(0)
    }
    /// `fuse_attr_out`.
    pub(crate) fn attr_out(&self) -> Body {
        self.put(Body::default().u64(ATTR_VALID_S).u32(0).u32(0))
    }
    /// `fuse_entry_out`.
    pub(crate) fn entry_out(&self) -> Body {
        self.put(
            Body::default()
                .u64(self.ino)
                .u64(0)
                .u64(NAME_VALID_S)
                .u64(ATTR_VALID_S)
                .u32(0)
                .u32(0),
        )
    }
}
