//! Addresses and flow keys in the form that hashes and compares fastest.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 or IPv6 address in 16 bytes; IPv4 is held in its mapped form (`::ffff:a.b.c.d`).
///
/// INVARIANT: a mapped value always means IPv4. The parser refuses IPv6 packets that carry mapped
/// addresses on the wire, so that they can't pass for IPv4 hosts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    high: u64,
    low: u64,
}

const MAPPED: u64 = 0xffff_0000_0000;

impl Address {
    /// Makes an address from the four bytes of an IPv4 header.
    #[inline]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self { high: 0, low: MAPPED | u32::from_be_bytes(octets) as u64 }
    }

    /// Makes an address from the sixteen bytes of an IPv6 header. Mapped addresses become IPv4.
    #[inline]
    pub const fn v6(octets: [u8; 16]) -> Self {
        let value = u128::from_be_bytes(octets);
        Self { high: (value >> 64) as u64, low: value as u64 }
    }

    /// Whether this is an IPv4 address.
    #[inline]
    pub const fn is_v4(self) -> bool {
        self.high == 0 && self.low >> 32 == MAPPED >> 32
    }

    /// The address as an IPv4 header holds it, if it is an IPv4 address.
    #[inline]
    pub const fn v4_octets(self) -> Option<[u8; 4]> {
        if self.is_v4() { Some((self.low as u32).to_be_bytes()) } else { None }
    }

    /// The sixteen bytes as an IPv6 header holds them; IPv4 in its mapped form.
    #[inline]
    pub const fn v6_octets(self) -> [u8; 16] {
        (((self.high as u128) << 64) | self.low as u128).to_be_bytes()
    }

    /// The address in the standard library's terms.
    pub const fn ip(self) -> IpAddr {
        match self.v4_octets() {
            Some([a, b, c, d]) => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            None => IpAddr::V6(Ipv6Addr::from_octets(self.v6_octets())),
        }
    }

    /// Whether both addresses are of the same IP version.
    #[inline]
    pub const fn same_family(self, other: Self) -> bool {
        self.is_v4() == other.is_v4()
    }

    /// Whether the address stands for one host: not multicast, broadcast, unspecified, loopback
    /// or reserved (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)).
    pub const fn is_single_host(self) -> bool {
        match self.ip() {
            IpAddr::V4(v4) => {
                let [first, ..] = v4.octets();
                first != 0 && first != 127 && first < 224
            }
            IpAddr::V6(v6) => !(v6.is_multicast() || v6.is_unspecified() || v6.is_loopback()),
        }
    }

    /// Whether the address is a multicast group.
    pub const fn is_multicast(self) -> bool {
        self.ip().is_multicast()
    }

    /// The one's complement sum of the address's 16-bit words, as a pseudo-header counts it.
    #[inline]
    pub(crate) const fn sum(self) -> u16 {
        let (high, low) =
            if self.is_v4() { (0, self.low & 0xffff_ffff) } else { (self.high, self.low) };
        let halves = (high >> 32) + (high & 0xffff_ffff) + (low >> 32) + (low & 0xffff_ffff);
        super::checksum::fold(halves)
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(ip: Ipv4Addr) -> Self {
        Self::v4(ip.octets())
    }
}

impl From<Ipv6Addr> for Address {
    fn from(ip: Ipv6Addr) -> Self {
        Self::v6(ip.octets())
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        address.ip()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Key of a flow, in the direction of the packet it was read from.
///
/// | protocol | source port | destination port |
/// | --- | --- | --- |
/// | TCP, UDP, UDP-Lite, SCTP | source port | destination port |
/// | ICMP echo request | identifier | 0 |
/// | ICMP echo reply | 0 | identifier |
/// | other ICMP | type and code | type and code |
/// | anything else, and later fragments | 0 | 0 |
///
/// An echo request's key is therefore the [`reversed`](Self::reversed) key of its reply, and a
/// reply that nobody asked for is never mistaken for a request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowKey {
    /// Sender of the packet.
    pub source: Address,
    /// Whom it is for.
    pub destination: Address,
    /// The source port, or what stands for it.
    pub source_port: u16,
    /// The destination port, or what stands for it.
    pub destination_port: u16,
    /// The IP protocol of the transport header.
    pub protocol: u8,
}

impl FlowKey {
    /// The key that an answer to this flow has.
    #[inline]
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

impl Hash for FlowKey {
    /// Feeds five whole words: a hasher mixes them faster than seven odd-sized fields.
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.source.hash(state);
        self.destination.hash(state);
        let ports = u64::from(self.source_port) << 16 | u64::from(self.destination_port);
        state.write_u64(ports << 8 | u64::from(self.protocol));
    }
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, source_port, destination_port, protocol } = self;
        write!(f, "{protocol}:[{source}]:{source_port}->[{destination}]:{destination_port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip_and_keep_their_family() {
        for text in ["0.0.0.0", "100.64.0.1", "255.255.255.255", "::", "::1", "fd00:1::2"] {
            let ip: IpAddr = text.parse().expect("a literal");
            let address = Address::from(ip);
            assert_eq!(address.ip(), ip);
            assert_eq!(address.is_v4(), ip.is_ipv4());
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn only_unicast_addresses_are_single_hosts() {
        let single = ["10.0.0.1", "223.255.255.255", "fd00::1", "fe80::1"];
        let not = [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
        ];
        let address = |text: &str| Address::from(text.parse::<IpAddr>().expect("a literal"));
        assert!(single.iter().all(|text| address(text).is_single_host()));
        assert!(!not.iter().any(|text| address(text).is_single_host()));
    }

    #[test]
    fn a_flow_key_stays_within_forty_bytes() {
        assert_eq!(size_of::<FlowKey>(), 40);
    }
}
