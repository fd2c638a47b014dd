//! Layers over a manifest, as one view. Immutable but for its top layer's content.

use crate::layer::Layer;
use crate::state_map::{BlockState, WORD_BLOCKS};
use crate::{BLOCK_SIZE, DiskError};
use martlet_image::{Manifest, PageLocation};
use martlet_pager::Pager;
use std::sync::Arc;

#[derive(Clone)]
pub(crate) struct Stack {
    pub(crate) base: Arc<Manifest>,
    pub(crate) layers: Vec<Arc<Layer>>, // oldest first
}

/// Where a block's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Layer(usize),
    Zero,
    Base,
}

impl Stack {
    pub(crate) fn top(&self) -> &Arc<Layer> {
        self.layers
            .last()
            .expect("a disk has a top layer from its making on")
    }

    /// What the layers say of a block; `None` when none of them knows it.
    pub(crate) fn layered(&self, block: u64) -> Option<Place> {
        self.layers
            .iter()
            .enumerate()
            .rev()
            .find_map(|(index, layer)| match layer.states.get(block) {
                BlockState::Absent => None,
                BlockState::Data => Some(Place::Layer(index)),
                BlockState::Zero => Some(Place::Zero),
            })
    }

    pub(crate) fn place(&self, block: u64) -> Place {
        self.layered(block)
            .unwrap_or_else(|| match self.base.locate(block) {
                PageLocation::Zero => Place::Zero,
                PageLocation::Frame { .. } => Place::Base,
            })
    }

    /// Fills `buf` from `offset`, which with its length is within the disk.
    pub(crate) fn read(&self, pager: &Pager, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let block = BLOCK_SIZE as u64;
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let place = self.place(at / block);
            let last = (at + rest.len() as u64 - 1) / block;
            let end = (at / block + 1..=last)
                .find(|&next| self.place(next) != place)
                .unwrap_or(last + 1)
                * block;
            let length = rest.len().min((end - at) as usize);
            let (part, tail) = rest.split_at_mut(length);
            match place {
                Place::Zero => part.fill(0),
                Place::Base => pager.read(&self.base, at, part)?,
                Place::Layer(index) => self.layers[index].read(at, part)?,
            }
            at += length as u64;
            rest = tail;
        }
        Ok(())
    }

    /// The blocks that some layer knows, in order.
    pub(crate) fn layered_blocks(&self, blocks: u64) -> impl Iterator<Item = (u64, Place)> + '_ {
        let known = |word: &u64| self.layers.iter().any(|layer| layer.states.word(*word) != 0);
        let words = (0..blocks.div_ceil(WORD_BLOCKS)).filter(known);
        words
            .flat_map(move |word| word * WORD_BLOCKS..blocks.min((word + 1) * WORD_BLOCKS))
            .filter_map(|block| Some((block, self.layered(block)?)))
    }
}
