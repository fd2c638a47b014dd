//! Reads of an image's bytes through the frame cache.

use crate::cache::{FrameCache, Had};
use crate::{FrameSource, SourceError};
use bytes::Bytes;
use martlet_image::{FrameId, Manifest, PAGE_SIZE, PageLocation};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Decoded frames of any number of images, each fetched once.
pub struct Pager {
    source: Arc<dyn FrameSource>,
    cache: FrameCache,
    hits: AtomicU64,
    waits: AtomicU64,
    fetches: AtomicU64,
    failures: AtomicU64,
    fetched_bytes: AtomicU64,
}

/// What a pager did since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PagerStats {
    /// Frames found in the cache.
    pub hits: u64,
    /// Frames another thread was fetching already.
    pub waits: u64,
    /// Frames fetched from the source.
    pub fetches: u64,
    /// Fetches that failed.
    pub failures: u64,
    /// Uncompressed bytes fetched.
    pub fetched_bytes: u64,
}

impl Pager {
    /// A pager over `source` that keeps at most `cache_bytes` of decoded frames.
    pub fn new(source: Arc<dyn FrameSource>, cache_bytes: usize) -> Arc<Self> {
        let zero = AtomicU64::default;
        Arc::new(Self {
            source,
            cache: FrameCache::new(cache_bytes),
            hits: zero(),
            waits: zero(),
            fetches: zero(),
            failures: zero(),
            fetched_bytes: zero(),
        })
    }

    /// A frame's pages.
    pub fn frame(&self, id: &FrameId) -> Result<Bytes, SourceError> {
        let (outcome, had) = self.cache.get(id, || self.fetch(id));
        match had {
            Had::Cached => self.hits.fetch_add(1, Relaxed),
            Had::Waited => {
                self.source.waited(id);
                self.waits.fetch_add(1, Relaxed)
            }
            Had::Fetched => self.fetches.fetch_add(1, Relaxed),
        };
        outcome
    }

    /// A frame's pages, of somebody who has verified them.
    pub(crate) fn learn(&self, id: &FrameId, content: Bytes) {
        self.cache.put(id, content);
    }

    /// A frame's pages when they are decoded already.
    pub(crate) fn cached(&self, id: &FrameId) -> Option<Bytes> {
        self.cache.peek(id)
    }

    fn fetch(&self, id: &FrameId) -> Result<Bytes, SourceError> {
        match self.source.frame(id) {
            Ok(data) => {
                self.fetched_bytes.fetch_add(data.len() as u64, Relaxed);
                Ok(data)
            }
            Err(error) => {
                self.failures.fetch_add(1, Relaxed);
                tracing::warn!(frame = %id, %error, "frame cannot be had");
                Err(error)
            }
        }
    }

    /// Fills `buf` with the image's bytes from `offset`; beyond the image are zeros. On an error `buf` holds no
    /// promise.
    pub fn read(&self, manifest: &Manifest, offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        if self.is_far() {
            self.prepare(manifest, offset, buf.len());
        }
        let mut held: Option<(FrameId, Bytes)> = None;
        let mut offset = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let (page, within) = (offset / PAGE_SIZE as u64, (offset % PAGE_SIZE as u64) as usize);
            let length = rest.len().min(PAGE_SIZE - within);
            let (part, tail) = rest.split_at_mut(length);
            match manifest.locate(page) {
                PageLocation::Zero => part.fill(0),
                PageLocation::Frame { frame, slot } => {
                    if held.as_ref().is_none_or(|(id, _)| *id != frame) {
                        held = Some((frame, self.frame(&frame)?));
                    }
                    let (_, data) = held.as_ref().expect("held since the line above");
                    part.copy_from_slice(&slot_of(&frame, data, slot)?[within..within + length]);
                }
            }
            offset = offset.saturating_add(length as u64);
            rest = tail;
        }
        Ok(())
    }

    /// See [`FrameSource::waited`].
    pub(crate) fn waited(&self, frame: &FrameId) {
        self.source.waited(frame);
    }

    /// See [`FrameSource::is_far`].
    pub(crate) fn is_far(&self) -> bool {
        self.source.is_far()
    }

    /// Has the frames of a read be got at the same time.
    fn prepare(&self, manifest: &Manifest, offset: u64, length: usize) {
        let end = offset.saturating_add(length as u64).div_ceil(PAGE_SIZE as u64);
        let mut frames = Vec::new();
        for page in offset / PAGE_SIZE as u64..end {
            if let PageLocation::Frame { frame, .. } = manifest.locate(page)
                && !frames.contains(&frame)
                && self.cached(&frame).is_none()
            {
                frames.push(frame);
            }
        }
        if frames.len() > 1 {
            self.source.prepare(&frames);
        }
    }

    /// What was done so far.
    pub fn stats(&self) -> PagerStats {
        PagerStats {
            hits: self.hits.load(Relaxed),
            waits: self.waits.load(Relaxed),
            fetches: self.fetches.load(Relaxed),
            failures: self.failures.load(Relaxed),
            fetched_bytes: self.fetched_bytes.load(Relaxed),
        }
    }
}

/// Page `slot` of a frame; a manifest may name a slot that the frame does not have.
fn slot_of<'a>(frame: &FrameId, data: &'a [u8], slot: u8) -> Result<&'a [u8], SourceError> {
    let start = slot as usize * PAGE_SIZE;
    data.get(start..start + PAGE_SIZE)
        .ok_or_else(|| SourceError::Damaged {
            frame: *frame,
            reason: format!("page {slot} wanted of {} bytes", data.len()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::image;
    use std::sync::Barrier;
    use std::time::Duration;

    #[test]
    fn reads_are_right_to_the_byte() {
        let (shelf, manifest, content) = image(100, 7);
        for cache_bytes in [0, 3 * 65536, 64 << 20] {
            let pager = Pager::new(shelf.clone(), cache_bytes);
            for (offset, length) in [
                (0, 409_600),
                (1, 4096),
                (4095, 2),
                (65_530, 12),
                (409_599, 1),
                (409_590, 40),
            ] {
                let mut buf = vec![0xEE; length];
                pager.read(&manifest, offset, &mut buf).unwrap();
                let mut expected =
                    content[offset as usize..content.len().min(offset as usize + length)].to_vec();
                expected.resize(length, 0);
                assert_eq!(buf, expected, "{offset}+{length}");
            }
        }
    }

    #[test]
    fn a_frame_is_fetched_once_however_many_wait() {
        let (shelf, manifest, content) = image(64, 1);
        shelf.set_delay(Duration::from_millis(30));
        let pager = Pager::new(shelf.clone(), 64 << 20);
        let start = Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut buf = vec![0; 64 * PAGE_SIZE];
                    start.wait();
                    pager.read(&manifest, 0, &mut buf).unwrap();
                    assert_eq!(buf, content);
                });
            }
        });
        let frames = shelf.frames();
        assert_eq!(shelf.fetches(), frames);
        assert_eq!(pager.stats().fetches, frames);
        assert_eq!(pager.stats().hits + pager.stats().waits, 7 * frames);
    }

    #[test]
    fn a_failure_reaches_all_and_is_forgotten() {
        let (shelf, manifest, content) = image(16, 3);
        let (_, frame, _) = manifest.stored_pages().next().unwrap();
        let pager = Pager::new(shelf.clone(), 64 << 20);
        shelf.set_delay(Duration::from_millis(30));
        shelf.break_frame(frame);
        let start = Barrier::new(4);
        let read = || {
            let mut buf = vec![0; 16 * PAGE_SIZE];
            start.wait();
            pager.read(&manifest, 0, &mut buf)
        };
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..4).map(|_| scope.spawn(read)).collect();
            for reader in readers {
                assert!(matches!(reader.join().unwrap(), Err(SourceError::Damaged { .. })));
            }
        });
        shelf.mend();
        let mut buf = vec![0; 16 * PAGE_SIZE];
        pager.read(&manifest, 0, &mut buf).unwrap();
        assert_eq!(buf, content);
    }

    #[test]
    fn a_panic_in_the_source_reaches_the_waiters_as_an_error() {
        struct Panics;
        impl FrameSource for Panics {
            fn frame(&self, _: &FrameId) -> Result<Bytes, SourceError> {
                std::thread::sleep(Duration::from_millis(50));
                panic!("source broke")
            }
        }
        let pager = Pager::new(Arc::new(Panics), 1 << 20);
        let id = FrameId::of(b"any");
        let first = {
            let pager = pager.clone();
            std::thread::spawn(move || pager.frame(&id))
        };
        std::thread::sleep(Duration::from_millis(10));
        let second = {
            let pager = pager.clone();
            std::thread::spawn(move || pager.frame(&id))
        };
        let outcomes = [first.join(), second.join()];
        assert!(
            outcomes.iter().any(|outcome| outcome.is_err()),
            "the fetching thread panicked"
        );
        assert!(outcomes.iter().all(|outcome| !matches!(outcome, Ok(Ok(_)))));
    }

    #[test]
    fn a_slot_the_frame_does_not_have_is_damage() {
        let (shelf, mut manifest, _) = image(16, 2);
        let (_, frame, _) = manifest.stored_pages().next().unwrap();
        manifest.set(0, PageLocation::Frame { frame, slot: 15 });
        let pager = Pager::new(shelf, 1 << 20);
        let error = pager.read(&manifest, 0, &mut [0; 8]).unwrap_err();
        assert!(matches!(error, SourceError::Damaged { .. }), "{error}");
    }
}
