//! Spans to an OTLP receiver: HTTP with protobuf bodies, `POST /v1/traces`.
//!
//! The proxy's queue is bounded, and what doesn't fit is lost there. Here one batch at a time is sent, and
//! sent again after a pause that doubles, as long as the receiver says that it may be (OTLP: 429, 502, 503,
//! 504) or doesn't answer. Requests never wait for any of it.

mod message;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use isthmus_proxy::Finished;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use message::ExportTraceServiceRequest;

/// Spans of a batch.
const BATCH: usize = 256;
/// A batch is sent when it's full, or this old.
const AGE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Of an answer, whose words nobody reads.
const MAX_ANSWER: usize = 64 << 10;

/// Outcome of spans that left the queue.
#[derive(Debug, Default)]
pub(crate) struct Exported {
    /// The receiver took them.
    pub(crate) sent: AtomicU64,
    /// It didn't want them.
    pub(crate) refused: AtomicU64,
}

/// Sends spans as long as there are some.
pub(crate) async fn export(
    endpoint: Uri,
    host: impl Fn() -> String,
    mut spans: mpsc::Receiver<Arc<Finished>>,
    exported: &Exported,
) {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let sender = Sender { client, endpoint };
    while let Some(first) = spans.recv().await {
        let batch = collect(first, &mut spans).await;
        let request = ExportTraceServiceRequest::of(&host(), &batch);
        let count = match sender.send_until_taken(request.encode_to_vec().into()).await {
            Ok(()) => &exported.sent,
            Err(Refused(status)) => {
                tracing::warn!(%status, spans = batch.len(), "the receiver of spans refused a batch");
                &exported.refused
            }
        };
        count.fetch_add(batch.len() as u64, Ordering::Relaxed);
    }
}

/// Until there are enough of them, or the first is old enough.
async fn collect(
    first: Arc<Finished>,
    spans: &mut mpsc::Receiver<Arc<Finished>>,
) -> Vec<Arc<Finished>> {
    let mut batch = vec![first];
    let until = Instant::now() + AGE;
    while batch.len() < BATCH {
        match timeout_at(until, spans.recv()).await {
            Ok(Some(span)) => batch.push(span),
            Ok(None) | Err(_) => break,
        }
    }
    batch
}

struct Sender {
    client: Client<HttpConnector, Full<Bytes>>,
    endpoint: Uri,
}

/// The receiver will never take it.
struct Refused(StatusCode);

/// Outcome of an attempt.
enum Attempt {
    Taken,
    Refused(StatusCode),
    /// Another time perhaps.
    Later(String),
}

impl Sender {
    async fn send_until_taken(&self, body: Bytes) -> Result<(), Refused> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.send(body.clone()).await {
                Attempt::Taken => return Ok(()),
                Attempt::Refused(status) => return Err(Refused(status)),
                Attempt::Later(why) => tracing::debug!(why, ?pause, "spans can't be sent now"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn send(&self, body: Bytes) -> Attempt {
        let request = Request::post(self.endpoint.clone())
            .header(CONTENT_TYPE, "application/x-protobuf")
            .body(Full::new(body));
        let exchange = async {
            let response = self.client.request(request.map_err(|error| error.to_string())?).await;
            let response = response.map_err(|error| error.to_string())?;
            let status = response.status();
            // Read to its end, so that the connection can be used again.
            let _ = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            Ok::<_, String>(status)
        };
        match timeout(PATIENCE, exchange).await {
            Ok(Ok(status)) if status.is_success() => Attempt::Taken,
            Ok(Ok(status)) if matches!(status.as_u16(), 429 | 502..=504) => {
                Attempt::Later(status.to_string())
            }
            Ok(Ok(status)) => Attempt::Refused(status),
            Ok(Err(error)) => Attempt::Later(error),
            Err(_) => Attempt::Later("no answer in time".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::SystemTime;

    use http::{Method, Response, Version};
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use isthmus_proxy::{FinishedTrace, Parts, Ruling, Side, SpanId, TraceId};
    use message::{KeyValue, Span, SpanKind};
    use parking_lot::Mutex;

    use super::*;
    use crate::settings::otlp_endpoint;

    fn finished(number: u8) -> Arc<Finished> {
        Arc::new(Finished {
            request_id: "0123".to_owned(),
            side: Side::Server,
            source: "service:web".to_owned(),
            destination: "service:api".to_owned(),
            route: String::new(),
            backend: String::new(),
            host: String::new(),
            ruling: Ruling::Allow,
            rule: "web uses api".to_owned(),
            method: Method::GET,
            path: "/users".to_owned(),
            version: Version::HTTP_11,
            status: Some(503),
            success: false,
            tries: 0,
            request_bytes: 0,
            response_bytes: 7,
            began: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000),
            took: Duration::from_millis(250),
            parts: Parts { server: Duration::from_millis(250), ..Parts::default() },
            trace: Some(FinishedTrace {
                id: TraceId([7; 16]),
                parent: Some(SpanId([9; 8])),
                span: Some(SpanId([number; 8])),
            }),
        })
    }

    /// A receiver that answers with these statuses, then with 200, and what it took.
    async fn receiver(statuses: &[u16]) -> (String, Arc<Mutex<Vec<ExportTraceServiceRequest>>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let taken = Arc::<Mutex<Vec<ExportTraceServiceRequest>>>::default();
        let statuses = Arc::new(Mutex::new(statuses.to_vec()));
        let kept = Arc::clone(&taken);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (taken, statuses) = (Arc::clone(&kept), Arc::clone(&statuses));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (taken, statuses) = (Arc::clone(&taken), Arc::clone(&statuses));
                    async move {
                        assert_eq!(request.uri().path(), "/v1/traces");
                        assert_eq!(request.headers()[CONTENT_TYPE], "application/x-protobuf");
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let mut statuses = statuses.lock();
                        let status = if statuses.is_empty() { 200 } else { statuses.remove(0) };
                        if status == 200 {
                            let batch = ExportTraceServiceRequest::decode(body).unwrap();
                            taken.lock().push(batch);
                        }
                        let mut response = Response::new(Full::new(Bytes::new()));
                        *response.status_mut() = StatusCode::from_u16(status).unwrap();
                        Ok::<_, Infallible>(response)
                    }
                });
                let io = TokioIo::new(stream);
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(io, service),
                );
            }
        });
        (format!("http://{address}"), taken)
    }

    async fn exported(statuses: &[u16], spans: u16) -> (Vec<Vec<Span>>, Exported) {
        let (address, taken) = receiver(statuses).await;
        let (sender, queue) = mpsc::channel(4096);
        for number in 1..=spans {
            sender.send(finished(number as u8)).await.unwrap();
        }
        drop(sender);
        let exported = Exported::default();
        export(otlp_endpoint(&address).unwrap(), || "app-1".to_owned(), queue, &exported).await;
        let taken = taken.lock().clone();
        let spans = |batch: &ExportTraceServiceRequest| {
            let [resource] = &*batch.resource_spans else { panic!("{batch:?}") };
            let host = &resource.resource.as_ref().unwrap().attributes[1];
            assert_eq!(*host, KeyValue::text("host.name", "app-1"));
            resource.scope_spans[0].spans.clone()
        };
        (taken.iter().map(spans).collect(), exported)
    }

    #[tokio::test]
    async fn a_span_says_what_the_access_log_says() {
        let (batches, counts) = exported(&[], 1).await;
        let [span] = &*batches[0] else { panic!("{batches:?}") };
        assert_eq!((&*span.trace_id, &*span.span_id), (&[7; 16][..], &[1; 8][..]));
        assert_eq!((&*span.parent_span_id, span.name.as_str()), (&[9; 8][..], "GET api"));
        assert_eq!((span.kind(), span.status.as_ref().unwrap().code), (SpanKind::Server, 2));
        assert_eq!(span.start_time_unix_nano, 1_000_000_000_000);
        assert_eq!(span.end_time_unix_nano, 1_000_250_000_000);
        for (key, value) in [("url.path", "/users"), ("isthmus.rule", "web uses api")] {
            assert!(span.attributes.contains(&KeyValue::text(key, value)), "{span:?}");
        }
        assert!(!span.attributes.iter().any(|it| it.key == "isthmus.route"), "{span:?}");
        assert_eq!(counts.sent.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn many_spans_go_in_batches() {
        let (batches, counts) = exported(&[], 600).await;
        let sizes: Vec<_> = batches.iter().map(Vec::len).collect();
        assert_eq!(sizes, [256, 256, 88]);
        assert_eq!(counts.sent.load(Ordering::Relaxed), 600);
    }

    #[tokio::test]
    async fn a_busy_receiver_is_asked_again_and_one_that_refuses_is_not() {
        let (batches, counts) = exported(&[503, 429], 3).await;
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [3]);
        assert_eq!(counts.sent.load(Ordering::Relaxed), 3);
        let (batches, counts) = exported(&[400], 300).await;
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [44]);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!((count(&counts.refused), count(&counts.sent)), (256, 44));
    }
}
