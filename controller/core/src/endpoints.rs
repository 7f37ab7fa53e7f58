//! Tunnel endpoints of a host.

use std::net::{IpAddr, SocketAddr};

use isthmus_model::{Ipv4Net, MeshPrefix};

const MOST: usize = 16;
const DEFAULT_PORT: u16 = 51820;

/// Candidates for a host's endpoint, the best first: what its agent reports, and the address that its
/// control connection comes from with the agent's port.
///
/// A reported address that the connection does come from goes first. Addresses that can't be an
/// endpoint are left out, the overlay's own among them: a tunnel through itself carries nothing.
#[must_use]
pub fn candidates(
    reported: &[String],
    observed: Option<IpAddr>,
    prefix: MeshPrefix,
    ipv4: Ipv4Net,
) -> Vec<SocketAddr> {
    let usable = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => {
            !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() || ipv4.contains(&ip))
        }
        IpAddr::V6(ip) => {
            let ours = ip.octets()[..6] == prefix.bytes();
            !(ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local() || ours)
        }
    };
    let mut found: Vec<SocketAddr> = Vec::new();
    for address in reported.iter().filter_map(|text| text.parse::<SocketAddr>().ok()) {
        if address.port() != 0 && usable(address.ip()) && !found.contains(&address) {
            found.push(address);
        }
    }
    found.truncate(MOST);
    let Some(observed) = observed.map(|ip| ip.to_canonical()) else { return found };
    found.sort_by_key(|address| address.ip() != observed);
    let known = found.first().is_some_and(|address| address.ip() == observed);
    if !known && usable(observed) && !observed.is_loopback() {
        let port = found.first().map_or(DEFAULT_PORT, SocketAddr::port);
        found.truncate(MOST - 1);
        found.push(SocketAddr::new(observed, port));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(reported: &[&str], observed: &str) -> Vec<String> {
        let reported: Vec<String> = reported.iter().map(ToString::to_string).collect();
        let prefix = MeshPrefix::new([0xfd, 1, 2, 3, 4, 5]).unwrap();
        candidates(&reported, observed.parse().ok(), prefix, "100.64.0.0/10".parse().unwrap())
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_reported_address_that_is_seen_goes_first() {
        let reported = ["172.17.0.1:51820", "192.0.2.7:51820"];
        assert_eq!(found(&reported, "192.0.2.7"), ["192.0.2.7:51820", "172.17.0.1:51820"]);
    }

    #[test]
    fn behind_nat_the_address_seen_is_added_with_the_agents_port() {
        assert_eq!(found(&["10.0.0.2:4000"], "203.0.113.9"), ["10.0.0.2:4000", "203.0.113.9:4000"]);
        assert_eq!(found(&[], "::ffff:203.0.113.9"), ["203.0.113.9:51820"]);
    }

    #[test]
    fn what_can_not_be_an_endpoint_is_left_out() {
        let bad = ["0.0.0.0:1", "x", "[fd01:203:405::7:0]:1", "100.64.0.16:1", "10.0.0.1:0"];
        assert_eq!(found(&bad, "127.0.0.1"), Vec::<String>::new());
    }

    #[test]
    fn a_flood_of_addresses_is_cut() {
        let many: Vec<String> = (1..200).map(|n| format!("192.0.2.{n}:51820")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(found(&many, "203.0.113.9").len(), MOST);
    }
}
