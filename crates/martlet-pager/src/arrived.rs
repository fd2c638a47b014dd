//! Frames that come without having been asked for here: their pages are handed over to every guest that has the image.

use crate::MemoryImage;
use crate::push::Piece;
use bytes::Bytes;
use martlet_image::{FrameId, Manifest};
use std::collections::HashMap;

/// Which pages of an image are in which frame.
#[derive(Debug, Default)]
pub struct FramePages(HashMap<FrameId, Vec<u64>>);

impl FramePages {
    /// Those of the image that a manifest describes.
    pub fn of(manifest: &Manifest) -> Self {
        let mut pages: HashMap<FrameId, Vec<u64>> = HashMap::new();
        for (page, frame, _) in manifest.stored_pages() {
            pages.entry(frame).or_default().push(page);
        }
        Self(pages)
    }
}

impl MemoryImage {
    /// A frame has come, and was verified: `content` is its pages. Those that nobody has yet are queued to be pushed, as far as
    /// there is room.
    pub fn arrived(&self, pages: &FramePages, frame: &FrameId, content: Bytes) {
        let (Some(path), Some(image)) = (self.path(), self.me()) else {
            return;
        };
        let Some(pages) = pages.0.get(frame) else {
            return;
        };
        self.pager.learn(frame, content);
        let pages = self.take_pages(pages.iter().copied());
        for run in pages.chunk_by(|page, next| *page + 1 == *next) {
            let run = run[0]..run[0] + run.len() as u64;
            let piece = Piece {
                image: image.clone(),
                target: path.target.clone(),
                pages: run.clone(),
            };
            if !path.queue.offer(piece) {
                self.give_back(run);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Caught, image};
    use crate::{FrameSource, Pager, PushQueue, SourceError};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    /// Counts what is asked for.
    struct Counting(Arc<dyn FrameSource>, AtomicUsize);

    impl FrameSource for Counting {
        fn frame(&self, id: &FrameId) -> Result<Bytes, SourceError> {
            self.1.fetch_add(1, Relaxed);
            self.0.frame(id)
        }
    }

    #[test]
    fn pages_of_a_frame_that_has_come_are_pushed_once_and_not_asked_for() {
        let (shelf, manifest, content) = image(64, 1);
        let pages = FramePages::of(&manifest);
        let (page, frame, _) = manifest.stored_pages().next().unwrap();
        let source = Arc::new(Counting(shelf.clone(), AtomicUsize::new(0)));
        let image = MemoryImage::new(Pager::new(source.clone(), 16 << 20), Arc::new(manifest));
        let bytes = shelf.frame(&frame).unwrap();
        image.arrived(&pages, &frame, bytes.clone()); // nobody has the image yet
        let (queue, caught) = (PushQueue::start(64), Arc::new(Caught::default()));
        image.set_push(Some((queue.clone(), caught.clone())));
        image.note_access(page..page + 1);
        image.arrived(&pages, &frame, bytes.clone());
        let expected: Vec<u64> = pages.0[&frame].iter().copied().filter(|of| *of != page).collect();
        assert!(expected.len() > 1);
        caught.wait_for(expected.len());
        image.arrived(&pages, &frame, bytes);
        let pushed = caught.pages();
        assert_eq!(pushed.keys().copied().collect::<Vec<_>>(), expected);
        for (page, bytes) in pushed {
            assert!(content[page as usize * 4096..][..4096] == bytes[..]);
        }
        assert_eq!(source.1.load(Relaxed), 0);
        assert_eq!(image.stats().pushed_pages, expected.len() as u64);
    }
}
