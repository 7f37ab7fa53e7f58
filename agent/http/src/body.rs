//! A message's body as it comes in, by either version of HTTP.

use std::borrow::Cow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::h1::{self, Raw};
use super::io::{CallerIo, Stream};

/// A body that is being received.
#[derive(Debug)]
pub struct Incoming {
    source: Source,
    /// The head that it came with, as HTTP/1: what is passed on keeps its spelling of names.
    spelled: Option<Bytes>,
}

#[derive(Debug)]
enum Source {
    Http2(hyper::body::Incoming),
    Request(h1::Body<CallerIo>),
    Answer(h1::Body<Stream>),
    /// The application switched protocols.
    Switched(Option<Raw<Stream>>),
}

/// Why a body ends before its last byte.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error(transparent)]
    Http2(#[from] hyper::Error),
    #[error(transparent)]
    Http1(#[from] h1::Error),
    #[error("the request was cut")]
    Cut,
}

impl BodyError {
    /// Fault of an answer, in words for the caller.
    pub fn as_answer(&self) -> Cow<'static, str> {
        match self {
            Self::Http1(h1::Error::Malformed(reason)) => {
                format!("the application's answer is no proper HTTP/1: {reason}").into()
            }
            Self::Http1(h1::Error::WrongLength) => {
                "the application's answer has another length than it says".into()
            }
            Self::Http1(h1::Error::Truncated) => {
                "the application gave no answer: it closed the connection".into()
            }
            Self::Http1(h1::Error::Io(_)) => {
                "the application gave no answer: it broke the connection".into()
            }
            Self::Http2(_) => "the application gave no answer that is proper HTTP/2".into(),
            Self::Cut => "the application gave no answer: the request was cut".into(),
        }
    }
}

impl Incoming {
    pub fn of_request(body: h1::Body<CallerIo>, head: Bytes) -> Self {
        Self { source: Source::Request(body), spelled: Some(head) }
    }

    pub fn of_answer(body: h1::Body<Stream>, head: Bytes) -> Self {
        Self { source: Source::Answer(body), spelled: Some(head) }
    }

    pub fn switched(raw: Raw<Stream>, head: Bytes) -> Self {
        Self { source: Source::Switched(Some(raw)), spelled: Some(head) }
    }

    /// The connection, of an answer that switches protocols.
    pub fn take_switched(&mut self) -> Option<Raw<Stream>> {
        match &mut self.source {
            Source::Switched(raw) => raw.take(),
            Source::Http2(_) | Source::Request(_) | Source::Answer(_) => None,
        }
    }

    pub const fn spelled(&self) -> Option<&Bytes> {
        self.spelled.as_ref()
    }
}

impl From<hyper::body::Incoming> for Incoming {
    fn from(body: hyper::body::Incoming) -> Self {
        Self { source: Source::Http2(body), spelled: None }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match &mut self.source {
            Source::Http2(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Http2)));
            }
            Source::Request(body) => ready!(body.poll_frame(cx)),
            Source::Answer(body) => ready!(body.poll_frame(cx)),
            Source::Switched(_) => None,
        };
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Http1)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Http2(body) => body.is_end_stream(),
            Source::Request(body) => body.is_done(),
            Source::Answer(body) => body.is_done(),
            Source::Switched(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let exact = match &self.source {
            Source::Http2(body) => return body.size_hint(),
            Source::Request(body) => body.left(),
            Source::Answer(body) => body.left(),
            Source::Switched(_) => Some(0),
        };
        exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
