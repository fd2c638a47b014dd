//! Snapshot records: what a saved state consists of, and under which conditions it runs again.
//!
//! ```text
//!  0  magic "MARTSNAP" 8 | 8  format version = 1  2 | 10  reserved 2 | 12  length 4 | 16  JSON
//! ```
//!
//! JSON, because there is one record for each snapshot, people read it when something is wrong, and it grows: fields
//! that a reader does not know are ignored, and fields that a writer did not know take their defaults. A change that
//! a reader must not ignore raises the version.

use crate::wire::{FormatError, Reader, head};
use crate::{BlobId, ManifestId, SnapshotId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const WHAT: &str = "snapshot record";
const MAGIC: &[u8; 8] = b"MARTSNAP";
const VERSION: u16 = 1;

/// Longest snapshot record.
pub const SNAPSHOT_BYTES_MAX: usize = 1 << 20;

/// A saved state: device state, memory, disks, and what they need to run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotRecord {
    /// Name of the machine or base it is of.
    pub machine: String,
    /// Id of that machine; empty for a base.
    pub machine_id: String,
    /// When it was taken.
    pub created_unix_ms: u64,
    /// The snapshot before it in the machine's history.
    pub parent: Option<SnapshotId>,
    /// A person's note.
    pub note: Option<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Guest memory; `None` for a base, which boots.
    pub memory: Option<MemoryRecord>,
    /// Disks, in the order of their drives.
    pub disks: Vec<DiskRecord>,
    /// How to boot it, for those that boot a kernel of ours.
    pub boot: Option<BootRecord>,
    /// The hardware that the device state belongs to.
    pub hardware: Option<Hardware>,
    /// Does an agent of ours run in the guest?
    pub agent: bool,
    /// How often this line has been resumed, forked or rolled back: part of a clone's identity.
    pub generation: u64,
    /// The guest's host name when it was taken.
    pub hostname: String,
    /// What runs as init, in the API's spelling: `systemd`, `command`, `firmware`.
    pub init: String,
    /// Where a base came from: `debian bookworm + redis-server`, `oci:…`, `raw`, `qcow2`.
    pub origin: String,
    /// Version of the guest kernel, if it boots one of ours.
    pub kernel_version: Option<String>,
    /// Default command.
    pub cmd: Vec<String>,
    /// Default environment, `NAME=value`.
    pub env: Vec<String>,
}

/// The memory of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRecord {
    /// Its pages.
    pub manifest: ManifestId,
    /// Size of the guest's memory.
    pub size_bytes: u64,
    /// Device and CPU state.
    pub descriptor: BlobId,
    /// Order in which the last run touched pages.
    #[serde(default)]
    pub trace: Option<BlobId>,
    /// The pages that a start touches first, a second time. (Not written when there is none: a record that was made before
    /// there were starters keeps its id.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starter: Option<StarterRecord>,
    /// Pages written as zero because the guest had reported them free.
    #[serde(default)]
    pub free_pages: u64,
}

/// What a starter consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StarterRecord {
    /// Which pages are where: a [`StarterIndex`](crate::StarterIndex).
    pub index: BlobId,
    /// Its chunks, in that order.
    pub chunks: Vec<BlobId>,
}

/// A disk of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Its pages.
    pub manifest: ManifestId,
    /// Size as the guest sees it.
    pub size_bytes: u64,
}

/// A kernel to boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    /// The kernel image.
    pub kernel: BlobId,
    /// The initramfs.
    pub initrd: BlobId,
    /// Kernel command line.
    pub cmdline: String,
}

/// The hardware a device state was saved on; a resume must have the same.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hardware {
    /// Versioned machine type: `pc-q35-7.2`.
    pub machine_type: String,
    /// Named CPU model.
    pub cpu_model: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// QEMU that saved it.
    pub qemu_version: String,
    /// The network card's address.
    pub nic_mac: String,
    /// The guest's IP address.
    pub address: String,
    /// What the engine needs beyond that, in its own terms.
    pub config: serde_json::Value,
}

impl SnapshotRecord {
    /// As bytes; [`SnapshotId::of`] them is the snapshot's id.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let malformed = |why| FormatError::Malformed { what: WHAT, why };
        let json = serde_json::to_vec(self).map_err(|_| malformed("it cannot be written as JSON"))?;
        if json.len() > SNAPSHOT_BYTES_MAX {
            return Err(malformed("it is longer than 1 MiB"));
        }
        let mut out = head(MAGIC, VERSION, [0; 2], json.len() as u32);
        out.extend_from_slice(&json);
        Ok(out)
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(WHAT, bytes);
        reader.magic(MAGIC, VERSION)?;
        reader.u16()?;
        let len = reader.u32()? as usize;
        if len > SNAPSHOT_BYTES_MAX {
            return Err(reader.malformed("it is longer than 1 MiB"));
        }
        let json = reader.take(len)?;
        let record = serde_json::from_slice(json)
            .map_err(|_| reader.malformed("its JSON is not a snapshot record"))?;
        reader.finish()?;
        Ok(record)
    }

    /// Every manifest it needs.
    pub fn manifests(&self) -> impl Iterator<Item = ManifestId> + '_ {
        let memory = self.memory.iter().map(|memory| memory.manifest);
        memory.chain(self.disks.iter().map(|disk| disk.manifest))
    }

    /// Every blob it needs.
    pub fn blobs(&self) -> impl Iterator<Item = BlobId> + '_ {
        let boot = self.boot.iter().flat_map(|boot| [boot.kernel, boot.initrd]);
        let chunks = self.starter().into_iter().flat_map(|starter| &starter.chunks);
        self.resume_blobs().chain(chunks.copied()).chain(boot)
    }

    /// Those that a resume needs before it can begin: what is booted by is only read when it is booted, and a starter's
    /// chunks come while it goes on.
    pub fn resume_blobs(&self) -> impl Iterator<Item = BlobId> + '_ {
        let memory = self.memory.iter();
        let blobs = memory.flat_map(|memory| [Some(memory.descriptor), memory.trace]);
        let index = self.starter().map(|starter| starter.index);
        blobs.flatten().chain(index)
    }

    /// Its starter, if it has one.
    pub fn starter(&self) -> Option<&StarterRecord> {
        self.memory.as_ref()?.starter.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_ignored_and_missing_ones_default() {
        let json = br#"{"machine":"web","of_the_future":[1,2],"agent":true}"#;
        let mut bytes = b"MARTSNAP\x01\0\0\0".to_vec();
        bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
        bytes.extend_from_slice(json);
        let record = SnapshotRecord::decode(&bytes).unwrap();
        let expected = SnapshotRecord {
            machine: "web".into(),
            agent: true,
            ..Default::default()
        };
        assert_eq!(record, expected);
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let mut bytes = SnapshotRecord::default().encode().unwrap();
        bytes[8] = 2;
        let error = SnapshotRecord::decode(&bytes).unwrap_err().to_string();
        assert_eq!(
            error,
            "snapshot record has format version 2, this program reads up to 1"
        );
    }
}
