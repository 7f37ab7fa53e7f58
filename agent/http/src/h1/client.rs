//! One request to an application, and the head of its answer.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::EXPECT;
use http::{Method, Request, Response, StatusCode};
use tokio::task::AbortHandle;

use super::encode::{self, Encoder};
use super::head::{self, Framing, ResponseHead};
use super::reader::{NoHead, Reader};
use super::send::{SendError, Sending};
use super::{Body, Conn, Error, Keep, Raw, Spelled};
use crate::body::{BodyError, Incoming};
use crate::headers;
use crate::interim::Interim;
use crate::io::Stream;
use crate::limits::Author;

/// Peer at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// The proxy of another host.
    Proxy,
    /// An application, which may take a request's trailers for its header: many do that merge the two,
    /// and some take them for the next request's.
    Application { takes_trailers: bool },
}

impl Server {
    pub const fn author(self) -> Author {
        match self {
            Self::Proxy => Author::Proxy,
            Self::Application { .. } => Author::Anybody,
        }
    }

    const fn takes_trailers(self) -> bool {
        match self {
            Self::Proxy => true,
            Self::Application { takes_trailers } => takes_trailers,
        }
    }
}

/// A request's body, as it is sent.
pub trait OutgoingBody:
    hyper::body::Body<Data = Bytes, Error = BodyError> + Spelled + Send + Unpin + 'static
{
    /// Holder of the request's interim answers.
    type InterimHolder: AsRef<Interim>;

    fn interim(&self) -> Arc<Self::InterimHolder>;

    /// Puts back what had been taken before it could be sent.
    fn with_first(self, first: Option<Bytes>) -> Self;
}

/// Why there is no answer, and the request if no byte of it has left.
#[derive(Debug)]
pub struct Failed<B> {
    pub error: BodyError,
    pub unsent: Option<Box<Request<B>>>,
    /// The request, if it left and may be repeated (RFC 9112, section 9.3.1): its method does no
    /// harm, and no byte of an answer has come.
    pub repeatable: Option<Box<Request<B>>>,
}

/// Sends a request, and gives its answer once its head is here. The connection goes back to its
/// keeper when the answer has been read to its end; dropped before, it is closed.
pub async fn exchange<B: OutgoingBody>(
    link: Arc<Conn<Stream>>,
    keeper: Arc<dyn Keep<Stream>>,
    request: Box<Request<B>>,
    server: Server,
) -> Result<Response<Incoming>, Failed<B>> {
    let (parts, body) = (*request).into_parts();
    let framing = framing_of(&body);
    let target = (&parts.method, &parts.uri);
    let encoder = Encoder::new(framing, server.takes_trailers());
    let head = encode::request(target, &parts.headers, body.spelled(), framing, encoder);
    let told = body.interim();
    let mut sending = Sending::new(head, body, encoder);
    if framing != Framing::Empty && parts.headers.contains_key(EXPECT) {
        sending.hold();
    }
    let mut exchange = Exchange {
        link,
        sending: Some(sending),
        sent: None,
        is_cut_off: false,
        is_answered: false,
        author: server.author(),
        reader: Reader::new(server.author()),
        told,
    };
    match poll_fn(|cx| exchange.poll(cx, &parts.method)).await {
        Ok((answer, bytes)) => Ok(exchange.finish(answer, bytes, keeper)),
        Err(error) => {
            let may_repeat = framing == Framing::Empty && parts.method.is_idempotent();
            let (unsent, sent) = exchange.take_back();
            let whole = |body| Box::new(Request::from_parts(parts, body));
            Err(match (unsent, sent.filter(|_| may_repeat)) {
                (Some(body), _) => Failed { error, unsent: Some(whole(body)), repeatable: None },
                (None, sent) => Failed { error, unsent: None, repeatable: sent.map(whole) },
            })
        }
    }
}

fn framing_of(body: &impl OutgoingBody) -> Framing {
    match body.size_hint().exact() {
        _ if body.is_end_stream() => Framing::Empty,
        Some(length) => Framing::Length(length),
        None => Framing::Chunked,
    }
}

struct Exchange<B: OutgoingBody> {
    link: Arc<Conn<Stream>>,
    /// None once everything has left, or can't any more.
    sending: Option<Sending<B>>,
    /// The rest of the body.
    sent: Option<B>,
    /// The request is cut off somewhere.
    is_cut_off: bool,
    /// Something has come, if only an interim answer.
    is_answered: bool,
    author: Author,
    reader: Reader,
    /// Receiver of interim answers.
    told: Arc<B::InterimHolder>,
}

impl<B: OutgoingBody> Exchange<B> {
    /// Sends while it waits for the answer's head: some applications answer before they have read
    /// everything, some before they read on.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        asked: &Method,
    ) -> Poll<Result<(ResponseHead, Bytes), BodyError>> {
        self.send(cx)?;
        loop {
            let head = match self.reader.poll(cx, &self.link) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Some(head))) => head,
                Poll::Ready(Ok(None)) => return Poll::Ready(Err(Error::Truncated.into())),
                Poll::Ready(Err(NoHead::Broken(error))) => return Poll::Ready(Err(error.into())),
                Poll::Ready(Err(NoHead::Refused(refused))) => {
                    return Poll::Ready(Err(Error::Malformed(refused.reason()).into()));
                }
            };
            self.is_answered = true;
            let answer = head::response(&head, asked, self.author)
                .map_err(|refused| Error::Malformed(refused.reason()))?;
            let status = answer.parts.status;
            if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
                return Poll::Ready(Ok((answer, head)));
            }
            if status != StatusCode::CONTINUE {
                let mut fields = answer.parts.headers;
                headers::to_caller(&mut fields);
                (*self.told).as_ref().push(&encode::interim(status, &fields, &head));
            } else if let Some(sending) = &mut self.sending {
                sending.release();
                self.send(cx)?;
            }
        }
    }

    /// Sends what can be sent now.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        let Some(sending) = &mut self.sending else { return Ok(()) };
        match sending.poll(cx, &self.link) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.sent = self.sending.take().map(Sending::into_body),
            Poll::Ready(Err(SendError::Body(error))) => {
                self.is_cut_off = true;
                return Err(error);
            }
            Poll::Ready(Err(SendError::Wire(error))) if !sending.has_begun() => {
                return Err(error.into());
            }
            // Perhaps it has said why it reads no more.
            Poll::Ready(Err(SendError::Wire(Error::Io(_)))) => {
                self.is_cut_off = true;
                self.sending = None;
            }
            Poll::Ready(Err(SendError::Wire(error))) => return Err(error.into()),
        }
        Ok(())
    }

    /// The body, if nothing of the request has left; and if all of it has, without an answer.
    fn take_back(self) -> (Option<B>, Option<B>) {
        // Where the body itself broke there is nothing left to send.
        let sending = self.sending.filter(|_| !self.is_cut_off);
        let unsent = sending.and_then(Sending::unsent);
        let is_answered = self.is_answered || self.reader.has_begun();
        (unsent.map(|(body, first)| body.with_first(first)), self.sent.filter(|_| !is_answered))
    }

    fn finish(
        mut self,
        answer: ResponseHead,
        head: Bytes,
        keeper: Arc<dyn Keep<Stream>>,
    ) -> Response<Incoming> {
        let ResponseHead { parts, framing, keep_alive } = answer;
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            return Response::from_parts(parts, Incoming::switched(Raw(self.link), head));
        }
        // Nobody wants the body: the connection is of no more use without it.
        if self.sending.take_if(|sending| sending.is_held()).is_some() {
            self.is_cut_off = true;
        }
        let keeper = (keep_alive && !self.is_cut_off).then_some(keeper);
        let sending = self.sending.map(|sending| send_on(sending, &self.link));
        let body = Body::of_answer(self.link, framing, keeper, sending);
        Response::from_parts(parts, Incoming::of_answer(body, head))
    }
}

/// Sends the rest of a request whose answer has begun.
fn send_on<B: OutgoingBody>(mut sending: Sending<B>, link: &Arc<Conn<Stream>>) -> AbortHandle {
    let link = Arc::clone(link);
    let task = tokio::spawn(async move {
        // Who reads the answer sees what goes wrong.
        let _ = poll_fn(|cx| sending.poll(cx, &link)).await;
    });
    task.abort_handle()
}
