//! Identities, as people and certificates write them, and the small numbers that stand
//! for them in addresses.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::name::Name;

/// The number of a host in the mesh. 0 is no host: it marks virtual addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub u32);

/// The number of a service in the mesh, from the number space that devices share. 0 is no service:
/// it marks a host's own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u32);

/// The number of a device in the mesh, from the number space that services share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u32);

/// Sender or receiver by number, as in an overlay address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Principal {
    /// The host itself: a process that matches no service.
    Host(HostId),
    /// A service, on whichever host.
    Service(ServiceId),
    /// A machine without an agent.
    Device(DeviceId),
}

/// Sender or receiver by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// A host of the mesh.
    Host(Name),
    /// A service.
    Service {
        /// The namespace that the service belongs to.
        namespace: Name,
        /// The service's name, unique in the mesh.
        name: Name,
    },
    /// A machine without an agent.
    Device(Name),
}

impl Identity {
    /// The identity as a SPIFFE ID, `spiffe://<trust domain>/ns/<namespace>/sa/<service>`,
    /// `…/host/<name>` or `…/device/<name>`.
    #[must_use]
    pub fn spiffe(&self, domain: &TrustDomain) -> String {
        match self {
            Self::Host(name) => format!("spiffe://{domain}/host/{name}"),
            Self::Service { namespace, name } => {
                format!("spiffe://{domain}/ns/{namespace}/sa/{name}")
            }
            Self::Device(name) => format!("spiffe://{domain}/device/{name}"),
        }
    }

    /// The name without kind or namespace.
    #[must_use]
    pub fn name(&self) -> &Name {
        match self {
            Self::Host(name) | Self::Device(name) | Self::Service { name, .. } => name,
        }
    }
}

/// As the topology writes it: `host:app-1`, `service:web`, `device:press`.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => write!(f, "host:{name}"),
            Self::Service { name, .. } => write!(f, "service:{name}"),
            Self::Device(name) => write!(f, "device:{name}"),
        }
    }
}

/// The root of trust of a mesh: a lower-case DNS name (SPIFFE ID, section 2.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

/// Why a text is not a [`TrustDomain`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a trust domain: write a lower-case DNS name such as \"corp.example\"")]
pub struct TrustDomainError(String);

impl TrustDomain {
    /// The trust domain as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = TrustDomainError;

    fn from_str(text: &str) -> Result<Self, TrustDomainError> {
        let labels_ok = text.split('.').all(|label| label.parse::<Name>().is_ok());
        if labels_ok && text.len() <= 253 {
            Ok(Self(text.into()))
        } else {
            Err(TrustDomainError(text.to_owned()))
        }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_have_spiffe_ids() {
        let domain: TrustDomain = "corp.example".parse().unwrap();
        let web =
            Identity::Service { namespace: "prod".parse().unwrap(), name: "web".parse().unwrap() };
        assert_eq!(web.spiffe(&domain), "spiffe://corp.example/ns/prod/sa/web");
        assert_eq!(web.to_string(), "service:web");
    }

    #[test]
    fn a_trust_domain_is_a_dns_name() {
        assert!("Corp.example".parse::<TrustDomain>().is_err());
        assert!("corp..example".parse::<TrustDomain>().is_err());
        assert!("".parse::<TrustDomain>().is_err());
    }
}
