//! The host's network: addresses, routes, ports, and its firewall.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use ipnet::IpNet;
use isthmus_model::{Code, Problem};
use isthmus_net::holders;
use isthmus_net::netlink::Netlink;
use isthmus_net::sock_diag::Protocol;

use super::{Host, Report};
use crate::firewall;
use crate::network;
use crate::own_ports::stop;
use crate::state_dir::StateDir;

/// Overhead of a tunnel over IPv6, added to IPv6's minimum MTU.
const LEAST_MTU: u32 = 1_280 + 80;
/// Where nothing else is known: what a topology has unless it says otherwise.
const USUAL: &str = "100.64.0.0/10";

pub(super) async fn check(host: &Host, report: &mut Report) {
    let device = &host.settings.device;
    links(device, report).await;
    // The device is made with the overlay: what keeps IPv6 off it is the loopback's switch.
    let no_ipv6 = network::why_no_ipv6("lo").map(|reason| network::no_ipv6(&reason));
    report.add("ipv6", "of the loopback", no_ipv6.into_iter().collect::<Vec<_>>());
    routes(host, report).await;
    if !host.runs {
        ports(host, report);
    }
    let port = host.settings.listen_port;
    let closed = firewall::tunnels_kept_out(port).await;
    report.add("firewall", format!("UDP {port}"), closed.into_iter().collect::<Vec<_>>());
}

async fn links(device: &str, report: &mut Report) {
    let netlink = match Netlink::connect() {
        Ok(netlink) => netlink,
        Err(error) => {
            let text =
                format!("the kernel doesn't tell its network: {:#}", anyhow::Error::new(error));
            let remedy = "let this program open netlink sockets";
            return report.add(
                "network",
                "",
                vec![Problem::new(Code::UnderlayMissing, text, remedy)],
            );
        }
    };
    let links = netlink.links().await.unwrap_or_default();
    let down = links.values().find(|link| link.loopback && !link.up).map(|link| {
        let name = &link.name;
        let text =
            format!("{name} is down: the proxy, DNS and services of this host aren't reached");
        Problem::new(Code::LoopbackDown, text, format!("`ip link set {name} up`"))
    });
    report.add("loopback", "lo", down.into_iter().collect::<Vec<_>>());
    let addresses = netlink.underlay_addresses(device).await.unwrap_or_default();
    let found: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let problem = if addresses.is_empty() {
        let mut down = links.values().filter(|it| !it.loopback && !it.up && it.name != device);
        let remedy = match down.next() {
            Some(link) => format!("`ip link set {} up`, and give it an address", link.name),
            None => "bring the host's network up (`ip -br addr` shows what there is)".to_owned(),
        };
        let text = "this host has no address but loopback's: no tunnel can leave it";
        Some(Problem::new(Code::UnderlayMissing, text, remedy))
    } else {
        // The widest: a narrow one beside it may lead elsewhere.
        let mtu = netlink.underlay_mtu(device).await.ok().flatten();
        mtu.filter(|mtu| *mtu < LEAST_MTU).map(|mtu| {
            let narrow = links.values().find(|it| !it.loopback && it.up && it.mtu == Some(mtu));
            let name = narrow.map_or("LINK", |link| link.name.as_str());
            let text = format!(
                "{name} has an MTU of {mtu}: packets of IPv6's least size need {LEAST_MTU} in a tunnel, and \
                 go out in fragments"
            );
            let remedy = format!("`ip link set {name} mtu 1500`, or the {LEAST_MTU} that it takes");
            Problem::new(Code::PathNarrow, text, remedy).about(name)
        })
    };
    report.add("network", found.join(", "), problem.into_iter().collect::<Vec<_>>());
}

/// The mesh's addresses, as far as they are known here.
async fn routes(host: &Host, report: &mut Report) {
    let member = StateDir::peek_member(&host.settings.state_dir).ok().flatten();
    let known = member.map(|it| it.prefixes).filter(|prefixes| !prefixes.is_empty());
    let is_known = known.is_some();
    let prefixes: Vec<IpNet> = known.unwrap_or_else(|| USUAL.parse().into_iter().collect());
    let device = overlay(&host.settings.device).await;
    let clashes = network::clashes(&prefixes, device).await.unwrap_or_default();
    let problem = |found: &network::Clash| {
        let problem = network::clash(found);
        if is_known {
            return problem;
        }
        let text = format!(
            "this host's route \"{}\" is in the range that a mesh has unless its topology says otherwise \
             ({USUAL}): the overlay of that range doesn't come up beside it",
            found.route
        );
        Problem { text, ..problem }
    };
    let found: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    report.add("routes", found.join(", "), clashes.iter().map(problem).collect::<Vec<_>>());
}

async fn overlay(device: &str) -> Option<u32> {
    let links = Netlink::connect().ok()?.links().await.ok()?;
    links.into_iter().find(|(_, link)| link.name == device).map(|(index, _)| index)
}

/// Only where no agent has them.
fn ports(host: &Host, report: &mut Report) {
    let settings = &host.settings;
    let mut problems = Vec::new();
    let any = |port| {
        [SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), (Ipv6Addr::UNSPECIFIED, port).into()]
    };
    let udp = |address: SocketAddr| UdpSocket::bind(address).err();
    let tcp = |address: SocketAddr| TcpListener::bind(address).err();
    for address in any(settings.listen_port) {
        problems.extend(taken(
            Protocol::Udp,
            address.port(),
            "tunnels (listen_port)",
            udp(address),
        ));
    }
    for address in any(settings.proxy_port) {
        problems.extend(taken(
            Protocol::Tcp,
            address.port(),
            "the proxy (proxy_port)",
            tcp(address),
        ));
    }
    if let Some(address) = settings.metrics_address() {
        problems.extend(taken(Protocol::Tcp, address.port(), "metrics (metrics)", tcp(address)));
    }
    problems.dedup_by(|one, other| one.subject == other.subject);
    let found = format!("UDP {}, TCP {}", settings.listen_port, settings.proxy_port);
    report.add("ports", found, problems);
}

fn taken(
    protocol: Protocol,
    port: u16,
    what_for: &str,
    error: Option<std::io::Error>,
) -> Option<Problem> {
    error.filter(|error| error.kind() == std::io::ErrorKind::AddrInUse)?;
    let transport = match protocol {
        Protocol::Udp => "UDP",
        Protocol::Tcp => "TCP",
    };
    let holders = holders::of_port(protocol, port).unwrap_or_default();
    let who: Vec<String> = holders.iter().map(ToString::to_string).collect();
    let who = if who.is_empty() { "somebody".to_owned() } else { who.join(", ") };
    let subject = format!("{transport} port {port}");
    let text = format!("{subject}, for {what_for}, is taken by {who}");
    let remedy = format!("{}, or choose another port in the agent's settings", stop(&holders));
    Some(Problem::new(Code::PortTaken, text, remedy).about(subject))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_named_with_whom_to_stop() {
        let squatter = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = squatter.local_addr().unwrap().port();
        let again = UdpSocket::bind(("127.0.0.1", port)).err();
        let problem = taken(Protocol::Udp, port, "tunnels (listen_port)", again).unwrap();
        assert!(problem.text.contains(&format!("UDP port {port}, for tunnels")), "{problem:?}");
        assert!(problem.remedy.starts_with("stop the program"), "not this one itself: {problem:?}");
        let refused = Some(std::io::ErrorKind::PermissionDenied.into());
        assert_eq!(taken(Protocol::Udp, port, "tunnels", refused), None);
        assert_eq!(taken(Protocol::Udp, port, "tunnels", None), None);
    }
}
