//! Metrics and health over HTTP: `/metrics`, `/healthz`, `/readyz`.
//!
//! Nothing is counted here. A scrape asks each part for what it has counted, once, and writes it
//! down ([`exposition`]). What the proxy counted is looked at every ten seconds, too, so that `agentctl
//! stat` can tell the last minute ([`Windows`]).

mod exposition;
pub(crate) mod otlp;
mod window;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use isthmus_model::{Code, Problem, Problems};
use isthmus_net::holders;
use isthmus_net::memory::usage;
use isthmus_net::sock_diag::Protocol;
use tokio::net::{TcpListener, TcpStream};

use crate::own_ports::stop;
use crate::places::{Bounds, Places, Source, Users};
use crate::status::Shared;
use exposition::Scrape;
pub(crate) use otlp::Exported;
pub(crate) use window::Window;
pub(crate) use window::Windows;

/// The code of the problem that nobody can scrape.
const UNSERVED: Code = Code::MetricsUnserved;
/// Between two attempts to listen.
const AGAIN: Duration = Duration::from_secs(5);
/// Connections at once.
const PLACES: Bounds = Bounds { all: 32, each: 8, root: 4 };
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Whoever hasn't read its answers by then doesn't want them.
const CONVERSATION: Duration = Duration::from_secs(60);
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves for ever, as soon as the address can be listened on.
pub(crate) async fn serve(address: SocketAddr, shared: Arc<Shared>) {
    let listener = listen(address, &shared.problems).await;
    let (places, users) = (Places::new(PLACES), Users::open());
    loop {
        // Out of descriptors, or the client has gone: neither is for ever.
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let own = stream.local_addr().unwrap_or(address);
        let user = users.find(Protocol::Tcp, peer, own);
        let Some(place) = places.take(user.unwrap_or_else(|| Source::remote(peer.ip()))) else {
            tracing::debug!(%peer, "too many scrapes at once");
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            drop(tokio::time::timeout(CONVERSATION, converse(stream, shared)).await);
            drop(place);
        });
    }
}

/// Until it can listen, that is a problem. Packets go on meanwhile.
async fn listen(address: SocketAddr, problems: &Problems) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                problems.set(UNSERVED, None);
                return listener;
            }
            Err(error) => problems.raise(unserved(address, &error).await),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn unserved(address: SocketAddr, error: &io::Error) -> Problem {
    // It looks at all processes.
    let looking = move || holders::of_port(Protocol::Tcp, address.port()).unwrap_or_default();
    let holders = if error.kind() == io::ErrorKind::AddrInUse {
        tokio::task::spawn_blocking(looking).await.unwrap_or_default()
    } else {
        Vec::new()
    };
    let who: Vec<String> = holders.iter().map(ToString::to_string).collect();
    let by = if who.is_empty() { String::new() } else { format!(", taken by {}", who.join(", ")) };
    Problem::new(
        UNSERVED,
        format!("metrics aren't served on {address} (metrics): {error}{by}"),
        format!(
            "{}, or choose another address in the agent's settings and restart it; it is tried again \
             every {} s",
            stop(&holders),
            AGAIN.as_secs()
        ),
    )
}

async fn converse(stream: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(&request, &shared).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a scrape ended early");
    }
}

async fn answer(request: &Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    match request.uri().path() {
        "/metrics" => metrics(shared).await,
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => readiness(shared),
        _ => text(StatusCode::NOT_FOUND, "try /metrics, /healthz or /readyz\n".to_owned()),
    }
}

/// Ready is who forwards packets.
fn readiness(shared: &Shared) -> Response<Full<Bytes>> {
    let status = shared.status();
    let code = match status.state {
        Some(_) => StatusCode::OK,
        None => StatusCode::SERVICE_UNAVAILABLE,
    };
    text(code, format!("{}\n", status.summary()))
}

async fn metrics(shared: &Shared) -> Response<Full<Bytes>> {
    let sample = match shared.packets() {
        Some(packets) => packets.sample().await.ok(),
        None => None,
    };
    let scrape = Scrape {
        sample,
        status: shared.status(),
        now: SystemTime::now(),
        owners: Arc::clone(&shared.owners),
        proxy: shared.proxy.snapshot(),
        endpoints: shared.proxy.endpoints(),
        breakers: shared.proxy.breakers(),
        limits: shared.proxy.limits().views(),
        spans: [
            ("sent", shared.spans.sent.load(Ordering::Relaxed)),
            ("refused", shared.spans.refused.load(Ordering::Relaxed)),
            ("lost", shared.proxy.lost_spans()),
        ],
        restored: shared.restored.load(Ordering::Relaxed),
        memory: usage().unwrap_or_default(),
    };
    match scrape.encode() {
        Ok(body) => {
            let mut response = text(StatusCode::OK, body);
            let value = header::HeaderValue::from_static(CONTENT_TYPE);
            response.headers_mut().insert(header::CONTENT_TYPE, value);
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(code: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    let value = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_address_is_a_problem_until_it_is_free() {
        let squatter = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = squatter.local_addr().unwrap();
        let problems = Arc::new(Problems::default());
        let listening = tokio::spawn({
            let problems = Arc::clone(&problems);
            async move { listen(address, &problems).await }
        });
        while !problems.has(UNSERVED) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let said = &problems.all()[0].text;
        assert!(said.contains(&format!("{address} (metrics)")), "{said}");
        assert!(said.contains(&format!("(process {}, user ", std::process::id())), "{said}");

        drop(squatter);
        let listener = tokio::time::timeout(4 * AGAIN, listening).await.unwrap().unwrap();
        assert_eq!(listener.local_addr().unwrap(), address);
        assert_eq!(problems.all(), []);
    }
}
