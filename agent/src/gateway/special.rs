//! Addresses that no server outside of the mesh has. Whoever answers for an external server's name
//! could lead this host's agent to them, past whatever guards them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use isthmus_model::Mesh;

/// Kind of an address that a name may not resolve to.
pub(super) fn special(address: IpAddr, mesh: &Mesh) -> Option<&'static str> {
    match address.to_canonical() {
        IpAddr::V4(v4) if mesh.ipv4.contains(&v4) && v4 != METADATA_ALIBABA => Some("the mesh's"),
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) if v6.octets().starts_with(&mesh.prefix.bytes()) => Some("the mesh's"),
        IpAddr::V6(v6) => special_v6(v6).or_else(|| special_v4(embedded(v6)?)),
    }
}

const METADATA_ALIBABA: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);
const METADATA_AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
const METADATA_ORACLE: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 192);
const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const METADATA_AWS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
const METADATA_GOOGLE: Ipv6Addr = Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254);

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    let first = address.octets()[0];
    if [METADATA_V4, METADATA_ALIBABA, METADATA_AZURE, METADATA_ORACLE].contains(&address) {
        Some("a cloud's metadata service")
    } else if address.is_loopback() {
        Some("loopback")
    } else if first == 0 {
        Some("unspecified")
    } else if address.is_link_local() {
        Some("link-local")
    } else if address.is_multicast() {
        Some("multicast")
    } else if first >= 240 {
        Some("broadcast or reserved")
    } else {
        None
    }
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    if [METADATA_AWS, METADATA_GOOGLE].contains(&address) {
        Some("a cloud's metadata service")
    } else if address.is_loopback() {
        Some("loopback")
    } else if address.is_unspecified() {
        Some("unspecified")
    } else if address.is_unicast_link_local() {
        Some("link-local")
    } else if address.is_multicast() {
        Some("multicast")
    } else {
        None
    }
}

/// The IPv4 address that one of IPv6 stands for: to a translator (RFC 6052, RFC 8215), to a 6to4
/// relay, or of old (RFC 4291, 2.5.5.1).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let of = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match (a, b, c) {
        (0x64, 0xff9b, 0 | 1) => of(g, h),
        (0x2002, high, low) => of(high, low),
        (0, 0, 0) if (d, e, f) == (0, 0, 0) => of(g, h),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use isthmus_model::MeshPrefix;

    use super::*;

    #[test]
    fn names_lead_to_servers_only() {
        let mesh = Mesh {
            name: "corp".parse().unwrap(),
            trust_domain: "corp.example".parse().unwrap(),
            prefix: MeshPrefix::new([0xfd, 1, 2, 3, 4, 5]).unwrap(),
            ipv4: "100.64.0.0/10".parse().unwrap(),
            virtual_ipv4: "100.127.0.0/16".parse().unwrap(),
        };
        for (address, wanted) in [
            ("192.0.2.7", None),
            ("10.0.0.1", None),
            ("2001:db8::1", None),
            ("fd09::1", None),
            ("::ffff:192.0.2.7", None),
            ("64:ff9b::192.0.2.7", None),
            ("127.0.0.1", Some("loopback")),
            ("127.255.0.9", Some("loopback")),
            ("::1", Some("loopback")),
            ("::ffff:127.0.0.1", Some("loopback")),
            ("64:ff9b::127.0.0.1", Some("loopback")),
            ("2002:7f00:1::", Some("loopback")),
            ("::127.0.0.1", Some("loopback")),
            ("0.0.0.0", Some("unspecified")),
            ("0.1.2.3", Some("unspecified")),
            ("::", Some("unspecified")),
            ("169.254.1.1", Some("link-local")),
            ("fe80::1", Some("link-local")),
            ("169.254.169.254", Some("a cloud's metadata service")),
            ("fd00:ec2::254", Some("a cloud's metadata service")),
            ("100.100.100.200", Some("a cloud's metadata service")),
            ("224.0.0.1", Some("multicast")),
            ("ff02::1", Some("multicast")),
            ("255.255.255.255", Some("broadcast or reserved")),
            ("100.64.0.16", Some("the mesh's")),
            ("100.127.0.1", Some("the mesh's")),
            ("fd01:203:405::1:0:5", Some("the mesh's")),
            ("::ffff:100.64.0.16", Some("the mesh's")),
        ] {
            assert_eq!(special(address.parse().unwrap(), &mesh), wanted, "{address}");
        }
    }
}
