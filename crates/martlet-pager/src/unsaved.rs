//! Pages of an image that are in no store yet: they are read where they are, until they have been written.

use crate::SourceError;
use martlet_image::{PAGE_SIZE, PageSet};
use std::ops::Range;
use std::sync::Arc;

/// Where unsaved pages are. Their content never changes.
pub trait PageSource: Send + Sync {
    /// Fills `buf` with these pages.
    fn read(&self, pages: Range<u64>, buf: &mut [u8]) -> Result<(), SourceError>;
}

/// Pages of one source.
#[derive(Clone)]
pub struct Layer {
    /// Which.
    pub pages: PageSet,
    /// Where they are.
    pub source: Arc<dyn PageSource>,
}

/// What lies over an image's manifest. No page is in two places of it.
#[derive(Clone, Default)]
pub struct Unsaved {
    layers: Vec<Layer>,
    zeros: PageSet,
}

impl Unsaved {
    /// A layer, and pages that are zero from here on, over what was unsaved before.
    pub fn over(below: Option<&Unsaved>, layer: Layer, zeros: &PageSet) -> Self {
        let mut unsaved = below.cloned().unwrap_or_default();
        for lower in &mut unsaved.layers {
            lower.pages.and_not(&layer.pages);
            lower.pages.and_not(zeros);
        }
        unsaved.layers.retain(|lower| !lower.pages.is_empty());
        unsaved.zeros.or(zeros);
        unsaved.zeros.and_not(&layer.pages);
        unsaved.layers.push(layer);
        unsaved
    }

    /// The layers, oldest first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Pages that are zero, whatever the manifest says.
    pub fn zeros(&self) -> &PageSet {
        &self.zeros
    }

    pub(crate) fn place(&self, page: u64) -> Option<Place<'_>> {
        if self.zeros.contains(page) {
            return Some(Place::Zero);
        }
        let layer = self.layers.iter().find(|layer| layer.pages.contains(page))?;
        Some(Place::Layer(layer))
    }
}

/// Where an unsaved page is.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    Zero,
    Layer(&'a Layer),
}

impl PartialEq for Place<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Zero, Self::Zero) => true,
            (Self::Layer(one), Self::Layer(other)) => std::ptr::eq(*one, *other),
            _ => false,
        }
    }
}

impl Place<'_> {
    /// Fills `buf` with the bytes of `pages` from the byte `skip` on.
    pub(crate) fn read(self, pages: Range<u64>, skip: usize, buf: &mut [u8]) -> Result<(), SourceError> {
        let whole = (pages.end - pages.start) as usize * PAGE_SIZE;
        match self {
            Self::Zero => buf.fill(0),
            Self::Layer(layer) if buf.len() == whole => layer.source.read(pages, buf)?,
            Self::Layer(layer) => {
                let mut bytes = vec![0; whole];
                layer.source.read(pages, &mut bytes)?;
                buf.copy_from_slice(&bytes[skip..skip + buf.len()]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Caught, image};
    use crate::{Layer, MemoryImage, PageSource, Pager, PushQueue, SourceError, Unsaved};
    use martlet_image::{PAGE_SIZE, PageSet};
    use proptest::prelude::*;
    use std::ops::Range;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    const PAGES: u64 = 96;

    /// Pages full of one byte, which are only asked for where they are promised.
    struct Full {
        byte: u8,
        pages: PageSet,
        gone: AtomicBool,
    }

    impl PageSource for Full {
        fn read(&self, pages: Range<u64>, buf: &mut [u8]) -> Result<(), SourceError> {
            assert!(pages.clone().all(|page| self.pages.contains(page)));
            assert_eq!(buf.len() as u64, (pages.end - pages.start) * PAGE_SIZE as u64);
            if self.gone.load(Ordering::SeqCst) {
                return Err(SourceError::Unsaved {
                    page: pages.start,
                    reason: "gone".into(),
                });
            }
            buf.fill(self.byte);
            Ok(())
        }
    }

    fn full(byte: u8, pages: &PageSet) -> Arc<Full> {
        Arc::new(Full {
            byte,
            pages: pages.clone(),
            gone: AtomicBool::new(false),
        })
    }

    fn page_set() -> impl Strategy<Value = PageSet> {
        proptest::collection::vec((0..PAGES, 1..9u64), 0..12).prop_map(|runs| {
            let mut pages = PageSet::new();
            for (start, count) in runs {
                pages.insert_range(start..(start + count).min(PAGES));
            }
            pages
        })
    }

    proptest! {
        #[test]
        fn an_image_reads_as_its_layers_over_its_manifest(
            layers in proptest::collection::vec((page_set(), page_set()), 1..4),
            reads in proptest::collection::vec((0..PAGES * 4096, 1..40_000usize), 1..20),
        ) {
            let (shelf, manifest, mut content) = image(PAGES, 3);
            let image = MemoryImage::new(Pager::new(shelf, 1 << 20), Arc::new(manifest));
            let (queue, caught) = (PushQueue::start(64), Arc::new(Caught::default()));
            image.set_push(Some((queue, caught.clone())));
            let mut unsaved: Option<Unsaved> = None;
            for (index, (pages, zeros)) in layers.iter().enumerate() {
                let byte = 0xA0 + index as u8;
                let layer = Layer { pages: pages.clone(), source: full(byte, pages) };
                unsaved = Some(Unsaved::over(unsaved.as_ref(), layer, zeros));
                for (set, byte) in [(zeros, 0), (pages, byte)] {
                    for page in set.iter() {
                        content[page as usize * 4096..][..4096].fill(byte);
                    }
                }
            }
            prop_assert!(image.lay(unsaved.expect("one layer at least")));
            for (offset, length) in reads {
                let mut buf = vec![0xEE; length];
                image.read(offset, &mut buf).unwrap();
                let mut expected = content[offset as usize..content.len().min(offset as usize + length)].to_vec();
                expected.resize(length, 0);
                prop_assert!(buf == expected, "{offset}+{length}");
            }
            for (page, bytes) in caught.pages() {
                prop_assert!(content[page as usize * 4096..][..4096] == bytes[..], "pushed page {page}");
            }
            prop_assert!(!image.lay(Unsaved::default()), "it was read");
        }
    }

    #[test]
    fn a_read_in_flight_while_its_pages_are_saved_finds_them_in_the_store() {
        let (shelf, manifest, content) = image(PAGES, 3);
        let manifest = Arc::new(manifest);
        let image = MemoryImage::new(Pager::new(shelf, 1 << 20), manifest.clone());
        struct SavedMeanwhile(std::sync::Mutex<Option<Box<dyn FnOnce() + Send>>>);
        impl PageSource for SavedMeanwhile {
            fn read(&self, pages: Range<u64>, _: &mut [u8]) -> Result<(), SourceError> {
                self.0.lock().unwrap().take().expect("read once")();
                Err(SourceError::Unsaved {
                    page: pages.start,
                    reason: "its process has just ended".into(),
                })
            }
        }
        let save = {
            let image = image.clone();
            move || image.settle(manifest)
        };
        let source = SavedMeanwhile(std::sync::Mutex::new(Some(Box::new(save))));
        let layer = Layer {
            pages: (0..PAGES).collect(),
            source: Arc::new(source),
        };
        assert!(image.lay(Unsaved::over(None, layer, &PageSet::new())));
        let mut buf = vec![0; 8 * PAGE_SIZE];
        image.read(0, &mut buf).unwrap();
        assert_eq!(buf, content[..buf.len()]);
    }

    #[test]
    fn a_source_that_has_gone_fails_the_read() {
        let (shelf, manifest, _) = image(PAGES, 3);
        let image = MemoryImage::new(Pager::new(shelf, 1 << 20), Arc::new(manifest));
        let pages: PageSet = (3..5).collect();
        let source = full(1, &pages);
        let layer = Layer {
            pages,
            source: source.clone(),
        };
        assert!(image.lay(Unsaved::over(None, layer, &PageSet::new())));
        source.gone.store(true, Ordering::SeqCst);
        assert!(image.read(3 * 4096, &mut [0; 10]).is_err());
        image.read(5 * 4096, &mut [0; 10]).unwrap();
    }
}
