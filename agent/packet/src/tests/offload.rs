//! Super-packets are split as the kernel would split them, and put together only where splitting
//! them again gives back the same packets.

use proptest::prelude::*;

use crate::checksum::{fill, verify};
use crate::testing::{self, put_together_and_apart, without_identification};
use crate::{BadOffload, Headers, MAX_SEGMENTS, Offload, Run, SuperPacket, VNET_HEADER};

/// An IPv4 or IPv6 packet of TCP or UDP, its checksums right.
#[derive(Clone, Debug)]
struct Shape {
    v4: bool,
    tcp: bool,
    options: usize,
    class: u8,
    flags: u8,
    identification: u16,
    dont_fragment: bool,
    sequence: u32,
}

impl Shape {
    fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let l4 = if self.tcp { 20 + self.options * 4 } else { 8 };
        let mut packet = Vec::new();
        let length = l4 + payload.len();
        let protocol = if self.tcp { 6 } else { 17 };
        if self.v4 {
            packet.extend_from_slice(&[0x45, self.class]);
            packet.extend_from_slice(&(20 + length as u16).to_be_bytes());
            packet.extend_from_slice(&self.identification.to_be_bytes());
            let flags = if self.dont_fragment { 0x40 } else { 0 };
            packet.extend_from_slice(&[flags, 0, 64, protocol, 0, 0]);
            packet.extend_from_slice(&[100, 64, 0, 17, 100, 64, 0, 33]);
        } else {
            packet.extend_from_slice(&[0x60 | self.class >> 4, self.class << 4, 1, 2]);
            packet.extend_from_slice(&(length as u16).to_be_bytes());
            packet.extend_from_slice(&[protocol, 64]);
            packet.extend_from_slice(&[0xfd; 16]);
            packet.extend_from_slice(&[0xfe; 16]);
        }
        packet.extend_from_slice(&[0x9c, 0x40, 0x1f, 0x90]);
        if self.tcp {
            packet.extend_from_slice(&self.sequence.to_be_bytes());
            packet.extend_from_slice(&[1, 2, 3, 4, (5 + self.options as u8) << 4, self.flags]);
            packet.extend_from_slice(&[0x20, 0, 0, 0, 0, 0]);
            packet.extend((0..self.options * 4).map(|_| 1));
        } else {
            packet.extend_from_slice(&(length as u16).to_be_bytes());
            packet.extend_from_slice(&[0, 0]);
        }
        packet.extend_from_slice(payload);
        let headers = Headers::parse(&packet).unwrap();
        assert!(fill(&mut packet, &headers));
        packet
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    let tcp_flags = prop_oneof![Just(0x10), Just(0x18), Just(0x11), Just(0x90), Just(0x50)];
    (any::<(bool, bool)>(), 0..=10usize, any::<u8>(), tcp_flags, any::<(u16, bool, u32)>())
        .prop_map(
            |((v4, tcp), options, class, flags, (identification, dont_fragment, sequence))| Shape {
                v4,
                tcp,
                options,
                class,
                flags,
                identification,
                dont_fragment,
                sequence,
            },
        )
}

fn split(packet: &[u8], size: u16) -> Vec<Vec<u8>> {
    testing::split(packet, size).unwrap()
}

proptest! {
    #[test]
    fn segments_are_packets_in_their_own_right(
        shape in shapes(), length in 1..30_000usize, size in 1..3000u16,
    ) {
        let size = size.max((length / 300) as u16 + 1);
        let payload: Vec<u8> = (0..length).map(|at| (at * 7) as u8).collect();
        let packet = shape.packet(&payload);
        let segments = split(&packet, size);
        let mut got = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            let headers = Headers::parse(segment).unwrap();
            prop_assert!(verify(segment, &headers), "segment {index}");
            prop_assert_eq!(headers.total_length, segment.len());
            prop_assert_eq!(headers.traffic_class, shape.class);
            if shape.tcp {
                let tcp = &segment[headers.l4_offset..];
                let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
                let offset = index as u32 * u32::from(size);
                prop_assert_eq!(sequence, shape.sequence.wrapping_add(offset));
                let (first, last) = (index == 0, index + 1 == segments.len());
                prop_assert!(last || tcp[13] & 0x09 == 0, "FIN and PSH are the last one's");
                prop_assert!(first || tcp[13] & 0x80 == 0, "CWR is the first one's");
                prop_assert_eq!(tcp[13] & 0x70, shape.flags & 0x70);
            }
            got.extend_from_slice(headers.payload(segment));
        }
        prop_assert_eq!(got, payload);
    }

    /// Whatever order, sizes, duplicates, and broken checksums: nothing is lost, changed or repaired.
    #[test]
    fn what_is_put_together_comes_apart_as_it_was(
        flows in prop::collection::vec(shapes(), 1..3),
        plan in prop::collection::vec((0..3usize, 0..8u8, 1..1400usize), 1..90),
    ) {
        let mut packets = Vec::new();
        let mut next: Vec<Shape> = flows.clone();
        for (flow, what, length) in plan {
            let at = flow % next.len();
            let shape = &mut next[at];
            let length = if what < 5 { 1200 } else { length };
            let payload: Vec<u8> = (0..length).map(|at| (at ^ usize::from(what)) as u8).collect();
            let mut packet = shape.packet(&payload);
            match what {
                6 => *packet.last_mut().unwrap() ^= 0x40,
                7 if shape.v4 => packet[1] ^= 0x03,
                _ => {}
            }
            if what != 5 {
                shape.sequence = shape.sequence.wrapping_add(length as u32);
                shape.identification = shape.identification.wrapping_add(1);
            }
            packets.push(packet);
        }
        let (got, _) = put_together_and_apart(&packets);
        let plain = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
            packets.iter().map(|packet| without_identification(packet)).collect()
        };
        prop_assert_eq!(plain(&got), plain(&packets));
    }

    #[test]
    fn any_vnet_header_is_survived(
        mut header in prop::collection::vec(any::<u8>(), 0..12), shape in shapes(), length in 1..3000usize,
    ) {
        header.extend(shape.packet(&vec![1; length]));
        let mut frame = header;
        if let Ok((offload, packet)) = Offload::read(&mut frame)
            && let Ok(headers) = Headers::parse(packet)
        {
            let _ = offload.complete(packet, &headers);
            if let Some(size) = offload.segment
                && let Ok(whole) = SuperPacket::new(packet, &headers, size)
            {
                let mut out = vec![0; 70_000];
                let all = (0..whole.count()).map(|index| whole.write(index, &mut out).unwrap());
                prop_assert_eq!(all.sum::<usize>(), whole.bytes());
            }
        }
    }
}

fn data(v4: bool, tcp: bool) -> Shape {
    Shape {
        v4,
        tcp,
        options: 3,
        class: 0,
        flags: 0x10,
        identification: 9,
        dont_fragment: false,
        sequence: 1000,
    }
}

/// Packets of 1,000 bytes of one flow in a row.
fn row(mut shape: Shape, count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|at| {
            let packet = shape.packet(&vec![at as u8; 1000]);
            shape.sequence = shape.sequence.wrapping_add(1000);
            shape.identification += 1;
            packet
        })
        .collect()
}

#[test]
fn a_row_of_data_becomes_one_frame() {
    for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        let packets = row(data(v4, tcp), 40);
        let (got, frames) = put_together_and_apart(&packets);
        assert_eq!((got, frames), (packets, 1));
    }
}

#[test]
fn a_run_is_bounded() {
    let (_, frames) = put_together_and_apart(&row(data(true, true), 2 * MAX_SEGMENTS));
    assert_eq!(frames, 2);
}

#[test]
fn what_means_something_by_itself_stays_alone() {
    let change = |at: usize, change: fn(&mut Vec<u8>)| {
        let mut packets = row(data(true, true), 3);
        change(&mut packets[at]);
        let headers = Headers::parse(&packets[at]).unwrap();
        fill(&mut packets[at], &headers);
        put_together_and_apart(&packets).1
    };
    assert_eq!(change(1, |_| {}), 1);
    assert_eq!(change(1, |packet| packet[1] = 3), 3, "congestion experienced");
    assert_eq!(change(1, |packet| packet[8] = 63), 3, "another hop limit");
    assert_eq!(change(1, |packet| packet[33] = 0x11), 3, "FIN");
    assert_eq!(change(1, |packet| packet[33] = 0x18), 2, "PSH ends a run");
    assert_eq!(change(1, |packet| packet[24] ^= 1), 3, "out of order");
    assert_eq!(change(1, |packet| packet[28] ^= 1), 3, "another acknowledgement");
    assert_eq!(change(1, |packet| packet[34] ^= 1), 3, "another window");
    assert_eq!(change(1, |packet| packet[40] ^= 1), 3, "other options");
    assert_eq!(change(1, |packet| packet[5] ^= 0x40), 3, "another datagram of IPv4's");
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    for wrong in 0..3 {
        let mut packets = row(data(true, true), 3);
        packets[wrong][60] ^= 1;
        let (got, _) = put_together_and_apart(&packets);
        assert_eq!(got, packets);
    }
    let mut packets = row(data(true, true), 2);
    packets[1][10] ^= 1;
    assert_eq!(put_together_and_apart(&packets), (packets, 2), "the IP header's, too");
}

#[test]
fn udp_without_a_checksum_and_without_data_stays_alone() {
    let mut packets = row(data(true, false), 2);
    packets.iter_mut().for_each(|packet| packet[26..28].fill(0));
    assert_eq!(put_together_and_apart(&packets), (packets, 2));
    let empty = data(true, false).packet(&[]);
    assert!(Run::begin(&empty, &Headers::parse(&empty).unwrap(), false).is_none());
}

#[test]
fn what_the_kernel_left_out_is_computed() {
    for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        let right = data(v4, tcp).packet(&[5; 333]);
        let headers = Headers::parse(&right).unwrap();
        let mut packet = right.clone();
        let field = headers.l4_offset + if tcp { 16 } else { 6 };
        let key = &headers.key;
        let length = packet.len() - headers.l4_offset;
        let partial =
            crate::checksum::pseudo_header(key.source, key.destination, key.protocol, length);
        packet[field..field + 2].copy_from_slice(&partial.to_be_bytes());
        let start = u16::try_from(headers.l4_offset).ok();
        let offload = Offload { checksum_start: start, segment: None };
        offload.complete(&mut packet, &headers).unwrap();
        assert_eq!(packet, right);
        let elsewhere = Offload { checksum_start: Some(3), segment: None };
        assert_eq!(elsewhere.complete(&mut packet, &headers), Err(BadOffload));
    }
}

#[test]
fn a_frame_of_a_kind_that_nobody_asked_for_is_refused() {
    for header in [[0, 2], [0, 3], [1, 0x20], [0, 1]] {
        let mut frame = [0; VNET_HEADER + 40];
        frame[..2].copy_from_slice(&header);
        frame[4] = 9;
        assert!(Offload::read(&mut frame).is_err(), "{header:?}");
    }
    assert!(Offload::read(&mut [0; 9]).is_err());
}

#[test]
fn super_packets_are_of_data_of_a_whole_packet() {
    let packet = data(true, true).packet(&[1; 100]);
    let headers = Headers::parse(&packet).unwrap();
    assert!(SuperPacket::new(&packet, &headers, 0).is_err());
    assert!(SuperPacket::new(&packet[..90], &headers, 10).is_err());
    let empty = data(true, true).packet(&[]);
    let headers = Headers::parse(&empty).unwrap();
    assert!(SuperPacket::new(&empty, &headers, 10).is_err());
}
