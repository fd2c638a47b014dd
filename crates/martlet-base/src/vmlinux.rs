//! The plain ELF kernel out of a distribution's compressed `bzImage`.
//!
//! QEMU starts an ELF kernel with a PVH entry point directly, which spares the guest unpacking itself: 0.7 s of a 2.9 s
//! boot under emulation. The kernel then always lies at the same guest address (no KASLR), so that its pages
//! deduplicate across machines. The payload's place and size come from the boot protocol's header (version
//! 2.08 and later); what is not recognised is left as it is, since QEMU boots a `bzImage` too.

use std::io::Read;

/// Larger than any distribution's kernel; smaller than what would hurt the host. A fuzzer has no time for it.
pub(crate) const VMLINUX_LIMIT_BYTES: usize = if cfg!(fuzzing) { 1 << 20 } else { 256 << 20 };
/// Of a 64-bit ELF file.
const FILE_HEADER_BYTES: usize = 64;
/// One entry of its program header table.
const SEGMENT_HEADER_BYTES: usize = 56;
/// The ELF note that names the PVH entry point: `Xen`, type 18.
const PVH_NOTE: &[u8] = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";
const PVH_NOTE_SHORT: &[u8] = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0";

/// The ELF kernel in `image`, if QEMU could start it.
pub(crate) fn extract(image: &[u8]) -> Option<Vec<u8>> {
    if image.get(0x202..0x206)? != b"HdrS" || u16::from_le_bytes(*image.get(0x206..)?.first_chunk()?) < 0x208
    {
        return None;
    }
    let field = |at: usize| {
        image
            .get(at..at + 4)?
            .first_chunk()
            .map(|bytes| u32::from_le_bytes(*bytes) as usize)
    };
    let start = (usize::from(*image.get(0x1f1)?) + 1) * 512 + field(0x248)?;
    let payload = image.get(start..start.checked_add(field(0x24c)?)?)?;
    let kernel = match payload {
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => lz4_legacy(blocks)?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => limited(zstd::Decoder::new(payload).ok()?)?,
        [0x1f, 0x8b, ..] => limited(flate2::read::GzDecoder::new(payload))?,
        _ => return None,
    };
    let pvh = [PVH_NOTE, PVH_NOTE_SHORT]
        .iter()
        .any(|note| contains(&kernel, note));
    (kernel.starts_with(b"\x7fELF") && pvh).then(|| trimmed(kernel))
}

/// Without the zeros that the file ends with: `.bss`, a quarter of all bytes, which the kernel clears by itself, and behind
/// it sections that nobody loads. What is not understood is left as it is.
fn trimmed(mut kernel: Vec<u8>) -> Vec<u8> {
    if let Some((header, file_bytes, end)) = last_segment(&kernel) {
        const FILE_SIZE: usize = 32;
        const SECTIONS: [std::ops::Range<usize>; 2] = [40..48, 58..64];
        kernel.truncate(end);
        kernel[header + FILE_SIZE..][..8].copy_from_slice(&(file_bytes as u64).to_le_bytes());
        SECTIONS.into_iter().for_each(|field| kernel[field].fill(0));
    }
    kernel
}

/// Of the loaded segment that lies last in the file: where its header is, its bytes up to the last that is not zero, and
/// where in the file they end.
fn last_segment(kernel: &[u8]) -> Option<(usize, usize, usize)> {
    const LOAD: u64 = 1;
    let number = |at: usize, bytes: usize| {
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(kernel.get(at..at.checked_add(bytes)?)?);
        Some(u64::from_le_bytes(word))
    };
    let (table, size, count) = (
        number(32, 8)? as usize,
        number(54, 2)? as usize,
        number(56, 2)? as usize,
    );
    let mut last = None;
    for header in (0..count).map(|index| table.saturating_add(index * size)) {
        if number(header, 4)? == LOAD {
            last = last.max(Some((number(header.checked_add(8)?, 8)? as usize, header)));
        }
    }
    let (offset, header) = last?;
    let file_bytes = number(header.checked_add(32)?, 8)? as usize;
    let segment = kernel.get(offset..offset.checked_add(file_bytes)?)?;
    let used = segment.iter().rposition(|byte| *byte != 0)? + 1;
    let end = offset + used;
    // Both headers are written to, so they must be in what stays.
    let in_what_stays = end >= FILE_HEADER_BYTES && header.checked_add(SEGMENT_HEADER_BYTES)? <= end;
    in_what_stays.then_some((header, used, end))
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    // Notes are aligned to 4 bytes, within the file as in memory.
    bytes
        .chunks_exact(4)
        .enumerate()
        .any(|(word, _)| bytes[word * 4..].starts_with(wanted))
}

/// Decodes what there is; the payload has the kernel's size appended, which decoders report as trailing garbage.
fn limited(reader: impl Read) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let end = reader.take(VMLINUX_LIMIT_BYTES as u64).read_to_end(&mut bytes);
    (end.is_ok() || !bytes.is_empty()).then_some(bytes)
}

/// The legacy LZ4 frame: blocks, each with its compressed size before it, each expanding to at most 8 MiB. After the
/// last block come the 4 bytes of the kernel's size, which are too few or too large to be a block.
fn lz4_legacy(mut input: &[u8]) -> Option<Vec<u8>> {
    let mut output = Vec::new();
    while let Some((size, rest)) = input.split_first_chunk() {
        let Some((block, rest)) = rest.split_at_checked(u32::from_le_bytes(*size) as usize) else {
            break;
        };
        lz4_block(block, &mut output)?;
        input = rest;
    }
    Some(output)
}

/// One LZ4 block: sequences of (literals, back reference), the last of literals alone.
fn lz4_block(mut input: &[u8], output: &mut Vec<u8>) -> Option<()> {
    let begin = output.len();
    loop {
        let (&token, rest) = input.split_first()?;
        input = rest;
        let literals = length(token >> 4, &mut input)?;
        let (copied, rest) = input.split_at_checked(literals)?;
        output.extend_from_slice(copied);
        input = rest;
        if input.is_empty() {
            return Some(());
        }
        let (offset, rest) = input.split_first_chunk()?;
        input = rest;
        let offset = usize::from(u16::from_le_bytes(*offset));
        let matched = length(token & 15, &mut input)?.checked_add(4)?;
        if offset == 0 || offset > output.len() - begin || output.len() + matched > VMLINUX_LIMIT_BYTES {
            return None;
        }
        // A reference may overlap what it produces, so the bytes are repeated in rounds of at most `offset`.
        let (source, mut left) = (output.len() - offset, matched);
        while left > 0 {
            let round = left.min(output.len() - source);
            output.extend_from_within(source..source + round);
            left -= round;
        }
    }
}

/// A length of 15 goes on in bytes, the last of which is not 255.
fn length(nibble: u8, input: &mut &[u8]) -> Option<usize> {
    let mut total = usize::from(nibble);
    if nibble == 15 {
        loop {
            let (&byte, rest) = input.split_first()?;
            *input = rest;
            total = total.checked_add(usize::from(byte))?;
            if byte != 255 {
                break;
            }
        }
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A boot header with `payload` right behind one setup sector.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn kernel() -> Vec<u8> {
        [b"\x7fELF", PVH_NOTE, &b"text".repeat(5000)].concat()
    }

    #[test]
    fn headers_behind_the_last_segment_are_left_alone() {
        // Its only segment ends with the file's header; the table of segments comes after it.
        let mut kernel = [b"\x7fELF", &[0; 60][..], PVH_NOTE, &[0; 80]].concat();
        let table = kernel.len() - 60;
        kernel[32] = table as u8;
        kernel[54] = 56;
        kernel[56] = 1;
        kernel[table] = 1;
        kernel[table + 32] = 64;
        let packed = zstd::encode_all(&kernel[..], 1).unwrap();
        assert_eq!(extract(&image(&packed)), Some(kernel));
    }

    /// Two segments in the wrong order, the later of which ends in zeros; then sections.
    #[test]
    fn zeros_at_the_end_go() {
        let mut kernel = [b"\x7fELF", &[0; 380][..], PVH_NOTE].concat();
        kernel[32] = 64;
        kernel[54] = 56;
        kernel[56] = 2;
        kernel[40..48].fill(7);
        kernel[60] = 9;
        for (header, offset, size) in [(64, 0x200_u64, 0x100_u64), (120, 0x180, 0x20)] {
            kernel[header] = 1;
            kernel[header + 8..header + 16].copy_from_slice(&offset.to_le_bytes());
            kernel[header + 32..header + 40].copy_from_slice(&size.to_le_bytes());
            kernel[header + 40..header + 48].copy_from_slice(&size.to_le_bytes());
        }
        kernel.resize(0x200, 1);
        kernel.extend([1, 2, 0, 3]);
        kernel.resize(0x300, 0);
        kernel.extend(b"sections");
        let zstd = zstd::encode_all(&kernel[..], 1).unwrap();
        let out = extract(&image(&zstd)).unwrap();
        assert_eq!((out.len(), &out[0x200..]), (0x204, &[1, 2, 0, 3][..]));
        assert_eq!(
            (out[64 + 32], out[64 + 33], out[64 + 41]),
            (4, 0, 1),
            "in the file, in memory"
        );
        assert!(out[40..48].iter().chain(&out[58..64]).all(|byte| *byte == 0));
        assert_eq!(out[120 + 32], 0x20);
        // Numbers that lead outside change nothing.
        for at in [39, 64 + 15, 64 + 39, 57] {
            let mut hostile = kernel.clone();
            hostile[at] = 0xff;
            assert!(trimmed(hostile.clone()) == hostile, "{at}");
        }
    }

    #[test]
    fn zstd_and_gzip_with_the_size_behind() {
        let mut zstd = zstd::encode_all(&kernel()[..], 1).unwrap();
        zstd.extend_from_slice(&(kernel().len() as u32).to_le_bytes());
        assert!(extract(&image(&zstd)) == Some(kernel()));
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gz, &kernel()).unwrap();
        let mut gz = gz.finish().unwrap();
        gz.extend_from_slice(&[1, 2, 3, 4]);
        assert!(extract(&image(&gz)) == Some(kernel()));
    }

    #[test]
    fn lz4_literals_matches_and_overlaps() {
        // "abcd" as literals, then 4 + 15 + 3 bytes from 4 back (overlapping), then "!" as the last literal.
        let block = [0x4f, b'a', b'b', b'c', b'd', 4, 0, 3, 0x10, b'!'];
        let mut output = Vec::new();
        lz4_block(&block, &mut output).unwrap();
        assert_eq!(output, b"abcdabcdabcdabcdabcdabcdab!");
        let mut frame = (block.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(&block);
        frame.extend_from_slice(&27_u32.to_le_bytes());
        assert_eq!(lz4_legacy(&frame).unwrap(), output);
    }

    #[test]
    fn hostile_lz4_ends_without_harm() {
        for block in [
            &[][..],
            &[0xf0],
            &[0x10],
            &[0x00, 0, 0],
            &[0x10, b'a', 2, 0],
            &[0x1f, b'a', 1, 0, 255],
        ] {
            assert_eq!(lz4_block(block, &mut Vec::new()), None, "{block:?}");
        }
        // 64 KiB that claim to expand without end stop at the limit.
        let mut bomb = vec![0x1f, b'a', 1, 0];
        bomb.extend(std::iter::repeat_n(255, 2 << 20));
        bomb.push(0);
        assert_eq!(lz4_block(&bomb, &mut Vec::new()), None);
    }

    #[test]
    fn what_is_not_a_kernel_is_left_alone() {
        assert_eq!(extract(b""), None);
        assert_eq!(extract(&image(b"\xfd7zXZ\0")), None);
        let mut short = image(&[]);
        short[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(extract(&short), None);
        let no_pvh = zstd::encode_all(&b"\x7fELF without the note"[..], 1).unwrap();
        assert_eq!(extract(&image(&no_pvh)), None);
    }
}
