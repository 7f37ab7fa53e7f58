//! What a new revision does to connections that are open.

use std::time::{Duration, Instant};

use http::{Response, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::support::*;

const AT_ONCE: Duration = Duration::from_millis(900);
const HEAD: &str = "GET /a HTTP/1.1\r\nHost: web\r\n\r\n";

#[tokio::test]
async fn an_idle_keep_alive_connection_is_cut_when_its_allowance_goes() {
    let application = Application::hello().await;
    let proxy = Proxy::start(application.port, vec![allow("api", "service:api", &[])]);
    let mut stream = proxy.connect(API).await;
    stream.write_all(HEAD.as_bytes()).await.unwrap();
    read_until(&mut stream, "hello").await;

    proxy.apply(vec![]);
    let ended = timeout(AT_ONCE, stream.read(&mut [0; 16])).await.expect("the connection is cut");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    proxy.metrics_become(|metrics| metrics.cut_connections == 1).await;
}

#[tokio::test]
async fn a_connection_that_never_sent_a_byte_is_cut_as_well() {
    let application = Application::hello().await;
    let proxy = Proxy::start(application.port, vec![allow("api", "service:api", &[])]);
    let mut stream = proxy.connect(API).await;
    proxy.metrics_become(|metrics| metrics.active_connections == 1).await;
    proxy.apply(vec![]);
    let ended = timeout(AT_ONCE, stream.read(&mut [0; 16])).await.expect("the connection is cut");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test]
async fn answers_on_their_way_are_aborted_when_the_allowance_goes() {
    let application = Application::start(|_| async { Response::new(endless()) }).await;
    for version in [1, 2] {
        let proxy = Proxy::start(application.port, vec![allow("api", "service:api", &[])]);
        let answer = match version {
            1 => proxy.http1(API).await.send_request(request1("GET", "/a")).await.unwrap(),
            _ => proxy.http2(API).await.send_request(get("/a")).await.unwrap(),
        };
        let mut body = answer.into_body();
        assert!(body.frame().await.unwrap().is_ok());

        let changed = Instant::now();
        proxy.apply(vec![allow("batch", "service:batch", &[])]);
        let aborted = timeout(AT_ONCE, async { while let Some(Ok(_)) = body.frame().await {} });
        assert!(aborted.await.is_ok(), "HTTP/{version}");
        assert!(changed.elapsed() < AT_ONCE);
        proxy.metrics_become(|metrics| metrics.series.len() == 1).await;
        proxy.metrics_become(|metrics| metrics.active_connections == 0).await;
    }
}

#[tokio::test]
async fn requests_that_wait_for_the_application_are_aborted_too() {
    let (waiting, mut waits) = watch::channel(false);
    let application = Application::start(move |_| {
        waiting.send_replace(true);
        std::future::pending()
    })
    .await;
    let proxy = Proxy::start(application.port, vec![allow("api", "service:api", &[])]);
    let mut client = proxy.http2(API).await;
    let answer = tokio::spawn(async move { client.send_request(get("/a")).await });
    waits.wait_for(|waiting| *waiting).await.unwrap();

    proxy.apply(vec![]);
    assert!(timeout(AT_ONCE, answer).await.expect("it is aborted").unwrap().is_err());
    proxy.metrics_become(|metrics| metrics.series.len() == 1).await;
}

#[tokio::test]
async fn connections_that_stay_allowed_do_not_notice() {
    let application = Application::hello().await;
    let both = || vec![allow("api", "service:api", &[]), allow("batch", "service:batch", &[])];
    let proxy = Proxy::start(application.port, both());
    let mut staying = proxy.connect(API).await;
    let mut going = proxy.connect(BATCH).await;
    for stream in [&mut staying, &mut going] {
        stream.write_all(HEAD.as_bytes()).await.unwrap();
        read_until(stream, "hello").await;
    }

    proxy.apply(both());
    proxy.apply(vec![allow("api", "service:api", &[])]);
    assert_eq!(read_to_end(&mut going).await, "");
    staying.write_all(HEAD.as_bytes()).await.unwrap();
    read_until(&mut staying, "hello").await;
    assert_eq!(proxy.metrics.snapshot().cut_connections, 1);
}

#[tokio::test]
async fn the_next_request_on_a_connection_is_judged_by_the_newest_rules() {
    let application = Application::hello().await;
    let allow_only = |path| vec![allow("api", "service:api", &[(None, Some(path))])];
    let proxy = Proxy::start(application.port, allow_only("/a"));
    let mut client = proxy.http1(API).await;
    let answer = client.send_request(request1("GET", "/a")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    text(answer).await;

    proxy.apply(allow_only("/b"));
    client.ready().await.unwrap();
    let answer = client.send_request(request1("GET", "/a")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    text(answer).await;
    client.ready().await.unwrap();
    let answer = client.send_request(request1("GET", "/b")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

/// A body that goes on until its reader has enough.
fn endless() -> Body {
    let chunk = || hyper::body::Frame::data(bytes::Bytes::from_static(&[7; 1024]));
    let chunks = futures_util::stream::repeat_with(move || Ok(chunk()));
    BodyExt::boxed(http_body_util::StreamBody::new(chunks))
}
