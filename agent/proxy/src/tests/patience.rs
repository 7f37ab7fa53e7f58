//! Limits: of time and of number.

use std::time::Duration;

use http::{Response, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::support::*;
use crate::config::limits::Limits;

const HEAD: &str = "GET /a HTTP/1.1\r\nHost: web\r\n\r\n";

fn rules() -> Vec<isthmus_model::Rule> {
    vec![allow("api", "service:api", &[])]
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let application = Application::hello().await;
    let limits = Limits { head: Duration::from_millis(100), ..Limits::default() };
    let proxy = Proxy::start_within(limits, application.port, rules());
    for begun in ["", "G", "GET / HTTP/1.1\r\nHo", "PRI * HTTP/2.0\r\n"] {
        let started = Instant::now();
        let got = proxy.exchange(API, begun).await;
        assert!(!got.contains("HTTP/1.1 200"), "{begun:?}: {got}");
        assert!(started.elapsed() < Duration::from_secs(5), "{begun:?}");
    }
    // Not only the first.
    let mut stream = proxy.connect(API).await;
    stream.write_all(format!("{HEAD}GET / HT").as_bytes()).await.unwrap();
    read_until(&mut stream, "hello").await;
    stream.write_all(b"TP").await.unwrap();
    assert_eq!(timeout(Duration::from_secs(5), read_to_end(&mut stream)).await.unwrap(), "");
}

#[tokio::test]
async fn an_idle_connection_ends_and_a_busy_one_does_not() {
    let (go, gone) = watch::channel(false);
    let application = Application::start(move |request| {
        let mut gone = gone.clone();
        async move {
            if request.uri().path() == "/slow" {
                gone.wait_for(|gone| *gone).await.unwrap();
            }
            Response::new(full("hello"))
        }
    })
    .await;
    let limits = Limits { idle: Duration::from_millis(100), ..Limits::default() };
    let proxy = Proxy::start_within(limits, application.port, rules());
    let mut busy = proxy.connect(API).await;
    busy.write_all(HEAD.replace("/a", "/slow").as_bytes()).await.unwrap();
    let mut idle = proxy.connect(API).await;
    idle.write_all(HEAD.as_bytes()).await.unwrap();

    // Once the idle one has ended the busy one has been quiet for longer.
    let got = timeout(Duration::from_secs(5), read_to_end(&mut idle)).await.unwrap();
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    go.send_replace(true);
    read_until(&mut busy, "hello").await;
}

#[tokio::test]
async fn a_caller_that_does_not_read_loses_its_connection() {
    const BYTES: usize = 32 << 20;
    let application =
        Application::start(|_| async { Response::new(full(vec![b'x'; BYTES])) }).await;
    let limits = Limits { unread: Duration::from_millis(200), ..Limits::default() };
    let proxy = Proxy::start_within(limits, application.port, rules());
    let mut deaf = proxy.connect(API).await;
    deaf.write_all(HEAD.as_bytes()).await.unwrap();
    proxy.metrics_become(|metrics| metrics.active_connections == 1).await;
    proxy.metrics_become(|metrics| metrics.active_connections == 0).await;

    let answer = proxy.http2(API).await.send_request(get("/a")).await.unwrap();
    proxy.metrics_become(|metrics| metrics.active_connections == 0).await;
    drop(answer);

    let whole =
        proxy.exchange(API, HEAD.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
    assert!(whole.len() > BYTES, "{}", whole.len());
}

#[tokio::test]
async fn a_body_that_stops_coming_and_a_request_that_lasts_are_cut() {
    let (waiting, mut waits) = watch::channel(0);
    let application = Application::start(move |_| {
        waiting.send_modify(|count| *count += 1);
        std::future::pending()
    })
    .await;
    let short = Duration::from_millis(100);
    let slow = Limits { body_idle: short, ..Limits::default() };
    let long = Limits { request: short, ..Limits::default() };
    for (limits, why) in [(slow, "its body stopped coming"), (long, "it lasted too long")] {
        let log = Logged::start();
        let limits = Limits { head: short * 8, ..limits };
        let proxy = Proxy::start_within(limits, application.port, rules());
        let mut stream = proxy.connect(API).await;
        let head = "POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: 9\r\n\r\nhi";
        stream.write_all(head.as_bytes()).await.unwrap();
        waits.wait_for(|count| *count > 0).await.unwrap();
        assert_eq!(read_to_end(&mut stream).await, "");
        assert!(log.line("/a").await.contains(why));

        let mut client = proxy.http2(API).await;
        let frames = futures_util::stream::pending();
        let body = http_body_util::BodyExt::boxed(http_body_util::StreamBody::new(frames));
        let request = http::Request::post("http://web/b").body(body).unwrap();
        let answer = timeout(SOON, client.send_request(request)).await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
    }
}

#[tokio::test]
async fn who_connected_before_a_stop_is_still_served() {
    let application = Application::hello().await;
    let mut proxy = Proxy::start(application.port, rules());
    let mut fresh = proxy.connect(API).await;
    proxy.metrics_become(|metrics| metrics.active_connections == 1).await;
    proxy.begin_stop();
    fresh.write_all(HEAD.as_bytes()).await.unwrap();
    let got = read_to_end(&mut fresh).await;
    assert!(got.starts_with("HTTP/1.1 200") && got.ends_with("hello"), "{got}");
    proxy.stopped().await;
}

#[tokio::test]
async fn beyond_the_limit_connections_are_closed_at_once() {
    let application = Application::hello().await;
    let limits = Limits { connections: 1, ..Limits::default() };
    let proxy = Proxy::start_within(limits, application.port, rules());
    let first = proxy.connect(API).await;
    proxy.metrics_become(|metrics| metrics.active_connections == 1).await;
    assert_eq!(proxy.exchange(API, "").await, "");
    drop(first);
    proxy.metrics_become(|metrics| metrics.active_connections == 0).await;
    let mut client = proxy.http1(API).await;
    assert_eq!(client.send_request(request1("GET", "/a")).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn beyond_the_limit_requests_are_answered_503() {
    let (waiting, mut waits) = watch::channel(false);
    let application = Application::start(move |_| {
        waiting.send_replace(true);
        std::future::pending()
    })
    .await;
    let limits = Limits { requests: 1, ..Limits::default() };
    let proxy = Proxy::start_within(limits, application.port, rules());
    let mut client = proxy.http2(API).await;
    let mut same = client.clone();
    let _first = tokio::spawn(async move { client.send_request(get("/a")).await });
    waits.wait_for(|waiting| *waiting).await.unwrap();
    let answer = same.send_request(get("/b")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_stop_lets_requests_under_way_finish_and_takes_no_more() {
    let (go, gone) = watch::channel(false);
    let (waiting, mut waits) = watch::channel(false);
    let application = Application::start(move |_| {
        waiting.send_replace(true);
        let mut gone = gone.clone();
        async move {
            gone.wait_for(|gone| *gone).await.unwrap();
            Response::new(full("hello"))
        }
    })
    .await;
    let mut proxy = Proxy::start(application.port, rules());
    let mut idle = proxy.connect(API).await;
    let mut client = proxy.http1(API).await;
    let answer = tokio::spawn(async move { client.send_request(request1("GET", "/a")).await });
    waits.wait_for(|waiting| *waiting).await.unwrap();

    proxy.begin_stop();
    assert_eq!(read_to_end(&mut idle).await, "");
    assert!(tokio::net::TcpStream::connect(proxy.address).await.is_err());
    go.send_replace(true);
    assert_eq!(text(answer.await.unwrap().unwrap()).await, "hello");
    proxy.stopped().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let (waiting, mut waits) = watch::channel(false);
    let application = Application::start(move |_| {
        waiting.send_replace(true);
        std::future::pending()
    })
    .await;
    let limits = Limits { drain: Duration::from_millis(100), ..Limits::default() };
    let mut proxy = Proxy::start_within(limits, application.port, rules());
    let mut client = proxy.http1(API).await;
    let answer = tokio::spawn(async move { client.send_request(request1("GET", "/a")).await });
    waits.wait_for(|waiting| *waiting).await.unwrap();
    proxy.begin_stop();
    assert!(answer.await.unwrap().is_err());
    proxy.stopped().await;
}
