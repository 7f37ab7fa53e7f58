//! Hosts, devices, the network and the time.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_model::{DeviceId, HostId, ServiceId};
use isthmus_packet::{FlowKey, Offload};

use super::topology::{Topology, endpoint};
use super::{Device, Host, Network, packets};
use crate::forward::Forwarder;
use crate::{CompiledSnapshot, DropReason, PeerName, SendError};

/// Interval at which devices look at the clock.
const DEVICE_TICK: Duration = Duration::from_millis(250);

/// A mesh under way.
#[derive(Debug)]
pub struct World {
    /// The time.
    pub now: Instant,
    /// The topology, which every host knows.
    pub topology: Topology,
    /// The network between the hosts.
    pub network: Network,
    /// The hosts; number 1 is the first.
    pub hosts: Vec<Host>,
    /// The devices.
    pub devices: Vec<Device>,
    /// The largest IP packet that hosts' own interfaces take.
    pub interface_mtu: usize,
    device_tick: Instant,
}

impl World {
    /// All hosts and devices of a topology, at the endpoints that it gives them.
    pub fn new(topology: Topology, seed: u64) -> Self {
        let now = Instant::now();
        let snapshot = topology.snapshot(1);
        let hosts: Vec<Host> = snapshot
            .hosts
            .iter()
            .map(|(id, host)| Host::new(&topology, id.0, host.endpoints[0], now))
            .collect();
        let devices = snapshot
            .devices
            .iter()
            .map(|(id, device)| {
                let gateway = hosts[device.via.0 as usize - 1].endpoint;
                let own = endpoint(1000 + id.0, gateway.is_ipv6());
                Device::new(id.0, device.via.0, own, gateway, now)
            })
            .collect();
        Self {
            now,
            topology,
            network: Network::new(seed),
            hosts,
            devices,
            interface_mtu: 1500,
            device_tick: now + DEVICE_TICK,
        }
    }

    /// A host, by its number.
    pub fn host(&mut self, id: u32) -> &mut Host {
        &mut self.hosts[id as usize - 1]
    }

    /// A device, by its name.
    pub fn device(&mut self, label: &str) -> &mut Device {
        let DeviceId(id) = self.topology.device(label);
        let first = self.topology.snapshot(1).devices.keys().next().map_or(0, |first| first.0);
        &mut self.devices[(id - first) as usize]
    }

    /// A program on a host sends a packet.
    pub fn send(&mut self, host: u32, packet: &[u8]) {
        let now = self.now;
        let host = self.host(host);
        host.sockets.sends(packet);
        host.give(Offload::NONE, &mut packet.to_vec(), now);
        self.drain();
    }

    /// The kernel of a host gives a packet that lacks something.
    pub fn send_unfinished(&mut self, host: u32, offload: Offload, packet: &mut [u8]) {
        let now = self.now;
        let host = self.host(host);
        host.give(offload, packet, now);
        self.drain();
    }

    /// A program on a host sends a packet; a moment later, here is what arrived at another host.
    pub fn exchange(&mut self, from: u32, packet: &[u8], to: u32) -> Vec<Vec<u8>> {
        self.send(from, packet);
        self.run(Duration::from_millis(100));
        self.host(to).take_inbox()
    }

    /// A program on a device sends a packet.
    pub fn device_send(&mut self, label: &str, packet: &[u8]) {
        let now = self.now;
        self.device(label).send(packet, now);
        self.drain();
    }

    /// Asks the agent that has an address.
    pub fn ping(&mut self, from: u32, target: IpAddr, identifier: u16, sequence: u16) -> bool {
        let now = self.now;
        let asked = self.host(from).node.ping(target, identifier, sequence, now);
        self.drain();
        asked.is_some()
    }

    /// A compromised agent seals a packet for another host, whatever it says.
    pub fn forge(&mut self, from: u32, to: u32, packet: &[u8]) {
        let now = self.now;
        let node = &mut self.host(from).node;
        if let Some(slot) = node.forward.tunnels.peers.by_name(PeerName::Host(HostId(to))) {
            let Forwarder { tunnels, telemetry, .. } = &mut node.forward;
            tunnels.send(slot, packet, true, telemetry, now);
        }
        self.drain();
    }

    /// Opens a TCP connection from a program of a service (or none) on a host, and answers it at
    /// whichever host gets it. Returns that host and the flow's key there.
    ///
    /// # Panics
    ///
    /// If the connection doesn't come about.
    pub fn connect(
        &mut self,
        from: u32,
        client: FlowKey,
        service: Option<ServiceId>,
    ) -> (u32, FlowKey) {
        match service {
            Some(service) => self.host(from).sockets.open(client, service),
            None => self.host(from).sockets.open_plain(client),
        }
        self.send(from, &packets::tcp(&client, packets::SYN, 100, 0, b""));
        self.run(Duration::from_millis(100));
        let (host, seen) = self.take_one();
        let answer = packets::tcp(&seen.reversed(), packets::SYN_ACK, 500, 101, b"");
        let got = self.exchange(host, &answer, from);
        assert_eq!(packets::read(&got[0]).key, client.reversed());
        let got = self.exchange(from, &packets::tcp(&client, packets::ACK, 101, 501, b""), host);
        assert_eq!(packets::read(&got[0]).key, seen);
        (host, seen)
    }

    /// The only packet that any host's kernel was given since the last look, and whose that was.
    ///
    /// # Panics
    ///
    /// If there isn't just one.
    pub fn take_one(&mut self) -> (u32, FlowKey) {
        let mut all: Vec<_> = self
            .hosts
            .iter_mut()
            .flat_map(|host| host.take_inbox().into_iter().map(|packet| (host.id.0, packet)))
            .collect();
        assert_eq!(all.len(), 1, "one packet for one host");
        let (host, packet) = all.remove(0);
        (host, packets::read(&packet).key)
    }

    /// Number of packets that a host has dropped for a reason.
    pub fn dropped(&mut self, host: u32, reason: DropReason) -> u64 {
        self.host(host).node.counters().dropped(reason)
    }

    /// Gives the topology as it is now to all hosts.
    pub fn apply(&mut self) {
        for id in 1..=self.hosts.len() as u32 {
            self.apply_to(id);
        }
    }

    /// Gives the topology as it is now to one host.
    pub fn apply_to(&mut self, id: u32) {
        let state = Arc::new(CompiledSnapshot::new(self.topology.snapshot(id)));
        let now = self.now;
        self.host(id).node.handle_state(state, now);
        self.drain();
    }

    /// `kill -9` and start.
    pub fn restart(&mut self, id: u32) {
        let (topology, now) = (self.topology.clone(), self.now);
        self.host(id).restart(&topology, now);
    }

    /// A host's addresses changed, and its node is told.
    pub fn moved(&mut self, id: u32) {
        let now = self.now;
        self.host(id).node.handle_moved(now);
        self.drain();
    }

    /// A datagram out of nowhere.
    pub fn inject(&mut self, from: SocketAddr, to: u32, datagram: &[u8]) {
        let now = self.now;
        let host = self.host(to);
        host.receive(from, &mut datagram.to_vec(), datagram.len(), now);
        self.drain();
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.next_moment().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.step();
        }
        self.now = end;
    }

    fn next_moment(&self) -> Option<Instant> {
        let nodes = self.hosts.iter().filter_map(|host| host.node.poll_timeout());
        let devices = (!self.devices.is_empty()).then_some(self.device_tick);
        nodes.chain(devices).chain(self.network.next_arrival()).min()
    }

    fn step(&mut self) {
        let now = self.now;
        while let Some(mut arrival) = self.network.receive(now) {
            if let Some(host) = self.hosts.iter_mut().find(|host| host.places().contain(arrival.to))
            {
                let size = arrival.datagram.len();
                host.receive(arrival.from, &mut arrival.datagram, size, now);
            } else if let Some(device) =
                self.devices.iter_mut().find(|device| device.endpoint == arrival.to)
            {
                device.receive(arrival.from, &arrival.datagram, now);
            }
            self.drain();
        }
        for host in &mut self.hosts {
            if host.node.poll_timeout().is_some_and(|due| due <= now) {
                host.node.handle_timeout(now);
            }
        }
        if self.device_tick <= now {
            self.device_tick = now + DEVICE_TICK;
            self.devices.iter_mut().for_each(|device| device.tick(now));
        }
        self.drain();
    }

    /// Takes everything from the nodes that they have to give.
    fn drain(&mut self) {
        let now = self.now;
        for host in &mut self.hosts {
            let mut too_big = Vec::new();
            let places = host.places();
            while let Some(transmit) = host.node.poll_transmit() {
                let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
                for datagram in transmit.contents.chunks(segment) {
                    let size = datagram.len() + if transmit.to.is_ipv4() { 28 } else { 48 };
                    if size > self.interface_mtu && transmit.dont_fragment {
                        too_big.push((transmit.to, datagram.len()));
                        continue;
                    }
                    let dont_fragment = transmit.dont_fragment;
                    let from = places.source(transmit.to);
                    self.network.send(from, transmit.to, datagram, dont_fragment, now);
                }
            }
            for (to, size) in too_big {
                host.node.handle_send_error(to, SendError::TooBig { size }, now);
            }
            while let Some(packet) = host.node.poll_tun() {
                host.kernel.inbox.push(packet.to_vec());
            }
            while let Some(event) = host.node.poll_event() {
                host.events.push(event);
            }
        }
        for device in &mut self.devices {
            let (gateway, datagrams) = device.take_outbox();
            for datagram in datagrams {
                self.network.send(device.endpoint, gateway, &datagram, false, now);
            }
        }
    }
}
