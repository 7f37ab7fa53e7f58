use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::testing::{Shell, in_netns};
use crate::tun::Tun;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

#[test]
fn who_listens_is_found_by_any_address_that_leads_there() {
    in_netns(|| {
        let inode = |fd: &dyn AsRawFd| {
            std::fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().ino()
        };
        let mut diag = SocketDiag::open().unwrap();
        let everywhere = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let port = everywhere.local_addr().unwrap().port();
        for ip in [V4, V6] {
            let found = diag.listener(Protocol::Tcp, (ip, port).into()).unwrap().unwrap();
            assert_eq!(u64::from(found.inode), inode(&everywhere));
            assert!(found.bound.is_unspecified(), "{found:?}");
        }
        // Whoever is connected isn't who listens.
        let _client = TcpStream::connect((V4, port)).unwrap();
        let (_accepted, client) = everywhere.accept().unwrap();
        let connected = (V4, client.port()).into();
        assert_eq!(diag.listener(Protocol::Tcp, connected).unwrap(), None);

        let here = UdpSocket::bind((V4, 0)).unwrap();
        let port = here.local_addr().unwrap().port();
        let found = diag.listener(Protocol::Udp, (V4, port).into()).unwrap().unwrap();
        assert_eq!((u64::from(found.inode), found.bound), (inode(&here), V4));
        let elsewhere = ("127.0.0.2".parse::<IpAddr>().unwrap(), port).into();
        assert_eq!(diag.listener(Protocol::Udp, elsewhere).unwrap(), None);
        here.connect((V4, 9)).unwrap();
        assert_eq!(diag.listener(Protocol::Udp, (V4, port).into()).unwrap(), None);
    });
}

#[test]
fn a_mark_is_seen_while_connecting_and_after() {
    for ip in [V4, V6] {
        in_netns(move || {
            let listener = TcpListener::bind((ip, 0)).unwrap();
            let client = crate::listen::bind_marked_tcp(ip, 0x15_75).unwrap();
            let client = Socket::from(client);
            client.set_nonblocking(false).unwrap();
            client.connect(&listener.local_addr().unwrap().into()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let mark = |socket: socket2::SockRef<'_>| find(Protocol::Tcp, &socket).unwrap().mark;
            assert_eq!(mark(socket2::SockRef::from(&client)), 0x15_75);
            assert_eq!(mark(socket2::SockRef::from(&server)), 0);
        });
    }
}

#[test]
fn a_tcp_connection_is_found_from_either_end() {
    for ip in [V4, V6] {
        in_netns(move || {
            let listener = TcpListener::bind((ip, 0)).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            for stream in [&client, &server] {
                let owner = find(Protocol::Tcp, &socket2::SockRef::from(stream)).unwrap();
                assert_eq!(owner.inode, inode(stream));
                assert_eq!((owner.uid, owner.state, owner.listening), (0, 1, false));
                assert!(owner.cgroup_id.is_some());
            }
        });
    }
}

#[test]
fn an_ipv4_flow_of_an_ipv6_socket_is_found() {
    in_netns(|| {
        let listener = TcpListener::bind((V4, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mapped = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), port));
        let client = TcpStream::connect(mapped).unwrap();
        assert!(client.local_addr().unwrap().is_ipv6());
        let local = SocketAddr::new(V4, client.local_addr().unwrap().port());
        for (local, remote) in [(local, (V4, port).into()), (client.local_addr().unwrap(), mapped)]
        {
            let owner = lookup(Protocol::Tcp, local, remote).unwrap();
            assert_eq!((owner.inode, owner.listening), (inode(&client), false));
        }

        let dual = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let port = dual.local_addr().unwrap().port();
        for connect in [false, true] {
            if connect {
                dual.connect(mapped).unwrap();
            }
            let owner = lookup(Protocol::Udp, (V4, port).into(), (V4, mapped.port()).into());
            assert_eq!(owner.unwrap().inode, inode(&dual), "connected: {connect}");
        }
    });
}

#[test]
fn udp_sockets_are_found_connected_or_not() {
    for ip in [V4, V6] {
        in_netns(move || {
            let any: IpAddr = if ip.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                Ipv6Addr::UNSPECIFIED.into()
            };
            let open = UdpSocket::bind((any, 0)).unwrap();
            let local = SocketAddr::new(ip, open.local_addr().unwrap().port());
            let owner = lookup(Protocol::Udp, local, (ip, 9).into()).unwrap();
            assert_eq!((owner.inode, owner.state, owner.listening), (inode(&open), 7, false));

            let connected = UdpSocket::bind((ip, 0)).unwrap();
            connected.connect((ip, 9)).unwrap();
            let owner = find(Protocol::Udp, &socket2::SockRef::from(&connected)).unwrap();
            assert_eq!((owner.inode, owner.state), (inode(&connected), 1));
            let local = connected.local_addr().unwrap();
            assert_eq!(lookup(Protocol::Udp, local, (ip, 10).into()), None);
        });
    }
}

#[test]
fn a_flow_without_a_connection_is_answered_by_its_listener() {
    in_netns(|| {
        let listener = TcpListener::bind((V4, 0)).unwrap();
        let local = listener.local_addr().unwrap();
        let owner = lookup(Protocol::Tcp, local, (V4, 40_000).into()).unwrap();
        assert_eq!((owner.inode, owner.listening), (inode(&listener), true));
    });
}

#[test]
fn an_unknown_flow_has_no_owner() {
    in_netns(|| {
        for ip in [V4, V6] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                assert_eq!(lookup(protocol, (ip, 1234).into(), (ip, 80).into()), None);
            }
        }
        assert_eq!(lookup(Protocol::Tcp, (V4, 1234).into(), (V6, 80).into()), None);
    });
}

#[test]
fn a_connection_that_nobody_holds_any_more_is_not_roots() {
    in_netns(|| {
        let listener = TcpListener::bind((V4, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, peer) = listener.accept().unwrap();
        let remote = listener.local_addr().unwrap();
        drop(client);
        assert_eq!(lookup(Protocol::Tcp, peer, remote), None, "FIN_WAIT has no owner");
        drop(server);
        assert_eq!(lookup(Protocol::Tcp, peer, remote), None, "TIME_WAIT has no owner");
    });
}

#[test]
fn a_socket_bound_to_the_device_is_found_by_its_device() {
    in_netns(|| {
        let tun = Tun::create("isth-d0", 1400).unwrap();
        let socket = UdpSocket::bind((V4, 0)).unwrap();
        socket2::SockRef::from(&socket).bind_device(Some(b"isth-d0")).unwrap();
        let flow = Lookup {
            protocol: Protocol::Udp,
            local: socket.local_addr().unwrap(),
            remote: (V4, 9).into(),
        };
        let mut diag = SocketDiag::open().unwrap();
        assert_eq!(diag.lookup(&flow).unwrap(), None);
        diag.set_interface(tun.index());
        assert_eq!(diag.lookup(&flow).unwrap().unwrap().inode, inode(&socket));
    });
}

#[test]
fn the_owner_is_the_user_who_made_the_socket() {
    use std::os::unix::process::CommandExt;
    in_netns(|| {
        let listener = TcpListener::bind((V4, 0)).unwrap();
        let remote = listener.local_addr().unwrap();
        let mut nobody = Shell::spawn(|command| {
            command.uid(65_534).gid(65_534);
        });
        nobody.run(&format!("exec 3<>/dev/tcp/127.0.0.1/{}", remote.port()));
        let (_stream, local) = listener.accept().unwrap();
        let owner = lookup(Protocol::Tcp, local, remote).unwrap();
        assert_eq!((owner.uid, owner.listening), (65_534, false));
    });
}

#[test]
fn an_answer_to_an_earlier_question_is_passed_over() {
    in_netns(|| {
        let listener = TcpListener::bind((V4, 0)).unwrap();
        let local = listener.local_addr().unwrap();
        let mut diag = SocketDiag::open().unwrap();
        let known = Lookup { protocol: Protocol::Tcp, local, remote: (V4, 9).into() };
        let unread = diag.request(&known);
        diag.socket.send(&unread).unwrap();
        let unknown = Lookup { local: (V4, 1).into(), ..known };
        assert_eq!(diag.lookup(&unknown).unwrap(), None);
        assert_eq!(diag.lookup(&known).unwrap().unwrap().inode, inode(&listener));
    });
}

#[test]
fn silence_ends_in_a_timeout() {
    let mut diag = SocketDiag::open().unwrap();
    // The length of a message that isn't one: the kernel passes over it without an answer.
    let error = diag.exchange(&4_u32.to_ne_bytes()).err().unwrap();
    assert!(matches!(error, SockDiagError::Timeout), "{error:?}");
}

#[test]
fn damaged_answers_are_no_answers() {
    let message = [0_u8; 64];
    assert!(Found::parse(&message).is_none());
    assert!(attribute(&[3, 0, 21, 0, 1, 2], INET_DIAG_CGROUP_ID).is_none());
    assert!(attribute(&[200, 0, 21, 0], INET_DIAG_CGROUP_ID).is_none());
    for len in [0_u32, 4, 15, 17, u32::MAX] {
        let mut datagram = [0; 20];
        datagram[..4].copy_from_slice(&len.to_ne_bytes());
        datagram[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        assert!(find_answer(&datagram, 1).is_none(), "length {len}");
    }
}

fn lookup(protocol: Protocol, local: SocketAddr, remote: SocketAddr) -> Option<SocketOwner> {
    SocketDiag::open().unwrap().lookup(&Lookup { protocol, local, remote }).unwrap()
}

fn find(protocol: Protocol, socket: &Socket) -> Option<SocketOwner> {
    let address = |end: io::Result<socket2::SockAddr>| end.ok().and_then(|it| it.as_socket());
    lookup(protocol, address(socket.local_addr())?, address(socket.peer_addr())?)
}

fn inode(socket: &impl AsRawFd) -> u32 {
    let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
    u32::try_from(std::fs::metadata(path).unwrap().ino()).unwrap()
}
