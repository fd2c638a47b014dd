//! Which pages of a mapping are private, or there at all: the `PAGEMAP_SCAN` call (Linux 6.7), or plain reads of the page
//! map before that.
#![allow(unsafe_code)] // the ioctl has no safe interface

use super::written::Seen;
use super::{Mapping, Segment};
use martlet_image::{PAGE_SIZE, PageSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// Protects what is found, and what is found must be under a userfaultfd's asynchronous protection.
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const REGIONS: usize = 4096;

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

pub fn private_pages(pid: u32, mapping: &Mapping) -> io::Result<PageSet> {
    pages(pid, mapping, Which::Private)
}

pub fn mapped_pages(pid: u32, mapping: &Mapping) -> io::Result<PageSet> {
    pages(pid, mapping, Which::Mapped)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// The process's own.
    Private,
    /// All that it has.
    Mapped,
}

fn pages(pid: u32, mapping: &Mapping, which: Which) -> io::Result<PageSet> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut pages = PageSet::new();
    for segment in &mapping.segments {
        match scan(&pagemap, segment, which, &mut pages) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                read(&pagemap, segment, which, &mut pages)?;
            }
            other => other?,
        }
    }
    Ok(pages)
}

/// What is private, and what of that was written since it was last protected; with `protect`, protects it again.
pub fn written_pages(pagemap: &File, segment: &Segment, protect: bool, seen: &mut Seen) -> io::Result<()> {
    let flags = match protect {
        true => PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
        false => PM_SCAN_CHECK_WPASYNC,
    };
    scan_regions(
        pagemap,
        segment,
        Which::Private,
        flags,
        PAGE_IS_WRITTEN,
        |pages, categories| {
            if categories & PAGE_IS_WRITTEN != 0 {
                seen.written.insert_range(pages.clone());
            }
            seen.private.insert_range(pages);
        },
    )
}

fn scan(pagemap: &File, segment: &Segment, which: Which, pages: &mut PageSet) -> io::Result<()> {
    scan_regions(pagemap, segment, which, 0, PAGE_IS_FILE, |region, _| {
        pages.insert_range(region)
    })
}

/// Goes through these pages. When the vector is full, the kernel may step back and report the last regions again:
/// adding them to a set a second time does no harm, counting them would.
fn scan_regions(
    pagemap: &File,
    segment: &Segment,
    which: Which,
    flags: u64,
    return_mask: u64,
    mut found: impl FnMut(Range<u64>, u64),
) -> io::Result<()> {
    let end = segment.start + segment.page_count * PAGE_SIZE as u64;
    let category_mask = match which {
        Which::Private => PAGE_IS_FILE,
        Which::Mapped => 0,
    };
    let mut regions = vec![PageRegion::default(); REGIONS];
    let mut start = segment.start;
    while start < end {
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            flags,
            start,
            end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            category_inverted: PAGE_IS_FILE,
            category_mask,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask,
            ..ScanArg::default()
        };
        // SAFETY: the argument has the kernel's layout and size; its vector is ours, alive, and as long as it says.
        let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &mut arg) };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        for region in regions.iter().take(count as usize) {
            let first = region.start.saturating_sub(segment.start) / PAGE_SIZE as u64;
            let count = region.end.saturating_sub(region.start) / PAGE_SIZE as u64;
            let end = first.saturating_add(count).min(segment.page_count);
            found(
                segment.first_page + first..segment.first_page + end,
                region.categories,
            );
        }
        if arg.walk_end <= start {
            return Err(io::Error::other("the kernel's page scan does not advance"));
        }
        start = arg.walk_end;
    }
    Ok(())
}

fn read(pagemap: &File, segment: &Segment, which: Which, pages: &mut PageSet) -> io::Result<()> {
    const PRESENT_OR_SWAPPED: u64 = 1 << 63 | 1 << 62;
    const FILE: u64 = 1 << 61;
    let mut bytes = vec![0; 64 << 10];
    let mut done = 0;
    while done < segment.page_count {
        let count = (segment.page_count - done).min(bytes.len() as u64 / 8);
        let chunk = &mut bytes[..count as usize * 8];
        pagemap.read_exact_at(chunk, (segment.start / PAGE_SIZE as u64 + done) * 8)?;
        for (index, entry) in chunk.as_chunks::<8>().0.iter().enumerate() {
            let entry = u64::from_le_bytes(*entry);
            if entry & PRESENT_OR_SWAPPED != 0 && (entry & FILE == 0 || which == Which::Mapped) {
                pages.insert(segment.first_page + done + index as u64);
            }
        }
        done += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::Mapped;

    /// More regions than the vector holds, so that the scan has to go on several times.
    #[test]
    fn both_ways_find_exactly_what_was_written() {
        let page_count = REGIONS * 5;
        let mapped = Mapped::new(page_count);
        let mut expected = PageSet::new();
        for page in 0..page_count {
            match page % 7 {
                0 | 3 => {
                    mapped.write(page, 1);
                    expected.insert(page as u64);
                }
                1 => mapped.read(page),
                _ => {}
            }
        }
        let pid = std::process::id();
        let mapping = Mapping::find(pid, &mapped.path).unwrap();
        assert_eq!(private_pages(pid, &mapping).unwrap(), expected);
        let mut plain = PageSet::new();
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        read(&pagemap, &mapping.segments[0], Which::Private, &mut plain).unwrap();
        assert_eq!(plain, expected);
        // More than was touched, as the kernel maps what is around.
        let there = mapped_pages(pid, &mapping).unwrap();
        let mut plain = PageSet::new();
        read(&pagemap, &mapping.segments[0], Which::Mapped, &mut plain).unwrap();
        assert_eq!(there, plain);
        assert!((0..page_count as u64).all(|page| !matches!(page % 7, 0 | 1 | 3) || there.contains(page)));
    }
}
