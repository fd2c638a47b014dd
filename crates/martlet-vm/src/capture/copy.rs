//! Copying pages out of another process.

use super::Mapping;
use martlet_image::{PAGE_SIZE, PageSet};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::io::{self, IoSliceMut};

/// Most ranges in one call (the kernel's limit).
const RANGES_MAX: usize = 1024;
/// A second thread pays from here on.
const TWO_THREADS_MIN_BYTES: usize = 16 << 20;

pub fn read_pages(pid: u32, mapping: &Mapping, pages: &PageSet, buffer: &mut [u8]) -> io::Result<()> {
    let ranges = remote_ranges(mapping, pages);
    let total_bytes: usize = ranges.iter().map(|r| r.len).sum();
    let Some(buffer) = buffer.get_mut(..total_bytes) else {
        return Err(io::Error::other("buffer too small"));
    };
    if total_bytes < TWO_THREADS_MIN_BYTES {
        return read_ranges(pid, &ranges, buffer);
    }
    let (first, first_bytes) = first_half(&ranges, total_bytes);
    let (left, right) = buffer.split_at_mut(first_bytes);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| read_ranges(pid, &ranges[..first], left));
        let mine = read_ranges(pid, &ranges[first..], right);
        other
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a copying thread panicked")))
            .and(mine)
    })
}

/// Addresses of the pages, in the order of the pages.
fn remote_ranges(mapping: &Mapping, pages: &PageSet) -> Vec<RemoteIoVec> {
    let mut segments = mapping.segments.clone();
    segments.sort_by_key(|s| s.first_page);
    let mut ranges = Vec::new();
    for range in pages.iter_ranges() {
        for segment in &segments {
            let from = range.start.max(segment.first_page);
            let to = range.end.min(segment.first_page + segment.page_count);
            if from < to {
                let base = segment.start as usize + (from - segment.first_page) as usize * PAGE_SIZE;
                ranges.push(RemoteIoVec {
                    base,
                    len: (to - from) as usize * PAGE_SIZE,
                });
            }
        }
    }
    ranges
}

/// How many of the ranges make up about half of the bytes, and how many bytes they are.
fn first_half(ranges: &[RemoteIoVec], total_bytes: usize) -> (usize, usize) {
    let mut bytes = 0;
    for (index, range) in ranges.iter().enumerate() {
        if bytes + range.len > total_bytes / 2 {
            return (index, bytes);
        }
        bytes += range.len;
    }
    (ranges.len(), bytes)
}

fn read_ranges(pid: u32, ranges: &[RemoteIoVec], mut buffer: &mut [u8]) -> io::Result<()> {
    let pid = Pid::from_raw(pid as i32);
    for batch in ranges.chunks(RANGES_MAX) {
        let mut batch = batch.to_vec();
        let mut remote: &mut [RemoteIoVec] = &mut batch;
        while !remote.is_empty() {
            let want: usize = remote.iter().map(|r| r.len).sum();
            let got = process_vm_readv(pid, &mut [IoSliceMut::new(&mut buffer[..want])], remote)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buffer = &mut buffer[got..];
            remote = skip(remote, got);
        }
    }
    Ok(())
}

/// What is left of the ranges after `bytes` of them: the kernel may stop short, at 2 GiB for one.
fn skip(mut remote: &mut [RemoteIoVec], mut bytes: usize) -> &mut [RemoteIoVec] {
    while let Some(first) = remote.first_mut() {
        if bytes < first.len {
            first.base += bytes;
            first.len -= bytes;
            break;
        }
        bytes -= first.len;
        remote = &mut remote[1..];
    }
    remote
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lens(ranges: &[RemoteIoVec]) -> Vec<(usize, usize)> {
        ranges.iter().map(|r| (r.base, r.len)).collect()
    }

    #[test]
    fn a_short_read_goes_on_where_it_stopped() {
        let mut ranges = [
            RemoteIoVec { base: 100, len: 10 },
            RemoteIoVec { base: 200, len: 10 },
        ];
        assert_eq!(lens(skip(&mut ranges, 0)), [(100, 10), (200, 10)]);
        assert_eq!(lens(skip(&mut ranges, 10)), [(200, 10)]);
        assert_eq!(lens(skip(&mut ranges, 14)), [(204, 6)]);
        assert_eq!(lens(skip(&mut ranges[1..], 6)), []);
    }

    #[test]
    fn halves_are_cut_between_ranges() {
        let ranges: Vec<_> = [4, 4, 8, 16]
            .iter()
            .map(|len| RemoteIoVec { base: 0, len: *len })
            .collect();
        assert_eq!(first_half(&ranges, 32), (3, 16));
        assert_eq!(first_half(&ranges[3..], 16), (0, 0));
        assert_eq!(first_half(&[], 0), (0, 0));
    }
}
