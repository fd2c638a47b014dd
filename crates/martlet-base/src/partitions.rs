//! Which partition of a disk holds its root: MBR (with logical partitions) and GPT, numbered as Linux numbers them.
//!
//! The table comes with the disk, so it is believed in nothing: every number is bounded by the disk's size, and a GPT
//! whose checksums are wrong is refused here rather than not found by the guest's kernel.

use std::fs::File;
use std::os::unix::fs::FileExt;

const SECTOR_BYTES: u64 = 512;
/// Of GPT entries; tools write 128.
const ENTRIES_MAX: u32 = 1024;
/// Numbers that Linux gives on one disk, as far as anybody uses them.
const LOGICAL_MAX: u32 = 60;
/// "Linux root (x86-64)" of the discoverable partitions specification, as it lies on the disk.
const ROOT_X86_64: [u8; 16] = [
    0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09,
];

/// One partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Partition {
    /// `N` of `/dev/vdaN`.
    pub number: u32,
    pub start_bytes: u64,
    pub size_bytes: u64,
    /// Is it marked as a root file system of this architecture?
    pub is_root: bool,
}

/// The partitions of a disk; none when it has no table. An error is what is wrong with the table.
pub(crate) fn read(disk: &File, disk_bytes: u64) -> Result<Vec<Partition>, String> {
    let Some(sector) = sector(disk, 0)? else {
        return Ok(Vec::new());
    };
    if sector[510..] != [0x55, 0xaa] {
        return Ok(Vec::new());
    }
    let partitions = match entries(&sector).iter().any(|entry| entry.kind == 0xee) {
        true => gpt(disk)?,
        false => mbr(disk, &sector)?,
    };
    match partitions.iter().find(|p| {
        p.start_bytes
            .checked_add(p.size_bytes)
            .is_none_or(|end| end > disk_bytes)
    }) {
        None => Ok(partitions),
        Some(outside) => Err(format!(
            "its partition {} ends behind the disk's end: the disk is cut short",
            outside.number
        )),
    }
}

/// The sector of this number; none behind the end.
fn sector(disk: &File, number: u64) -> Result<Option<[u8; SECTOR_BYTES as usize]>, String> {
    let mut bytes = [0; SECTOR_BYTES as usize];
    let Some(at) = number.checked_mul(SECTOR_BYTES) else {
        return Ok(None);
    };
    match disk.read_exact_at(&mut bytes, at) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// An entry of an MBR, or of the chain of logical partitions.
struct Entry {
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn partition(&self, number: u32, from: u64) -> Partition {
        Partition {
            number,
            start_bytes: (from + self.start) * SECTOR_BYTES,
            size_bytes: self.sectors * SECTOR_BYTES,
            is_root: false,
        }
    }
}

fn entries(sector: &[u8; SECTOR_BYTES as usize]) -> [Entry; 4] {
    std::array::from_fn(|index| {
        let entry = &sector[446 + index * 16..][..16];
        Entry {
            kind: entry[4],
            start: u64::from(u32_at(entry, 8)),
            sectors: u64::from(u32_at(entry, 12)),
        }
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn mbr(disk: &File, first: &[u8; SECTOR_BYTES as usize]) -> Result<Vec<Partition>, String> {
    let mut found = Vec::new();
    let mut extended = None;
    for (number, entry) in (1..).zip(entries(first)) {
        match entry.kind {
            0 => {}
            _ if entry.is_extended() => extended = extended.or(Some(entry.start)),
            _ => found.push(entry.partition(number, 0)),
        }
    }
    // A chain of tables, each with one logical partition (relative to the table) and the next table (relative to the
    // first). A chain that bites its tail ends at the limit.
    let Some(begin) = extended else { return Ok(found) };
    let mut at = begin;
    for number in 5..5 + LOGICAL_MAX {
        let Some(table) = sector(disk, at)?.filter(|table| table[510..] == [0x55, 0xaa]) else {
            return Err("its chain of logical partitions is broken".into());
        };
        let [logical, next, ..] = entries(&table);
        if logical.kind != 0 {
            found.push(logical.partition(number, at));
        }
        if !next.is_extended() || next.start == 0 {
            return Ok(found);
        }
        at = begin + next.start;
    }
    Err(format!("it has more than {LOGICAL_MAX} logical partitions"))
}

fn gpt(disk: &File) -> Result<Vec<Partition>, String> {
    let damaged =
        || String::from("its partition table (GPT) is damaged: repair a copy with `sgdisk --verify`");
    let mut header = sector(disk, 1)?
        .filter(|header| header.starts_with(b"EFI PART"))
        .ok_or_else(damaged)?;
    let length = u32_at(&header, 12) as usize;
    let (promised, entries_promised) = (u32_at(&header, 16), u32_at(&header, 88));
    header[16..20].fill(0);
    if !(92..=header.len()).contains(&length) || checksum(&header[..length]) != promised {
        return Err(damaged());
    }
    let (table, count, size) = (u64_at(&header, 72), u32_at(&header, 80), u32_at(&header, 84));
    if count > ENTRIES_MAX || !(128..=4096).contains(&size) {
        return Err(damaged());
    }
    let mut bytes = vec![0; (count * size) as usize];
    let at = table.checked_mul(SECTOR_BYTES).ok_or_else(damaged)?;
    disk.read_exact_at(&mut bytes, at).map_err(|_| damaged())?;
    if checksum(&bytes) != entries_promised {
        return Err(damaged());
    }
    let entry = |(number, entry): (u32, &[u8])| {
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let size = last.checked_sub(first)?.checked_add(1)?;
        (entry[..16] != [0; 16]).then_some(Partition {
            number,
            start_bytes: first.checked_mul(SECTOR_BYTES)?,
            size_bytes: size.checked_mul(SECTOR_BYTES)?,
            is_root: entry[..16] == ROOT_X86_64,
        })
    };
    Ok((1..).zip(bytes.chunks(size as usize)).filter_map(entry).collect())
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK_BYTES: u64 = 8 << 20;

    fn disk(pieces: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(DISK_BYTES).unwrap();
        for (at, bytes) in pieces {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    fn table(entries: &[(u8, u32, u32)]) -> [u8; 512] {
        let mut sector = [0; 512];
        for (index, (kind, start, sectors)) in entries.iter().enumerate() {
            let at = 446 + index * 16;
            sector[at + 4] = *kind;
            sector[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
            sector[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        }
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }

    fn places(disk: &File) -> Vec<(u32, u64, u64)> {
        let partitions = read(disk, DISK_BYTES).unwrap();
        let sectors = |bytes: u64| bytes / SECTOR_BYTES;
        partitions
            .iter()
            .map(|p| (p.number, sectors(p.start_bytes), sectors(p.size_bytes)))
            .collect()
    }

    #[test]
    fn primary_and_logical_partitions_have_the_kernels_numbers() {
        let disk = disk(&[
            (
                0,
                &table(&[(0x83, 64, 100), (0, 0, 0), (0x05, 1000, 3000), (0x82, 200, 10)]),
            ),
            (1000 * 512, &table(&[(0x83, 2, 50), (0x05, 500, 60)])),
            (1500 * 512, &table(&[(0x83, 2, 58)])),
        ]);
        assert_eq!(
            places(&disk),
            [(1, 64, 100), (4, 200, 10), (5, 1002, 50), (6, 1502, 58)]
        );
        assert_eq!(read(&tempfile::tempfile().unwrap(), 0).unwrap(), []);
    }

    #[test]
    fn a_gpt_is_read_and_its_damage_seen() {
        let file = disk(&[]);
        let path = format!("/proc/{}/fd/{}", std::process::id(), {
            use std::os::fd::AsRawFd;
            file.as_raw_fd()
        });
        let mut sfdisk = std::process::Command::new("sfdisk")
            .args(["--quiet", "--no-tell-kernel", &path])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("sfdisk is installed (script/bootstrap)");
        let script = "label: gpt\nstart=2048, size=2048\nstart=4096, size=4096, type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709\n";
        std::io::Write::write_all(&mut sfdisk.stdin.take().unwrap(), script.as_bytes()).unwrap();
        assert!(sfdisk.wait().unwrap().success());
        assert_eq!(places(&file), [(1, 2048, 2048), (2, 4096, 4096)]);
        let roots: Vec<_> = read(&file, DISK_BYTES)
            .unwrap()
            .iter()
            .map(|p| p.is_root)
            .collect();
        assert_eq!(roots, [false, true]);
        assert!(read(&file, 3 << 20).unwrap_err().contains("cut short"));
        for at in [512 + 40, 1024 + 130] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            assert!(read(&file, DISK_BYTES).unwrap_err().contains("damaged"), "{at}");
            file.write_all_at(&byte, at).unwrap();
        }
    }

    #[test]
    fn hostile_tables_end_without_harm() {
        let tail = [
            (0, &table(&[(0x05, 100, 3000)])[..]),
            (100 * 512, &table(&[(0x83, 1, 1), (0x05, 0, 9)])[..]),
        ];
        assert_eq!(places(&disk(&tail)), [(5, 101, 1)]);
        let around = [
            (0, &table(&[(0x05, 100, 3000)])[..]),
            (100 * 512, &table(&[(0x83, 1, 1), (0x05, 5, 9)])[..]),
            (105 * 512, &table(&[(0x83, 1, 1), (0x05, 5, 9)])[..]),
        ];
        assert!(
            read(&disk(&around), DISK_BYTES)
                .unwrap_err()
                .contains("more than")
        );
        for sector in [
            table(&[(0x83, u32::MAX, u32::MAX)]),
            table(&[(0x05, u32::MAX, 1)]),
            table(&[(0xee, 1, u32::MAX)]),
        ] {
            read(&disk(&[(0, &sector)]), DISK_BYTES).unwrap_err();
        }
        let mut header = [0xff; 512];
        header[..8].copy_from_slice(b"EFI PART");
        let hostile = disk(&[(0, &table(&[(0xee, 1, u32::MAX)])), (512, &header)]);
        assert!(read(&hostile, DISK_BYTES).unwrap_err().contains("damaged"));
    }
}
