//! The mesh's edge: who comes in from outside, and who is called there. Both are services, so that
//! rules, routes and names hold for them as for every other.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use crate::route::HostMatch;

/// What a service is at the edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Lets clients from outside in: agents of its hosts listen for them.
    Gateway(Gateway),
    /// Stands for a server outside of the mesh.
    External(External),
}

/// `[gateway.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Where its hosts' agents listen.
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
}

/// How a listener proves who it is, and asks clients who they are. The files are the gateway's
/// hosts' own: the controller never sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    /// Its certificate.
    pub certificate: CertificateFiles,
    /// None: clients aren't asked for certificates.
    pub client: Option<ClientCertificates>,
}

/// A certificate chain and its key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Which clients' certificates are good.
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
}

/// How TLS to an external server is begun.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origination {
    /// Who issues the server's certificate. None: whom the host trusts.
    pub ca: Option<PathBuf>,
    /// The name that the server must prove. None: its host's.
    pub server_name: Option<Arc<str>>,
    /// What the server is shown, if it asks.
    pub certificate: Option<CertificateFiles>,
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
        let Some(tls) = &self.tls else { return Ok(()) };
        write!(f, " ({}", tls.certificate)?;
        if let Some(client) = &tls.client {
            let whether = if client.required { "required" } else { "optional" };
            write!(f, ", client certificate {whether} by {}", client.ca.display())?;
        }
        f.write_str(")")
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
