//! Who calls: what a client's certificate says, or that there is none.

use std::net::SocketAddr;

use isthmus_model::{HostId, Name, TrustDomain};
use tonic::{Request, Status};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::authority::host_of_serial;
use crate::time;

/// Whom a client's certificate names. The TLS handshake has verified the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// There is no certificate.
    Anonymous,
    /// A host, in one of its memberships.
    Host {
        /// Its name.
        name: Name,
        /// The number that it had when the certificate was issued.
        id: HostId,
        /// When the certificate expires, in seconds since the epoch.
        expires: i64,
    },
    /// An operator.
    Operator {
        /// Their name.
        name: Name,
        /// When the certificate expires, in seconds since the epoch.
        expires: i64,
    },
}

/// The other end of a connection; in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it is.
    pub address: SocketAddr,
    /// Who it is.
    pub caller: Caller,
}

impl Caller {
    /// Reads a certificate; none if it is one of ours for something else.
    pub(crate) fn from_certificate(der: &[u8], domain: &TrustDomain) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let expires = certificate.validity().not_after.timestamp();
        let names = &certificate.subject_alternative_name().ok()??.value.general_names;
        let [GeneralName::URI(uri)] = names.as_slice() else { return None };
        let path = uri.strip_prefix("spiffe://")?.strip_prefix(domain.as_str())?;
        let (kind, name) = path.strip_prefix('/')?.split_once('/')?;
        let name = name.parse().ok()?;
        match kind {
            "host" => {
                Some(Self::Host { name, id: host_of_serial(certificate.raw_serial())?, expires })
            }
            "operator" => Some(Self::Operator { name, expires }),
            _ => None,
        }
    }

    fn expires(&self) -> i64 {
        match self {
            Self::Anonymous => i64::MAX,
            Self::Host { expires, .. } | Self::Operator { expires, .. } => *expires,
        }
    }
}

/// The other end of a request's connection.
pub(crate) fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    request
        .extensions()
        .get::<Peer>()
        .cloned()
        .ok_or_else(|| Status::internal("The connection has no peer."))
}

/// Lets only hosts pass. Runs before a request's body is read.
pub(crate) fn hosts_only(request: Request<()>) -> Result<Request<()>, Status> {
    let peer = unexpired(&request)?;
    match peer.caller {
        Caller::Host { .. } => Ok(request),
        Caller::Operator { .. } => {
            Err(Status::permission_denied("Only hosts may call this, not operators."))
        }
        Caller::Anonymous => Err(Status::unauthenticated(
            "Only hosts may call this: connect with the certificate that the join gave.",
        )),
    }
}

/// Lets only operators pass. Runs before a request's body is read.
pub(crate) fn operators_only(request: Request<()>) -> Result<Request<()>, Status> {
    let peer = unexpired(&request)?;
    match peer.caller {
        Caller::Operator { .. } => Ok(request),
        Caller::Host { .. } => {
            Err(Status::permission_denied("Only operators may call this, not hosts."))
        }
        Caller::Anonymous => Err(Status::unauthenticated(
            "Only operators may call this: give their credentials (operator.toml).",
        )),
    }
}

/// The handshake checked the certificate's time, but a connection may outlive it.
fn unexpired(request: &Request<()>) -> Result<Peer, Status> {
    let peer = peer(request)?;
    let expires = peer.caller.expires();
    if time::now() < expires {
        return Ok(peer);
    }
    Err(Status::unauthenticated(format!(
        "The certificate of this connection expired at {}; connect with a new one.",
        time::show(expires)
    )))
}
