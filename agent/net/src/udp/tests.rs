use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::*;
use crate::poll::{Events, Interest, Poller};
use crate::testing::{LOOPBACK, block_on, in_netns, netlink};

const BOTH: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

#[test]
fn segments_arrive_as_the_datagrams_they_were() {
    for ip in BOTH {
        in_netns(move || {
            let (sender, receiver) = pair(ip);
            let mut contents = vec![0; 20 * 1000 + 300];
            for (index, datagram) in contents.chunks_mut(1000).enumerate() {
                datagram.fill(index as u8);
            }
            let transmit = Transmit {
                segment_size: Some(1000),
                ecn: Some(Ecn::Ect0),
                ..Transmit::datagram(receiver.local_addr(), &contents)
            };
            assert_eq!(sender.send(&transmit), SendOutcome::Sent);
            assert!(sender.gso_enabled());

            let received = receive(&receiver, 21);
            let expected: Vec<Vec<u8>> = contents.chunks(1000).map(<[u8]>::to_vec).collect();
            assert_eq!(received, expected);
        });
    }
}

#[test]
fn more_segments_than_one_call_takes_are_split() {
    let (sender, receiver) = pair(BOTH[0]);
    let contents = vec![7; 200 * 100];
    let transmit = Transmit {
        segment_size: Some(100),
        ..Transmit::datagram(receiver.local_addr(), &contents)
    };
    assert_eq!(sender.send(&transmit), SendOutcome::Sent);
    assert_eq!(receive(&receiver, 200).len(), 200);
    assert!(sender.gso_enabled());
}

#[test]
fn a_datagram_tells_whence_it_came_and_with_what_mark() {
    let (sender, receiver) = pair(BOTH[1]);
    let transmit =
        Transmit { ecn: Some(Ecn::Ce), ..Transmit::datagram(receiver.local_addr(), b"marked") };
    assert_eq!(sender.send(&transmit), SendOutcome::Sent);
    wait_readable(&receiver);
    let mut batch = RecvBatch::new();
    assert_eq!(receiver.recv(&mut batch).unwrap(), 1);
    let datagram = batch.messages().next().unwrap();
    assert_eq!(datagram.from, sender.local_addr());
    assert_eq!(datagram.to, Some(BOTH[1]));
    assert_eq!(datagram.ecn, Some(Ecn::Ce));
    assert_eq!(datagram.contents, b"marked");
    assert_eq!(receiver.recv(&mut batch).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(batch.messages().count(), 0, "what was read before is gone");
}

#[test]
fn only_a_datagram_that_may_be_fragmented_passes_a_narrow_link() {
    for ip in BOTH {
        in_netns(move || {
            block_on(async { netlink().set_mtu(LOOPBACK, 1280).await.unwrap() });
            let (sender, receiver) = pair(ip);
            let contents: Vec<u8> = (0..1400).map(|i| i as u8).collect();
            let whole = Transmit::datagram(receiver.local_addr(), &contents);
            let cut = Transmit { dont_fragment: false, ..whole };
            assert_eq!(sender.send(&whole), SendOutcome::TooBig);
            assert_eq!(sender.send(&cut), SendOutcome::Sent);
            assert_eq!(receive(&receiver, 1).concat(), contents);
            assert_eq!(sender.send(&whole), SendOutcome::TooBig);
            assert!(sender.gso_enabled());
        });
    }
}

#[test]
fn segments_above_the_mtu_are_fragmented_one_by_one() {
    in_netns(|| {
        block_on(async { netlink().set_mtu(LOOPBACK, 1280).await.unwrap() });
        let (sender, receiver) = pair(BOTH[0]);
        let contents = vec![1; 3 * 1400];
        let transmit = Transmit {
            segment_size: Some(1400),
            dont_fragment: false,
            ..Transmit::datagram(receiver.local_addr(), &contents)
        };
        assert_eq!(sender.send(&transmit), SendOutcome::Sent);
        assert_eq!(receive(&receiver, 3), vec![vec![1; 1400]; 3]);
        assert!(sender.gso_enabled(), "fragmenting doesn't cost the socket its GSO");
    });
}

#[test]
fn what_cannot_be_sent_is_an_outcome() {
    in_netns(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
        let nowhere = Transmit::datagram(([192, 0, 2, 1], 9).into(), b"x");
        assert_eq!(socket.send(&nowhere), SendOutcome::Unreachable);
        let closed = Transmit::datagram(([127, 0, 0, 1], 9).into(), b"x");
        for _ in 0..3 {
            assert_eq!(socket.send(&closed), SendOutcome::Sent, "a refusal isn't ours to see");
        }
        let huge = vec![0; 70_000];
        let huge = Transmit::datagram(([127, 0, 0, 1], 9).into(), &huge);
        assert_eq!(socket.send(&huge), SendOutcome::TooBig);
        let other_family = Transmit::datagram((Ipv6Addr::LOCALHOST, 9).into(), b"x");
        assert!(matches!(socket.send(&other_family), SendOutcome::Failed(_)));
    });
}

#[test]
fn an_impossible_packet_does_not_slow_down_the_others() {
    in_netns(|| {
        for ip in BOTH {
            let (sender, receiver) = pair(ip);
            let contents = [5; 3000];
            let good = Transmit {
                segment_size: Some(1000),
                ecn: Some(Ecn::Ect1),
                ..Transmit::datagram(receiver.local_addr(), &contents)
            };
            let lost: IpAddr = if ip.is_ipv4() {
                Ipv4Addr::new(192, 0, 2, 1).into()
            } else {
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()
            };
            let stale = Transmit { from: Some(lost), ..good };
            let to_nowhere = Transmit { to: (ip, 0).into(), ..good };
            assert_eq!(sender.send(&stale), SendOutcome::Unreachable);
            assert_eq!(sender.send(&to_nowhere), SendOutcome::Failed(libc::EINVAL));
            assert!(sender.gso_enabled());
            assert_eq!(sender.send(&good), SendOutcome::Sent);
            wait_readable(&receiver);
            let mut batch = RecvBatch::new();
            assert_eq!(receiver.recv(&mut batch).unwrap(), 3);
            let marks: Vec<_> =
                batch.messages().flat_map(|mut it| vec![it.ecn; it.datagrams().count()]).collect();
            assert_eq!(marks, [Some(Ecn::Ect1); 3], "{ip}");
        }
    });
}

#[test]
fn a_taken_port_is_refused() {
    let first = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let error = UdpSocket::bind(first.local_addr()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn both_families_share_a_port_number_and_have_large_buffers() {
    in_netns(|| {
        let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 51820).into()).unwrap();
        let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 51820).into()).unwrap();
        for socket in [v4, v6] {
            assert!(socket.socket.recv_buffer_size().unwrap() >= BUFFER_BYTES);
            assert!(socket.socket.send_buffer_size().unwrap() >= BUFFER_BYTES);
        }
    });
}

#[test]
fn the_path_mtu_is_the_narrowest_that_the_kernel_knows() {
    in_netns(|| {
        block_on(async { netlink().set_mtu(LOOPBACK, 1300).await.unwrap() });
        for ip in BOTH {
            assert_eq!(path_mtu((ip, 9).into()).unwrap(), 1300);
        }
    });
}

fn pair(ip: IpAddr) -> (UdpSocket, UdpSocket) {
    let bind = || UdpSocket::bind((ip, 0).into()).unwrap();
    (bind(), bind())
}

fn receive(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
    let mut batch = RecvBatch::new();
    let mut received = Vec::new();
    while received.len() < count {
        wait_readable(socket);
        let announced = socket.recv(&mut batch).unwrap();
        let before = received.len();
        received.extend(batch.messages().flat_map(|mut message| {
            message.datagrams().map(|datagram| datagram.to_vec()).collect::<Vec<_>>()
        }));
        assert_eq!(received.len() - before, announced);
    }
    received
}

fn wait_readable(socket: &UdpSocket) {
    let poller = Poller::new().unwrap();
    poller.add(socket, 0, Interest::READ).unwrap();
    let mut events = Events::with_capacity(1);
    poller.wait(&mut events, Some(Duration::from_secs(5))).unwrap();
    assert!(!events.is_empty(), "nothing arrived");
}
