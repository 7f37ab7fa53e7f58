//! Fetches a key set.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::header::{ACCEPT, HOST};
use http::uri::Scheme;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::ring::MAX_BYTES;

/// For the whole of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Paths at which distributions keep the host's trusted certificates.
const ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Why there is nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("the URL can't be used")]
    Url,
    #[error("it took longer than {PATIENCE:?}")]
    TimedOut,
    #[error("no connection: {0}")]
    Connection(#[from] std::io::Error),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("status {0}")]
    Status(StatusCode),
    #[error("the answer broke off, or has more than {MAX_BYTES} bytes")]
    Body,
}

/// Gets what is at a URL. Redirects aren't followed.
pub(super) async fn fetch(url: &str) -> Result<Vec<u8>, FetchError> {
    timeout(PATIENCE, try_fetch(url)).await.map_err(|_| FetchError::TimedOut)?
}

async fn try_fetch(url: &str) -> Result<Vec<u8>, FetchError> {
    let url: Uri = url.parse().map_err(|_| FetchError::Url)?;
    let host = url.host().ok_or(FetchError::Url)?.to_owned();
    let is_tls = url.scheme() == Some(&Scheme::HTTPS);
    let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let bare = host.trim_matches(['[', ']']).to_owned();
    let stream = TcpStream::connect((bare.as_str(), port)).await?;
    if !is_tls {
        return ask(stream, &url, &host).await;
    }
    let name = ServerName::try_from(bare).map_err(|_| FetchError::Url)?;
    let stream = TlsConnector::from(trusting()?).connect(name, stream).await?;
    ask(stream, &url, &host).await
}

async fn ask<S>(stream: S, url: &Uri, host: &str) -> Result<Vec<u8>, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driving = tokio::spawn(connection);
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let authority = url.authority().map_or(host, |authority| authority.as_str());
    let request = Request::get(path).header(HOST, authority).header(ACCEPT, "application/json");
    let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|_| FetchError::Url)?;
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status(response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
    driving.abort();
    Ok(body.map_err(|_| FetchError::Body)?.to_bytes().to_vec())
}

/// TLS as the host trusts it.
fn trusting() -> Result<Arc<ClientConfig>, FetchError> {
    static CONFIG: LazyLock<Result<Arc<ClientConfig>, rustls::Error>> = LazyLock::new(|| {
        let mut roots = RootCertStore::empty();
        let found = ROOTS.iter().find_map(|path| CertificateDer::pem_file_iter(path).ok());
        roots.add_parsable_certificates(found.into_iter().flatten().flatten());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions()?;
        Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    });
    CONFIG.clone().map_err(FetchError::Tls)
}
