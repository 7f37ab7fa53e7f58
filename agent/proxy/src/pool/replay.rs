//! A request's body that is passed on as it comes, and can be sent once more as long as it is small.
//!
//! How long a body will be isn't always known: gRPC doesn't say. Nobody waits for its end here; what
//! has come is kept until it is too much, and whoever sends it again begins with that.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as _, Frame, SizeHint};
use isthmus_http::body::{BodyError, Incoming};
use isthmus_http::headers;
use parking_lot::Mutex;

use super::request_body::MAX_WHOLE_BYTES;

/// Of what is kept, each of which has a price of its own.
const MAX_PIECES: usize = 64;

/// A body, shared by all tries to send it.
#[derive(Clone, Debug)]
pub(crate) struct Replay(Arc<Mutex<Body>>);

#[derive(Debug)]
struct Body {
    incoming: Incoming,
    /// Buffered bytes; empty once there were too many.
    data: Vec<Bytes>,
    bytes: u64,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// It can't be sent again.
    spent: bool,
    /// Tries so far: only the newest one gets anything.
    tries: u32,
}

/// One try.
#[derive(Debug)]
pub(crate) struct Reading {
    replay: Replay,
    number: u32,
    /// Pieces that it has got.
    at: usize,
    /// The head whose spelling of names is kept.
    pub(crate) spelled: Option<Bytes>,
}

impl Replay {
    pub(crate) fn new(incoming: Incoming) -> Self {
        let (data, trailers) = (Vec::new(), None);
        let (bytes, ended, spent, tries) = (0, false, false, 0);
        Self(Arc::new(Mutex::new(Body { incoming, data, bytes, trailers, ended, spent, tries })))
    }

    /// From its beginning. None if that is no longer here.
    pub(crate) fn read(&self) -> Option<Reading> {
        let mut body = self.0.lock();
        if body.spent {
            return None;
        }
        body.tries += 1;
        let spelled = body.incoming.spelled().cloned();
        Some(Reading { replay: self.clone(), number: body.tries, at: 0, spelled })
    }

    /// Whether it can be sent, or sent again.
    pub(crate) fn is_ready(&self) -> bool {
        !self.0.lock().spent
    }
}

impl Body {
    fn keep(&mut self, data: &Bytes) {
        self.bytes += data.len() as u64;
        if self.bytes > MAX_WHOLE_BYTES || self.data.len() == MAX_PIECES {
            self.spent = true;
            self.data = Vec::new();
        } else if !self.spent {
            // A copy: a small piece may be all that holds a large buffer.
            self.data.push(Bytes::copy_from_slice(data));
        }
    }
}

impl Reading {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut body = self.replay.0.lock();
        if body.tries != self.number {
            return Poll::Ready(None);
        }
        if let Some(data) = body.data.get(self.at) {
            self.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if body.ended {
            // Once more would be once too often: a sender asks no more after them.
            let trailers = body.trailers.clone().filter(|_| self.at != usize::MAX);
            self.at = usize::MAX;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let Some(frame) = ready!(Pin::new(&mut body.incoming).poll_frame(cx)) else {
            body.ended = true;
            return Poll::Ready(None);
        };
        Poll::Ready(Some(match frame {
            Err(error) => {
                body.spent = true;
                Err(error)
            }
            Ok(frame) => match frame.into_data() {
                Ok(data) => {
                    body.keep(&data);
                    self.at = body.data.len();
                    Ok(Frame::data(data))
                }
                Err(frame) => {
                    let mut trailers = frame.into_trailers().unwrap_or_default();
                    headers::of_trailers(&mut trailers);
                    (body.trailers, body.ended) = (Some(trailers.clone()), true);
                    self.at = usize::MAX;
                    Ok(Frame::trailers(trailers))
                }
            },
        }))
    }

    /// Whether it gets what others have got before.
    pub(crate) fn is_behind(&self) -> bool {
        self.at < self.replay.0.lock().data.len()
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        let body = self.replay.0.lock();
        let is_read = self.at >= body.data.len();
        is_read && (body.incoming.is_end_stream() && body.trailers.is_none())
            || self.at == usize::MAX
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let body = self.replay.0.lock();
        let kept = body.data.iter().skip(self.at).map(|data| data.len() as u64).sum::<u64>();
        let left = body.incoming.size_hint().exact().filter(|_| body.trailers.is_none());
        left.map_or_else(SizeHint::default, |left| SizeHint::with_exact(kept + left))
    }
}
