//! Frames to and from the guest, as smoltcp wants them.

use crate::gateway::Out;
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use std::collections::VecDeque;

/// Bytes of a frame: Ethernet's header, and what such networks carry.
pub(crate) const FRAME_BYTES_MAX: usize = 1414;

/// See the module's documentation.
pub(crate) struct Cable {
    came: VecDeque<Vec<u8>>,
    out: Out,
}

impl Cable {
    pub(crate) fn new(out: Out) -> Self {
        Self {
            came: VecDeque::new(),
            out,
        }
    }

    /// One to be seen next.
    pub(crate) fn put(&mut self, frame: Vec<u8>) {
        self.came.push_back(frame);
    }
}

impl Device for Cable {
    type RxToken<'a> = Came;
    type TxToken<'a> = Goes<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Came, Goes<'_>)> {
        let frame = self.came.pop_front()?;
        Some((Came(frame), Goes(&mut self.out)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Goes<'_>> {
        Some(Goes(&mut self.out))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES_MAX;
        capabilities
    }
}

pub(crate) struct Came(Vec<u8>);

impl RxToken for Came {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub(crate) struct Goes<'a>(&'a mut Out);

impl TxToken for Goes<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        (self.0)(&frame);
        result
    }
}
