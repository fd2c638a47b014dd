//! Disks to import: partitions lie inside the disk, a root is one of them, and a qcow2 header that is taken names no
//! other file.
#![no_main]
use libfuzzer_sys::{arbitrary, fuzz_target};
use martlet_base::fuzzing::{disk_partitions, disk_root, qcow2_is_whole};
use std::collections::BTreeSet;

const SECTORS: u16 = 64;

/// What disks are made of. The fuzzer would not come upon marks so far apart, nor upon checksums.
#[derive(Debug, arbitrary::Arbitrary)]
enum Piece<'a> {
    Bytes {
        at: u16,
        bytes: &'a [u8],
    },
    /// A boot sector, or one of a chain of logical partitions: kind, start and sectors of each entry.
    Table {
        sector: u8,
        entries: [(Kind, u16, u16); 4],
        far: Option<u32>,
    },
    /// A table with checksums that hold, as far as they are inside of the disk.
    Gpt {
        table: u8,
        count: u16,
        size: u16,
        entries: Vec<(bool, u8, u8)>,
        far: Option<u64>,
        damage: Option<u16>,
    },
    Ext4 {
        sector: u8,
        blocks: u32,
        shift: u8,
    },
    Qcow2 {
        version: u8,
        backing: u8,
        features: u8,
    },
}

#[derive(Debug, Clone, Copy, arbitrary::Arbitrary)]
enum Kind {
    None,
    Linux,
    Extended,
    Gpt,
    Other(u8),
}

fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
    let there = disk.get_mut(at..).unwrap_or_default();
    there.iter_mut().zip(bytes).for_each(|(old, new)| *old = *new);
}

fn put_gpt(disk: &mut [u8], table: u8, count: u16, size: u16, entries: &[(bool, u8, u8)], far: Option<u64>) {
    const ROOT: [u8; 4] = [0xe3, 0xbc, 0x68, 0x4f];
    let (count, size) = (u32::from(count % 1100), u32::from(size % 300) + 100);
    let table = usize::from(table) % usize::from(SECTORS);
    for (index, (is_root, first, sectors)) in entries.iter().enumerate() {
        let at = table * 512 + index * size as usize;
        put(disk, at, &ROOT);
        put(disk, at + 4, &[if *is_root { 0xcd } else { 1 }]);
        put(disk, at + 32, &u64::from(*first).to_le_bytes());
        let last = (u64::from(*first) + u64::from(*sectors)).saturating_sub(1);
        put(
            disk,
            at + 40,
            &far.filter(|_| index == 0).unwrap_or(last).to_le_bytes(),
        );
    }
    let summed = disk
        .get(table * 512..)
        .unwrap_or_default()
        .iter()
        .copied()
        .take((count * size) as usize)
        .collect::<Vec<u8>>();
    let mut header = [0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[12] = 92;
    header[72..80].copy_from_slice(&(table as u64).to_le_bytes());
    header[80..84].copy_from_slice(&count.to_le_bytes());
    header[84..88].copy_from_slice(&size.to_le_bytes());
    header[88..].copy_from_slice(&crc32fast::hash(&summed).to_le_bytes());
    let crc = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
    put(disk, 512, &header);
}

fn place(disk: &mut [u8], piece: &Piece<'_>) {
    match piece {
        Piece::Bytes { at, bytes } => put(disk, usize::from(*at), bytes),
        Piece::Table { sector, entries, far } => {
            let at = usize::from(*sector) * 512;
            for (index, (kind, start, sectors)) in entries.iter().enumerate() {
                let kind = match kind {
                    Kind::None => 0,
                    Kind::Linux => 0x83,
                    Kind::Extended => 0x05,
                    Kind::Gpt => 0xee,
                    Kind::Other(kind) => *kind,
                };
                let start = far
                    .filter(|_| index == 0)
                    .unwrap_or(u32::from(*start % (SECTORS + 1)));
                let entry = at + 446 + index * 16;
                put(disk, entry + 4, &[kind]);
                put(disk, entry + 8, &start.to_le_bytes());
                put(
                    disk,
                    entry + 12,
                    &u32::from(*sectors % (SECTORS + 1)).to_le_bytes(),
                );
            }
            put(disk, at + 510, &[0x55, 0xaa]);
        }
        Piece::Gpt {
            table,
            count,
            size,
            entries,
            far,
            damage,
        } => {
            put_gpt(disk, *table, *count, *size, entries, *far);
            if let Some(at) = damage.map(usize::from).filter(|at| *at < disk.len()) {
                disk[at] ^= 1;
            }
        }
        Piece::Ext4 {
            sector,
            blocks,
            shift,
        } => {
            let at = usize::from(*sector) * 512 + 1024;
            put(disk, at + 4, &blocks.to_le_bytes());
            put(disk, at + 0x18, &[*shift]);
            put(disk, at + 0x38, &[0x53, 0xef]);
        }
        Piece::Qcow2 {
            version,
            backing,
            features,
        } => {
            put(disk, 0, b"QFI\xfb\0\0\0");
            put(disk, 7, &[version % 5]);
            put(disk, 15, &[*backing]);
            put(disk, 79, &[*features]);
        }
    }
}

fuzz_target!(|input: (u16, Vec<Piece<'_>>)| {
    let (length, pieces) = input;
    // Most disks are whole; some end in the middle of something.
    let length = if length & 1 == 0 {
        SECTORS * 512
    } else {
        length % (SECTORS * 512)
    };
    let mut disk = vec![0; usize::from(length)];
    pieces.iter().for_each(|piece| place(&mut disk, piece));
    if qcow2_is_whole(&disk) {
        assert_eq!(disk[8..16], [0; 8], "a backing file");
        assert!(disk[7] == 2 || disk[79] & 4 == 0, "an external data file");
    }
    let Ok(partitions) = disk_partitions(&disk) else {
        return;
    };
    let mut devices = BTreeSet::from(["/dev/vda".to_owned()]);
    for (number, start_bytes, size_bytes) in partitions {
        assert!(
            start_bytes
                .checked_add(size_bytes)
                .is_some_and(|end| end <= disk.len() as u64)
        );
        assert!((1..=1024).contains(&number));
        assert!(devices.insert(format!("/dev/vda{number}")), "{number} twice");
    }
    if let Some(root) = disk_root(&disk) {
        assert!(devices.contains(&root), "{root}");
    }
});
