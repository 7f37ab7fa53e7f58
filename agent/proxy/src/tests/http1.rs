//! HTTP/1 as clients and applications see it: names, promises, order, ends.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::routed::{API as API_VIRTUAL, API_2, Backends, CALLER};
use super::support::*;
use crate::config::limits::Limits;

const ALL: &str = "[[allow]]\nname = \"all\"\nfrom = \"service:client\"\nto = \"service:*\"\n";

/// An application that answers each connection's requests with these bytes, one after the other,
/// and tells what it got. It reads heads only.
async fn scripted(answers: &'static [&'static str]) -> (u16, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind((WEB, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heads = Vec::new();
        for answer in answers {
            heads.push(read_until(&mut stream, "\r\n\r\n").await);
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        heads
    });
    (port, task)
}

fn rules() -> Vec<isthmus_model::Rule> {
    vec![allow("api", "service:api", &[])]
}

#[tokio::test]
async fn names_keep_their_spelling_both_ways() {
    let answer = "HTTP/1.1 200 OK\r\nX-REAL-Name: 1\r\nEtag: a\r\nSet-cookie: a=1\r\nSet-Cookie: b=2\r\n\
                  Content-Length: 2\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\nhi";
    let (port, application) = scripted(vec![answer].leak()).await;
    let proxy = Proxy::start(port, rules());
    let asked = "GET / HTTP/1.1\r\nHOST: web\r\nSOAPAction: x\r\nX-Forwarded-For: 192.0.2.1\r\nACCEPT: a\r\n\
                 accept: b\r\nConnection: close\r\n\r\n";
    let got = proxy.exchange(API, asked).await;
    assert!(got.contains("\r\nX-REAL-Name: 1\r\n") && got.contains("\r\nEtag: a\r\n"), "{got}");
    assert!(
        got.contains("\r\nSet-cookie: a=1\r\n") && !got.to_lowercase().contains("x-hop"),
        "{got}"
    );
    let head = &application.await.unwrap()[0];
    for line in
        ["HOST: web", "SOAPAction: x", "X-Forwarded-For: 192.0.2.1, 127.64.2.2", "ACCEPT: a"]
    {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {head}");
    }
}

#[tokio::test]
async fn a_body_is_asked_for_when_it_is_wanted() {
    let application = Application::hello().await;
    let rules = vec![allow("api", "service:api", &[(None, Some("/a"))])];
    let proxy = Proxy::start(application.port, rules);
    let ask = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: web\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n"
        )
    };
    let mut stream = proxy.connect(API).await;
    stream.write_all(ask("/a").as_bytes()).await.unwrap();
    let promise = read_until(&mut stream, "\r\n\r\n").await;
    assert_eq!(promise, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hi").await.unwrap();
    assert!(read_until(&mut stream, "hello").await.starts_with("HTTP/1.1 200"));
    // Of what is refused nobody wants a body, and where the next request begins isn't known.
    let got = proxy.exchange(API, ask("/b")).await;
    assert!(got.starts_with("HTTP/1.1 403") && got.contains("connection: close\r\n"), "{got}");
}

#[tokio::test]
async fn answers_come_in_the_order_of_requests() {
    let answers = &[
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none",
        "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
         2\r\ntw\r\n1;x\r\no\r\n0\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\nto the end",
    ];
    let (port, application) = scripted(answers).await;
    let proxy = Proxy::start(port, rules());
    let one = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: web\r\n{more}\r\n");
    let close = "Connection: close\r\n";
    let all =
        [one("/1", ""), one("/2", ""), one("/3", ""), one("/4", close), one("/5", "")].concat();
    let got = proxy.exchange(API, all).await;
    let places = ["one", "2\r\ntw", "304 Not", "content-length: 9", "a\r\nto the end\r\n0\r\n\r\n"];
    let places = places.map(|text| got.find(text).unwrap_or_else(|| panic!("{text}: {got}")));
    assert!(places.is_sorted(), "{got}");
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n";
    assert!(got.contains(hint) && got.matches("HTTP/1.1 ").count() == 5, "{got}");
    assert_eq!(application.await.unwrap().len(), 4, "all by one connection");
}

#[tokio::test]
async fn an_answer_that_can_be_read_in_two_ways_goes_no_further() {
    for lines in [
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Content-Length: x\r\n",
        "X : y\r\n",
        "X: y\r\n z\r\n",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{lines}\r\nhi");
        let (port, _application) = scripted(vec![&*answer.leak()].leak()).await;
        let proxy = Proxy::start(port, rules());
        let got =
            proxy.exchange(API, "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await;
        assert!(got.starts_with("HTTP/1.1 502"), "{lines}: {got}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_ended() {
    for (answer, end) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", "hi"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", "2\r\nhi\r\n"),
    ] {
        let (port, _application) = scripted(vec![answer].leak()).await;
        let proxy = Proxy::start(port, rules());
        let got = proxy.exchange(API, "GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert!(got.ends_with(end), "{got}");
    }
}

#[tokio::test]
async fn http10_is_answered_by_its_rules() {
    let application = Application::hello().await;
    let proxy = Proxy::start(application.port, rules());
    let got = proxy.exchange(API, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(got.contains("connection: close\r\n") && got.ends_with("\r\n\r\nhello"), "{got}");
    let mut stream = proxy.connect(API).await;
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await.unwrap();
        let got = read_until(&mut stream, "hello").await;
        assert!(got.contains("connection: keep-alive\r\n"), "{got}");
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_its_request_with_it() {
    let application = Application::start(|_| std::future::pending()).await;
    let proxy = Proxy::start(application.port, rules());
    let mut stream = proxy.connect(API).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
    while application.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(stream);
    proxy.metrics_become(|metrics| metrics.active_connections == 0).await;
}

/// A workload on another host that says this once it has a head, and then what it reads of a body.
async fn far_side(backends: &Backends, says: &'static str) -> JoinHandle<String> {
    let listener = TcpListener::bind((API_2, backends.port)).await.unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = read_until(&mut stream, "\r\n\r\n").await;
        assert!(head.to_ascii_lowercase().contains("\r\nexpect: 100-continue\r\n"), "{head}");
        stream.write_all(says.as_bytes()).await.unwrap();
        if says.starts_with("HTTP/1.1 100") {
            let body = read_until(&mut stream, "hi").await;
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            return body;
        }
        read_to_end(&mut stream).await
    })
}

#[tokio::test]
async fn a_body_is_asked_for_only_if_the_other_side_asks_for_it() {
    let ask = "POST /a HTTP/1.1\r\nHost: api\r\nExpect: 100-CONTINUE\r\nContent-Length: 2\r\n\r\n";
    for routes in ["", "[[route.api]]\nto = [{ service = \"api\" }]\nretry = { attempts = 1 }\n"] {
        let mut backends = Backends::new();
        let denied = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let application = far_side(&backends, denied).await;
        let rules = format!("{routes}\n{ALL}");
        let proxy = Proxy::serve(
            Limits::default(),
            API_VIRTUAL,
            backends.port,
            backends.view_on(&rules, &[API_2]),
        );
        let got = proxy.exchange(CALLER, ask).await;
        assert!(got.starts_with("HTTP/1.1 403") && !got.contains("100 Continue"), "{got}");
        assert_eq!(application.await.unwrap(), "", "no body leaves");

        let mut backends = Backends::new();
        let application = far_side(&backends, "HTTP/1.1 100 Continue\r\n\r\n").await;
        let proxy = Proxy::serve(
            Limits::default(),
            API_VIRTUAL,
            backends.port,
            backends.view_on(&rules, &[API_2]),
        );
        let mut stream = proxy.connect(CALLER).await;
        stream.write_all(ask.as_bytes()).await.unwrap();
        let promise = read_until(&mut stream, "\r\n\r\n").await;
        assert_eq!(promise, "HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"hi").await.unwrap();
        assert!(read_until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 204"));
        assert_eq!(application.await.unwrap(), "hi");
    }
}
