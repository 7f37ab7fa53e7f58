//! Two proxies in a row: what one adds, the next one takes; what an application can't take, it doesn't get; and whose
//! connections to it are whose.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderValue, Response, StatusCode};
use isthmus_model::ratelimit::{LimitKey, LimitScope, RateLimit};
use isthmus_model::{Origin, ServiceId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::routed::{self, CALLER};
use super::support::*;
use crate::RateLimits;
use crate::config::limits::Limits;

const ALLOW: &str = "[[allow]]\nname = \"all\"\nfrom = \"service:client\"\nto = \"service:*\"\n";

fn rules() -> Vec<isthmus_model::Rule> {
    vec![allow("api", "service:api", &[]), allow("batch", "service:batch", &[])]
}

/// A POST without a body and with so many header fields.
fn post(fields: usize) -> String {
    let more: String = (3..=fields).map(|number| format!("x-{number}: {number}\r\n")).collect();
    format!("POST / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n{more}\r\n")
}

#[tokio::test]
async fn what_the_first_proxy_takes_and_adds_to_the_next_takes() {
    let mut backends = routed::Backends::new();
    let next = Raw::start((routed::API_2, backends.port).into(), "\r\n\r\n").await;
    let view = backends.view_on(ALLOW, &[routed::API_2]);
    let first = Proxy::serve(Limits::default(), routed::API, backends.port, view);
    let got = exchange(CALLER, first.address, post(129)).await;
    assert!(got.starts_with("HTTP/1.1 431"), "{got}");
    let long = format!("GET / HTTP/1.1\r\nHost: web\r\nX: {}\r\n\r\n", "a".repeat(70_000));
    let got = exchange(CALLER, first.address, long).await;
    assert!(got.starts_with("HTTP/1.1 431"), "{got}");
    let got = exchange(CALLER, first.address, post(128)).await;
    assert!(got.starts_with("HTTP/1.1 204"), "{got}");
    let passed_on = next.came().await;
    assert!(passed_on.contains("\r\ncontent-length: 0\r\n"), "{passed_on}");

    let application = Raw::start((WEB, 0).into(), "\r\n\r\n").await;
    let second = Proxy::start(application.address.port(), rules());
    // With all that a gateway says of its client, too.
    let more: String = (0..16).map(|number| format!("x-more-{number}: 1\r\n")).collect();
    let passed_on = passed_on.trim_end().to_owned() + "\r\nConnection: close\r\n" + &more + "\r\n";
    let got = second.exchange(API, passed_on).await;
    assert!(got.starts_with("HTTP/1.1 204"), "{got}");
    assert!(application.came().await.contains("\r\nx-127: 127\r\n"));
    assert!(second.exchange(API, post(193)).await.starts_with("HTTP/1.1 431"));
}

#[tokio::test]
async fn what_comes_by_http2_is_no_more_than_the_next_proxy_takes_by_http1() {
    let application = Application::hello().await;
    let proxy = Proxy::start(application.port, rules());
    for (fields, kind, status) in [
        (90, "text/plain", StatusCode::OK),
        (140, "text/plain", StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        (140, "application/grpc", StatusCode::OK),
    ] {
        let mut request = request("POST", "/");
        request.headers_mut().insert("content-type", HeaderValue::from_static(kind));
        for number in 0..fields {
            let name = http::HeaderName::try_from(format!("x-{number}")).unwrap();
            request.headers_mut().insert(name, HeaderValue::from_static("1"));
        }
        let answer = proxy.http2(API).await.send_request(request).await.unwrap();
        assert_eq!(answer.status(), status, "{fields} {kind}");
        let ours = text(answer).await.contains("more header fields than HTTP/1.1 takes");
        assert_eq!(ours, status != StatusCode::OK);
    }
}

const TRAILING: &str = "POST / HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nTrailer: x-sum\r\n\
                        Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                        2\r\nhi\r\n0\r\nX-Sum: 42\r\n\r\n";

#[tokio::test]
async fn an_application_gets_trailers_by_http1_only_if_it_asks() {
    for asks in [false, true] {
        let application = Raw::start((WEB, 0).into(), "\r\n0\r\n").await;
        let proxy = Proxy::start(application.address.port(), rules());
        proxy.switch(Arc::new(proxy.edited(|snapshot| {
            snapshot.services.get_mut(&ServiceId(1)).unwrap().application.trailers = asks;
        })));
        let got = proxy.exchange(API, TRAILING).await;
        assert!(got.starts_with("HTTP/1.1 204"), "{got}");
        let came = application.came().await;
        let body = came.split_once("\r\n\r\n").unwrap().1;
        let told = came.to_ascii_lowercase().contains("trailer: x-sum");
        assert_eq!((told, body.to_ascii_lowercase().contains("x-sum: 42")), (asks, asks), "{came}");
        assert!(body.starts_with("2\r\nhi\r\n0\r\n"), "{came}");
    }
}

#[tokio::test]
async fn no_two_identities_share_a_connection_to_the_application() {
    let application = Application::hello().await;
    let proxy = Proxy::start(application.port, rules());
    let mut ports: BTreeMap<SocketAddr, String> = BTreeMap::new();
    for turn in 0..10 {
        let caller = if turn % 2 == 0 { API } else { BATCH };
        let answer = proxy.http1(caller).await.send_request(request1("GET", "/")).await.unwrap();
        assert_eq!(text(answer).await, "hello");
    }
    for head in application.seen() {
        let from = *head.extensions.get::<SocketAddr>().unwrap();
        let who = head.headers["x-isthmus-identity"].to_str().unwrap().to_owned();
        assert_eq!(*ports.entry(from).or_insert_with(|| who.clone()), who, "on one connection");
    }
    assert_eq!(ports.len(), 2, "each of them goes on with its own: {ports:?}");
}

#[tokio::test]
async fn a_request_without_a_place_takes_nothing_of_a_rate_limit() {
    let (go, gone) = watch::channel(false);
    let application = Application::start(move |_| {
        let mut gone = gone.clone();
        async move {
            gone.wait_for(|gone| *gone).await.unwrap();
            Response::new(full("hello"))
        }
    })
    .await;
    let limits = Limits { requests: 2, ..Limits::default() };
    let proxy = Proxy::start_within(limits, application.port, rules());
    let kept = RateLimits::default();
    let view = proxy.edited(|snapshot| {
        snapshot.limits.push(RateLimit {
            name: "few".parse().unwrap(),
            service: "web".parse().unwrap(),
            matches: Vec::new(),
            rate: 1,
            burst: 2,
            per: LimitKey::All,
            scope: LimitScope::Host,
            hosts: 1,
            origin: Origin { file: "mesh.toml".into(), line: 1 },
        });
    });
    proxy.switch(Arc::new(view.limited_by(&kept)));
    let mut first = proxy.http1(API).await;
    let held = tokio::spawn(async move { first.send_request(request1("GET", "/")).await });
    while application.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    for _ in 0..5 {
        let answer = proxy.http1(API).await.send_request(request1("GET", "/")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    go.send_replace(true);
    assert_eq!(held.await.unwrap().unwrap().status(), StatusCode::OK);
    let mut status = StatusCode::SERVICE_UNAVAILABLE;
    // Its place is given back a moment after its answer.
    while status == StatusCode::SERVICE_UNAVAILABLE {
        let answer = proxy.http1(API).await.send_request(request1("GET", "/")).await.unwrap();
        status = answer.status();
    }
    assert_eq!(status, StatusCode::OK, "the second token is still there");
}

#[tokio::test]
async fn what_a_callers_connections_may_leave_unread_is_bounded() {
    const CONNECTIONS: usize = 100;
    let application = Application::hello().await;
    let proxy = Proxy::start(application.port, rules());
    let mut open = Vec::new();
    let mut promised = 0;
    for _ in 0..CONNECTIONS {
        let mut stream = proxy.connect(API).await;
        promised += window(&mut stream).await;
        open.push(stream);
    }
    let wide = Limits::default().wide_windows / 2;
    assert_eq!(promised, (wide << 20) + (CONNECTIONS - wide) * 65_535);
    // Another one isn't the poorer for it.
    let mut stream = proxy.connect(BATCH).await;
    assert_eq!(window(&mut stream).await, 1 << 20);
    drop(open);
    proxy.metrics_become(|metrics| metrics.active_connections == 1).await;
    assert_eq!(window(&mut proxy.connect(API).await).await, 1 << 20);
}

/// How much a connection of HTTP/2 lets its caller send before anybody reads it.
async fn window(stream: &mut tokio::net::TcpStream) -> usize {
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let ping = [[0, 0, 8, 6, 0, 0, 0, 0, 0].as_slice(), &[1; 8]].concat();
    let mut pings = 0;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
    stream.write_all(&[preface, &settings, &ping].concat()).await.unwrap();
    let mut window = 65_535;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let [a, b, c, kind, _flags, number @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        match (kind, number) {
            (8, [0, 0, 0, 0]) => {
                window += u32::from_be_bytes(*payload.first_chunk().unwrap()) as usize;
            }
            // The first may be answered before the window is widened.
            (6, _) if pings == 1 => return window,
            (6, _) => {
                pings += 1;
                stream.write_all(&ping).await.unwrap();
            }
            _ => {}
        }
    }
}

/// Reads one message, up to what its end begins with and an empty line, and shows its bytes.
struct Raw {
    address: SocketAddr,
    came: JoinHandle<String>,
}

impl Raw {
    async fn start(address: SocketAddr, end: &'static str) -> Self {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let came = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut text = String::new();
            while !text.contains(end) || !text.ends_with("\r\n\r\n") {
                text.push(stream.read_u8().await.unwrap().into());
            }
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            text
        });
        Self { address, came }
    }

    async fn came(self) -> String {
        timeout(SOON, self.came).await.unwrap().unwrap()
    }
}
