//! A message on its way out.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use hyper::body::Body;
use tokio::io::{AsyncRead, AsyncWrite};

use super::encode::Encoder;
use super::{Conn, Error};

/// Size up to which bytes are collected before a write.
const ENOUGH_BYTES: usize = 64 * 1024;
/// Parts of a message in one system call.
const PARTS: usize = 16;

/// A message that is being sent: first its head, then its body as it comes.
#[derive(Debug)]
pub(crate) struct Sending<B> {
    body: B,
    encoder: Encoder,
    /// In order, the next first.
    out: Vec<Bytes>,
    out_bytes: usize,
    ended: bool,
    /// The body's first bytes, for as long as nothing has left.
    first: Option<Bytes>,
    has_begun: bool,
    /// The body waits until it is asked for.
    held: bool,
}

/// Why a message couldn't be sent to its end.
#[derive(Debug)]
pub(crate) enum SendError<E> {
    /// The receiver's fault.
    Wire(Error),
    /// The body's.
    Body(E),
}

impl<B: Body<Data = Bytes> + Unpin> Sending<B> {
    pub(crate) fn new(head: Bytes, body: B, encoder: Encoder) -> Self {
        let ended = encoder == Encoder::Empty;
        let out_bytes = head.len();
        let mut out = Vec::with_capacity(4);
        out.push(head);
        Self { body, encoder, out, out_bytes, ended, first: None, has_begun: false, held: false }
    }

    /// Holds the body back.
    pub(crate) const fn hold(&mut self) {
        self.held = true;
    }

    /// The body is wanted.
    pub(crate) const fn release(&mut self) {
        self.held = false;
    }

    pub(crate) const fn is_held(&self) -> bool {
        self.held
    }

    /// Sends until everything has left. Each time it is polled it sends what there is.
    pub(crate) fn poll<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        link: &Conn<S>,
    ) -> Poll<Result<(), SendError<B::Error>>> {
        loop {
            let waits = self.collect(cx)?;
            while !self.out.is_empty() {
                ready!(self.poll_write(cx, link)).map_err(|error| SendError::Wire(error.into()))?;
            }
            ready!(link.poll_flush(cx)).map_err(|error| SendError::Wire(error.into()))?;
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if waits {
                return Poll::Pending;
            }
        }
    }

    pub(crate) const fn has_begun(&self) -> bool {
        self.has_begun
    }

    pub(crate) fn into_body(self) -> B {
        self.body
    }

    /// The body as it was, if nothing has left; with what was taken off it already.
    pub(crate) fn unsent(self) -> Option<(B, Option<Bytes>)> {
        (!self.has_begun).then_some((self.body, self.first))
    }

    /// Takes what the body has. Says whether it will have more later.
    fn collect(&mut self, cx: &mut Context<'_>) -> Result<bool, SendError<B::Error>> {
        if self.held {
            return Ok(true);
        }
        while !self.ended && self.out_bytes < ENOUGH_BYTES && self.out.len() < PARTS - 3 {
            // Of a body that may have to be given back only what can be.
            if self.first.is_some() && !self.has_begun {
                return Ok(false);
            }
            let before = self.out.len();
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return Ok(true),
                Poll::Ready(Some(Err(error))) => return Err(SendError::Body(error)),
                Poll::Ready(None) => self.end(None)?,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        if !self.has_begun {
                            self.first = Some(data.clone());
                        }
                        let added = self.encoder.data(data, &mut self.out);
                        added.map_err(SendError::Wire)?;
                        // Saves asking once more, and sends the end with the rest.
                        if self.body.is_end_stream() {
                            self.end(None)?;
                        }
                    }
                    Err(frame) => self.end(frame.into_trailers().ok().as_ref())?,
                },
            }
            self.out_bytes += self.out[before..].iter().map(Bytes::len).sum::<usize>();
        }
        Ok(false)
    }

    fn end(&mut self, trailers: Option<&http::HeaderMap>) -> Result<(), SendError<B::Error>> {
        self.ended = true;
        self.encoder.end(trailers, &mut self.out).map_err(SendError::Wire)
    }

    fn poll_write<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        link: &Conn<S>,
    ) -> Poll<io::Result<()>> {
        let mut parts = [IoSlice::new(&[]); PARTS];
        let count = self.out.len().min(PARTS);
        for (part, bytes) in parts.iter_mut().zip(&self.out) {
            *part = IoSlice::new(bytes);
        }
        let written = ready!(link.poll_write(cx, &parts[..count]))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.has_begun = true;
        self.first = None;
        self.out_bytes -= written;
        if self.out_bytes == 0 {
            self.out.clear();
            return Poll::Ready(Ok(()));
        }
        let mut left = written;
        let mut gone = 0;
        for bytes in &mut self.out {
            if left < bytes.len() {
                bytes.advance(left);
                break;
            }
            left -= bytes.len();
            gone += 1;
        }
        self.out.drain(..gone);
        Poll::Ready(Ok(()))
    }
}
