//! A connection of HTTP/2 whose frames leave together.
//!
//! hyper's HTTP/2 writes each DATA frame by itself, and with 64 streams on a connection that is most of what a small
//! answer costs. What it writes is gathered here instead, and sent when its task's turn is over: so a flush means
//! nothing, and whoever runs the task sends ([`Gather::poll_send`], [`Gather::send`]).

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::h1::{Conn, Raw};

/// Approximate size of the data that waits to be sent.
const MOST_BYTES: usize = 64 * 1024;
/// The room that an idle connection keeps.
const KEPT_BYTES: usize = 4096;

/// Outgoing frames of a connection.
#[derive(Debug)]
pub struct Gather<S> {
    link: Arc<Conn<S>>,
    out: Mutex<Out>,
}

#[derive(Debug, Default)]
struct Out {
    bytes: Vec<u8>,
    /// So many of them have left.
    sent: usize,
    /// Nothing will leave any more.
    broken: bool,
    /// HTTP/2 has let go of the connection.
    is_over: bool,
    /// Waker of the sender, if it is a task of its own.
    sender: Option<Waker>,
    /// Wakers of tasks that wait for room.
    writer: Option<Waker>,
}

/// The connection, as hyper has it.
#[derive(Debug)]
pub struct Gathered<S>(pub Arc<Gather<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> Gather<S> {
    pub fn new(link: Arc<Conn<S>>) -> Arc<Self> {
        Arc::new(Self { link, out: Mutex::default() })
    }

    /// Sends all that there is.
    pub fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send_out(cx, &mut self.out.lock())
    }

    /// Sends whenever there is something, until the connection is over.
    pub async fn send(self: Arc<Self>) {
        poll_fn(|cx| {
            let mut out = self.out.lock();
            out.sender = Some(cx.waker().clone());
            // Who writes next is told what went wrong.
            let _ = self.poll_send_out(cx, &mut out);
            if out.is_over { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn poll_send_out(&self, cx: &mut Context<'_>, out: &mut Out) -> Poll<io::Result<()>> {
        while out.sent < out.bytes.len() {
            let left = [IoSlice::new(&out.bytes[out.sent..])];
            match ready!(self.link.poll_write(cx, &left)) {
                Ok(0) => return Poll::Ready(Err(out.fail(io::ErrorKind::WriteZero.into()))),
                Ok(written) => out.sent += written,
                Err(error) => return Poll::Ready(Err(out.fail(error))),
            }
        }
        if !out.bytes.is_empty() {
            out.clear();
            return self.link.poll_flush(cx);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S> Gather<S> {}

impl Out {
    fn clear(&mut self) {
        self.sent = 0;
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    fn fail(&mut self, error: io::Error) -> io::Error {
        self.broken = true;
        self.clear();
        error
    }
}

impl<S> Drop for Gathered<S> {
    fn drop(&mut self) {
        let mut out = self.0.out.lock();
        out.is_over = true;
        if let Some(sender) = out.sender.take() {
            sender.wake();
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut Raw(Arc::clone(&self.0.link))).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut out = self.0.out.lock();
        if out.bytes.len() >= MOST_BYTES {
            match self.0.poll_send_out(cx, &mut out) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => {
                    out.writer = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
        if out.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let before = out.bytes.len();
        parts.iter().for_each(|part| out.bytes.extend_from_slice(part));
        if let (0, Some(sender)) = (before, &out.sender) {
            sender.wake_by_ref();
        }
        Poll::Ready(Ok(out.bytes.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.0.poll_send(cx))?;
        self.0.link.poll_shutdown(cx)
    }
}
