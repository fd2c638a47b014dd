//! Layers of a disk: a map of any bytes is refused, or is a disk that reads, takes writes and keeps them.
#![no_main]
use bytes::Bytes;
use libfuzzer_sys::{arbitrary, fuzz_target};
use martlet_disk::CowDisk;
use martlet_image::{FrameId, Manifest};
use martlet_pager::{FrameSource, Pager, SourceError};
use std::fs;
use std::sync::Arc;

const DISK_BYTES: u64 = 16 * 4096;
/// A header, and two bits a block, twice.
const MAP_BYTES: usize = 3 * 4096;

/// A map. The fuzzer would not come upon one of the right length, nor upon its magic.
#[derive(Debug, arbitrary::Arbitrary)]
struct Map<'a> {
    has_magic: bool,
    header: &'a [u8],
    states: Vec<(u16, u8)>,
    cut: Option<u16>,
}

/// Every frame is missing: the image below is all zeros.
struct Nothing;

impl FrameSource for Nothing {
    fn frame(&self, id: &FrameId) -> Result<Bytes, SourceError> {
        Err(SourceError::Missing { frame: *id })
    }
}

fuzz_target!(|layers: [Map<'_>; 2]| {
    let dir = std::env::temp_dir().join(format!("layer-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("a directory for the disk");
    for (number, layer) in layers.iter().enumerate() {
        let mut map = vec![0; MAP_BYTES];
        map.iter_mut()
            .zip(layer.header)
            .for_each(|(byte, given)| *byte = *given);
        if layer.has_magic {
            map[..12].copy_from_slice(b"MARTLYR\n\x01\0\0\0");
            map[16..24].copy_from_slice(&DISK_BYTES.to_le_bytes());
        }
        for (at, byte) in &layer.states {
            map[usize::from(*at) % MAP_BYTES] = *byte;
        }
        map.truncate(layer.cut.map_or(MAP_BYTES, usize::from));
        fs::write(dir.join(format!("layer-0000000{number}.map")), map).expect("a map");
        let data = fs::File::create(dir.join(format!("layer-0000000{number}.data"))).expect("data");
        data.set_len(DISK_BYTES).expect("a hole");
    }
    let zeros = Arc::new(Manifest::zero(16));
    let pager = Pager::new(Arc::new(Nothing), 1 << 20);
    let Ok(disk) = CowDisk::open(&dir, pager, zeros, DISK_BYTES) else {
        return;
    };
    let mut bytes = vec![1; DISK_BYTES as usize];
    disk.read_at(0, &mut bytes).expect("all of it reads");
    assert!(bytes.iter().all(|byte| *byte == 0));
    disk.write_at(5000, b"kept").expect("it takes writes");
    disk.flush().expect("it keeps them");
    disk.read_at(5000, &mut bytes[..4]).expect("it reads");
    assert_eq!(&bytes[..4], b"kept");
});
