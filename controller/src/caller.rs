//! Callers: the identity in a client's certificate, if there is one.
//!
//! A host's certificate proves who it is for as long as the host is a member: one that was away for
//! longer than the certificate lives must get back by itself. Out of its time it is good for a new
//! certificate, and for being told that the host was removed; for nothing else. An operator's that has
//! expired is good for a new one, too, but not for ever ([`LATE`]).

use std::net::SocketAddr;

use isthmus_model::{Name, TrustDomain};
use tonic::{Request, Status};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::authority::{Membership, issued_of_serial, membership_of_serial};
use crate::time;

/// Whom a client's certificate names. The TLS handshake has verified the certificate, apart from
/// its time if it is a host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// There is no certificate.
    Anonymous,
    /// A host, in one of its memberships.
    Host {
        /// Its name.
        name: Name,
        /// Membership that the certificate was issued for.
        membership: Membership,
        /// Since when the certificate is good, in seconds since the epoch.
        begins: i64,
        /// When it expires.
        expires: i64,
    },
    /// An operator.
    Operator {
        /// Their name.
        name: Name,
        /// When the certificate was issued, in seconds since the epoch.
        issued: i64,
        /// When it expires.
        expires: i64,
    },
}

/// How long an operator may stay away, in seconds: after that, an administrator has to make a new certificate.
const LATE: i64 = 30 * 86_400;

/// The other end of a connection; in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Its identity.
    pub caller: Caller,
}

impl Caller {
    /// Reads a certificate; none if it is one of ours for something else.
    pub(crate) fn from_certificate(der: &[u8], domain: &TrustDomain) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let begins = certificate.validity().not_before.timestamp();
        let expires = certificate.validity().not_after.timestamp();
        let names = &certificate.subject_alternative_name().ok()??.value.general_names;
        let [GeneralName::URI(uri)] = names.as_slice() else { return None };
        let path = uri.strip_prefix("spiffe://")?.strip_prefix(domain.as_str())?;
        let (kind, name) = path.strip_prefix('/')?.split_once('/')?;
        let name = name.parse().ok()?;
        match kind {
            "host" => {
                let membership = membership_of_serial(certificate.raw_serial())?;
                Some(Self::Host { name, membership, begins, expires })
            }
            "operator" => {
                let issued = issued_of_serial(certificate.raw_serial(), begins);
                Some(Self::Operator { name, issued, expires })
            }
            _ => None,
        }
    }

    /// Whether it is an operator who was away for no longer than they may be.
    pub(crate) fn may_return(&self, now: i64) -> bool {
        matches!(self, Self::Operator { expires, .. } if now < expires.saturating_add(LATE))
    }

    /// Why its certificate is out of its time, if it is.
    pub(crate) fn outdated(&self, now: i64) -> Option<String> {
        let (begins, expires) = match self {
            Self::Anonymous => return None,
            Self::Host { begins, expires, .. } => (*begins, *expires),
            Self::Operator { expires, .. } => (i64::MIN, *expires),
        };
        if now >= expires {
            return Some(format!("expired at {}", time::show(expires)));
        }
        let early = format!("isn't good before {}", time::show(begins));
        (now < begins).then(|| format!("{early}, and it is {} here", time::show(now)))
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

/// Lets only hosts pass, also with a certificate out of its time. Runs before a request's body is read.
pub(crate) fn hosts_only(request: Request<()>) -> Result<Request<()>, Status> {
    match peer(&request)?.caller {
        Caller::Host { .. } => Ok(request),
        Caller::Operator { .. } => {
            Err(Status::permission_denied("Only hosts may call this, not operators."))
        }
        Caller::Anonymous => Err(Status::unauthenticated(
            "Only hosts may call this: connect with the certificate that the join gave.",
        )),
    }
}

/// Refuses a certificate that is out of its time.
pub(crate) fn in_time(caller: &Caller) -> Result<(), Status> {
    match caller.outdated(time::now()) {
        None => Ok(()),
        Some(why) => Err(Status::unauthenticated(format!(
            "The certificate of this connection {why}; connect with a new one."
        ))),
    }
}
