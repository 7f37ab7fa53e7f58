//! Open connections under a new revision.

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

#[tokio::test]
async fn a_request_ends_with_its_own_allowance_and_others_go_on() {
    let application = Application::start(|_| async { Response::new(endless()) }).await;
    let only = |paths: &[&str]| {
        let entries: Vec<_> = paths.iter().map(|path| (None, Some(*path))).collect();
        vec![allow("api", "service:api", &entries)]
    };
    for version in [1, 2] {
        let proxy = Proxy::start(application.port, only(&["/a", "/b"]));
        let (going, staying) = match version {
            1 => (
                proxy.http1(API).await.send_request(request1("GET", "/a")).await.unwrap(),
                proxy.http1(API).await.send_request(request1("GET", "/b")).await.unwrap(),
            ),
            _ => {
                let mut client = proxy.http2(API).await;
                let going = client.send_request(get("/a")).await.unwrap();
                (going, client.send_request(get("/b")).await.unwrap())
            }
        };
        let (mut going, mut staying) = (going.into_body(), staying.into_body());
        for body in [&mut going, &mut staying] {
            assert!(body.frame().await.unwrap().is_ok());
        }
        proxy.apply(only(&["/b"]));
        let cut = timeout(AT_ONCE, async { while let Some(Ok(_)) = going.frame().await {} });
        assert!(cut.await.is_ok(), "HTTP/{version}");
        for _ in 0..200 {
            assert!(staying.frame().await.unwrap().is_ok(), "HTTP/{version}");
        }
    }
}

#[tokio::test]
async fn a_request_that_waits_for_its_answer_ends_with_its_own_allowance() {
    let (waiting, mut waits) = watch::channel(false);
    let application = Application::start(move |_| {
        waiting.send_replace(true);
        std::future::pending()
    })
    .await;
    let log = Logged::start();
    let only = |path| vec![allow("api", "service:api", &[(None, Some(path))])];
    let proxy = Proxy::start(application.port, only("/a"));
    let mut client = proxy.http2(API).await;
    let answer = tokio::spawn(async move { client.send_request(get("/a")).await });
    waits.wait_for(|waiting| *waiting).await.unwrap();
    proxy.apply(only("/a"));
    proxy.apply(only("/b"));
    let answer = timeout(AT_ONCE, answer).await.expect("it is cut").unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    let line = log.line("/a").await;
    assert!(line.contains("policy no longer allows it"), "{line}");
}

#[tokio::test]
async fn a_body_that_still_comes_is_cut_with_its_allowance() {
    let application = Application::start(|request: http::Request<hyper::body::Incoming>| async {
        Response::new(request.into_body().boxed())
    })
    .await;
    let only = |path| vec![allow("api", "service:api", &[(None, Some(path))])];
    for chunked in [true, false] {
        let proxy = Proxy::start(application.port, only("/a"));
        let mut stream = proxy.connect(API).await;
        let framing = if chunked { "Transfer-Encoding: chunked" } else { "Content-Length: 99999" };
        let head = format!("POST /a HTTP/1.1\r\nHost: web\r\n{framing}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(if chunked { b"2\r\nhi\r\n" } else { b"hi" }).await.unwrap();
        read_until(&mut stream, "hi").await;
        proxy.apply(only("/b"));
        let cut =
            timeout(AT_ONCE, async { while let Ok(1..) = stream.read(&mut [0; 64]).await {} });
        assert!(cut.await.is_ok(), "chunked: {chunked}");
        proxy.metrics_become(|metrics| metrics.cut_connections == 1).await;
    }
}

#[tokio::test]
async fn fields_that_nobody_kept_let_nothing_go_on_where_a_new_rule_looks_at_them() {
    let application = Application::start(|_| async { Response::new(endless()) }).await;
    let denies = |value: &str| {
        let mut rule = deny("role", "any", &[(None, None)]);
        let value = isthmus_model::route::ValueMatch::Exact(value.into());
        rule.http[0].headers =
            vec![isthmus_model::route::FieldMatch { name: "x-role".into(), value }];
        vec![rule, allow("api", "service:api", &[])]
    };
    // Whether rules looked at fields before, and what they look for afterwards.
    for (before, after, cut) in [
        (vec![allow("api", "service:api", &[])], denies("admin"), true),
        (denies("root"), denies("admin"), false),
        (denies("root"), denies("user"), true),
    ] {
        let proxy = Proxy::start(application.port, before);
        let mut request = request1("GET", "/a");
        request.headers_mut().insert("x-role", "user".parse().unwrap());
        let answer = proxy.http1(API).await.send_request(request).await.unwrap();
        let mut body = answer.into_body();
        assert!(body.frame().await.unwrap().is_ok());
        proxy.apply(after);
        if cut {
            let whole = async { while let Some(Ok(_)) = body.frame().await {} };
            assert!(timeout(AT_ONCE, whole).await.is_ok());
            continue;
        }
        for _ in 0..2000 {
            assert!(body.frame().await.unwrap().is_ok());
        }
    }
}

/// A body that goes on until its reader has enough.
fn endless() -> Body {
    let chunk = || hyper::body::Frame::data(bytes::Bytes::from_static(&[7; 1024]));
    let chunks = futures_util::stream::repeat_with(move || Ok(chunk()));
    BodyExt::boxed(http_body_util::StreamBody::new(chunks))
}
