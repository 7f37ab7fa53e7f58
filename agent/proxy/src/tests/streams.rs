//! Bodies, in both directions and all versions.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};

use super::support::*;

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn a_mebibyte_passes_unchanged_both_ways() {
    let application = echoing().await;
    let proxy = Proxy::start(application.port, vec![allow("api", "service:api", &[])]);
    let sent: Vec<u8> = (0..MIB).map(|position| (position % 251) as u8).collect();
    for (version, content_type) in
        [(1, "text/plain"), (2, "text/plain"), (2, "application/grpc+proto")]
    {
        let builder = Request::builder().method("POST").header("content-type", content_type);
        let body = full(sent.clone());
        let answer = match version {
            1 => {
                let request = builder.uri("/up").header("host", "web").body(body).unwrap();
                proxy.http1(API).await.send_request(request).await.unwrap()
            }
            _ => {
                let request = builder.uri("http://web/up").body(body).unwrap();
                proxy.http2(API).await.send_request(request).await.unwrap()
            }
        };
        let got = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(got == sent, "HTTP/{version} {content_type}: {} bytes", got.len());
    }
    let wires: Vec<_> = application.seen().iter().map(|seen| seen.version).collect();
    assert_eq!(wires, [Version::HTTP_11, Version::HTTP_11, Version::HTTP_2]);
    assert_eq!(application.seen()[2].uri, "http://web/up");
    assert!(!application.seen()[2].headers.contains_key("host"), "nginx refuses both");
}

#[tokio::test]
async fn grpc_gets_its_trailers() {
    let application = Application::start(|request: Request<Incoming>| async move {
        let sent = request.into_body().collect().await.unwrap();
        let status = sent.trailers().and_then(|trailers| trailers.get("x-sum")).cloned();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        trailers.insert("x-sum", status.unwrap());
        with_trailers("answer", trailers)
    })
    .await;
    let proxy = Proxy::start(application.port, vec![allow("api", "service:api", &[])]);
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "42".parse().unwrap());
    let (head, body) = with_trailers("question", trailers).into_parts();
    drop(head);
    let request = Request::post("http://web/svc/Method").header("te", "trailers");
    let request = request.header("content-type", "application/grpc").body(body).unwrap();
    let answer = proxy.http2(API).await.send_request(request).await.unwrap();

    let got = answer.into_body().collect().await.unwrap();
    let trailers = got.trailers().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["x-sum"]),
        (&"0".parse().unwrap(), &"42".parse().unwrap())
    );
    assert_eq!(got.to_bytes(), "answer");
    assert_eq!(application.seen()[0].headers["te"], "trailers");
}

#[tokio::test]
async fn http1_trailers_pass_both_ways() {
    let application = Application::start(|request: Request<Incoming>| async move {
        let sent = request.into_body().collect().await.unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", sent.trailers().unwrap()["x-sum"].clone());
        let mut answer = with_trailers("answer", trailers);
        answer.headers_mut().insert("trailer", "x-sum".parse().unwrap());
        answer
    })
    .await;
    let proxy = Proxy::start(application.port, vec![allow("api", "service:api", &[])]);
    proxy.switch(Arc::new(proxy.edited(|snapshot| {
        let web = snapshot.services.values_mut().find(|it| it.name.as_str() == "web");
        web.unwrap().application.trailers = true;
    })));
    let got = proxy
        .exchange(
            API,
            "POST / HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nTrailer: x-sum\r\n\
             Connection: close, te\r\nTransfer-Encoding: chunked\r\n\r\n\
             2\r\nhi\r\n0\r\nx-sum: 42\r\n\r\n",
        )
        .await;
    assert!(got.ends_with("0\r\nx-sum: 42\r\n\r\n"), "{got}");
}

#[tokio::test]
async fn an_answer_begins_before_the_request_has_ended() {
    let application = echoing().await;
    let proxy = Proxy::start(application.port, vec![allow("api", "service:api", &[])]);
    let (chunks, received) = tokio::sync::mpsc::channel::<Bytes>(1);
    let frames = futures_util::stream::unfold(received, |mut received| async {
        received.recv().await.map(|chunk| (Ok(Frame::data(chunk)), received))
    });
    let request = Request::post("http://web/").body(StreamBody::new(frames).boxed()).unwrap();
    chunks.send("first".into()).await.unwrap();
    let mut body = proxy.http2(API).await.send_request(request).await.unwrap().into_body();
    for text in ["first", "second"] {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(frame, text);
        if text == "first" {
            chunks.send("second".into()).await.unwrap();
        }
    }
    drop(chunks);
    let rest = body.collect().await.unwrap().to_bytes();
    assert!(rest.is_empty(), "{rest:?}");
}

#[tokio::test]
async fn the_length_in_an_answer_to_head_stays() {
    let application = Application::start(|_| async {
        Response::builder().header("content-length", "1234").body(full("")).unwrap()
    })
    .await;
    let proxy = Proxy::start(application.port, vec![allow("api", "service:api", &[])]);
    let got =
        proxy.exchange(API, "HEAD / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await;
    assert!(got.contains("content-length: 1234\r\n"), "{got}");
}

fn with_trailers(text: &'static str, trailers: HeaderMap) -> Response<Body> {
    let frames =
        [Ok(Frame::data(Bytes::from_static(text.as_bytes()))), Ok(Frame::trailers(trailers))];
    Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed())
}

async fn echoing() -> Application {
    Application::start(|request: Request<Incoming>| async {
        Response::new(request.into_body().boxed())
    })
    .await
}
