//! The address is the tag: how identities and overlay addresses stand for each other.
//!
//! ```text
//!  IPv6   fd XX XX XX XX XX  00 00   hh hh hh hh   ss ss ss ss
//!         └ the mesh's /48 ┘         └── host ───┘ └ service ┘
//!
//!  service 0   the host itself
//!  host 0      the service's virtual address, which DNS gives for its name
//!  both 0      the mesh's anycast address: stands for the host itself on flows
//!              between two workloads of one host
//! ```
//!
//! IPv4 has no room for both numbers: the controller hands out a block per host, an address in it
//! per workload, and a block for virtual addresses. The snapshot holds these tables.

use std::net::Ipv6Addr;

use crate::identity::{HostId, ServiceId};

pub use ipnet::Ipv4Net;

/// The mesh's /48: a random unique local prefix (RFC 4193).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MeshPrefix([u8; 6]);

/// Why six bytes are not a [`MeshPrefix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a mesh prefix is a unique local /48 and begins with fd, not {0:02x}")]
pub struct MeshPrefixError(u8);

impl MeshPrefix {
    /// Makes a prefix of its 48 bits.
    ///
    /// # Errors
    ///
    /// The first byte must be `fd`.
    pub fn new(bytes: [u8; 6]) -> Result<Self, MeshPrefixError> {
        if bytes[0] == 0xfd { Ok(Self(bytes)) } else { Err(MeshPrefixError(bytes[0])) }
    }

    /// The prefix's 48 bits.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// The first address of the prefix; its length is 48.
    #[must_use]
    pub fn network(self) -> Ipv6Addr {
        self.address(HostId(0), ServiceId(0))
    }

    /// The address of a service on a host.
    #[must_use]
    pub fn address(self, host: HostId, service: ServiceId) -> Ipv6Addr {
        let mut octets = [0; 16];
        octets[..6].copy_from_slice(&self.0);
        octets[8..12].copy_from_slice(&host.0.to_be_bytes());
        octets[12..].copy_from_slice(&service.0.to_be_bytes());
        octets.into()
    }

    /// The host and service that an address names, if it is one of this mesh.
    #[must_use]
    pub fn parse(self, address: Ipv6Addr) -> Option<(HostId, ServiceId)> {
        let octets = address.octets();
        if octets[..6] != self.0 || octets[6..8] != [0, 0] {
            return None;
        }
        let number = |at: usize| {
            u32::from_be_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
        };
        Some((HostId(number(8)), ServiceId(number(12))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_tells_host_and_service() {
        let prefix = MeshPrefix::new([0xfd, 1, 2, 3, 4, 5]).unwrap();
        let address = prefix.address(HostId(7), ServiceId(0x0102_0304));
        assert_eq!(address, "fd01:203:405:0:0:7:102:304".parse::<Ipv6Addr>().unwrap());
        assert_eq!(prefix.parse(address), Some((HostId(7), ServiceId(0x0102_0304))));
    }

    #[test]
    fn foreign_addresses_name_nobody() {
        let prefix = MeshPrefix::new([0xfd, 1, 2, 3, 4, 5]).unwrap();
        assert_eq!(prefix.parse("fd01:203:406:0:0:7:102:304".parse().unwrap()), None);
        assert_eq!(prefix.parse("fd01:203:405:1:0:7:102:304".parse().unwrap()), None);
        assert!(MeshPrefix::new([0xfe, 0, 0, 0, 0, 0]).is_err());
    }
}
