//! Bodies on their way through, counted.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::access::Record;

/// A request's body on its way to the application.
#[derive(Debug)]
pub(crate) struct Upload {
    inner: Incoming,
    bytes: Arc<AtomicU64>,
}

/// An answer's body on its way to the caller. The request's record ends with it.
#[derive(Debug)]
pub(crate) struct Answer {
    kind: Kind,
    /// None on `101`: there the tunnel has it.
    record: Option<Record>,
}

#[derive(Debug)]
enum Kind {
    Own(Option<Bytes>),
    Application(Incoming),
}

impl Upload {
    pub(crate) const fn new(inner: Incoming, bytes: Arc<AtomicU64>) -> Self {
        Self { inner, bytes }
    }
}

impl Answer {
    /// The proxy's own words.
    pub(crate) fn own(text: String, record: Record) -> Self {
        Self { kind: Kind::Own(Some(text.into())), record: Some(record) }
    }

    pub(crate) const fn application(inner: Incoming, record: Record) -> Self {
        Self { kind: Kind::Application(inner), record: Some(record) }
    }

    /// The body of `101`.
    pub(crate) const fn nothing() -> Self {
        Self { kind: Kind::Own(None), record: None }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        self.bytes.fetch_add(data_len(frame.as_ref()), Ordering::Relaxed);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = match &mut self.kind {
            Kind::Own(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Kind::Application(inner) => ready!(Pin::new(inner).poll_frame(cx)),
        };
        if let Some(record) = &mut self.record {
            match &frame {
                Some(_) => record.add_answer_bytes(data_len(frame.as_ref())),
                None => record.complete(),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Own(bytes) => bytes.is_none(),
            Kind::Application(inner) => inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Own(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Kind::Application(inner) => inner.size_hint(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.is_end_stream()
            && let Some(record) = &mut self.record
        {
            record.complete();
        }
    }
}

fn data_len(frame: Option<&Result<Frame<Bytes>, hyper::Error>>) -> u64 {
    match frame {
        Some(Ok(frame)) => frame.data_ref().map_or(0, |data| data.len() as u64),
        Some(Err(_)) | None => 0,
    }
}
