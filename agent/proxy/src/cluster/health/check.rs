//! One check: a connection, a request by HTTP, or gRPC's health protocol.

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use isthmus_model::{HealthCheck, HealthProbe};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cluster::dial::{Bind, connect_as_proxy};

/// Of an answer by gRPC: a message of two bytes, and its prefix.
const MAX_ANSWER_BYTES: usize = 1024;

/// Why a check fails. Nobody needs to know more.
struct Fails;

/// Whether the application at an address passes.
pub(super) async fn passes(
    service: &str,
    address: SocketAddr,
    settings: &HealthCheck,
    bind: Bind,
) -> bool {
    let asking = async {
        let stream = connect_as_proxy(bind, address).await.map_err(|_| Fails)?;
        match &settings.probe {
            HealthProbe::Tcp => Ok(()),
            HealthProbe::Http { path } => ask_http(stream, service, path).await,
            HealthProbe::Grpc { service } => ask_grpc(stream, address, service).await,
        }
    };
    matches!(timeout(settings.timeout, asking).await, Ok(Ok(())))
}

async fn ask_http(stream: TcpStream, service: &str, path: &str) -> Result<(), Fails> {
    let handshake = http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|_| Fails)?;
    let request = Request::get(path)
        .header(HOST, service)
        .header(USER_AGENT, "isthmus-health")
        .body(Full::default())
        .map_err(|_| Fails)?;
    let answer = alongside(connection, sender.send_request(request)).await?;
    let good = StatusCode::OK..StatusCode::BAD_REQUEST;
    if good.contains(&answer.status()) { Ok(()) } else { Err(Fails) }
}

/// `grpc.health.v1.Health/Check`.
async fn ask_grpc(stream: TcpStream, address: SocketAddr, service: &str) -> Result<(), Fails> {
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|_| Fails)?;
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, "isthmus-health")
        .body(Full::new(question(service)))
        .map_err(|_| Fails)?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES);
        Ok(body.collect().await.ok().map(|body| body.to_bytes()))
    };
    let answer = alongside(connection, exchange).await?.ok_or(Fails)?;
    if is_serving(&answer) { Ok(()) } else { Err(Fails) }
}

/// Drives a connection for as long as an exchange on it takes.
async fn alongside<T>(
    connection: impl Future<Output = hyper::Result<()>>,
    exchange: impl Future<Output = hyper::Result<T>>,
) -> Result<T, Fails> {
    let driven = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = exchange => answer.map_err(|_| Fails),
        () = driven => Err(Fails),
    }
}

/// `HealthCheckRequest { service }` with gRPC's prefix: not compressed, and the length.
///
/// ```text
/// 00 | length, 4 bytes | 0a | length | service
/// ```
fn question(service: &str) -> Bytes {
    let mut message = Vec::with_capacity(service.len() + 7);
    // The topology's names are shorter than what takes two bytes to count.
    let length = u8::try_from(service.len()).ok().filter(|length| *length < 126).unwrap_or(0);
    let field = if length == 0 { 0 } else { length + 2 };
    message.extend([0, 0, 0, 0, field]);
    if length != 0 {
        message.extend([0x0a, length]);
        message.extend(service.as_bytes());
    }
    message.into()
}

/// Whether `HealthCheckResponse { status }` says SERVING, which is 1.
fn is_serving(answer: &[u8]) -> bool {
    matches!(answer, [0, 0, 0, 0, 2, 0x08, 0x01])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_by_grpc_has_its_length() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
    }

    #[test]
    fn only_serving_is_healthy() {
        assert!(is_serving(&[0, 0, 0, 0, 2, 8, 1]));
        for other in [&[0, 0, 0, 0, 2, 8, 2][..], &[0, 0, 0, 0, 0], &[], &[1, 0, 0, 0, 2, 8, 1]] {
            assert!(!is_serving(other), "{other:?}");
        }
    }
}
