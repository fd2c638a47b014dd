//! Disks to import: partitions lie inside the disk, a root is one of them, and a qcow2 header that is taken names no
//! other file.
#![no_main]
use libfuzzer_sys::fuzz_target;
use martlet_base::fuzzing::{disk_partitions, disk_root, qcow2_is_whole};
use std::collections::BTreeSet;

/// The fuzzer cannot guess a GPT's checksums, so they are made right, unless the first byte asks for wrong ones.
fn mend_gpt(disk: &mut [u8]) {
    let word = |disk: &[u8], at: usize| u32::from_le_bytes(disk[at..at + 4].try_into().expect("four bytes"));
    if disk.len() < 1024 || disk[512..520] != *b"EFI PART" {
        return;
    }
    let table = u64::from_le_bytes(disk[584..592].try_into().expect("eight bytes"));
    let size_bytes = u64::from(word(disk, 592)) * u64::from(word(disk, 596));
    let table = (usize::try_from(table).ok())
        .zip(usize::try_from(size_bytes).ok())
        .and_then(|(start, size)| disk.get(start.checked_mul(512)?..)?.get(..size));
    if let Some(table) = table {
        let crc = crc32fast::hash(table);
        disk[600..604].copy_from_slice(&crc.to_le_bytes());
    }
    disk[528..532].fill(0);
    if let Some(header) = disk[512..1024].get(..word(disk, 524) as usize) {
        let crc = crc32fast::hash(header);
        disk[528..532].copy_from_slice(&crc.to_le_bytes());
    }
}

fuzz_target!(|bytes: &[u8]| {
    if qcow2_is_whole(bytes) {
        assert_eq!(bytes[8..16], [0; 8], "a backing file");
        assert!(bytes[7] == 2 || bytes[79] & 4 == 0, "an external data file");
    }
    let mut disk = bytes.to_vec();
    if disk.first().is_some_and(|byte| byte & 1 == 0) {
        mend_gpt(&mut disk);
    }
    let Ok(partitions) = disk_partitions(&disk) else {
        return;
    };
    let mut devices = BTreeSet::from(["/dev/vda".to_owned()]);
    for (number, start_bytes, size_bytes) in partitions {
        assert!(start_bytes.checked_add(size_bytes).is_some_and(|end| end <= disk.len() as u64));
        assert!((1..=1024).contains(&number));
        assert!(devices.insert(format!("/dev/vda{number}")), "{number} twice");
    }
    if let Some(root) = disk_root(&disk) {
        assert!(devices.contains(&root), "{root}");
    }
});
