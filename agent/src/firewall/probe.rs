//! The first packet of a connection, by hand.

use std::net::{IpAddr, SocketAddr};

use isthmus_packet::checksum::checksum;

/// Discard: nobody connects from there.
pub(super) const PORT: u16 = 9;

const HOPS: u8 = 64;
const TCP: u8 = 6;
const TCP_BYTES: u16 = 20;
const SYN: u8 = 0x02;
const WINDOW: u16 = 1_024;

/// A SYN as an IP packet; none between families.
pub(super) fn syn(from: SocketAddr, to: SocketAddr, sequence: u32) -> Option<Vec<u8>> {
    let mut tcp = Vec::with_capacity(usize::from(TCP_BYTES));
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(sequence.to_be_bytes());
    tcp.extend([0; 4]);
    tcp.extend([0x50, SYN]);
    tcp.extend(WINDOW.to_be_bytes());
    tcp.extend([0; 4]);
    let mut ip = Vec::new();
    // What TCP's checksum covers of the addresses.
    let mut pseudo = Vec::new();
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            pseudo.extend([from.octets(), to.octets()].concat());
            pseudo.extend([0, TCP]);
            pseudo.extend(TCP_BYTES.to_be_bytes());
            ip.extend([0x45, 0]);
            ip.extend((20 + TCP_BYTES).to_be_bytes());
            ip.extend([0, 0, 0x40, 0, HOPS, TCP, 0, 0]);
            ip.extend([from.octets(), to.octets()].concat());
            let sum = checksum(&ip);
            ip.get_mut(10..12)?.copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            pseudo.extend([from.octets(), to.octets()].concat());
            pseudo.extend(u32::from(TCP_BYTES).to_be_bytes());
            pseudo.extend([0, 0, 0, TCP]);
            ip.extend([0x60, 0, 0, 0]);
            ip.extend(TCP_BYTES.to_be_bytes());
            ip.extend([TCP, HOPS]);
            ip.extend([from.octets(), to.octets()].concat());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    }
    pseudo.extend(&tcp);
    let sum = checksum(&pseudo);
    tcp.get_mut(16..18)?.copy_from_slice(&sum.to_be_bytes());
    ip.extend(tcp);
    Some(ip)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use isthmus_net::listen::{SynTrap, bind_transparent_tcp};
    use isthmus_net::netlink::Netlink;
    use isthmus_net::testing::in_netns;
    use isthmus_net::tun::{Tun, VNET_HEADER};
    use std::io::IoSlice;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    const SEQUENCE: u32 = 0x1575_0115;

    fn reaches(tun: &Tun, listener: &TcpListener, from: &str, to: &str, patience: u64) -> bool {
        let trap = SynTrap::set(listener, SEQUENCE).unwrap();
        let from = format!("{from}:9").parse().unwrap();
        let port = listener.local_addr().unwrap().port();
        let packet = syn(from, format!("{to}:{port}").parse().unwrap(), SEQUENCE).unwrap();
        let deadline = Instant::now() + Duration::from_millis(patience);
        while Instant::now() < deadline {
            tun.send(0, &[IoSlice::new(&[0; VNET_HEADER]), IoSlice::new(&packet)]).unwrap();
            if trap.has_caught().unwrap() {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    #[test]
    fn the_probe_arrives_unless_a_firewall_drops_it_and_nobody_answers_it() {
        in_netns(|| {
            let tun = Tun::create("isth-f0", 1400).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let netlink = Netlink::connect().unwrap();
                netlink.set_up(tun.index()).await.unwrap();
                for own in ["100.64.0.1", "fd00::1"] {
                    netlink.add_address(tun.index(), own.parse().unwrap()).await.unwrap();
                }
            });
            let sh = |script: &str| {
                let done = Command::new("sh").args(["-c", script]).output().unwrap();
                assert!(done.status.success(), "{done:?}");
                String::from_utf8(done.stdout).unwrap()
            };
            sh("ip route add 100.64.0.0/16 dev isth-f0 && ip -6 route add fd00::/64 dev isth-f0");
            let v4 = bind_transparent_tcp("0.0.0.0:0".parse().unwrap()).unwrap();
            let v6 = bind_transparent_tcp("[::]:0".parse().unwrap()).unwrap();
            let tries = [(&v4, "100.64.0.9", "100.64.0.1"), (&v6, "[fd00::9]", "[fd00::1]")];
            for (listener, from, to) in tries {
                assert!(reaches(&tun, listener, from, to, 10_000), "{to}");
            }
            assert_eq!(sh("ss -Htn state syn-recv"), "", "nothing is left of it");

            sh(
                "nft 'add table inet f; add chain inet f in { type filter hook input priority 0; policy drop; }'",
            );
            for (listener, from, to) in tries {
                assert!(!reaches(&tun, listener, from, to, 200), "{to}");
            }
            sh("nft add rule inet f in iifname isth-f0 accept");
            for (listener, from, to) in tries {
                assert!(reaches(&tun, listener, from, to, 10_000), "{to}");
            }
        });
    }

    #[test]
    fn there_is_no_packet_between_families() {
        let (v4, v6) = ("192.0.2.1:9".parse().unwrap(), "[::1]:9".parse().unwrap());
        assert_eq!(syn(v4, v6, 1), None);
    }
}
