//! Steps of a packet's way: parsing, look-up, rewriting, splitting, coalescing.

use std::hint::black_box;

use isthmus_core::sim::bench::{self as steps, Established};
use isthmus_core::sim::packets;
use isthmus_packet::{Headers, Rewrite};

use crate::{Bench, counted};

const BATCH: usize = 64;
const SEGMENT: u16 = 1400;
/// Packets of that size that one frame holds.
const RUN: usize = 45;

pub(crate) const BENCHES: &[Bench] = &[
    ("parse tcp_v4", || drop(counted(parse, many(tcp(true, 0, &[7; 100]))))),
    ("parse udp_v6", || drop(counted(parse, many(udp(false, &[7; 100]))))),
    ("look_up of_1000", || drop(counted(look_up, established(1000)))),
    ("rewrite tcp_v4", || drop(counted(rewrite, rewritten(tcp(true, 0, &[7; 100]))))),
    ("rewrite udp_v6", || drop(counted(rewrite, rewritten(udp(false, &[7; 100]))))),
    ("split tcp_v4", || drop(counted(split, large(tcp(true, 0, &[7; 65_000]))))),
    ("split udp_v6", || drop(counted(split, large(udp(false, &[7; 65_000]))))),
    ("coalesce tcp_v4", || {
        drop(counted(coalesce, in_a_row(|n| tcp(true, n, &[7; SEGMENT as usize]))))
    }),
    ("coalesce udp_v6", || {
        drop(counted(coalesce, in_a_row(|_| udp(false, &[7; SEGMENT as usize]))))
    }),
];

type Parsed = (Vec<u8>, Headers);

fn headers(packet: &[u8]) -> Headers {
    Headers::parse(packet).expect("a packet of ours")
}

fn parsed(packet: Vec<u8>) -> Parsed {
    let headers = headers(&packet);
    (packet, headers)
}

fn address(v4: bool, last: u16) -> std::net::IpAddr {
    if v4 { [100, 64, 0, last as u8].into() } else { [0xfd15, 0, 0, 0, 0, 0, 0, last].into() }
}

fn tcp(v4: bool, number: usize, payload: &[u8]) -> Vec<u8> {
    let key = packets::tcp_key((address(v4, 1), 4000), (address(v4, 2), 80));
    packets::tcp(&key, packets::ACK, (number * payload.len()) as u32, 1, payload)
}

fn udp(v4: bool, payload: &[u8]) -> Vec<u8> {
    let key = packets::udp_key((address(v4, 1), 4000), (address(v4, 2), 53));
    packets::udp(&key, payload)
}

fn many(packet: Vec<u8>) -> Vec<Vec<u8>> {
    vec![packet; BATCH]
}

fn parse(packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    for packet in &packets {
        let _ = black_box(Headers::parse(black_box(packet)));
    }
    packets
}

fn established(connections: usize) -> (Established, Vec<Parsed>) {
    let bench = Established::new(connections);
    let packets = (0..BATCH).map(|n| bench.packet(n * 11 % connections));
    let parsed = packets.map(parsed).collect();
    (bench, parsed)
}

fn look_up((mut bench, packets): (Established, Vec<Parsed>)) -> (Established, Vec<Parsed>) {
    for (packet, headers) in &packets {
        black_box(bench.note(black_box(packet), black_box(headers)));
    }
    (bench, packets)
}

fn rewritten(packet: Vec<u8>) -> (Rewrite, Vec<Parsed>) {
    let headers = headers(&packet);
    let mut to = headers.key;
    let v4 = to.source.is_v4();
    (to.source, to.destination) = (address(v4, 3).into(), address(v4, 4).into());
    let rewrite = Rewrite::between(&headers.key, &to).expect("addresses of one family");
    (rewrite, vec![(packet, headers); BATCH])
}

fn rewrite((rewrite, mut packets): (Rewrite, Vec<Parsed>)) -> Vec<Parsed> {
    for (packet, headers) in &mut packets {
        steps::rewrite(black_box(&rewrite), black_box(packet), headers);
    }
    packets
}

fn large(packet: Vec<u8>) -> (Parsed, Vec<u8>) {
    (parsed(packet), vec![0; 2 * usize::from(SEGMENT)])
}

fn split(((packet, headers), mut out): (Parsed, Vec<u8>)) -> (Vec<u8>, Vec<u8>) {
    black_box(steps::split(black_box(&packet), &headers, SEGMENT, black_box(&mut out)));
    (packet, out)
}

fn in_a_row(packet: impl Fn(usize) -> Vec<u8>) -> Vec<Vec<u8>> {
    let packets: Vec<_> = (0..RUN).map(packet).collect();
    assert_eq!(steps::coalesce(&packets), Some(RUN));
    packets
}

fn coalesce(packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    black_box(steps::coalesce(black_box(&packets)));
    packets
}
