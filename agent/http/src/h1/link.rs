//! A connection, as those who read and those who write it share it.

use std::cell::RefCell;
use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Maximum size of one read.
const BUFFER_BYTES: usize = 64 * 1024;
/// A read of fewer bytes is copied, so that its buffer can be used again at once.
const COPY_BELOW: usize = 16 * 1024;
/// Parts of a message that are copied together: to hand the kernel several costs more than that.
const JOIN_BELOW: usize = 8 * 1024;
/// Buffers that a thread keeps.
const MAX_SPARE: usize = 16;

/// A connection. Bodies read it while whoever has the exchange writes: all happens on one thread,
/// so that the locks are never waited for.
#[derive(Debug)]
pub struct Conn<S> {
    io: Mutex<S>,
    /// Bytes that were read and not yet used.
    rest: Mutex<Bytes>,
    /// A body is being read, or was left in the middle.
    in_body: AtomicBool,
    /// Nobody will read it to its end.
    body_left: AtomicBool,
    /// Where answers go: one has begun, so that `100 Continue` may no longer be said.
    answering: AtomicBool,
    /// Guard that lives as long as the connection.
    _held: Option<Box<dyn Guard>>,
}

/// A guard of any type, dropped when a connection ends.
pub trait Guard: Debug + Send + Sync {}

impl<T: Debug + Send + Sync> Guard for T {}

impl<S> Conn<S> {
    pub fn new(io: S) -> Self {
        Self::holding(io, None)
    }

    /// Holds something for as long as the connection lasts, as its place among others.
    pub fn holding(io: S, held: Option<Box<dyn Guard>>) -> Self {
        Self {
            io: Mutex::new(io),
            rest: Mutex::default(),
            in_body: AtomicBool::new(false),
            body_left: AtomicBool::new(false),
            answering: AtomicBool::new(false),
            _held: held,
        }
    }

    pub(super) fn take_rest(&self) -> Bytes {
        std::mem::take(&mut *self.rest.lock())
    }

    pub(super) fn put_back(&self, rest: Bytes) {
        *self.rest.lock() = rest;
    }

    pub(super) fn rest_len(&self) -> usize {
        self.rest.lock().len()
    }

    pub(super) fn set_in_body(&self, in_body: bool) {
        self.in_body.store(in_body, Ordering::Relaxed);
    }

    /// Whether the next byte belongs to a body.
    pub(super) fn is_in_body(&self) -> bool {
        self.in_body.load(Ordering::Relaxed)
    }

    pub(super) fn leave_body(&self) {
        self.body_left.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_body_left(&self) -> bool {
        self.body_left.load(Ordering::Relaxed)
    }

    /// A copy of what has been read and not yet been used.
    pub(super) fn rest(&self) -> Bytes {
        self.rest.lock().clone()
    }

    pub(super) fn set_answering(&self, answering: bool) {
        self.answering.store(answering, Ordering::Relaxed);
    }

    pub(super) fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conn<S> {
    /// Reads what there is behind what is here already. None at the connection's end.
    pub(super) fn poll_fill(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<()>>> {
        let more = ready!(poll_read(&mut *self.io.lock(), cx))?;
        if more.is_empty() {
            return Poll::Ready(Ok(None));
        }
        let mut rest = self.rest.lock();
        *rest = if rest.is_empty() { more } else { [&rest[..], &more[..]].concat().into() };
        Poll::Ready(Ok(Some(())))
    }

    pub fn poll_write(
        &self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut io = self.io.lock();
        let io = Pin::new(&mut *io);
        if let [part] = parts {
            return io.poll_write(cx, part);
        }
        if parts.iter().map(|part| part.len()).sum::<usize>() > JOIN_BELOW {
            return io.poll_write_vectored(cx, parts);
        }
        JOINED.with_borrow_mut(|joined| {
            joined.clear();
            parts.iter().for_each(|part| joined.extend_from_slice(part));
            io.poll_write(cx, joined)
        })
    }

    /// Pushes on what TLS still holds.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.lock()).poll_flush(cx)
    }

    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.lock()).poll_shutdown(cx)
    }

    /// Whether nothing has come since the last message, not even the connection's end.
    pub fn is_silent(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.rest_len() == 0 && poll_read(&mut *self.io.lock(), &mut cx).is_pending()
    }
}

/// The bytes of a connection that isn't, or is no longer, HTTP/1.
#[derive(Debug)]
pub struct Raw<S>(pub Arc<Conn<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Raw<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut rest = self.0.rest.lock();
        if rest.is_empty() {
            return Pin::new(&mut *self.0.io.lock()).poll_read(cx, buf);
        }
        let most = buf.remaining().min(rest.len());
        buf.put_slice(&rest.split_to(most));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Raw<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.io.lock()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.io.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_shutdown(cx)
    }
}

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static JOINED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of the thread's that goes back to it.
struct Buffer {
    bytes: Vec<u8>,
    filled: usize,
}

impl Buffer {
    fn take() -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Self { bytes: spare.unwrap_or_else(|| vec![0; BUFFER_BYTES]), filled: 0 }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // At the thread's own end there is nobody to give it back to.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < MAX_SPARE {
                spare.push(std::mem::take(&mut self.bytes));
            }
        });
    }
}

/// Empty at the connection's end.
fn poll_read<S: AsyncRead + Unpin>(io: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    let mut buffer = Buffer::take();
    let mut read = ReadBuf::new(&mut buffer.bytes);
    ready!(Pin::new(io).poll_read(cx, &mut read))?;
    buffer.filled = read.filled().len();
    Poll::Ready(Ok(if buffer.filled < COPY_BELOW {
        Bytes::copy_from_slice(buffer.as_ref())
    } else {
        Bytes::from_owner(buffer)
    }))
}
