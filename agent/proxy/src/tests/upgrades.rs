//! Tunnels: WebSocket and its like.

use http::header::{CONNECTION, UPGRADE};
use http::{Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::*;

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: web\r\nConnection: keep-alive, Upgrade\r\n\
                   Upgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n";

#[tokio::test]
async fn an_allowed_upgrade_carries_bytes_both_ways() {
    let application = echoing().await;
    let proxy = Proxy::start(
        application.port,
        vec![allow("chat", "service:api", &[(None, Some("/chat"))])],
    );
    let mut stream = proxy.connect(API).await;
    stream.write_all(ASK.as_bytes()).await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await.to_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head}");
    assert!(head.contains("upgrade: websocket") && head.contains("sec-websocket-accept: yes"));
    for message in ["one", "two"] {
        stream.write_all(message.as_bytes()).await.unwrap();
        read_until(&mut stream, message).await;
    }
    stream.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, "");
    proxy.metrics_become(|metrics| metrics.active_connections == 0).await;
}

#[tokio::test]
async fn a_denied_upgrade_never_reaches_the_application() {
    let application = echoing().await;
    let proxy =
        Proxy::start(application.port, vec![allow("a", "service:api", &[(None, Some("/a"))])]);
    let mut stream = proxy.connect(API).await;
    stream.write_all(ASK.as_bytes()).await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    assert!(application.seen().is_empty());
}

#[tokio::test]
async fn without_the_applications_agreement_what_follows_is_judged_as_a_request() {
    let application = Application::hello().await;
    let proxy = Proxy::start(
        application.port,
        vec![allow("chat", "service:api", &[(None, Some("/chat"))])],
    );
    let smuggled = "GET /admin HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
    let got = proxy.exchange(API, format!("{ASK}{smuggled}")).await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    assert!(got.contains("HTTP/1.1 403"), "{got}");
    assert_eq!(application.seen().len(), 1);
}

#[tokio::test]
async fn an_upgrade_to_another_http_is_not_passed_on() {
    let application = Application::hello().await;
    let proxy = Proxy::start(application.port, vec![allow("api", "service:api", &[])]);
    for protocol in ["h2c", "HTTP/2.0", "websocket, h2c", "TLS/1.2"] {
        let got = proxy
            .exchange(
                API,
                format!(
                    "GET /{} HTTP/1.1\r\nHost: web\r\nConnection: Upgrade, HTTP2-Settings, close\r\n\
                     Upgrade: {protocol}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
                    protocol.len()
                ),
            )
            .await;
        assert!(got.starts_with("HTTP/1.1 200"), "{protocol}: {got}");
    }
    for seen in application.seen() {
        assert!(!seen.headers.contains_key(UPGRADE), "{seen:?}");
        assert!(!seen.headers.contains_key("http2-settings"), "{seen:?}");
    }
}

#[tokio::test]
async fn an_application_that_switches_to_something_else_is_not_believed() {
    let application = Application::start(|_| async {
        let answer = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
        answer.header(CONNECTION, "upgrade").header(UPGRADE, "h2c").body(full("")).unwrap()
    })
    .await;
    let proxy = Proxy::start(application.port, vec![allow("api", "service:api", &[])]);
    let mut stream = proxy.connect(API).await;
    stream.write_all(ASK.as_bytes()).await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
}

#[tokio::test]
async fn a_tunnel_ends_with_the_allowance_of_the_request_that_made_it() {
    let application = echoing().await;
    let only = |path| vec![allow("api", "service:api", &[(None, Some(path))])];
    let proxy = Proxy::start(application.port, only("/chat"));
    let mut stream = proxy.connect(API).await;
    stream.write_all(ASK.as_bytes()).await.unwrap();
    read_until(&mut stream, "\r\n\r\n").await;

    proxy.apply(only("/chat"));
    stream.write_all(b"still").await.unwrap();
    read_until(&mut stream, "still").await;

    proxy.apply(only("/else"));
    let ended = stream.read(&mut [0; 16]).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    proxy.metrics_become(|metrics| metrics.cut_connections == 1).await;
}

/// An application that agrees to every upgrade, and then repeats what it hears.
async fn echoing() -> Application {
    Application::start(|request| async move {
        let upgrade = request.extensions().get::<OnUpgrade>().cloned().unwrap();
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
            tokio::io::copy(&mut reader, &mut writer).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let answer = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
        let answer = answer.header(CONNECTION, "upgrade").header(UPGRADE, "WebSocket");
        answer.header("sec-websocket-accept", "yes").body(full("")).unwrap()
    })
    .await
}
