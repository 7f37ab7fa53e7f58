//! Packets built and judged by etherparse.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6Header, Ipv6RawExtHeader,
    Ipv6RoutingExtensions, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{Address, FlowKey, Headers, Rewrite};

/// What a packet is built from.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    pub(super) ip: Ip,
    pub(super) transport: Kind,
    pub(super) payload: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(super) enum Ip {
    V4 { source: [u8; 4], destination: [u8; 4], options: Vec<u8>, dont_fragment: bool },
    V6 { source: [u8; 16], destination: [u8; 16], extensions: Box<Ipv6Extensions> },
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Tcp { ports: (u16, u16), numbers: (u32, u32), flags: u8, options: Vec<u8> },
    Udp { ports: (u16, u16) },
    Request { identifier: u16, sequence: u16 },
    Reply { identifier: u16, sequence: u16 },
}

pub(super) fn any_v4() -> impl Strategy<Value = Ip> {
    let options = prop_oneof![
        Just(vec![]),
        Just(vec![1; 4]),
        Just(vec![148, 4, 0, 0]),
        Just(vec![7, 7, 4, 0, 0, 0, 0, 0]),
        Just(vec![1, 68, 8, 5, 0, 0, 0, 0, 0, 148, 4, 0, 0, 0, 0, 0]),
    ];
    (any::<[u8; 4]>(), any::<[u8; 4]>(), options, any::<bool>()).prop_map(
        |(source, destination, options, dont_fragment)| Ip::V4 {
            source,
            destination,
            options,
            dont_fragment,
        },
    )
}

pub(super) fn any_v6() -> impl Strategy<Value = Ip> {
    let native = |bytes: &[u8; 16]| !Address::v6(*bytes).is_v4();
    let address = || any::<[u8; 16]>().prop_filter("mapped", native);
    (address(), address(), any_extensions()).prop_map(|(source, destination, extensions)| Ip::V6 {
        source,
        destination,
        extensions: Box::new(extensions),
    })
}

fn any_extensions() -> impl Strategy<Value = Ipv6Extensions> {
    let raw = || {
        (0usize..4).prop_map(|units| {
            Ipv6RawExtHeader::new_raw(IpNumber(255), &vec![0; 6 + units * 8]).expect("a length")
        })
    };
    // A routing header of type 3 with no segments left.
    let routing = Just(Ipv6RawExtHeader::new_raw(IpNumber(255), &[3, 0, 0, 0, 0, 0]).expect("one"));
    (
        proptest::option::weighted(0.2, raw()),
        proptest::option::weighted(0.2, raw()),
        proptest::option::weighted(0.2, (routing, proptest::option::of(raw()))),
    )
        .prop_map(|(hop_by_hop_options, destination_options, routing)| Ipv6Extensions {
            hop_by_hop_options,
            destination_options,
            routing: routing.map(|(routing, final_destination_options)| Ipv6RoutingExtensions {
                routing,
                final_destination_options,
            }),
            fragment: None,
            auth: None,
        })
}

pub(super) fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![any_tcp(), any_udp(), any_echo()]
}

pub(super) fn any_tcp() -> impl Strategy<Value = Kind> {
    let options =
        prop_oneof![Just(vec![]), Just(vec![2, 4, 5, 0xb4]), Just(vec![1, 2, 4, 5, 0xb4, 0, 0, 0])];
    (any::<(u16, u16)>(), any::<(u32, u32)>(), any::<u8>(), options)
        .prop_map(|(ports, numbers, flags, options)| Kind::Tcp { ports, numbers, flags, options })
}

pub(super) fn any_udp() -> impl Strategy<Value = Kind> {
    any::<(u16, u16)>().prop_map(|ports| Kind::Udp { ports })
}

fn any_echo() -> impl Strategy<Value = Kind> {
    any::<(u16, u16, bool)>().prop_map(|(identifier, sequence, reply)| {
        if reply {
            Kind::Reply { identifier, sequence }
        } else {
            Kind::Request { identifier, sequence }
        }
    })
}

pub(super) fn any_recipe() -> impl Strategy<Value = Recipe> {
    recipe(prop_oneof![any_v4(), any_v6()], any_kind(), 0..200)
}

pub(super) fn recipe(
    ip: impl Strategy<Value = Ip>,
    transport: impl Strategy<Value = Kind>,
    payload: std::ops::Range<usize>,
) -> impl Strategy<Value = Recipe> {
    (ip, transport, vec(any::<u8>(), payload)).prop_map(|(ip, transport, payload)| Recipe {
        ip,
        transport,
        payload,
    })
}

impl Recipe {
    pub(super) fn udp(payload: usize) -> Self {
        Self {
            ip: Ip::V4 {
                source: [100, 64, 0, 1],
                destination: [100, 64, 1, 1],
                options: vec![],
                dont_fragment: false,
            },
            transport: Kind::Udp { ports: (40_000, 53) },
            payload: (0..payload).map(|index| index as u8).collect(),
        }
    }

    pub(super) fn tcp(flags: u8, options: &[u8], payload: &[u8]) -> Self {
        Self {
            transport: Kind::Tcp {
                ports: (40_000, 443),
                numbers: (0xffff_fff0, 0x1234_5678),
                flags,
                options: options.to_vec(),
            },
            payload: payload.to_vec(),
            ..Self::udp(0)
        }
    }

    pub(super) fn over_v6(self) -> Self {
        let [mut source, mut destination] = [[0; 16]; 2];
        (source[0], source[15], destination[0], destination[15]) = (0xfd, 1, 0xfd, 2);
        Self { ip: Ip::V6 { source, destination, extensions: Box::default() }, ..self }
    }

    /// The same with addresses that may be answered.
    pub(super) fn between_single_hosts(mut self) -> Self {
        match &mut self.ip {
            Ip::V4 { source, destination, .. } => (source[0], destination[0]) = (10, 10),
            Ip::V6 { source, destination, .. } => (source[0], destination[0]) = (0xfd, 0xfd),
        }
        self
    }

    pub(super) fn build(&self) -> Vec<u8> {
        let step = PacketBuilder::ip(self.ip.headers());
        let is_v4 = matches!(self.ip, Ip::V4 { .. });
        let mut packet = Vec::new();
        let written = match &self.transport {
            Kind::Tcp { ports, numbers, flags, options } => {
                let mut tcp = TcpHeader::new(ports.0, ports.1, numbers.0, 1000);
                tcp.acknowledgment_number = numbers.1;
                tcp.fin = flags & 1 != 0;
                tcp.syn = flags & 2 != 0;
                tcp.rst = flags & 4 != 0;
                tcp.psh = flags & 8 != 0;
                tcp.ack = flags & 16 != 0;
                tcp.urg = flags & 32 != 0;
                tcp.ece = flags & 64 != 0;
                tcp.cwr = flags & 128 != 0;
                tcp.set_options_raw(options).expect("options fit");
                step.tcp_header(tcp).write(&mut packet, &self.payload)
            }
            Kind::Udp { ports } => step.udp(ports.0, ports.1).write(&mut packet, &self.payload),
            Kind::Request { identifier: id, sequence } if is_v4 => {
                step.icmpv4_echo_request(*id, *sequence).write(&mut packet, &self.payload)
            }
            Kind::Reply { identifier: id, sequence } if is_v4 => {
                step.icmpv4_echo_reply(*id, *sequence).write(&mut packet, &self.payload)
            }
            Kind::Request { identifier: id, sequence } => {
                step.icmpv6_echo_request(*id, *sequence).write(&mut packet, &self.payload)
            }
            Kind::Reply { identifier: id, sequence } => {
                step.icmpv6_echo_reply(*id, *sequence).write(&mut packet, &self.payload)
            }
        };
        written.expect("the recipe is sound");
        packet
    }

    pub(super) fn key(&self) -> FlowKey {
        let (source, destination, is_v4) = match &self.ip {
            Ip::V4 { source, destination, .. } => {
                (Address::v4(*source), Address::v4(*destination), true)
            }
            Ip::V6 { source, destination, .. } => {
                (Address::v6(*source), Address::v6(*destination), false)
            }
        };
        let icmp = if is_v4 { 1 } else { 58 };
        let (protocol, (source_port, destination_port)) = match self.transport {
            Kind::Tcp { ports, .. } => (6, ports),
            Kind::Udp { ports } => (17, ports),
            Kind::Request { identifier, .. } => (icmp, (identifier, 0)),
            Kind::Reply { identifier, .. } => (icmp, (0, identifier)),
        };
        FlowKey { source, destination, source_port, destination_port, protocol }
    }
}

impl Ip {
    fn headers(&self) -> IpHeaders {
        match self {
            Self::V4 { source, destination, options, dont_fragment } => {
                let mut ip = Ipv4Header::new(0, 64, IpNumber(0), *source, *destination)
                    .expect("an empty payload fits");
                ip.identification = 0x4242;
                ip.dont_fragment = *dont_fragment;
                ip.options = Ipv4Options::try_from(options.as_slice()).expect("whole words");
                IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default())
            }
            Self::V6 { source, destination, extensions } => IpHeaders::Ipv6(
                Ipv6Header {
                    hop_limit: 64,
                    source: *source,
                    destination: *destination,
                    ..Ipv6Header::default()
                },
                Ipv6Extensions::clone(extensions),
            ),
        }
    }
}

/// Whether etherparse finds every checksum right. Panics on what it can't parse.
pub(super) fn checksums_hold(packet: &[u8]) -> bool {
    let sliced = SlicedPacket::from_ip(packet).expect("a packet that etherparse reads");
    let (source, destination) = match sliced.net.as_ref().expect("an IP header") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            if header.calc_header_checksum() != header.header_checksum {
                return false;
            }
            (IpAddr::V4(ip.header().source_addr()), IpAddr::V4(ip.header().destination_addr()))
        }
        NetSlice::Ipv6(ip) => {
            (IpAddr::V6(ip.header().source_addr()), IpAddr::V6(ip.header().destination_addr()))
        }
        NetSlice::Arp(_) => return false,
    };
    match (sliced.transport, source, destination) {
        (None, _, _) => true,
        (Some(transport), IpAddr::V4(source), IpAddr::V4(destination)) => {
            v4_transport_holds(&transport, source, destination)
        }
        (Some(transport), IpAddr::V6(source), IpAddr::V6(destination)) => {
            v6_transport_holds(&transport, source, destination)
        }
        (Some(_), _, _) => false,
    }
}

fn v4_transport_holds(transport: &TransportSlice<'_>, from: Ipv4Addr, to: Ipv4Addr) -> bool {
    let (from, to) = (from.octets(), to.octets());
    match transport {
        TransportSlice::Tcp(tcp) => {
            tcp.to_header().calc_checksum_ipv4_raw(from, to, tcp.payload()) == Ok(tcp.checksum())
        }
        TransportSlice::Udp(udp) if udp.checksum() == 0 => true,
        TransportSlice::Udp(udp) => {
            udp.to_header().calc_checksum_ipv4_raw(from, to, udp.payload()) == Ok(udp.checksum())
        }
        TransportSlice::Icmpv4(icmp) => {
            icmp.header().icmp_type.calc_checksum(icmp.payload()) == icmp.checksum()
        }
        TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_) => false,
    }
}

fn v6_transport_holds(transport: &TransportSlice<'_>, from: Ipv6Addr, to: Ipv6Addr) -> bool {
    let (from, to) = (from.octets(), to.octets());
    match transport {
        TransportSlice::Tcp(tcp) => {
            tcp.to_header().calc_checksum_ipv6_raw(from, to, tcp.payload()) == Ok(tcp.checksum())
        }
        TransportSlice::Udp(udp) => {
            udp.to_header().calc_checksum_ipv6_raw(from, to, udp.payload()) == Ok(udp.checksum())
        }
        TransportSlice::Icmpv6(icmp) => {
            icmp.header().icmp_type.calc_checksum(from, to, icmp.payload()) == Ok(icmp.checksum())
        }
        TransportSlice::Icmpv4(_) | TransportSlice::Igmp(_) => false,
    }
}

pub(super) fn parse(packet: &[u8]) -> Headers {
    Headers::parse(packet).expect("an honest packet")
}

/// A single host's key of the same family and protocol, with ports changed only where a rewrite can.
pub(super) fn other_key(from: FlowKey, to: [u8; 32], ports: (u16, u16)) -> FlowKey {
    let (first, second) = to.split_at(16);
    let address = |bytes: &[u8]| {
        let mut octets: [u8; 16] = bytes.try_into().expect("half of it");
        if from.source.is_v4() {
            let [_, b, c, d, ..] = octets;
            return Address::v4([100, b, c, d]);
        }
        octets[0] = 0xfd;
        Address::v6(octets)
    };
    let has_ports = matches!(from.protocol, 6 | 17 | 136);
    FlowKey {
        source: address(first),
        destination: address(second),
        source_port: if has_ports { ports.0 } else { from.source_port },
        destination_port: if has_ports { ports.1 } else { from.destination_port },
        ..from
    }
}

pub(super) fn between(from: &FlowKey, to: &FlowKey) -> Rewrite {
    Rewrite::between(from, to).expect("keys of one family and protocol")
}
