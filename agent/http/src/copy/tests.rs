//! Bytes, carried between real sockets.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{Counts, both};
use crate::peek::{Looked, Peek};

const LONG: Duration = Duration::from_secs(600);

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (dialled, listener.accept().await.unwrap().0)
}

#[tokio::test]
async fn bytes_and_half_closed_directions_are_carried() {
    let ((mut client, caller), (application, mut server)) = (pair().await, pair().await);
    let carried = Arc::new(Counts::default());
    let counts = Arc::clone(&carried);
    let carrying =
        tokio::spawn(async move { both(&caller, &application, &[&carried], LONG, None).await });
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    let expected = sent.clone();
    let sending = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    });
    let mut got = Vec::new();
    server.read_to_end(&mut got).await.unwrap();
    assert!(got == expected);
    // The caller has ended its direction, and still gets the answer.
    server.write_all(b"thanks").await.unwrap();
    drop(server);
    assert_eq!(sending.await.unwrap(), "thanks");
    carrying.await.unwrap().unwrap();
    let counted = (counts.up.load(Ordering::Relaxed), counts.down.load(Ordering::Relaxed));
    assert_eq!(counted, (3_000_000, 6));
}

#[tokio::test]
async fn a_stream_that_carries_nothing_ends_and_one_that_does_lives() {
    let ((mut client, caller), (application, mut server)) = (pair().await, pair().await);
    let began = Instant::now();
    let carrying = tokio::spawn(async move {
        let carried = Counts::default();
        both(&caller, &application, &[&carried], Duration::from_millis(200), None).await
    });
    for _ in 0..10 {
        client.write_all(b"x").await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'x');
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let error = carrying.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert!(began.elapsed() >= Duration::from_millis(650), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_look_takes_nothing_and_waits_for_what_is_new() {
    let (mut client, mut server) = pair().await;
    client.set_nodelay(true).unwrap();
    {
        let mut peek = Peek::new(&server, 8);
        for (number, byte) in (1..).zip(b"abcdefgh") {
            let late = async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                client.write_all(&[*byte]).await.unwrap();
            };
            let (looked, ()) = tokio::join!(peek.more(), late);
            assert_eq!((looked.unwrap(), peek.bytes().len()), (Looked::More, number));
        }
        assert_eq!(peek.bytes(), b"abcdefgh");
        assert_eq!(peek.more().await.unwrap(), Looked::End, "it looks at no more than it may");
    }
    let mut read = [0; 8];
    server.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"abcdefgh");
}

#[tokio::test]
async fn a_look_ends_with_its_caller() {
    let (mut client, server) = pair().await;
    client.write_all(b"GE").await.unwrap();
    let mut peek = Peek::new(&server, 100);
    assert_eq!(peek.more().await.unwrap(), Looked::More);
    client.shutdown().await.unwrap();
    assert_eq!((peek.more().await.unwrap(), peek.bytes()), (Looked::End, &b"GE"[..]));
}
