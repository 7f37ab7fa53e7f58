//! A body as it is read from its connection.

use std::io::IoSlice;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::Frame;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;

use super::decode::{Decoder, Piece};
use super::head::Framing;
use super::{Conn, Error};

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A body. Whoever polls it reads the connection.
#[derive(Debug)]
pub struct Body<S> {
    link: Arc<Conn<S>>,
    decoder: Decoder,
    /// What is left to say of `100 Continue`, which is said once somebody wants the body.
    promise: &'static [u8],
    after: After<S>,
}

/// State of the connection after the body.
#[derive(Debug)]
enum After<S> {
    /// Somebody else has it.
    Stays,
    /// It is kept for other requests.
    IsKept(Arc<dyn Keep<S>>),
    Closes,
    /// Likewise; the request is still being sent by a task.
    Ends(AbortHandle),
}

/// Keeps connections that can be used again.
pub trait Keep<S>: std::fmt::Debug + Send + Sync {
    fn keep(&self, link: Arc<Conn<S>>);
}

impl<S: AsyncRead + AsyncWrite + Unpin> Body<S> {
    /// The body of a request.
    pub(super) fn of_request(link: &Arc<Conn<S>>, framing: Framing, expects: bool) -> Self {
        link.set_in_body(framing != Framing::Empty);
        let promise = if expects { CONTINUE } else { b"" };
        let decoder = Decoder::new(framing);
        Self { link: Arc::clone(link), decoder, promise, after: After::Stays }
    }

    /// The body of an answer, behind which its connection may be kept.
    pub(super) fn of_answer(
        link: Arc<Conn<S>>,
        framing: Framing,
        keeper: Option<Arc<dyn Keep<S>>>,
        sending: Option<AbortHandle>,
    ) -> Self {
        let after = match (keeper, sending) {
            (_, Some(sending)) => After::Ends(sending),
            (Some(keeper), None) => After::IsKept(keeper),
            (None, None) => After::Closes,
        };
        let mut body = Self { link, decoder: Decoder::new(framing), promise: b"", after };
        body.end_if_done();
        body
    }

    pub const fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    /// The bytes that are still to come, where that is known.
    pub const fn left(&self) -> Option<u64> {
        self.decoder.left()
    }

    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.is_done() {
            return Poll::Ready(None);
        }
        let polled = ready!(self.poll_piece(cx)).transpose();
        Poll::Ready(polled.map(|piece| {
            piece.map(|piece| match piece {
                Piece::Data(data) => Frame::data(data),
                Piece::Trailers(trailers) => Frame::trailers(trailers),
            })
        }))
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, Error>> {
        ready!(self.poll_promise(cx))?;
        loop {
            let mut rest = self.link.take_rest();
            let piece = self.decoder.decode(&mut rest);
            self.link.put_back(rest);
            let piece = piece?;
            self.end_if_done();
            if piece.is_some() || self.is_done() {
                return Poll::Ready(Ok(piece));
            }
            if ready!(self.link.poll_fill(cx))?.is_none() {
                self.decoder.on_end()?;
                return Poll::Ready(Ok(None));
            }
        }
    }

    fn poll_promise(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // An answer that has begun says enough, and nothing may stand within it.
        while !self.promise.is_empty() && !self.link.is_answering() {
            let written = ready!(self.link.poll_write(cx, &[IoSlice::new(self.promise)]))?;
            self.promise = self.promise.get(written..).unwrap_or_default();
        }
        Poll::Ready(Ok(()))
    }

    fn end_if_done(&mut self) {
        if !self.is_done() {
            return;
        }
        self.link.set_in_body(false);
        let after = std::mem::replace(&mut self.after, After::Stays);
        if let After::IsKept(keeper) = after {
            // Something behind the answer that nobody asked for is not to be trusted.
            if self.link.rest_len() == 0 {
                keeper.keep(Arc::clone(&self.link));
            }
        } else {
            self.after = after;
        }
    }
}

impl<S> Drop for Body<S> {
    fn drop(&mut self) {
        match &self.after {
            After::Ends(sending) => sending.abort(),
            After::Stays if !self.decoder.is_done() => self.skip(),
            After::Stays | After::IsKept(_) | After::Closes => {}
        }
    }
}

impl<S> Body<S> {
    /// Passes over what is here already, which is often all.
    fn skip(&mut self) {
        let mut rest = self.link.take_rest();
        while let Ok(Some(_)) = self.decoder.decode(&mut rest) {}
        self.link.put_back(rest);
        if self.decoder.is_done() {
            self.link.set_in_body(false);
        } else {
            self.link.leave_body();
        }
    }
}
