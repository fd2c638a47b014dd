//! What a page of a guest's memory is: where the guest's kernel has it, and whether it is a page of its disk.

use martlet_image::{Manifest, PAGE_SIZE, PageLocation};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::Range;

/// Where memory beyond what fits below the devices goes on.
const HIGH_MEMORY: u64 = 4 << 30;

/// A range of guest-physical addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// As the guest's kernel calls it.
    pub name: String,
    /// Its addresses.
    pub addresses: Range<u64>,
}

/// The guest-physical address of a byte of memory, on the q35 machine.
pub fn guest_address(offset_bytes: u64, memory_bytes: u64) -> u64 {
    let low_bytes = match memory_bytes {
        0xb000_0000.. => 0x8000_0000,
        _ => 0xb000_0000,
    };
    match offset_bytes {
        offset if offset < low_bytes => offset,
        offset => HIGH_MEMORY + (offset - low_bytes),
    }
}

/// What the kernel itself lies in, out of its `/proc/iomem`. To who may not see addresses, they are all zero.
pub fn kernel_regions(iomem: &str) -> Vec<Region> {
    let region = |line: &str| {
        let (addresses, name) = line.split_once(" : ")?;
        let (first, last) = addresses.trim().split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        let addresses = address(first)?..address(last)?.checked_add(1)?;
        let is_kernel = name.starts_with("Kernel ") && addresses.start > 0;
        is_kernel.then(|| Region {
            name: name.trim().to_owned(),
            addresses,
        })
    };
    iomem.lines().filter_map(region).collect()
}

/// The first page of a range that is not all zero.
pub fn first_stored(image: &Manifest, bytes: Range<u64>) -> Option<u64> {
    let page = PAGE_SIZE as u64;
    let mut pages = bytes.start / page..bytes.end.div_ceil(page).min(image.page_count());
    pages.find(|page| image.locate(*page) != PageLocation::Zero)
}

/// Where these pages of an image are in another one too: the first page of that with the same place in the same frame.
pub fn same_pages(image: &Manifest, pages: &[u64], other: &Manifest) -> HashMap<u64, u64> {
    let mut wanted: HashMap<_, Vec<u64>> = HashMap::new();
    for page in pages {
        if let PageLocation::Frame { frame, slot } = image.locate(*page) {
            wanted.entry((frame, slot)).or_default().push(*page);
        }
    }
    let mut same = HashMap::new();
    for (there, frame, slot) in other.stored_pages() {
        if wanted.is_empty() {
            break;
        }
        let pages = wanted.remove(&(frame, slot)).unwrap_or_default();
        same.extend(pages.into_iter().map(|page| (page, there)));
    }
    same
}

#[cfg(test)]
mod tests {
    use super::*;
    use martlet_image::FrameId;

    #[test]
    fn frames_lead_from_pages_of_memory_to_pages_of_the_disk() {
        let [shared, own] = [b"shared", b"own   "].map(|bytes| FrameId::of(bytes));
        let at = |frame, slot| PageLocation::Frame { frame, slot };
        let mut memory = Manifest::zero(100);
        for (page, location) in [
            (10, at(own, 0)),
            (11, at(shared, 3)),
            (50, at(shared, 3)),
            (12, at(shared, 7)),
        ] {
            memory.set(page, location);
        }
        let mut disk = Manifest::zero(1000);
        for (page, location) in [
            (700, at(shared, 3)),
            (900, at(shared, 3)),
            (701, at(shared, 4)),
            (3, at(own, 1)),
        ] {
            disk.set(page, location);
        }
        let same = same_pages(&memory, &[9, 10, 11, 12, 50], &disk);
        assert_eq!(same, HashMap::from([(11, 700), (50, 700)]));
        assert_eq!(first_stored(&memory, 0..11 * 4096), Some(10));
        assert_eq!(first_stored(&memory, 11 * 4096 + 1..12 * 4096), Some(11));
        assert_eq!(first_stored(&memory, 0..10 * 4096), None);
        assert_eq!(first_stored(&memory, 60 * 4096..u64::MAX - 8192), None);
    }

    #[test]
    fn the_kernel_says_where_it_lies() {
        let iomem = "00001000-0009fbff : System RAM\n00100000-1ffdbfff : System RAM\n  \
            01000000-01e02fff : Kernel code\n  02000000-0284afff : Kernel rodata\nbroken\n-5 : Kernel odd\n\
            00000000-00000000 : Kernel bss\n";
        let regions = kernel_regions(iomem);
        assert_eq!(regions.len(), 2);
        assert_eq!(
            (&*regions[0].name, regions[0].addresses.clone()),
            ("Kernel code", 0x100_0000..0x1e0_3000)
        );
    }

    #[test]
    fn memory_goes_on_above_the_devices() {
        const G: u64 = 1 << 30;
        for (offset, memory, address) in [
            (5, G, 5),
            (0x9000_0000, 0xa000_0000, 0x9000_0000),
            (0x8000_0000, 3 * G, 4 * G),
            (0x7fff_f000, 8 * G, 0x7fff_f000),
            (3 * G, 8 * G, 5 * G),
        ] {
            assert_eq!(guest_address(offset, memory), address, "{offset:x} of {memory:x}");
        }
    }
}
