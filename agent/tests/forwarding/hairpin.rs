//! Flows that don't leave their host: the kernel gets each frame back as one, and makes of it what it
//! makes of a frame that had the flow's other addresses and ports from the beginning.
//!
//! ```text
//!   frames ─┬─▶ other addresses and ports, all checksums anew ─▶ kernel ─▶ packets (1)
//!           └─▶ node ─▶ frames, with the same vnet headers ────▶ kernel ─▶ packets (2)     must be as (1)
//! ```

use std::collections::HashMap;
use std::time::Duration;

use isthmus_core::sim::packets::{tcp_key, udp, udp_key};
use isthmus_core::sim::{Builder, World};
use isthmus_model::Protocol;
use isthmus_net::testing::in_netns;
use isthmus_packet::{Address, FlowKey, Headers, Offload, VNET_HEADER, checksum};

use super::batch::{partial_sum, set_checksum};
use super::generator::Generator;
use super::hex;
use super::kernel::Kernel;
use super::packets::{Row, whole};

/// Compared.
const PACKETS: usize = 200_000;
const SEED: u64 = 5;
/// Of each kind and family.
const FLOWS: u16 = 20;

#[test]
fn what_goes_back_is_what_the_kernel_forwards_under_other_addresses() {
    in_netns(|| {
        let mut bend = Bend::new();
        let mut kernel = Kernel::new();
        let keys: Vec<FlowKey> = bend.becomes.keys().copied().collect();
        let mut generator = Generator::of(SEED, keys.into_iter());
        let (mut expected, mut frames, mut got) = (Row::new(), Row::new(), Row::new());
        let (mut packets, mut frames_in) = (0, 0);
        while packets < PACKETS {
            for row in [&mut expected, &mut frames, &mut got] {
                row.clear();
            }
            for (_, frame) in generator.faultless_batch() {
                kernel.forward(&bend.readdressed(frame), &mut expected);
                bend.carry(frame, &mut frames);
                let returned = frames.iter().last().map(|frame| &frame[..VNET_HEADER]);
                assert_eq!(returned, Some(&frame[..VNET_HEADER]), "the vnet header");
                frames_in += 1;
            }
            for frame in frames.iter() {
                kernel.forward(frame, &mut got);
            }
            assert_eq!(got.ranges.len(), expected.ranges.len());
            for (kernels, ours) in expected.iter().map(whole).zip(got.iter().map(whole)) {
                assert!(kernels == ours, "the kernel's: {}\nours: {}", hex(kernels), hex(ours));
            }
            packets += expected.ranges.len();
        }
        println!("{packets} packets came and went in {frames_in} frames");
        assert!(frames_in * 4 < packets);
    });
}

/// A host with flows between its own services, to a service and to its own proxy.
struct Bend {
    world: World,
    /// What packets of a flow become, both ways.
    becomes: HashMap<FlowKey, FlowKey>,
}

impl Bend {
    fn new() -> Self {
        let topology = Builder::new(1)
            .service("client", 9, &[1])
            .service("web", 80, &[1])
            .service_of(Protocol::Http, "api", 8080, &[1])
            .service_of(Protocol::Udp, "log", 514, &[1])
            .allow("service:client", "service:*")
            .build();
        let mut world = World::new(topology, 1);
        let client = world.topology.service("client");
        for v4 in [true, false] {
            let own = world.topology.host_address(1, v4);
            for port in 40_000..40_000 + FLOWS {
                for (service, to) in [("web", 80), ("api", 8080)] {
                    let vip = world.topology.vip(service, v4);
                    world.connect(1, tcp_key((own, port), (vip, to)), Some(client));
                }
                let key = udp_key((own, port), (world.topology.vip("log", v4), 514));
                world.host(1).sockets.open(key, client);
                world.send(1, &udp(&key, b"first"));
                world.host(1).take_inbox();
            }
        }
        world.run(Duration::from_millis(1));
        let now = world.now;
        let mut becomes = HashMap::new();
        for flow in world.host(1).node.flows(usize::MAX, now) {
            becomes.insert(flow.original, flow.translated);
            becomes.insert(flow.translated.reversed(), flow.original.reversed());
        }
        assert_eq!(
            becomes.len(),
            2 * 2 * 3 * usize::from(FLOWS),
            "two ways, two families, three kinds"
        );
        Self { world, becomes }
    }

    /// Carries a frame to where it goes: one frame.
    fn carry(&mut self, frame: &[u8], out: &mut Row) {
        let now = self.world.now;
        let (host, before) = (self.world.host(1), out.ranges.len());
        let mut frame = frame.to_vec();
        let (offload, packet) = Offload::read(&mut frame).expect("a frame");
        host.node.handle_tun(offload, packet, &mut host.sockets, out, now);
        assert_eq!(out.ranges.len(), before + 1, "{:?}", host.node.counters());
        assert!(host.node.poll_tun().is_none() && host.node.poll_transmit().is_none());
    }

    /// The frame as a kernel would give it if the flow had its other key.
    fn readdressed(&self, frame: &[u8]) -> Vec<u8> {
        let mut frame = frame.to_vec();
        let is_partial = frame[0] & 1 != 0;
        let packet = &mut frame[VNET_HEADER..];
        let headers = Headers::parse(packet).expect("a packet");
        let key = self.becomes[&headers.key];
        write_addresses(packet, key.source, key.destination);
        let ports = headers.l4_offset;
        packet[ports..ports + 2].copy_from_slice(&key.source_port.to_be_bytes());
        packet[ports + 2..ports + 4].copy_from_slice(&key.destination_port.to_be_bytes());
        let headers = Headers::parse(packet).expect("a packet");
        assert!(checksum::fill(packet, &headers));
        if is_partial {
            set_checksum(packet, &headers, partial_sum(&headers));
        }
        frame
    }
}

fn write_addresses(packet: &mut [u8], source: Address, destination: Address) {
    match (source.v4_octets(), destination.v4_octets()) {
        (Some(source), Some(destination)) => {
            packet[12..16].copy_from_slice(&source);
            packet[16..20].copy_from_slice(&destination);
        }
        _ => {
            packet[8..24].copy_from_slice(&source.v6_octets());
            packet[24..40].copy_from_slice(&destination.v6_octets());
        }
    }
}
