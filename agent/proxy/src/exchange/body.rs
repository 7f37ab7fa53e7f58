//! Answers' bodies on their way to callers.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use isthmus_http::body::{BodyError, Incoming};
use isthmus_http::h1::Spelled;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::cluster::endpoint::InFlight;
use crate::telemetry::access_log::Record;

/// An answer's body on its way to the caller. The request's record ends with it.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    kind: Kind,
    /// None on `101`: there the tunnel has it.
    record: Option<Record>,
    /// The workload has the request until the answer's last byte.
    flight: Option<InFlight>,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// Why an answer ends before its last byte.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    #[error(transparent)]
    Broken(#[from] BodyError),
    #[error("the answer took longer than the route's timeout")]
    TimedOut,
    #[error("the request was cut")]
    Cut,
}

#[derive(Debug)]
enum Kind {
    Own(Option<Bytes>),
    Application(Incoming),
}

impl ResponseBody {
    /// The proxy's own words.
    pub(crate) fn own(text: String, record: Record) -> Self {
        // Nothing at all ends with the head: gRPC's "Trailers-Only" must.
        let bytes = (!text.is_empty()).then(|| text.into());
        Self::new(Kind::Own(bytes), Some(record))
    }

    pub(crate) const fn application(inner: Incoming, record: Record) -> Self {
        Self::new(Kind::Application(inner), Some(record))
    }

    /// The body of `101`.
    pub(crate) const fn nothing() -> Self {
        Self::new(Kind::Own(None), None)
    }

    const fn new(kind: Kind, record: Option<Record>) -> Self {
        Self { kind, record, flight: None, deadline: None }
    }

    /// Keeps the workload busy until the answer's end, which must come before a deadline.
    pub(crate) fn hold(&mut self, flight: InFlight, deadline: Option<Instant>) {
        self.flight = Some(flight);
        self.deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
    }
}

impl Spelled for ResponseBody {
    fn spelled(&self) -> Option<&Bytes> {
        match &self.kind {
            Kind::Own(_) => None,
            Kind::Application(inner) => inner.spelled(),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let this = self.get_mut();
        if let Some(record) = &mut this.record
            && record.life().is_cut()
        {
            record.fail();
            return Poll::Ready(Some(Err(AnswerError::Cut)));
        }
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            if let Some(record) = &mut this.record {
                record.fail();
            }
            return Poll::Ready(Some(Err(AnswerError::TimedOut)));
        }
        let frame = match &mut this.kind {
            Kind::Own(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Kind::Application(inner) => {
                if let Some(record) = &mut this.record {
                    record.want_more();
                }
                ready!(Pin::new(inner).poll_frame(cx))
            }
        };
        if let Some(record) = &mut this.record {
            record.give();
            match &frame {
                Some(Ok(frame)) => match frame.trailers_ref() {
                    Some(trailers) => record.note_grpc(trailers),
                    None => {
                        record.add_answer_bytes(frame.data_ref().map_or(0, |it| it.len() as u64))
                    }
                },
                Some(Err(_)) => record.fail(),
                None => record.complete(),
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(AnswerError::Broken)))
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

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if self.is_end_stream()
            && let Some(record) = &mut self.record
        {
            record.complete();
        }
    }
}
