//! Failing applications, and the reuse of their connections.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::support::*;

fn rules() -> Vec<isthmus_model::Rule> {
    vec![allow("api", "service:api", &[])]
}

#[tokio::test]
async fn an_application_that_is_down_is_503_and_back_when_it_is() {
    let port = {
        let free = TcpListener::bind((WEB, 0)).await.unwrap();
        free.local_addr().unwrap().port()
    };
    let proxy = Proxy::start(port, rules());
    let mut client = proxy.http1(API).await;
    let answer = client.send_request(request1("GET", "/")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(text(answer).await.contains("doesn't accept connections"));

    let listener = TcpListener::bind((WEB, port)).await.unwrap();
    tokio::spawn(answer_raw(listener, "HTTP/1.1 204 No Content\r\n\r\n"));
    client.ready().await.unwrap();
    let answer = client.send_request(request1("GET", "/")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn whoever_listens_on_loopback_is_not_the_application() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap().port(), rules());
    tokio::spawn(answer_raw(listener, "HTTP/1.1 204 No Content\r\n\r\n"));
    let answer = proxy.http1(API).await.send_request(request1("GET", "/")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn an_application_that_breaks_off_or_babbles_is_502() {
    for (babble, wrong) in [
        ("", "it closed the connection"),
        ("hello?\r\n\r\n", "no proper HTTP/1: a malformed head"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "no proper HTTP/1: more than one Content-Length",
        ),
    ] {
        let listener = TcpListener::bind((WEB, 0)).await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap().port(), rules());
        tokio::spawn(answer_raw(listener, babble));
        for (version, answer) in [
            (1, proxy.http1(API).await.send_request(request1("GET", "/")).await.unwrap()),
            (2, proxy.http2(API).await.send_request(get("/")).await.unwrap()),
        ] {
            assert_eq!(answer.status(), StatusCode::BAD_GATEWAY, "HTTP/{version} {babble:?}");
            let said = text(answer).await;
            assert!(said.contains(wrong), "HTTP/{version} {babble:?}: {said}");
        }
    }
}

#[tokio::test]
async fn one_connection_to_the_application_serves_many_requests() {
    let listener = TcpListener::bind((WEB, 0)).await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap().port(), rules());
    let connections = Arc::new(Mutex::new(BTreeSet::new()));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut stream, from)) = listener.accept().await {
            counted.lock().insert(from);
            tokio::spawn(async move {
                loop {
                    if !read_head(&mut stream).await {
                        return;
                    }
                    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
                }
            });
        }
    });
    let mut client = proxy.http1(API).await;
    for _ in 0..10 {
        client.ready().await.unwrap();
        let answer = client.send_request(request1("GET", "/")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    }
    assert!(connections.lock().len() < 10, "{connections:?}");
}

/// Answers one request on each connection, and closes it.
async fn answer_raw(listener: TcpListener, bytes: &'static str) {
    while let Ok((mut stream, _)) = listener.accept().await {
        read_head(&mut stream).await;
        let _ = stream.write_all(bytes.as_bytes()).await;
    }
}

async fn read_head(stream: &mut tokio::net::TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return false,
        }
    }
    true
}
