//! The wire: numbers of `linux/fuse.h` and bounded reading and writing of its structures.

/// Bytes before every request's arguments.
pub(crate) const IN_HEADER_BYTES: usize = 40;
/// Bytes of `fuse_write_in`, between header and data.
pub(crate) const WRITE_IN_BYTES: usize = 40;
/// Most bytes of one write, read or store.
pub(crate) const TRANSFER_BYTES_MAX: u32 = 1 << 20;
/// What a request's buffer must hold; the kernel refuses to fill a smaller one.
pub(crate) const REQUEST_BYTES_MAX: usize = TRANSFER_BYTES_MAX as usize + 4096;
/// The protocol spoken here.
pub(crate) const MAJOR: u32 = 7;
pub(crate) const MINOR: u32 = 41;
/// Oldest minor version whose structures are the ones used here (Linux 4.20).
pub(crate) const MINOR_MIN: u32 = 28;

macro_rules! opcodes {
    ($($name:ident = $number:literal),* $(,)?) => {
        /// The requests that are answered; the others get `ENOSYS`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Opcode { $($name),* }
        impl Opcode {
            pub(crate) fn of(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

opcodes! {
    Lookup = 1, Forget = 2, GetAttr = 3, SetAttr = 4, Open = 14, Read = 15, Write = 16, StatFs = 17, Release = 18, FSync = 20,
    Flush = 25, Init = 26, OpenDir = 27, ReadDir = 28, ReleaseDir = 29, FSyncDir = 30, Create = 35, Interrupt = 36,
    Destroy = 38, BatchForget = 42, FAllocate = 43, LSeek = 46, Unlink = 10, Rename = 12, MkDir = 9, MkNod = 8,
    Rename2 = 45, Link = 13, SymLink = 6, RmDir = 11,
}

/// Capabilities, `FUSE_*` without the prefix.
pub(crate) mod cap {
    pub(crate) const ASYNC_READ: u64 = 1;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const HANDLE_KILLPRIV: u64 = 1 << 19;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    pub(crate) const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub(crate) const HAS_RESEND: u64 = 1 << 39;
}

/// Flags of an open's answer.
pub(crate) mod fopen {
    pub(crate) const DIRECT_IO: u32 = 1;
    pub(crate) const KEEP_CACHE: u32 = 1 << 1;
    pub(crate) const NOFLUSH: u32 = 1 << 5;
    pub(crate) const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// Codes of unasked messages to the kernel.
pub(crate) mod notify {
    pub(crate) const INVAL_INODE: i32 = 2;
    pub(crate) const INVAL_ENTRY: i32 = 3;
    pub(crate) const STORE: i32 = 4;
    pub(crate) const RESEND: i32 = 7;
}

/// `FATTR_*`: what a setattr sets.
pub(crate) mod fattr {
    pub(crate) const MODE: u32 = 1;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
}

/// A request's arguments, read field by field; beyond the end is an error, never a panic.
pub(crate) struct Args<'a>(&'a [u8]);

/// The request is shorter than what it is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Short;

impl<'a> Args<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Short> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(Short)?;
        self.0 = tail;
        Ok(head)
    }
    pub(crate) fn u32(&mut self) -> Result<u32, Short> {
        Ok(u32::from_ne_bytes(self.bytes(4)?.try_into().expect("four bytes")))
    }
    pub(crate) fn u64(&mut self) -> Result<u64, Short> {
        Ok(u64::from_ne_bytes(
            self.bytes(8)?.try_into().expect("eight bytes"),
        ))
    }
    /// A name, which ends with a zero byte.
    pub(crate) fn name(&mut self) -> Result<&'a [u8], Short> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Short)?;
        let name = self.bytes(end)?;
        self.bytes(1)?;
        Ok(name)
    }
}

/// `fuse_in_header`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) opcode: u32,
    pub(crate) unique: u64,
    pub(crate) node: u64,
    pub(crate) pid: u32,
}

/// Splits a message into header and arguments.
pub(crate) fn parse(message: &[u8]) -> Result<(Header, Args<'_>), Short> {
    let mut args = Args(message);
    let length = args.u32()? as usize;
    let opcode = args.u32()?;
    let (unique, node) = (args.u64()?, args.u64()?);
    let (_uid, _gid, pid) = (args.u32()?, args.u32()?, args.u32()?);
    let _extensions = args.u32()?;
    if length != message.len() {
        return Err(Short);
    }
    Ok((
        Header {
            opcode,
            unique,
            node,
            pid,
        },
        args,
    ))
}

/// An answer's structure, written field by field.
#[derive(Debug, Default)]
pub(crate) struct Body(pub(crate) Vec<u8>);

impl Body {
    pub(crate) fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }
    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }
    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }
    pub(crate) fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The kernel is trusted, but a wrong descriptor is not: no bytes whatever make a panic.
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), fit in any::<bool>()) {
            let mut bytes = bytes;
            if fit && bytes.len() >= 4 {
                let length = bytes.len() as u32;
                bytes[..4].copy_from_slice(&length.to_ne_bytes());
            }
            match parse(&bytes) {
                Ok((_, mut args)) => {
                    prop_assert!(fit && bytes.len() >= IN_HEADER_BYTES || bytes[..4] == (bytes.len() as u32).to_ne_bytes());
                    while args.u64().is_ok() {}
                    let _ = args.name();
                }
                Err(Short) => prop_assert!(bytes.len() < IN_HEADER_BYTES || !fit),
            }
        }
    }

    #[test]
    fn a_name_without_its_end_is_refused() {
        assert_eq!(Args(b"abc").name(), Err(Short));
        assert_eq!(Args(b"abc\0rest").name(), Ok(&b"abc"[..]));
    }
}
