//! Bytes between blocking threads and HTTP bodies, with bounded channels in between so that the slower side sets
//! the pace.

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::Frame;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Chunks in flight between the two sides.
const CHUNKS: usize = 16;
/// Size of the chunks that [`BodyWriter`] gathers small writes into.
const CHUNK_BYTES: usize = 64 << 10;

/// A body whose chunks come from a channel; an error cuts the connection, so that the client cannot take a part for
/// the whole.
pub struct ChannelBody(Receiver<io::Result<Bytes>>);

impl ChannelBody {
    /// The two ends.
    pub fn new() -> (Sender<io::Result<Bytes>>, Self) {
        let (sender, receiver) = channel(CHUNKS);
        (sender, Self(receiver))
    }

    /// Waits for the first chunk: until then an error can still become a proper answer.
    pub async fn first(&mut self) -> Option<io::Result<Bytes>> {
        self.0.recv().await
    }

    /// The body, beginning with a chunk that was taken out already.
    pub fn into_body(self, first: Option<Bytes>) -> Body {
        Body::new(Chunks { first, rest: self.0 })
    }
}

struct Chunks {
    first: Option<Bytes>,
    rest: Receiver<io::Result<Bytes>>,
}

impl HttpBody for Chunks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        self.rest
            .poll_recv(context)
            .map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}

/// The blocking end of a response body. Writing fails once the client has gone.
pub struct BodyWriter {
    sender: Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl BodyWriter {
    /// Writes into this channel.
    pub fn new(sender: Sender<io::Result<Bytes>>) -> Self {
        Self {
            sender,
            buffer: Vec::with_capacity(CHUNK_BYTES),
        }
    }

    /// Ends the body with an error.
    pub fn fail(self, error: io::Error) {
        // A client that has gone misses nothing.
        let _ = self.sender.blocking_send(Err(error));
    }
}

impl Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        self.sender
            .blocking_send(Ok(chunk.into()))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The blocking end of a request body.
pub struct BodyReader {
    receiver: Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

impl BodyReader {
    /// Reads what a task of its own receives of this body.
    pub fn new(body: Body) -> Self {
        let (sender, receiver) = channel(CHUNKS);
        tokio::spawn(pump(body, sender));
        Self {
            receiver,
            chunk: Bytes::new(),
        }
    }
}

async fn pump(mut body: Body, sender: Sender<io::Result<Bytes>>) {
    use http_body_util::BodyExt;
    while let Some(frame) = body.frame().await {
        let chunk = match frame {
            Ok(frame) => frame.into_data().map_or_else(|_| Ok(Bytes::new()), Ok),
            Err(error) => Err(io::Error::other(error)),
        };
        if sender.send(chunk).await.is_err() {
            return; // the reader has had enough
        }
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let taken = self.chunk.split_to(buffer.len().min(self.chunk.len()));
        buffer[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}
