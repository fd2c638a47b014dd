//! What an image is made of: its manifest, and over it what is in no store yet.

use crate::unsaved::Unsaved;
use crate::{Pager, SourceError};
use martlet_image::{FrameId, Manifest, PAGE_SIZE, PageLocation};
use std::sync::Arc;

/// An image's content. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Content {
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) unsaved: Option<Arc<Unsaved>>,
}

/// Where a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    Zero,
    Frame(FrameId),
    Unsaved,
}

impl Content {
    pub(crate) fn locate(&self, page: u64) -> Where {
        use crate::unsaved::Place;
        match self.unsaved.as_ref().and_then(|unsaved| unsaved.place(page)) {
            Some(Place::Zero) => Where::Zero,
            Some(Place::Layer(_)) => Where::Unsaved,
            None => match self.manifest.locate(page) {
                PageLocation::Zero => Where::Zero,
                PageLocation::Frame { frame, .. } => Where::Frame(frame),
            },
        }
    }

    /// Fills `buf` with the bytes from `offset`; beyond the image are zeros. On an error `buf` holds no promise.
    pub(crate) fn read(&self, pager: &Pager, offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        let Some(unsaved) = &self.unsaved else {
            return pager.read(&self.manifest, offset, buf);
        };
        // In runs of pages that are in one place.
        let (mut offset, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let first = offset / PAGE_SIZE as u64;
            let end = offset
                .saturating_add(rest.len() as u64)
                .div_ceil(PAGE_SIZE as u64);
            let place = unsaved.place(first);
            let run = (first..end)
                .take_while(|page| unsaved.place(*page) == place)
                .count() as u64;
            let run_end = (first + run).saturating_mul(PAGE_SIZE as u64);
            let length = rest.len().min((run_end - offset) as usize);
            let (part, tail) = rest.split_at_mut(length);
            match place {
                Some(place) => place.read(first..first + run, (offset % PAGE_SIZE as u64) as usize, part)?,
                None => pager.read(&self.manifest, offset, part)?,
            }
            offset = run_end;
            rest = tail;
        }
        Ok(())
    }
}
