//! A connection with a clock: how long a client may be silent, take for a request's head, or leave an answer unread.
//!
//! Must never see: requests, TLS.
//!
//! hyper's own time-out for heads also runs while a kept-alive connection is idle, so it would close the 1,000 idle ones
//! that must be held. (What a client sends of its next request together with the last one counts as idle: it lies in
//! hyper's buffer, and this stream does not see when it is looked at.)

use std::io::{Error, ErrorKind, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A client may be silent so long between two requests.
const IDLE: Duration = Duration::from_secs(300);
/// From the first byte of a request to the last of its head.
const HEAD: Duration = Duration::from_secs(10);
/// Without any progress while an answer is sent.
const WRITE: Duration = Duration::from_secs(10);

/// Nothing was asked, or all was answered.
const AT_REST: u8 = 0;
/// Part of a head has come.
const READING: u8 = 1;
/// The request is being served: whoever reads its body has a time limit of his own.
const SERVING: u8 = 2;
/// The answer is there, but not sent.
const ANSWERING: u8 = 3;

/// What the connection is doing.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace(Arc<AtomicU8>);

impl Pace {
    fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, phase: u8) {
        self.0.store(phase, Ordering::Relaxed);
    }

    /// A request is served from here until the guard is dropped.
    pub(super) fn serving(&self) -> Serving {
        self.set(SERVING);
        Serving(self.clone())
    }

    /// Closing it now loses nothing.
    pub(super) fn at_rest(&self) -> bool {
        self.get() == AT_REST
    }
}

/// See [`Pace::serving`].
#[derive(Debug)]
pub(super) struct Serving(Pace);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.set(ANSWERING);
    }
}

/// The stream.
#[derive(Debug)]
pub(super) struct Paced<S> {
    inner: S,
    pace: Pace,
    /// The phase that `read_limit` was set for.
    limited: u8,
    read_limit: Pin<Box<Sleep>>,
    write_limit: Option<Pin<Box<Sleep>>>,
    /// Since the answer was there.
    wrote: bool,
}

impl<S> Paced<S> {
    pub(super) fn new(inner: S, pace: Pace) -> Self {
        // The first request must begin at once: who connects has something to ask.
        let read_limit = Box::pin(sleep(IDLE));
        Self { inner, pace, limited: AT_REST, read_limit, write_limit: None, wrote: false }
    }

    fn set_limit(&mut self, phase: u8) {
        if self.limited != phase {
            self.limited = phase;
            let limit = if phase == READING { HEAD } else { IDLE };
            self.read_limit.as_mut().reset(Instant::now() + limit);
        }
    }

    /// Nothing could be written: not for ever.
    fn blocked<T>(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let limit = self.write_limit.get_or_insert_with(|| Box::pin(sleep(WRITE)));
        ready!(limit.as_mut().poll(cx));
        Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let before = buf.filled().len();
        if let Poll::Ready(done) = Pin::new(&mut self.inner).poll_read(cx, buf) {
            if buf.filled().len() > before && self.pace.at_rest() {
                self.pace.set(READING);
                self.set_limit(READING);
            }
            return Poll::Ready(done);
        }
        let phase = self.pace.get();
        self.set_limit(phase);
        if phase == AT_REST || phase == READING {
            ready!(self.read_limit.as_mut().poll(cx));
            return Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the client does not ask")));
        }
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        match Pin::new(&mut self.inner).poll_write(cx, buf) {
            Poll::Pending => self.blocked(cx),
            done => {
                (self.write_limit, self.wrote) = (None, true);
                done
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match Pin::new(&mut self.inner).poll_flush(cx) {
            Poll::Pending => self.blocked(cx),
            done => {
                self.write_limit = None;
                if std::mem::take(&mut self.wrote) && self.pace.get() == ANSWERING {
                    self.pace.set(AT_REST);
                }
                done
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match Pin::new(&mut self.inner).poll_shutdown(cx) {
            Poll::Pending => self.blocked(cx),
            done => done,
        }
    }
}
