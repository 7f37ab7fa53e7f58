//! Requests that two programs could read in two ways, sent as bytes.

use super::support::*;
use crate::Ruling;

const SMUGGLED: &str = "GET /admin HTTP/1.1\r\nHost: web\r\n\r\n";

async fn open() -> (Application, Proxy) {
    let application = Application::hello().await;
    let rules =
        vec![deny("no-admin", "any", &[(None, Some("/admin"))]), allow("api", "service:api", &[])];
    let proxy = Proxy::start(application.port, rules);
    (application, proxy)
}

#[tokio::test]
async fn malformed_requests_are_refused_and_go_no_further() {
    let (application, proxy) = open().await;
    let heads = [
        // Framing.
        "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4, 5\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: +4\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        // Lines.
        "GET / HTTP/1.1\r\nHost: web\r\nContent-Length : 4\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: web\r\nX: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: web\r\nX: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: web\r\nX: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: web\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: web\r\n\r\n",
        "GET / HTTP/9.9\r\nHost: web\r\n\r\n",
        // Who is meant.
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: web\r\nHost: other\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@web\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: web/x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \r\n\r\n",
        "CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: web\r\n\r\n",
    ];
    for head in heads {
        let got = proxy
            .exchange(API, head.replace("Host: web\r\n", "Host: web\r\nConnection: close\r\n"))
            .await;
        assert!(got.is_empty() || got.starts_with("HTTP/1.1 4"), "{head:?}: {got}");
    }
    assert!(application.seen().is_empty(), "{:?}", application.seen());
}

#[tokio::test]
async fn what_makes_no_request_is_told_and_counted() {
    let log = Logged::start();
    let (_application, proxy) = open().await;
    for (bytes, wrong) in [
        ("GET / HTTP/1.1\r\nHost: web\r\nX: a\r\n b\r\n\r\n", "a bad field name"),
        ("GET / HTTP/1.1\nHost: web\n\n", "a line that ends in a bare LF"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nno frame at all", "no proper HTTP/2"),
        ("GET / HTTP/1.1\r\nHost: a..b\r\nConnection: close\r\n\r\n", "isn't a host and port"),
    ] {
        proxy.exchange(API, bytes).await;
        let line = log.line_with(wrong).await;
        for part in ["isthmus::access", "\"verdict\":\"invalid\"", "\"from\":\"service:api\""] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    proxy
        .metrics_become(|metrics| {
            let invalid = metrics.series.iter().filter(|it| it.labels.ruling == Ruling::Invalid);
            invalid.map(|it| it.latency.count()).sum::<u64>() == 4
        })
        .await;
}

#[tokio::test]
async fn of_length_and_coding_only_the_coding_counts_and_nothing_behind_it() {
    let (application, proxy) = open().await;
    for lengths in [
        "Content-Length: 50\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 6",
    ] {
        let bytes =
            format!("POST /x HTTP/1.1\r\nHost: web\r\n{lengths}\r\n\r\n0\r\n\r\n{SMUGGLED}");
        let got = proxy.exchange(API, bytes).await;
        assert_eq!(got.matches("HTTP/1.1 ").count(), 1, "{got}");
    }
    for seen in application.seen() {
        assert_eq!(seen.uri, "/x");
        assert!(!seen.headers.contains_key("content-length"), "{seen:?}");
    }
}

#[tokio::test]
async fn what_follows_a_body_is_a_request_of_its_own_and_judged() {
    let (application, proxy) = open().await;
    let bodies =
        ["Content-Length: 2\r\n\r\nhi", "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"];
    for body in bodies {
        let smuggled = SMUGGLED.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        let got =
            proxy.exchange(API, format!("POST /x HTTP/1.1\r\nHost: web\r\n{body}{smuggled}")).await;
        assert!(got.contains("HTTP/1.1 200") && got.contains("HTTP/1.1 403"), "{got}");
    }
    assert!(application.seen().iter().all(|seen| seen.uri == "/x"));
}

#[tokio::test]
async fn a_denied_requests_body_is_not_taken_for_a_request() {
    let (application, proxy) = open().await;
    let inner = "GET /x HTTP/1.1\r\nHost: web\r\n\r\n";
    let bytes = format!(
        "POST /admin HTTP/1.1\r\nHost: web\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{inner}",
        inner.len()
    );
    let got = proxy.exchange(API, bytes).await;
    assert!(got.starts_with("HTTP/1.1 403"), "{got}");
    assert!(application.seen().is_empty());
}

#[tokio::test]
async fn bad_chunks_end_the_connection() {
    let (application, proxy) = open().await;
    for chunks in [
        "2;x\nhi\r\n0\r\n\r\n",
        "-2\r\nhi\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhi",
        "2\r\nhixx0\r\n\r\n",
    ] {
        let bytes = format!(
            "POST /x HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{SMUGGLED}"
        );
        let got = proxy.exchange(API, bytes).await;
        assert!(got.matches("HTTP/1.1 ").count() <= 1, "{chunks:?}: {got}");
    }
    assert!(application.seen().iter().all(|seen| seen.uri == "/x"));
}

#[tokio::test]
async fn a_whole_uri_without_a_path_asks_for_the_root() {
    let application = Application::hello().await;
    let proxy = Proxy::start(application.port, vec![allow("api", "service:api", &[])]);
    for (target, asked) in [("http://web?x=/admin", "/?x=/admin"), ("http://web", "/")] {
        let ask = format!("GET {target} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
        let got = proxy.exchange(API, ask).await;
        assert!(got.starts_with("HTTP/1.1 200"), "{got}");
        assert_eq!(application.seen().last().unwrap().uri, asked);
    }
}

#[tokio::test]
async fn a_whole_uri_as_target_is_judged_by_its_path_and_names_the_host() {
    let (application, proxy) = open().await;
    let ask =
        |target: &str| format!("GET {target} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
    let got = proxy.exchange(API, ask("http://shop.example/admin")).await;
    assert!(got.starts_with("HTTP/1.1 403"), "{got}");
    let got = proxy.exchange(API, ask("http://shop.example/x?y")).await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    let seen = &application.seen()[0];
    assert_eq!(
        (seen.uri.to_string().as_str(), &seen.headers["host"]),
        ("/x?y", &"shop.example".parse().unwrap())
    );
}

#[tokio::test]
async fn large_heads_are_refused() {
    let (application, proxy) = open().await;
    let long = format!("GET / HTTP/1.1\r\nHost: web\r\nX: {}\r\n\r\n", "a".repeat(140_000));
    let many = format!("GET / HTTP/1.1\r\nHost: web\r\n{}\r\n", "X: a\r\n".repeat(200));
    for head in [long, many] {
        let got = proxy.exchange(API, head).await;
        assert!(got.is_empty() || got.starts_with("HTTP/1.1 431"), "{got}");
    }
    assert!(application.seen().is_empty());
}

#[tokio::test]
async fn streams_that_are_reset_as_fast_as_they_open_end_the_connection() {
    let (application, proxy) = open().await;
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    const HEADERS: u8 = 1;
    const RESET: u8 = 3;
    const SETTINGS: u8 = 4;
    const ENDS: u8 = 5;
    // GET / of "x", by HPACK's static table.
    let head = [0x82, 0x86, 0x84, 0x41, 1, b'x'];
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    for stream in (1..2000).step_by(2) {
        bytes.extend(frame(HEADERS, ENDS, stream, &head));
        bytes.extend(frame(RESET, 0, stream, &[0, 0, 0, 8]));
    }
    proxy.exchange(API, bytes).await;
    proxy.metrics_become(|metrics| metrics.active_connections == 0).await;
    assert!(application.seen().len() < 500, "{}", application.seen().len());
}
