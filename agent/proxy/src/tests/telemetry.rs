//! Request telemetry: where their time went, which trace they belong to, and to whom.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::time::sleep;

use super::routed::{self, API_2, Backends, CALLER, NEAR};
use super::support::*;
use crate::config::limits::Limits;
use crate::{Side, TapFilter, TraceParent};

const NAP: Duration = Duration::from_millis(60);
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A number in a line of the access log.
#[track_caller]
fn number(line: &str, key: &str) -> f64 {
    let (_, rest) =
        line.split_once(&format!("\"{key}\":")).unwrap_or_else(|| panic!("{key}: {line}"));
    rest.split([',', '}']).next().unwrap().parse().unwrap()
}

/// The parts in milliseconds, which add up to the whole.
#[track_caller]
fn parts(line: &str) -> [f64; 5] {
    let keys = ["client_ms", "queue_ms", "connect_ms", "tunnel_ms", "server_ms"];
    let parts = keys.map(|key| number(line, key));
    let apart = parts.iter().sum::<f64>() - number(line, "duration_ms");
    // Each of the six numbers is rounded to a microsecond.
    assert!(apart.abs() < 0.004, "{line}");
    assert!(parts.iter().all(|part| *part >= 0.0), "{line}");
    parts
}

fn nap() -> f64 {
    NAP.as_secs_f64() * 1000.0
}

/// A body of two pieces, the second of which comes late.
fn slow_body() -> Body {
    let pieces = futures_util::stream::unfold(0, |piece| async move {
        if piece == 1 {
            sleep(NAP).await;
        }
        (piece < 2).then(|| (Ok(Frame::data(Bytes::from_static(b"piece"))), piece + 1))
    });
    BodyExt::boxed(StreamBody::new(pieces))
}

#[tokio::test]
async fn the_application_is_waited_for_until_its_answers_last_byte() {
    let log = Logged::start();
    let application = Application::start(|_| async {
        sleep(NAP).await;
        Response::new(slow_body())
    })
    .await;
    let proxy = Proxy::start(application.port, vec![allow("all", "service:api", &[])]);
    let mut client = proxy.http1(API).await;
    let answer = client.send_request(request1("GET", "/slow")).await.unwrap();
    // The other side wants to know what the head took.
    let told: f64 = answer.headers()["x-isthmus-server-time"].to_str().unwrap().parse().unwrap();
    assert_eq!(text(answer).await, "piecepiece");
    let line = log.line("/slow").await;
    let [_, _, connect, tunnel, server] = parts(&line);
    assert!(server >= 2.0 * nap(), "{line}");
    // Not the body's, whose nap may have begun before the head was read.
    assert!((nap()..server - nap() / 2.0).contains(&(told / 1000.0)), "{told} and {line}");
    assert!(connect > 0.0 && tunnel == 0.0, "{line}");
}

#[tokio::test]
async fn a_caller_that_sends_slowly_is_waited_for() {
    let log = Logged::start();
    let application = Application::start(|request: Request<_>| async {
        request.into_body().collect().await.unwrap();
        Response::new(full("thanks"))
    })
    .await;
    let proxy = Proxy::start(application.port, vec![allow("all", "service:api", &[])]);
    let mut client = proxy.http1(API).await;
    let request = Request::builder().method("POST").uri("/upload").header("host", "web");
    let answer = client.send_request(request.body(slow_body()).unwrap()).await.unwrap();
    assert_eq!(text(answer).await, "thanks");
    let line = log.line("/upload").await;
    let [client, ..] = parts(&line);
    assert!(client >= nap() * 0.95, "{line}");
    assert_eq!(number(&line, "request_bytes"), 10.0);
}

#[tokio::test]
async fn the_clients_side_tells_the_tunnel_from_the_application() {
    let log = Logged::start();
    let mut backends = Backends::new();
    // Stands for the proxy of another host: its application took 20 ms of the time.
    let far = |_| async {
        sleep(NAP).await;
        let answer = Response::builder().header("x-isthmus-server-time", "20000");
        answer.body(full("far")).unwrap()
    };
    let _far = backends.start(API_2, far).await;
    // An application of this host has nothing to say about this.
    let _near = backends.start(NEAR, far).await;
    let view = backends.view_on(
        "[[route.api]]\nmatch = { path = \"/near\" }\nto = [{ service = \"near\" }]\n\
         [[allow]]\nname = \"all\"\nfrom = \"service:client\"\nto = \"service:*\"\n",
        &[API_2],
    );
    let proxy = Proxy::serve(Limits::default(), routed::API, backends.port, view);
    for (path, expected) in [("/far", (20.0, nap() - 20.0)), ("/near", (nap(), 0.0))] {
        let mut client = proxy.http1(CALLER).await;
        let answer = client.send_request(request1("GET", path)).await.unwrap();
        assert!(!answer.headers().contains_key("x-isthmus-server-time"), "{answer:?}");
        text(answer).await;
        let line = log.line(path).await;
        let [_, _, _, tunnel, server] = parts(&line);
        assert!(server >= expected.0 && tunnel >= expected.1, "{line}");
        assert!(path == "/near" || server < nap(), "{line}");
    }
}

#[tokio::test]
async fn a_trace_passes_both_sides_and_is_in_the_log() {
    let log = Logged::start();
    let application = Application::hello().await;
    let proxy = Proxy::start(application.port, vec![allow("all", "service:api", &[])]);
    let mut client = proxy.http1(API).await;
    let request = |path: &str, parent: &str| {
        let request =
            Request::builder().uri(path).header("host", "web").header("traceparent", parent);
        request.header("tracestate", "vendor=1").body(full("")).unwrap()
    };
    // Nobody exports spans: what comes passes as it is.
    text(client.send_request(request("/plain", PARENT)).await.unwrap()).await;
    client.ready().await.unwrap();
    text(client.send_request(request("/wrong", "00-nonsense")).await.unwrap()).await;
    client.ready().await.unwrap();
    let mut spans = proxy.metrics.trace(0.0).unwrap();
    text(client.send_request(request("/traced", PARENT)).await.unwrap()).await;
    client.ready().await.unwrap();
    text(client.send_request(request1("GET", "/fresh")).await.unwrap()).await;

    let seen = application.seen();
    let parent = |at: usize| seen[at].headers.get("traceparent").map(|it| it.to_str().unwrap());
    assert_eq!((parent(0), parent(1)), (Some(PARENT), None));
    assert!(
        seen[0].headers.contains_key("tracestate") && !seen[1].headers.contains_key("tracestate")
    );
    let sent = TraceParent::parse(parent(2).unwrap().as_bytes()).unwrap();
    let span = spans.recv().await.unwrap();
    let trace = span.trace.unwrap();
    assert_eq!((trace.span, trace.id), (Some(sent.span), sent.trace));
    assert_eq!(trace.parent.unwrap().to_string(), "00f067aa0ba902b7");
    assert_eq!((span.path.as_str(), span.side, span.status), ("/traced", Side::Server, Some(200)));
    let fresh = TraceParent::parse(parent(3).unwrap().as_bytes()).unwrap();
    assert!(!fresh.sampled && fresh.trace != sent.trace);
    for path in ["/plain", "/traced"] {
        let line = log.line(path).await;
        assert!(line.contains("\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\""), "{line}");
    }
    assert!(!log.line("/wrong").await.contains("trace_id"));
    assert!(spans.try_recv().is_err(), "what isn't sampled has no span");
}

#[tokio::test]
async fn a_tap_shows_what_it_was_asked_for() {
    let application = Application::hello().await;
    let proxy = Proxy::start(application.port, vec![allow("all", "service:api", &[])]);
    let path = Some("/wanted/*".to_owned());
    let mut tap = proxy.metrics.tap(TapFilter { path, ..TapFilter::default() }).unwrap();
    let mut client = proxy.http2(API).await;
    for path in ["/other", "/wanted/1", "/else"] {
        text(client.send_request(get(path)).await.unwrap()).await;
    }
    let shown = tokio::time::timeout(SOON, tap.next()).await.unwrap().unwrap();
    assert_eq!((shown.path.as_str(), shown.rule.as_str()), ("/wanted/1", "all"));
    assert_eq!((shown.source.as_str(), shown.destination.as_str()), ("service:api", "service:web"));
    assert_eq!((shown.status, shown.response_bytes, tap.take_lost()), (Some(200), 5, 0));
    let parts = &shown.parts;
    let sum = parts.client + parts.queue + parts.connect + parts.tunnel + parts.server;
    assert_eq!(sum, shown.took);
}
