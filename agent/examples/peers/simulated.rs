//! Hosts that speak to the agent: real nodes over real sockets, in one thread.

use std::io::{ErrorKind, IoSlice};
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use isthmus_core::sim::Topology;
use isthmus_core::sim::packets::{udp, udp_key};
use isthmus_core::sim::topology::host_key;
use isthmus_core::{CompiledSnapshot, Config, Limits, Node, Owner, Owners, Received, TunWriter};
use isthmus_model::HostId;
use isthmus_net::poll::{Events, Interest, Poller};
use isthmus_packet::{FlowKey, Offload};
use zeroize::Zeroizing;

use crate::{HERE, SERVICE, SERVICE_PORT};

const PAYLOAD: [u8; 200] = [0x55; 200];
const SOURCE_PORT: u16 = 40_000;
/// Between two looks at the nodes' clocks.
const STEP: Duration = Duration::from_millis(10);
const DATAGRAM: usize = 2048;

/// All of them.
pub(crate) struct Simulated {
    hosts: Vec<Host>,
    poller: Poller,
    every: Duration,
}

struct Host {
    node: Node,
    socket: UdpSocket,
    packet: Vec<u8>,
    kernel: Kernel,
    next: Instant,
}

/// Hosts that speak until they are told to be silent.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<u64>>,
}

/// Counts the answers.
#[derive(Default)]
struct Kernel {
    frames: u64,
}

impl TunWriter for Kernel {
    fn write(&mut self, _: &[IoSlice<'_>]) {
        self.frames += 1;
    }
}

/// Every packet is the host's own.
struct NoServices;

impl Owners for NoServices {
    fn owner(&mut self, _: &FlowKey, _: &CompiledSnapshot) -> Owner {
        Owner::Host
    }
}

impl Simulated {
    /// The first `count` hosts beside the agent's own.
    pub(crate) fn new(topology: &Topology, count: u32, rate: u32) -> anyhow::Result<Self> {
        let poller = Poller::new()?;
        let every = Duration::from_secs(1) / rate.max(1);
        let now = Instant::now();
        let mut hosts = Vec::new();
        for number in 0..count {
            let mut host = Host::new(topology, HERE + 1 + number)?;
            host.next = now + every * number / count;
            poller.add(&host.socket, number.into(), Interest::READ)?;
            hosts.push(host);
        }
        Ok(Self { hosts, poller, every })
    }

    /// Speaks until every host was answered.
    pub(crate) fn connect(&mut self, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        while self.hosts.iter().any(|host| host.kernel.frames == 0) {
            let answered = self.hosts.iter().filter(|host| host.kernel.frames > 0).count();
            let count = self.hosts.len();
            ensure!(Instant::now() < deadline, "only {answered} of {count} hosts were answered");
            self.step(true)?;
        }
        Ok(())
    }

    /// Goes on in a thread.
    pub(crate) fn in_background(mut self) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                self.step(true)?;
            }
            let answered = self.hosts.iter().map(|host| host.kernel.frames).sum();
            // Silent hosts still keep their ends of the tunnels, as long as WireGuard does.
            thread::spawn(move || while self.step(false).is_ok() {});
            Ok(answered)
        });
        Traffic { stop, thread }
    }

    fn step(&mut self, speaks: bool) -> anyhow::Result<()> {
        let until = Instant::now() + STEP;
        let mut ready = Events::with_capacity(256);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            self.poller.wait(&mut ready, Some(left))?;
            for event in ready.iter() {
                if let Some(host) = self.hosts.get_mut(event.token as usize) {
                    host.receive()?;
                }
            }
            if Instant::now() >= until {
                break;
            }
        }
        for host in &mut self.hosts {
            host.keep_time(speaks.then_some(self.every))?;
        }
        Ok(())
    }
}

impl Traffic {
    /// Ends it; says how many packets were answered.
    pub(crate) fn silence(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the simulated hosts panicked"))?
    }
}

impl Host {
    fn new(topology: &Topology, id: u32) -> anyhow::Result<Self> {
        let mut snapshot = topology.snapshot(id);
        snapshot.hosts.retain(|host, _| *host == HostId(HERE) || *host == HostId(id));
        let endpoint = snapshot.local_host().endpoints[0];
        let service = (topology.workload(SERVICE, HERE, true), SERVICE_PORT);
        let key = udp_key((topology.host_address(id, true), SOURCE_PORT), service);
        let limits = Limits { flows: 16, half_open: 16, ..Limits::default() };
        let config = Config { limits, ..Config::new(Zeroizing::new(host_key(id)), id.into()) };
        let now = Instant::now();
        let socket = UdpSocket::bind(endpoint)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            node: Node::new(config, Arc::new(CompiledSnapshot::new(snapshot)), now),
            socket,
            packet: udp(&key, &PAYLOAD),
            kernel: Kernel::default(),
            next: now,
        })
    }

    fn receive(&mut self) -> anyhow::Result<()> {
        let mut datagram = [0; DATAGRAM];
        loop {
            match self.socket.recv_from(&mut datagram) {
                Ok((length, from)) => {
                    let contents = &mut datagram[..length];
                    let received = Received { from, contents, segment_size: length.max(1) };
                    let (owners, kernel) = (&mut NoServices, &mut self.kernel);
                    self.node.handle_udp(received, owners, kernel, Instant::now());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.send();
        Ok(())
    }

    /// Speaks if it is time to, `every` so often.
    fn keep_time(&mut self, every: Option<Duration>) -> anyhow::Result<()> {
        let now = Instant::now();
        if let Some(every) = every
            && now >= self.next
        {
            self.next = now.max(self.next + every);
            let mut packet = self.packet.clone();
            let (owners, kernel) = (&mut NoServices, &mut self.kernel);
            self.node.handle_tun(Offload::NONE, &mut packet, owners, kernel, now);
        }
        if self.node.poll_timeout().is_some_and(|due| due <= now) {
            self.node.handle_timeout(now);
        }
        self.send();
        Ok(())
    }

    fn send(&mut self) {
        while let Some(transmit) = self.node.poll_transmit() {
            let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
            for datagram in transmit.contents.chunks(size) {
                // What the queue has no room for is lost, as on any network.
                drop(self.socket.send_to(datagram, transmit.to));
            }
        }
        while self.node.poll_tun().is_some() {}
        while self.node.poll_event().is_some() {}
    }
}
