//! The mesh's edge: who comes in from outside, and who is called there. Both are services, so that
//! rules, routes and names hold for them as for every other.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use crate::route::HostMatch;

/// Role of a service at the mesh's edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Lets clients from outside in: agents of its hosts listen for them.
    Gateway(Gateway),
    /// Stands for a server outside of the mesh.
    External(External),
}

/// `[gateway.NAME]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateway {
    /// Listeners on its hosts.
    pub listeners: Vec<Listener>,
    /// Clients from here are proxies, whose `X-Forwarded-*` is believed.
    pub trusted_proxies: Vec<IpNet>,
}

/// A port, and what is served there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// On all of the host's addresses.
    pub port: u16,
    /// For requests to these hosts. Empty: to any that no other listener of the port is for.
    pub hosts: Vec<HostMatch>,
    /// None: plain HTTP.
    pub tls: Option<ListenerTls>,
    /// Clients are sent to HTTPS.
    pub https_redirect: bool,
}

/// How a listener proves who it is, and asks clients who they are. The files are the gateway's
/// hosts' own: the controller never sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    /// Its certificate.
    pub certificate: Certificate,
    /// None: clients aren't asked for certificates.
    pub client: Option<ClientCertificates>,
}

/// Source of a listener's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// Somebody puts it there.
    Files(CertificateFiles),
    /// The gateway's agent asks an authority for it, for the listener's hosts, and renews it.
    Acme(Acme),
}

/// An authority that gives certificates to who answers for a name (ACME, RFC 8555). It asks by
/// TLS (RFC 8737), at port 443 of the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// The URL where it says what it offers.
    pub directory: Arc<str>,
    /// Whom it writes to about the certificates.
    pub email: Option<Arc<str>>,
    /// Root of the authority's own server certificate. None: the host's root store.
    pub ca: Option<PathBuf>,
}

impl Acme {
    /// Let's Encrypt's.
    pub const DIRECTORY: &'static str = "https://acme-v02.api.letsencrypt.org/directory";
}

/// A certificate chain and its key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Accepted client certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// Those that these issue.
    pub ca: PathBuf,
    /// Whether a client without one is refused.
    pub required: bool,
}

/// `[external.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The server's name, or its address.
    pub host: Arc<str>,
    /// Its port.
    pub port: u16,
    /// None: plain HTTP.
    pub tls: Option<Origination>,
    /// Whether its name may lead to addresses that are the host's own, or no server's.
    pub special_addresses: bool,
}

/// TLS to an external server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origination {
    /// Root of the server's certificate. None: the host's root store.
    pub ca: Option<PathBuf>,
    /// The name that the server must prove. None: its host's.
    pub server_name: Option<Arc<str>>,
    /// Client certificate for the server, if it asks.
    pub certificate: Option<CertificateFiles>,
}

impl Gateway {
    /// The position of the listener on a port that is for a host in its canonical form: for its name,
    /// for the longest suffix of it, or for any.
    #[must_use]
    pub fn listener(&self, port: u16, host: Option<&str>) -> Option<usize> {
        let on_port = self.listeners.iter().enumerate().filter(|(_, it)| it.port == port);
        let fits = on_port.filter_map(|(index, listener)| Some((listener.fit(host)?, index)));
        fits.max_by_key(|(fit, index)| (*fit, std::cmp::Reverse(*index))).map(|(_, index)| index)
    }
}

impl Listener {
    /// Specificity of its match for a host; none if it doesn't match.
    fn fit(&self, host: Option<&str>) -> Option<usize> {
        if self.hosts.is_empty() {
            return Some(0);
        }
        let host = host?;
        self.hosts.iter().filter_map(|it| it.exactness(host)).max()
    }
}

impl Edge {
    /// The gateway, if it is one.
    #[must_use]
    pub const fn gateway(&self) -> Option<&Gateway> {
        match self {
            Self::Gateway(gateway) => Some(gateway),
            Self::External(_) => None,
        }
    }

    /// The external server, if it is one.
    #[must_use]
    pub const fn external(&self) -> Option<&External> {
        match self {
            Self::External(external) => Some(external),
            Self::Gateway(_) => None,
        }
    }
}

/// Everything that it says, for people who compare two.
impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(gateway) => gateway.fmt(f),
            Self::External(external) => external.fmt(f),
        }
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, listener) in self.listeners.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{listener}")?;
        }
        for (index, proxies) in self.trusted_proxies.iter().enumerate() {
            write!(f, "{}{proxies}", if index == 0 { " behind " } else { " and " })?;
        }
        Ok(())
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.tls.is_some() { "https" } else { "http" }, self.port)?;
        for host in &self.hosts {
            write!(f, " {host}")?;
        }
        if self.https_redirect {
            f.write_str(" to https")?;
        }
        let Some(tls) = &self.tls else { return Ok(()) };
        write!(f, " ({}", tls.certificate)?;
        if let Some(client) = &tls.client {
            let whether = if client.required { "required" } else { "optional" };
            write!(f, ", client certificate {whether} by {}", client.ca.display())?;
        }
        f.write_str(")")
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(files) => files.fmt(f),
            Self::Acme(acme) => acme.fmt(f),
        }
    }
}

impl fmt::Display for Acme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "by ACME from {}", self.directory)?;
        if let Some(email) = &self.email {
            write!(f, " for {email}")?;
        }
        if let Some(ca) = &self.ca {
            write!(f, ", trusted by {}", ca.display())?;
        }
        Ok(())
    }
}

impl fmt::Display for CertificateFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, key {}", self.certificate.display(), self.key.display())
    }
}

impl fmt::Display for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        write!(f, "{scheme} {}:{}", self.host, self.port)?;
        if self.special_addresses {
            f.write_str(" at any address")?;
        }
        let Some(tls) = &self.tls else { return Ok(()) };
        if let Some(name) = &tls.server_name {
            write!(f, " as {name}")?;
        }
        if let Some(ca) = &tls.ca {
            write!(f, " by {}", ca.display())?;
        }
        match &tls.certificate {
            Some(files) => write!(f, " with {files}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_exact_listener_takes_a_host() {
        let listener = |port, hosts: &[HostMatch]| Listener {
            port,
            hosts: hosts.to_vec(),
            tls: None,
            https_redirect: false,
        };
        let exact = |host: &str| HostMatch::Exact(host.into());
        let suffix = |host: &str| HostMatch::Suffix(host.into());
        let gateway = Gateway {
            listeners: vec![
                listener(80, &[]),
                listener(80, &[suffix(".example")]),
                listener(80, &[suffix(".shop.example"), exact("shop.example")]),
                listener(443, &[exact("shop.example")]),
            ],
            trusted_proxies: Vec::new(),
        };
        for (port, host, wanted) in [
            (80, Some("shop.example"), Some(2)),
            (80, Some("a.shop.example"), Some(2)),
            (80, Some("b.example"), Some(1)),
            (80, Some(".example"), Some(0)),
            (80, Some("other"), Some(0)),
            (80, None, Some(0)),
            (443, Some("shop.example"), Some(3)),
            (443, Some("a.shop.example"), None),
            (443, None, None),
            (8080, Some("shop.example"), None),
        ] {
            assert_eq!(gateway.listener(port, host), wanted, "{port} {host:?}");
        }
    }
}
