//! Where every page of an image is.

use crate::FrameId;
use std::collections::BTreeMap;

/// Where one page's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageLocation {
    /// All zero: never stored, never fetched.
    Zero,
    /// Slot `slot` (0-based page within the frame) of a frame.
    Frame {
        /// The frame.
        frame: FrameId,
        /// Page within the frame.
        slot: u8,
    },
}

/// A complete view of an image: a location for each of its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    page_count: u64,
    pages: BTreeMap<u64, (FrameId, u8)>,
}

impl Manifest {
    /// An image of zeros.
    pub fn zero(page_count: u64) -> Self {
        Self { page_count, pages: BTreeMap::new() }
    }
    /// Pages in the image.
    pub fn page_count(&self) -> u64 {
        self.page_count
    }
    /// Where page `page` is; pages beyond the end are zero.
    pub fn locate(&self, page: u64) -> PageLocation {
        match self.pages.get(&page) {
            Some(&(frame, slot)) => PageLocation::Frame { frame, slot },
            None => PageLocation::Zero,
        }
    }
    /// Puts page `page` at `location`. Pages beyond the end are ignored.
    pub fn set(&mut self, page: u64, location: PageLocation) {
        if page >= self.page_count {
            return;
        }
        match location {
            PageLocation::Zero => drop(self.pages.remove(&page)),
            PageLocation::Frame { frame, slot } => drop(self.pages.insert(page, (frame, slot))),
        }
    }
    /// The pages that are not zero, in order.
    pub fn stored_pages(&self) -> impl Iterator<Item = (u64, FrameId, u8)> + '_ {
        self.pages.iter().map(|(&page, &(frame, slot))| (page, frame, slot))
    }
}
