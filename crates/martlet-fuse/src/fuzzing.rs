//! A door for the fuzz targets: requests without a kernel. Only there under cargo-fuzz.

use crate::device::Device;
use crate::proto::TRANSFER_BYTES_MAX;
use crate::registry::Registry;
use crate::request::Worker;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

/// Answers requests as the server's threads do.
pub struct Requests {
    worker: Worker,
    kernel: UnixDatagram,
    answer: Vec<u8>,
}

impl Requests {
    /// Over these files.
    pub fn new(registry: Arc<Registry>) -> Self {
        let (kernel, device) = UnixDatagram::pair().expect("a pair of sockets");
        kernel
            .set_nonblocking(true)
            .expect("a socket that does not block");
        Self {
            worker: Worker {
                device: Device::new(device.into()),
                registry,
                data: vec![0; TRANSFER_BYTES_MAX as usize],
                stopping: Arc::default(),
            },
            kernel,
            answer: vec![0; TRANSFER_BYTES_MAX as usize],
        }
    }

    /// The answer to one request, header and all, if there is one.
    pub fn handle(&mut self, message: &[u8]) -> Option<&[u8]> {
        self.worker.handle(message);
        let length = self.kernel.recv(&mut self.answer).ok()?;
        Some(&self.answer[..length])
    }
}
