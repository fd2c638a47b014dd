//! Connections of which the other side takes nothing, and bodies of which nothing comes, end after a while.

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Runs while something is waited for.
struct Clock {
    patience: Duration,
    sleep: Pin<Box<Sleep>>,
    is_running: bool,
}

impl Clock {
    fn new(patience: Duration) -> Self {
        Self {
            patience,
            sleep: Box::pin(sleep(patience)),
            is_running: false,
        }
    }

    /// Passes on what has come of something, unless it is too late.
    fn watch<T>(&mut self, context: &mut Context<'_>, polled: Poll<T>) -> Poll<Result<T, io::Error>> {
        match polled {
            Poll::Ready(done) => {
                self.is_running = false;
                Poll::Ready(Ok(done))
            }
            Poll::Pending => {
                if !self.is_running {
                    self.is_running = true;
                    self.sleep.as_mut().reset(Instant::now() + self.patience);
                }
                ready!(self.sleep.as_mut().poll(context));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

/// A connection whose writes end, and what is held while it is open.
pub(crate) struct Writes<T, H> {
    inner: T,
    clock: Clock,
    _held: H,
}

impl<T, H> Writes<T, H> {
    pub(crate) fn new(inner: T, patience: Duration, held: H) -> Self {
        Self {
            inner,
            clock: Clock::new(patience),
            _held: held,
        }
    }
}

impl<T: AsyncRead + Unpin, H: Unpin> AsyncRead for Writes<T, H> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin, H: Unpin> AsyncWrite for Writes<T, H> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.clock.watch(context, polled).map(|done| done?)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(context);
        self.clock.watch(context, polled).map(|done| done?)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(context);
        self.clock.watch(context, polled).map(|done| done?)
    }
}

/// A body that ends with an error if nothing comes.
pub(crate) struct Coming<B> {
    inner: B,
    clock: Clock,
}

impl<B> Coming<B> {
    pub(crate) fn new(inner: B, patience: Duration) -> Self {
        Self {
            inner,
            clock: Clock::new(patience),
        }
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

impl<B: Body<Data = Bytes, Error: Into<Cause>> + Unpin> Body for Coming<B> {
    type Data = Bytes;
    type Error = Cause;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cause>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        Poll::Ready(match ready!(self.clock.watch(context, polled)) {
            Ok(frame) => frame.map(|frame| frame.map_err(Into::into)),
            Err(late) => Some(Err(late.into())),
        })
    }
    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
