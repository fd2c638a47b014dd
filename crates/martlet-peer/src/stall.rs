//! Connections of which the other side takes nothing, and bodies of which nothing comes, or too much, end.

use crate::connection::Open;
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// For how long something is waited for.
pub(crate) trait Patient {
    fn patience(&self) -> Duration;
}

impl Patient for Duration {
    fn patience(&self) -> Duration {
        *self
    }
}

impl Patient for Arc<Open> {
    fn patience(&self) -> Duration {
        self.bounds().stall
    }
}

/// Runs while something is waited for.
struct Clock<P> {
    patient: P,
    sleep: Pin<Box<Sleep>>,
    is_running: bool,
}

impl<P: Patient> Clock<P> {
    fn new(patient: P) -> Self {
        Self {
            sleep: Box::pin(sleep(patient.patience())),
            patient,
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
                    self.sleep
                        .as_mut()
                        .reset(Instant::now() + self.patient.patience());
                }
                ready!(self.sleep.as_mut().poll(context));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

/// A connection whose writes end. Who is patient is held while it is open.
pub(crate) struct Writes<T, P> {
    inner: T,
    clock: Clock<P>,
}

impl<T, P: Patient> Writes<T, P> {
    pub(crate) fn new(inner: T, patient: P) -> Self {
        Self {
            inner,
            clock: Clock::new(patient),
        }
    }

    /// The connection, and who was patient.
    pub(crate) fn into_parts(self) -> (T, P) {
        (self.inner, self.clock.patient)
    }
}

impl<T: AsyncRead + Unpin, P: Unpin> AsyncRead for Writes<T, P> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin, P: Patient + Unpin> AsyncWrite for Writes<T, P> {
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

/// A body that ends with an error if nothing comes, or more than its connection may bring.
pub(crate) struct Coming<B> {
    inner: B,
    clock: Clock<Arc<Open>>,
    came_bytes: u64,
}

impl<B> Coming<B> {
    pub(crate) fn new(inner: B, connection: Arc<Open>) -> Self {
        Self {
            inner,
            clock: Clock::new(connection),
            came_bytes: 0,
        }
    }

    /// The frame, unless it is too much.
    fn count(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, Cause> {
        self.came_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        match self.came_bytes <= self.clock.patient.bounds().body_bytes {
            true => Ok(frame),
            false => Err(io::Error::from(io::ErrorKind::FileTooLarge).into()),
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
            Ok(frame) => frame.map(|frame| self.count(frame.map_err(Into::into)?)),
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
