//! A shelf of frames in memory, with faults to order.

use crate::{FrameSource, SourceError};
use bytes::Bytes;
use martlet_image::{FRAME_PAGES_MAX, FrameId, Manifest, PAGE_SIZE, PageLocation};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Default)]
pub(crate) struct Shelf {
    frames: HashMap<FrameId, Bytes>,
    broken: Mutex<HashSet<FrameId>>,
    fetches: AtomicU64,
    delay_us: AtomicU64,
}

impl Shelf {
    pub(crate) fn fetches(&self) -> u64 {
        self.fetches.load(Relaxed)
    }
    pub(crate) fn frames(&self) -> u64 {
        self.frames.len() as u64
    }
    pub(crate) fn set_delay(&self, delay: Duration) {
        self.delay_us.store(delay.as_micros() as u64, Relaxed);
    }
    pub(crate) fn break_frame(&self, id: FrameId) {
        self.broken.lock().unwrap().insert(id);
    }
    pub(crate) fn mend(&self) {
        self.broken.lock().unwrap().clear();
    }
}

impl FrameSource for Shelf {
    fn frame(&self, id: &FrameId) -> Result<Bytes, SourceError> {
        self.fetches.fetch_add(1, Relaxed);
        std::thread::sleep(Duration::from_micros(self.delay_us.load(Relaxed)));
        if self.broken.lock().unwrap().contains(id) {
            return Err(SourceError::Damaged {
                frame: *id,
                reason: "to order".into(),
            });
        }
        self.frames
            .get(id)
            .cloned()
            .ok_or(SourceError::Missing { frame: *id })
    }
}

/// An image of `pages` pages, some of them zero, in full frames; and its content.
pub(crate) fn image(pages: u64, seed: u64) -> (Arc<Shelf>, Manifest, Vec<u8>) {
    let mut shelf = Shelf::default();
    let mut manifest = Manifest::zero(pages);
    let mut content = vec![0; pages as usize * PAGE_SIZE];
    let stored: Vec<u64> = (0..pages)
        .filter(|page| !(page * 31 + seed).is_multiple_of(5))
        .collect();
    for pages in stored.chunks(FRAME_PAGES_MAX) {
        let mut frame = Vec::new();
        for &page in pages {
            let at = page as usize * PAGE_SIZE;
            let bytes = &mut content[at..at + PAGE_SIZE];
            let word = |n: usize| {
                (seed + page * 1_000_003 + n as u64)
                    .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                    .to_le_bytes()
            };
            bytes
                .chunks_exact_mut(8)
                .enumerate()
                .for_each(|(n, chunk)| chunk.copy_from_slice(&word(n)));
            frame.extend_from_slice(bytes);
        }
        let id = FrameId::of(&frame);
        for (slot, &page) in pages.iter().enumerate() {
            manifest.set(
                page,
                PageLocation::Frame {
                    frame: id,
                    slot: slot as u8,
                },
            );
        }
        shelf.frames.insert(id, frame.into());
    }
    (Arc::new(shelf), manifest, content)
}

/// Keeps what is pushed.
#[derive(Default)]
pub(crate) struct Caught(Mutex<std::collections::BTreeMap<u64, Vec<u8>>>);

impl Caught {
    pub(crate) fn pages(&self) -> std::collections::BTreeMap<u64, Vec<u8>> {
        self.0.lock().unwrap().clone()
    }
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
    /// Pushes come from a thread of their own.
    pub(crate) fn wait_for(&self, pages: usize) {
        self.wait_until(&format!("{pages} pages"), |pushed| pushed.len() >= pages);
    }
    pub(crate) fn wait_until(
        &self,
        what: &str,
        is_so: impl Fn(&std::collections::BTreeMap<u64, Vec<u8>>) -> bool,
    ) {
        let start = std::time::Instant::now();
        while !is_so(&self.0.lock().unwrap()) {
            let pushed = self.pages().len();
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "waited for {what}; {pushed} pages pushed"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl crate::PagePush for Caught {
    fn push(&self, offset_bytes: u64, data: &Arc<Vec<u8>>) -> bool {
        for (page, bytes) in (offset_bytes / PAGE_SIZE as u64..).zip(data.chunks(PAGE_SIZE)) {
            assert!(
                self.0.lock().unwrap().insert(page, bytes.to_vec()).is_none(),
                "page {page} pushed twice"
            );
        }
        true
    }
}
