//! Services of which it isn't known what they carry.

use std::sync::Arc;

use isthmus_model::{Protocol, ServiceId};
use isthmus_policy::Policy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::support::*;
use crate::ProxySnapshot;
use crate::config::limits::Limits;

/// An HTTP/2 server's first frame, and a greeting of another protocol.
const SETTINGS: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";
const GREETING: &[u8] = b"220 mail.example\r\n";

/// An `auto` service whose application says something first; and all that it gets.
async fn open(greeting: &'static [u8]) -> (Proxy, mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind((WEB, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (got, gets) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let got = got.clone();
            tokio::spawn(async move {
                stream.write_all(greeting).await.unwrap();
                let mut bytes = vec![0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                    got.send(bytes[..length].to_vec()).unwrap();
                    let _ = stream.write_all(b"220 done\r\n").await;
                }
            });
        }
    });
    let rules =
        vec![deny("no-admin", "any", &[(None, Some("/admin"))]), allow("api", "service:api", &[])];
    let first = Proxy::start(port, rules).view();
    let mut snapshot = (*first.snapshot).clone();
    snapshot.services.get_mut(&ServiceId(1)).unwrap().protocol = Protocol::Auto;
    let policy = Policy::for_snapshot(&snapshot);
    let view = Arc::new(ProxySnapshot::new(Arc::new(snapshot), Arc::new(policy)));
    (Proxy::serve(Limits::default(), WEB, port, view), gets)
}

#[tokio::test]
async fn what_a_server_might_read_as_a_request_is_judged_as_one() {
    let (proxy, mut gets) = open(b"").await;
    let head =
        "/admin HTTP/1.1\r\nHost: web\r\nX-Isthmus-Identity: root\r\nConnection: close\r\n\r\n";
    for begin in [
        format!("{}GET ", "\r\n".repeat(17)),
        format!("{}GET ", "\n".repeat(100)),
        format!("{} ", "M".repeat(33)),
        "GET\t".to_owned(),
        "GET\x1c".to_owned(),
        "\x0bGET ".to_owned(),
        "GET http://web".to_owned(),
        "(GET) ".to_owned(),
        "G=T ".to_owned(),
        "M{}T ".to_owned(),
        "\"GET\" ".to_owned(),
        "\0GET ".to_owned(),
        "\u{feff}GET ".to_owned(),
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET ".to_owned(),
        "\r\n\r\n\0\r\nQUIT\nGET ".to_owned(),
    ] {
        let got = proxy.exchange(API, format!("{begin}{head}")).await;
        assert!(got.starts_with("HTTP/1.1 4"), "{begin:?}: {got}");
        assert!(gets.try_recv().is_err(), "{begin:?}");
    }
    // What has ended is whole.
    let mut stream = proxy.connect(API).await;
    stream.write_all(b"BREW /admin HTTP/1.0").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, "");
    assert!(gets.try_recv().is_err());
}

#[tokio::test]
async fn what_becomes_a_request_after_it_passed_as_another_protocol_ends() {
    let (proxy, mut gets) = open(b"").await;
    let mut stream = proxy.connect(API).await;
    stream.write_all(b"\0\0\0\x08 /admin").await.unwrap();
    assert_eq!(gets.recv().await.unwrap(), b"\0\0\0\x08 /admin", "nobody is kept waiting");
    read_until(&mut stream, "220 done\r\n").await;
    stream.write_all(b" HTTP/1.1\r\nX-Isthmus-Identity: root\r\n\r\n").await.unwrap();
    assert!(stream.read_u8().await.is_err());
    assert!(gets.try_recv().is_err(), "the rest isn't passed on");
}

#[tokio::test]
async fn a_server_that_begins_as_http_does_waits_for_its_client() {
    let (proxy, mut gets) = open(SETTINGS).await;
    let mut stream = proxy.connect(API).await;
    let early = timeout(std::time::Duration::from_millis(300), stream.read_u8()).await;
    assert!(early.is_err(), "{early:?}");
    stream
        .write_all(b"GET /admin HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let got = read_to_end(&mut stream).await;
    assert!(got.starts_with("HTTP/1.1 403"), "{got}");
    assert!(gets.try_recv().is_err());
}

#[tokio::test]
async fn a_server_that_greets_is_heard_at_once() {
    let (proxy, mut gets) = open(GREETING).await;
    let mut stream = proxy.connect(API).await;
    read_until(&mut stream, "220 mail.example\r\n").await;
    stream.write_all(b"EHLO api\r\n").await.unwrap();
    read_until(&mut stream, "220 done\r\n").await;
    assert_eq!(gets.recv().await.unwrap(), b"EHLO api\r\n");
}
