//! Request bodies on their way to applications, counted.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use isthmus_http::body::{BodyError, Incoming};
use isthmus_http::h1::{Spelled, client};
use isthmus_http::headers;

use super::progress::Progress;
use super::replay::{Reading, Replay};

/// Of a request that can be sent again.
pub(crate) const MAX_WHOLE_BYTES: u64 = 64 * 1024;

/// A request's body on its way to the application.
#[derive(Debug)]
pub(crate) struct RequestBody {
    source: Source,
    progress: Arc<Progress>,
    /// Bytes that were taken and given back.
    first: Option<Bytes>,
}

#[derive(Debug)]
enum Source {
    Stream(Incoming),
    Shared(Reading),
    /// Counted already.
    Whole {
        bytes: Option<Bytes>,
        trailers: Option<HeaderMap>,
        spelled: Option<Bytes>,
    },
}

/// A request's body, as long as it may have to be sent again.
#[derive(Debug)]
pub(crate) enum Payload {
    /// It can be sent once. None while it is being sent.
    Stream(Option<RequestBody>),
    /// It is passed on as it comes, and can be sent again while it is small.
    Shared(Replay, Arc<Progress>),
    /// It is here, and can be sent again and again; with its trailers.
    Whole(Whole),
}

/// A body that is here, with its trailers, and the head whose spelling of names is kept.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    bytes: Bytes,
    trailers: Option<HeaderMap>,
    spelled: Option<Bytes>,
    progress: Arc<Progress>,
}

impl RequestBody {
    pub(crate) const fn new(inner: Incoming, progress: Arc<Progress>) -> Self {
        Self { source: Source::Stream(inner), progress, first: None }
    }

    pub(crate) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Of a body that is still to come from the caller.
    pub(crate) fn awaited(&self) -> Option<Arc<Progress>> {
        match &self.source {
            Source::Stream(_) | Source::Shared(_) => Some(Arc::clone(&self.progress)),
            Source::Whole { .. } => None,
        }
    }
}

impl Payload {
    /// A body; given back where it is to be whole first, and is known to be small. Any other can perhaps
    /// be sent again, where that is wanted.
    #[expect(clippy::result_large_err, reason = "it is no error, and is taken at once")]
    pub(crate) fn ready(
        body: Incoming,
        (wants_whole, wants_again): (bool, bool),
        progress: Arc<Progress>,
    ) -> Result<Self, Incoming> {
        if body.is_end_stream() {
            let spelled = body.spelled().cloned();
            let (bytes, trailers) = (Bytes::new(), None);
            return Ok(Self::Whole(Whole { bytes, trailers, spelled, progress }));
        }
        let is_small = body.size_hint().upper().is_some_and(|size| size <= MAX_WHOLE_BYTES);
        if wants_whole && is_small {
            return Err(body);
        }
        if wants_again {
            return Ok(Self::Shared(Replay::new(body), progress));
        }
        Ok(Self::Stream(Some(RequestBody::new(body, progress))))
    }

    /// The whole of a small body.
    pub(crate) async fn collect(
        body: Incoming,
        progress: Arc<Progress>,
    ) -> Result<Self, BodyError> {
        let spelled = body.spelled().cloned();
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned().map(|mut trailers| {
            headers::of_trailers(&mut trailers);
            trailers
        });
        let whole = collected.to_bytes();
        progress.receive(whole.len() as u64);
        Ok(Self::Whole(Whole { bytes: whole, trailers, spelled, progress }))
    }

    /// Whether there is something to send.
    pub(crate) fn is_ready(&self) -> bool {
        match self {
            Self::Stream(upload) => upload.is_some(),
            Self::Shared(replay, _) => replay.is_ready(),
            Self::Whole(_) => true,
        }
    }

    pub(crate) fn take(&mut self) -> Option<RequestBody> {
        match self {
            Self::Stream(upload) => upload.take(),
            Self::Shared(replay, progress) => {
                let (source, progress) = (Source::Shared(replay.read()?), Arc::clone(progress));
                Some(RequestBody { source, progress, first: None })
            }
            Self::Whole(whole) => Some(whole.upload()),
        }
    }

    /// Nobody has read of it.
    pub(crate) fn give_back(&mut self, upload: RequestBody) {
        if let Self::Stream(empty) = self {
            *empty = Some(upload);
        }
    }

    /// Another one like it, where it is whole.
    pub(crate) fn copy(&self) -> Option<RequestBody> {
        match self {
            Self::Stream(_) | Self::Shared(..) => None,
            Self::Whole(whole) => {
                // Nobody's time: the caller doesn't wait for a copy.
                let progress = Arc::new(Progress::new(whole.progress.started()));
                Some(RequestBody { progress, ..whole.upload() })
            }
        }
    }
}

impl Whole {
    fn upload(&self) -> RequestBody {
        let Self { bytes, trailers, spelled, progress } = self.clone();
        let source =
            Source::Whole { bytes: Some(bytes).filter(|it| !it.is_empty()), trailers, spelled };
        RequestBody { source, progress, first: None }
    }
}

impl Spelled for RequestBody {
    fn spelled(&self) -> Option<&Bytes> {
        match &self.source {
            Source::Stream(inner) => inner.spelled(),
            Source::Shared(reading) => reading.spelled.as_ref(),
            Source::Whole { spelled, .. } => spelled.as_ref(),
        }
    }
}

impl client::OutgoingBody for RequestBody {
    type InterimHolder = Progress;

    fn interim(&self) -> Arc<Progress> {
        self.progress()
    }

    fn with_first(mut self, first: Option<Bytes>) -> Self {
        self.first = first;
        self
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.progress.life.is_cut() {
            return Poll::Ready(Some(Err(BodyError::Cut)));
        }
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let frame = match &mut self.source {
            Source::Whole { bytes, trailers, spelled: _ } => {
                let data = bytes.take().map(Frame::data);
                let frame = data.or_else(|| trailers.take().map(Frame::trailers));
                return Poll::Ready(frame.map(Ok));
            }
            Source::Stream(inner) => Pin::new(inner).poll_frame(cx),
            Source::Shared(reading) if reading.is_behind() => return reading.poll_frame(cx),
            Source::Shared(reading) => reading.poll_frame(cx),
        };
        let Poll::Ready(mut frame) = frame else {
            self.progress.wait();
            return Poll::Pending;
        };
        self.progress.receive(data_len(frame.as_ref()));
        if matches!(frame, Some(Err(_))) {
            self.progress.break_off();
        }
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            headers::of_trailers(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none()
            && match &self.source {
                Source::Stream(inner) => inner.is_end_stream(),
                Source::Shared(reading) => reading.is_end_stream(),
                Source::Whole { bytes, trailers, spelled: _ } => {
                    bytes.is_none() && trailers.is_none()
                }
            }
    }

    fn size_hint(&self) -> SizeHint {
        let left = match &self.source {
            Source::Stream(inner) => inner.size_hint().exact(),
            Source::Shared(reading) => reading.size_hint().exact(),
            Source::Whole { trailers: Some(_), .. } => None,
            Source::Whole { bytes, .. } => Some(bytes.as_ref().map_or(0, Bytes::len) as u64),
        };
        let first = self.first.as_ref().map_or(0, Bytes::len) as u64;
        left.map_or_else(SizeHint::default, |left| SizeHint::with_exact(first + left))
    }
}

fn data_len(frame: Option<&Result<Frame<Bytes>, BodyError>>) -> u64 {
    match frame {
        Some(Ok(frame)) => frame.data_ref().map_or(0, |data| data.len() as u64),
        Some(Err(_)) | None => 0,
    }
}
