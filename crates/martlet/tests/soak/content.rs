//! What a guest holds: a file in its memory and one on its disk, each of a version. A version's bytes follow from the
//! seed, so that any guest's can be told to the byte, and no two files share a page.
//!
//! A guest writes a new version beside the old one and puts it in its place when it is whole; then it is synced. So a
//! write that was cut short has left the old version or the new one, and a power failure takes no disk's version back.

use crate::random::Random;
use std::collections::BTreeSet;

/// Counts writes of all guests; each is another.
pub type Version = u64;

/// Bytes of a file.
pub const FILE_BYTES: usize = 768 << 10;
/// Its first bytes say what it is.
const HEADER_BYTES: usize = 32;

/// Where a file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Memory,
    Disk,
}

/// What one guest holds; nothing yet is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Content {
    pub memory: Option<Version>,
    pub disk: Option<Version>,
}

/// All that a guest may hold as far as is known: one, unless something was cut short.
pub type Contents = BTreeSet<Content>;

/// What is left when the power goes.
pub fn without_memory(contents: &Contents) -> Contents {
    let cut = |content: &Content| Content {
        memory: None,
        ..*content
    };
    contents.iter().map(cut).collect()
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Memory => "/dev/shm/soak",
            Self::Disk => "/soak",
        }
    }

    /// A version's bytes.
    pub fn bytes(self, seed: u64, version: Version) -> Vec<u8> {
        let mut bytes = format!("{} {version} ", self.name()).into_bytes();
        bytes.resize(HEADER_BYTES, b'.');
        let mut random = Random::new(seed ^ (version << 1 | u64::from(self == Self::Disk)).rotate_left(40));
        while bytes.len() < FILE_BYTES {
            bytes.extend_from_slice(&random.next().to_le_bytes());
        }
        bytes
    }

    /// A line of shell that takes a version from standard input.
    pub fn write(self) -> String {
        let path = self.path();
        format!(
            "mkdir -p /dev/shm; touch /dev/shm/writing; \
             cat > {path}.new && [ $(wc -c < {path}.new) = {FILE_BYTES} ] && sync && mv {path}.new {path} && sync; \
             code=$?; rm -f /dev/shm/writing; exit $code"
        )
    }
}

/// A line of shell that prints what files there are, from the disk and not from the page cache. A write whose host was
/// lost comes to its end first.
pub fn read() -> String {
    let (memory, disk) = (Place::Memory.path(), Place::Disk.path());
    format!(
        "i=0; while [ -e /dev/shm/writing ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done; \
         echo 3 > /proc/sys/vm/drop_caches; for file in {memory} {disk}; do [ ! -e $file ] || cat $file; done"
    )
}

/// What `bytes`, printed by a guest, hold; or what is wrong with them.
pub fn check(seed: u64, bytes: &[u8]) -> Result<Content, String> {
    let mut found = Content {
        memory: None,
        disk: None,
    };
    for file in bytes.chunks(FILE_BYTES) {
        let header = String::from_utf8_lossy(&file[..file.len().min(HEADER_BYTES)]).into_owned();
        let mut words = header.split(' ');
        let (place, version) = match (words.next(), words.next().and_then(|word| word.parse().ok())) {
            (Some("memory"), Some(version)) => (Place::Memory, version),
            (Some("disk"), Some(version)) => (Place::Disk, version),
            _ => return Err(format!("a file begins with {header:?}")),
        };
        let right = place.bytes(seed, version);
        if file.len() != right.len() {
            return Err(format!(
                "{} of version {version} has {} bytes",
                place.name(),
                file.len()
            ));
        }
        let wrong: Vec<usize> = (0..file.len()).filter(|at| file[*at] != right[*at]).collect();
        if let Some(first) = wrong.first() {
            return Err(format!(
                "{} of version {version} has {} wrong bytes, the first at {first}",
                place.name(),
                wrong.len()
            ));
        }
        match place {
            Place::Memory => found.memory = Some(version),
            Place::Disk => found.disk = Some(version),
        }
    }
    Ok(found)
}
