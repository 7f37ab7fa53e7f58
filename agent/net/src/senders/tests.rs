use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Instant;

use super::*;
use crate::cgroup::Cgroups;
use crate::routes::Route;
use crate::testing::{block_on, in_netns, netlink};
use crate::tun::{Tun, VNET_HEADER};

const OURS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(100, 64, 9, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd12, 0, 0, 0, 0, 0, 0, 1)),
];
const PEERS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(100, 65, 0, 7)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd13, 0, 0, 0, 0, 0, 0, 7)),
];
const NOBODY: u32 = 65_534;

#[test]
fn a_socket_that_is_closed_at_once_has_left_its_user_and_cgroup() {
    watched(|senders, tun| {
        for (own, peer) in OURS.into_iter().zip(PEERS) {
            let from = send_as_nobody(own, 4000, peer);
            let sender = senders.sender(from, (peer, 9).into()).unwrap();
            assert_eq!(sender.uid, NOBODY);
            assert_eq!(sender.taken_over, None);
            assert_eq!(Some(sender.cgroup_id), own_cgroup());
            assert_eq!(senders.sender(from, (peer, 10).into()), None);
        }
        assert!(received(tun) >= 2);
    });
}

#[test]
fn a_port_that_changes_hands_is_noticed_with_the_first_packet() {
    watched(|senders, _| {
        for (own, peer) in OURS.into_iter().zip(PEERS) {
            let target = SocketAddr::from((peer, 9));
            let socket = UdpSocket::bind((own, 4000)).unwrap();
            socket.send_to(b"one", target).unwrap();
            let before = senders.sender((own, 4000).into(), target).unwrap();
            let changes = senders.changes(4000, 9);
            socket.send_to(b"two", target).unwrap();
            assert_eq!(senders.changes(4000, 9), changes);
            drop(socket);
            let from = send_as_nobody(own, 4000, peer);
            assert_ne!(senders.changes(4000, 9), changes);
            let after = senders.sender(from, target).unwrap();
            assert_ne!(after.cookie, before.cookie);
            assert_eq!((before.uid, after.uid), (0, NOBODY));
        }
    });
}

#[test]
fn a_port_that_changes_hands_at_once_is_in_doubt() {
    watched(|senders, _| {
        for (own, peer) in OURS.into_iter().zip(PEERS) {
            let target = SocketAddr::from((peer, 9));
            // A busy machine may take longer to start a program than a flow takes to be quiet.
            let taken_over = (0..50).find_map(|_| {
                bind((own, 4009).into()).send_to(b"one", target).unwrap();
                let from = send_as_nobody(own, 4009, peer);
                senders.sender(from, target).unwrap().taken_over
            });
            assert!(taken_over.is_some_and(|ago| ago < Duration::from_secs(60)));
        }
    });
}

#[test]
fn a_port_that_was_quiet_changes_hands_without_a_doubt() {
    watched(|senders, _| {
        let all = || OURS.into_iter().zip(PEERS);
        for (own, peer) in all() {
            bind((own, 4008).into()).send_to(b"one", (peer, 9)).unwrap();
        }
        let began = Instant::now();
        // A hundred ticks of the slowest clock that kernels are built with.
        while began.elapsed() <= Duration::from_millis(1010) {
            std::thread::yield_now();
        }
        for (own, peer) in all() {
            let from = send_as_nobody(own, 4008, peer);
            let sender = senders.sender(from, (peer, 9).into()).unwrap();
            assert_eq!((sender.uid, sender.taken_over), (NOBODY, None));
        }
    });
}

#[test]
fn fragments_belong_to_the_socket_of_the_first() {
    watched(|senders, tun| {
        for (own, peer) in OURS.into_iter().zip(PEERS) {
            let socket = UdpSocket::bind((own, 4001)).unwrap();
            socket.send_to(&[7; 4000], (peer, 9)).unwrap();
            assert!(senders.sender((own, 4001).into(), (peer, 9).into()).is_some(), "{own}");
        }
        assert!(received(tun) >= 6);
    });
}

#[test]
fn a_refused_flow_is_silent_for_a_while_and_others_are_not() {
    watched(|senders, tun| {
        for (own, peer) in OURS.into_iter().zip(PEERS) {
            let target = SocketAddr::from((peer, 9));
            let socket = UdpSocket::bind((own, 4002)).unwrap();
            let from = socket.local_addr().unwrap();
            socket.send_to(b"one", target).unwrap();
            received(tun);
            let cookie = senders.sender(from, target).unwrap().cookie;
            let before = senders.dropped().denied;
            senders.refuse(from, target, cookie, Duration::from_secs(60)).unwrap();
            for _ in 0..100 {
                socket.send_to(b"more", target).unwrap();
            }
            assert_eq!((received(tun), senders.dropped().denied - before), (0, 100));
            socket.send_to(b"elsewhere", (peer, 10)).unwrap();
            assert_eq!(received(tun), 1);
            // Who has the port next isn't meant.
            drop(socket);
            bind(from).send_to(b"mine", target).unwrap();
            assert_eq!(received(tun), 1);
        }
    });
}

#[test]
fn who_is_held_back_opens_no_flows_and_keeps_those_that_are_open() {
    watched(|senders, tun| {
        let (own, peer) = (OURS[0], PEERS[0]);
        let open = UdpSocket::bind((own, 4003)).unwrap();
        open.send_to(b"one", (peer, 9)).unwrap();
        received(tun);
        let me = Budget::of(0, own_cgroup().unwrap());
        senders.hold_back(me, Duration::from_secs(60)).unwrap();
        for port in 5000..5100 {
            open.send_to(b"new", (peer, port)).unwrap();
        }
        assert_eq!((received(tun), senders.dropped().held_back), (0, 100));
        open.send_to(b"two", (peer, 9)).unwrap();
        send_as_nobody(own, 4004, peer);
        assert_eq!(received(tun), 2);
    });
}

#[test]
fn who_was_held_back_is_let_in_little_by_little() {
    watched(|senders, tun| {
        let (own, peer) = (OURS[0], PEERS[0]);
        let socket = UdpSocket::bind((own, 4007)).unwrap();
        let me = Budget::of(0, own_cgroup().unwrap());
        senders.hold_back(me, Duration::ZERO).unwrap();
        let began = Instant::now();
        for port in 5000..5300 {
            socket.send_to(b"new", (peer, port)).unwrap();
        }
        let most = 2 + began.elapsed().as_millis() as usize;
        let passed = received(tun);
        assert!((1..=most).contains(&passed), "{passed} of 300 in {most} ms");
        assert_eq!(senders.dropped().held_back, 300 - passed as u64);
        while began.elapsed() <= WATCHED {
            std::thread::yield_now();
        }
        let before = senders.dropped().held_back;
        for port in 20_000..20_300 {
            socket.send_to(b"new", (peer, port)).unwrap();
        }
        assert_eq!((received(tun), senders.dropped().held_back - before), (300, 0));
    });
}

/// The kernel sends no more of a datagram once a fragment is dropped: the program needs no rule for them.
#[test]
fn a_first_fragment_that_is_dropped_takes_the_others_along() {
    watched(|senders, tun| {
        for (own, peer) in OURS.into_iter().zip(PEERS) {
            let target = SocketAddr::from((peer, 9));
            let socket = UdpSocket::bind((own, 4006)).unwrap();
            let from = socket.local_addr().unwrap();
            socket.send_to(&[7; 4000], target).unwrap();
            let whole = received(tun);
            assert!(whole >= 3, "{whole}");
            let cookie = senders.sender(from, target).unwrap().cookie;
            senders.refuse(from, target, cookie, Duration::from_secs(60)).unwrap();
            let before = senders.dropped().denied;
            for _ in 0..10 {
                let _ = socket.send_to(&[7; 4000], target);
            }
            assert_eq!((received(tun), senders.dropped().denied - before), (0, 10));
            socket.send_to(&[7; 4000], (peer, 10)).unwrap();
            assert_eq!(received(tun), whole);
        }
    });
}

#[test]
fn routing_headers_never_reach_the_device() {
    watched(|senders, tun| {
        let socket = UdpSocket::bind((OURS[1], 4005)).unwrap();
        // `struct ipv6_sr_hdr` with one segment: where the packet goes anyway.
        let mut header = [0; 24];
        header[1] = 2;
        header[2] = 4;
        let IpAddr::V6(peer) = PEERS[1] else { panic!("IPv6") };
        header[8..].copy_from_slice(&peer.octets());
        // SAFETY: the option is valid for the length given with it.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IPV6,
                libc::IPV6_RTHDR,
                header.as_ptr().cast(),
                header.len() as u32,
            )
        };
        assert_eq!(result, 0, "needs a kernel with segment routing (CONFIG_IPV6_SEG6_LWTUNNEL)");
        socket.send_to(b"round about", (peer, 9)).unwrap();
        assert_eq!((received(tun), senders.dropped().routed), (0, 1));
    });
}

/// With a device that is up, has addresses and routes, and the program before it.
fn watched(test: impl FnOnce(&Senders, &Tun) + Send + 'static) {
    in_netns(|| {
        let tun = Tun::create("isth-s0", 1400).unwrap();
        block_on(async {
            let netlink = netlink();
            netlink.set_up(tun.index()).await.unwrap();
            for (own, prefix) in OURS.into_iter().zip(["100.64.0.0/10", "fd13::/16"]) {
                netlink.add_address(tun.index(), own).await.unwrap();
                let route = Route::via_device(prefix.parse().unwrap(), tun.index());
                netlink.replace_route(&route.with_source(own)).await.unwrap();
            }
        });
        let senders = Senders::load().unwrap();
        senders.attach(tun.index()).unwrap();
        test(&senders, &tun);
    });
}

/// Again and again: a process that another test starts has the last socket of this port, too, until it
/// becomes another program.
fn bind(address: SocketAddr) -> UdpSocket {
    let began = Instant::now();
    loop {
        match UdpSocket::bind(address) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && began.elapsed() < Duration::from_secs(5) => {}
            bound => return bound.unwrap(),
        }
    }
}

/// Sends a datagram to port 9 from a process that is gone when this returns.
fn send_as_nobody(own: IpAddr, port: u16, peer: IpAddr) -> SocketAddr {
    let program = "import socket, sys, time\n\
        family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET\n\
        s = socket.socket(family, socket.SOCK_DGRAM)\n\
        for _ in range(500):\n\
        \x20 try: s.bind((sys.argv[1], int(sys.argv[2]))); break\n\
        \x20 except OSError: time.sleep(0.01)\n\
        s.sendto(b'gone', (sys.argv[3], 9))";
    let status = Command::new("python3")
        .args(["-c", program, &own.to_string(), &port.to_string(), &peer.to_string()])
        .uid(NOBODY)
        .gid(NOBODY)
        .status()
        .unwrap();
    assert!(status.success());
    (own, port).into()
}

/// How many UDP packets or fragments wait in the device.
fn received(tun: &Tun) -> usize {
    let mut buffer = vec![0; 70_000];
    let mut count = 0;
    while let Ok(length) = tun.recv(0, &mut buffer) {
        let packet = &buffer[VNET_HEADER..length];
        let next = if packet[0] >> 4 == 4 { packet[9] } else { packet[6] };
        count += usize::from(matches!(i32::from(next), libc::IPPROTO_UDP | libc::IPPROTO_FRAGMENT));
    }
    count
}

fn own_cgroup() -> Option<u64> {
    let table = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = table.lines().find_map(|line| line.strip_prefix("0::"))?;
    let cgroups = Cgroups::open().ok()?;
    Some(std::fs::metadata(cgroups.directory(path)).ok()?.ino())
}
