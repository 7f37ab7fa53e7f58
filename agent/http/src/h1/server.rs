//! A caller's connection, from one request to the next.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use tokio::time::timeout;

use super::encode::{self, Asked, Encoder};
use super::head::{self, Framing, Refused, RequestHead};
use super::reader::{NoHead, Reader};
use super::send::Sending;
use super::{Body, Conn, Spelled};
use crate::activity::Activity;
use crate::body::Incoming;
use crate::interim::Interim;
use crate::io::CallerIo;
use crate::limits::Author;

/// Preface of an HTTP/2 connection, with prior knowledge.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Read-ahead of further requests while one is under way.
const MAX_EARLY_BYTES: usize = 64 * 1024;
/// Of a request whose answer needed no more of it.
const MAX_UNREAD_BYTES: usize = 1024 * 1024;
/// For a caller to have read the last answer.
const LAST_READ: Duration = Duration::from_secs(1);

/// Service that answers the requests of a connection.
pub trait Service: Send + Sync + 'static {
    /// An answer's body.
    type Body: hyper::body::Body<Data = Bytes, Error: std::error::Error + Send + Sync>
        + Spelled
        + Send
        + Unpin
        + 'static;
    /// State of a request under way.
    type Progress: AsRef<Interim> + Send + Sync;

    /// Author of the heads on the connection.
    fn author(&self) -> Author;

    fn activity(&self) -> &Activity;

    /// A request's head is here.
    fn begin(&self) -> Arc<Self::Progress>;

    /// Serves one request. There is always an answer.
    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        progress: Arc<Self::Progress>,
    ) -> impl Future<Output = Result<Response<Self::Body>, Infallible>> + Send;

    /// Answers an invalid request.
    fn on_refusal(&self, status: StatusCode, reason: &str);
}

/// End of HTTP/1 service on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Closed,
    /// The connection is a tunnel's now.
    Switched,
}

/// Whether a connection begins as HTTP/2's do.
pub async fn is_http2(link: &Conn<CallerIo>) -> bool {
    poll_fn(|cx| {
        loop {
            let begin = link.rest();
            if begin.len() >= PREFACE.len() || !PREFACE.starts_with(&begin) {
                return Poll::Ready(begin.starts_with(PREFACE));
            }
            match link.poll_fill(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Some(()))) => {}
                Poll::Ready(Ok(None) | Err(_)) => return Poll::Ready(false),
            }
        }
    })
    .await
}

/// Serves requests until one side ends the connection, or one request makes it a tunnel. Requests
/// that come before an answer has left wait for their turn.
pub async fn serve<S: Service>(service: &Arc<S>, link: &Arc<Conn<CallerIo>>) -> End {
    let author = service.author();
    let mut reader = Reader::new(author);
    loop {
        if link.rest_len() > 0 {
            service.activity().on_bytes();
        }
        let begun = match poll_fn(|cx| reader.poll(cx, link)).await {
            // Boxed at once, so that a connection without a request doesn't hold the room for one.
            Ok(Some(head)) => head::request(&head, author)
                .map(|request| Box::pin(exchange(service, link, request, head))),
            Err(NoHead::Refused(refused)) => Err(refused),
            Ok(None) | Err(NoHead::Broken(_)) => return End::Closed,
        };
        let exchange = match begun {
            Ok(exchange) => exchange,
            Err(refused) => {
                service.on_refusal(refused.status(), refused.reason());
                Box::pin(refuse(refused, link)).await;
                return End::Closed;
            }
        };
        match exchange.await {
            Some(Next::Request) => {}
            Some(Next::Tunnel) => return End::Switched,
            Some(Next::End) => {
                Box::pin(say_farewell(link)).await;
                return End::Closed;
            }
            None => return End::Closed,
        }
    }
}

/// Next step after an answer.
enum Next {
    Request,
    Tunnel,
    End,
}

/// Serves one request. None if the connection broke.
async fn exchange<S: Service>(
    service: &Arc<S>,
    link: &Arc<Conn<CallerIo>>,
    request: RequestHead,
    head: Bytes,
) -> Option<Next> {
    let RequestHead { parts, framing, keep_alive, expects_continue, wants_trailers } = request;
    let mut asked =
        Asked { version: parts.version, is_head: parts.method == Method::HEAD, keep_alive };
    link.set_answering(false);
    let body = Body::of_request(link, framing, expects_continue);
    let request = Request::from_parts(parts, Incoming::of_request(body, head));
    let answer = {
        let progress = service.begin();
        let told = (asked.version == Version::HTTP_11).then(|| Arc::clone(&progress));
        let handling = pin!(S::handle(Arc::clone(service), request, progress));
        answered(handling, link, told.as_deref().map(AsRef::as_ref)).await?
    };
    link.set_answering(true);

    let (mut head, body) = answer.into_parts();
    let (framing, encoder) = framing_of(head.status, &body, asked, wants_trailers);
    // A switch names what it switches to.
    let closes = !is_switch(head.status) && head.headers.remove(CONNECTION).is_some();
    asked.keep_alive &= !closes
        && framing != Framing::UntilClose
        && !link.is_body_left()
        && !service.activity().is_leaving();
    let bytes = encode::response(head.status, &head.headers, body.spelled(), framing, asked);
    let mut sending = Sending::new(bytes, body, encoder);
    poll_fn(|cx| sending.poll(cx, link)).await.ok()?;
    if is_switch(head.status) {
        return Some(Next::Tunnel);
    }
    let goes_on = asked.keep_alive && !link.is_in_body() && !service.activity().is_leaving();
    Some(if goes_on { Next::Request } else { Next::End })
}

/// Waits for an answer. None if the caller goes away before.
/// `told` has interim answers, for a caller that knows them.
async fn answered<F, B>(
    mut handling: Pin<&mut F>,
    link: &Conn<CallerIo>,
    told: Option<&Interim>,
) -> Option<Response<B>>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    let (mut answer, mut interim) = (None, Vec::new());
    poll_fn(|cx| {
        if answer.is_none()
            && let Poll::Ready(Ok(it)) = handling.as_mut().poll(cx)
        {
            answer = Some(it);
        }
        if let Some(told) = told {
            told.take(&mut interim);
        }
        if !interim.is_empty() && ready!(poll_say(&mut interim, link, cx)).is_err() {
            return Poll::Ready(None);
        }
        if let Some(answer) = answer.take() {
            return Poll::Ready(Some(answer));
        }
        while !link.is_in_body() && link.rest_len() < MAX_EARLY_BYTES {
            match link.poll_fill(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(Some(()))) => {}
                Poll::Ready(Ok(None) | Err(_)) => return Poll::Ready(None),
            }
        }
        Poll::Pending
    })
    .await
}

/// Says something before an answer, all of it.
fn poll_say(
    interim: &mut Vec<u8>,
    link: &Conn<CallerIo>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while !interim.is_empty() {
        match ready!(link.poll_write(cx, &[IoSlice::new(interim)]))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => drop(interim.drain(..written)),
        }
    }
    link.poll_flush(cx)
}

fn framing_of(
    status: StatusCode,
    body: &impl hyper::body::Body,
    asked: Asked,
    wants_trailers: bool,
) -> (Framing, Encoder) {
    let framing = match body.size_hint().exact() {
        _ if head::has_no_body(status) => Framing::Empty,
        Some(0) => Framing::Empty,
        Some(length) => Framing::Length(length),
        None if asked.version == Version::HTTP_11 => Framing::Chunked,
        None => Framing::UntilClose,
    };
    if asked.is_head || head::has_no_body(status) {
        return (Framing::Empty, Encoder::Empty);
    }
    (framing, Encoder::new(framing, wants_trailers))
}

fn is_switch(status: StatusCode) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS
}

/// Answers what is no proper HTTP. What comes behind it isn't trusted either.
async fn refuse(refused: Refused, link: &Conn<CallerIo>) {
    let text = Bytes::from(format!("{}\n", refused.reason()));
    let mut fields = HeaderMap::new();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let asked = Asked { version: Version::HTTP_11, is_head: false, keep_alive: false };
    let framing = Framing::Length(text.len() as u64);
    let head = encode::response(refused.status(), &fields, None, framing, asked);
    let body = http_body_util::Full::new(text);
    let mut sending = Sending::new(head, body, Encoder::new(framing, false));
    if poll_fn(|cx| sending.poll(cx, link)).await.is_ok() {
        say_farewell(link).await;
    }
}

/// Ends the connection in a way that lets the caller read what was said last: to close a socket on
/// which more has come resets it, and a reset takes the answer with it.
async fn say_farewell(link: &Conn<CallerIo>) {
    let farewell = async {
        let _ = poll_fn(|cx| link.poll_shutdown(cx)).await;
        let mut unread = link.take_rest().len();
        while unread < MAX_UNREAD_BYTES
            && let Ok(Some(())) = poll_fn(|cx| link.poll_fill(cx)).await
        {
            unread += link.take_rest().len();
        }
    };
    let _ = timeout(LAST_READ, farewell).await;
}
