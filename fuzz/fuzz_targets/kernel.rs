//! Kernels out of `bzImage`s: what comes out is a bounded ELF file, however it was packed.
#![no_main]
use libfuzzer_sys::{arbitrary, fuzz_target};
use martlet_base::fuzzing::{KERNEL_BYTES_MAX, kernel};
use std::io::Write;

/// The fuzzer cannot guess what packs well, so contents are packed for it.
#[derive(Debug, arbitrary::Arbitrary)]
enum Payload<'a> {
    Bytes(&'a [u8]),
    Zstd(&'a [u8]),
    Gzip(&'a [u8]),
    /// Blocks, which need not be ones of LZ4.
    Lz4(Vec<&'a [u8]>),
    /// A kernel whose last byte is repeated 255 times so often.
    Lz4Bomb {
        rounds: u16,
    },
    /// An ELF file with these program headers (offset, size in the file) and the note that makes it a kernel.
    Elf {
        table: u16,
        segments: Vec<(u16, u16)>,
        content: &'a [u8],
    },
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("memory does not fail")
}

fn elf(table: u16, segments: &[(u16, u16)], content: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 64];
    file[..4].copy_from_slice(b"\x7fELF");
    file[32..34].copy_from_slice(&table.to_le_bytes());
    file[54] = 56;
    file[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
    file.extend_from_slice(b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0");
    file.extend_from_slice(content);
    for (index, (offset, size)) in segments.iter().enumerate() {
        let at = usize::from(table) + index * 56;
        file.resize(file.len().max(at + 56), 0);
        file[at] = 1;
        file[at + 8..at + 10].copy_from_slice(&offset.to_le_bytes());
        file[at + 32..at + 34].copy_from_slice(&size.to_le_bytes());
    }
    file
}

fuzz_target!(|payload: Payload<'_>| {
    let payload = match payload {
        Payload::Bytes(bytes) => bytes.to_vec(),
        Payload::Zstd(bytes) => zstd(bytes),
        Payload::Gzip(bytes) => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).expect("memory does not fail");
            encoder.finish().expect("memory does not fail")
        }
        Payload::Lz4(blocks) => {
            let sized = |block: &&[u8]| [&(block.len() as u32).to_le_bytes()[..], block].concat();
            [
                vec![0x02, 0x21, 0x4c, 0x18],
                blocks.iter().flat_map(sized).collect(),
            ]
            .concat()
        }
        Payload::Lz4Bomb { rounds } => {
            let literals = elf(0, &[], b"");
            let mut block = vec![0xff, u8::try_from(literals.len() - 15).expect("a small file")];
            block.extend_from_slice(&literals);
            block.extend_from_slice(&[1, 0]);
            block.extend(std::iter::repeat_n(255, usize::from(rounds)));
            block.extend_from_slice(&[0, 0x10, b'!']);
            let size = (block.len() as u32).to_le_bytes();
            [&[0x02, 0x21, 0x4c, 0x18], &size[..], &block].concat()
        }
        Payload::Elf {
            table,
            segments,
            content,
        } => zstd(&elf(table, &segments, content)),
    };
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend_from_slice(&payload);
    if let Some(kernel) = kernel(&image) {
        assert!(kernel.starts_with(b"\x7fELF"));
        assert!(kernel.len() <= KERNEL_BYTES_MAX + payload.len());
    }
    // Also under a header of its own.
    martlet_base::fuzzing::kernel(&payload);
});
