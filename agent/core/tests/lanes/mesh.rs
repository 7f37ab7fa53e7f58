//! Two hosts that have bulk sessions, their threads, and a third that only listens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as Unscheduled, MutexGuard};
use std::time::Duration;

use isthmus_core::sim::packets::{ping, udp};
use isthmus_core::sim::topology::{endpoint, host_key};
use isthmus_core::sim::{Builder, Kernel, Topology, World};
use isthmus_core::{CompiledSnapshot, Config, DropReason, Inbox, Node};
use isthmus_model::{HostId, Protocol};
use shuttle::sync::Mutex;
use shuttle::thread::{JoinHandle, spawn};
use zeroize::Zeroizing;

use crate::host::{Clock, Engine, Host, Step};
use crate::ledger::Ledger;
use crate::traffic::{Flow, lanes};
use crate::wire::{LANES, Queue, Wire};

/// So long after the mesh is made its sessions are about to be replaced.
pub(crate) const UNTIL_REKEY: Duration = Duration::from_secs(117);
/// Until all that is under way has come to an end.
const SETTLING: usize = 40;

/// Whether datagrams come twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replays {
    No,
    ByTheOtherLane,
}

pub(crate) struct Mesh {
    topology: Topology,
    hosts: Vec<Host>,
    ledger: Arc<Unscheduled<Ledger>>,
    /// Counters of hosts 1 and 2 before: dropped, sent, received.
    before: Vec<Totals>,
}

/// Sums of a node's counters.
#[derive(Clone, Copy, Debug)]
struct Totals {
    dropped: u64,
    unauthentic: u64,
    sent: u64,
    received: u64,
}

impl Mesh {
    /// Hosts that have talked for so long.
    pub(crate) fn new(age: Duration) -> Self {
        let mut world = World::new(topology(), 1);
        for id in [1, 2, 3] {
            let state = Arc::new(CompiledSnapshot::new(world.topology.snapshot(id)));
            let key = Zeroizing::new(host_key(id));
            let config = Config { lanes: LANES as u8, ..Config::new(key, id.into()) };
            world.host(id).node = Node::new(config, state, world.now);
        }
        settle(&mut world);
        world.run(age);
        let topology = world.topology.clone();
        let ledger = Arc::default();
        let clock = Arc::new(Clock::new(world.now));
        let endpoints = [endpoint(1, false), endpoint(2, false)];
        let queues: BTreeMap<_, [Queue; LANES]> =
            endpoints.iter().map(|endpoint| (*endpoint, <[Queue; LANES]>::default())).collect();
        let wire = Arc::new(Wire { queues });
        let two = world.hosts.into_iter().take(2).map(|host| Host {
            engine: Mutex::new(Engine {
                node: host.node,
                sockets: host.sockets,
                cut: Default::default(),
            }),
            endpoint: host.endpoint,
            clock: Arc::clone(&clock),
            wire: Arc::clone(&wire),
            replays: Replays::No,
            ledger: Arc::clone(&ledger),
        });
        let hosts: Vec<Host> = two.collect();
        let before = hosts.iter().map(totals).collect();
        Self { topology, hosts, ledger, before }
    }

    /// A revision without a rule and without host 3, for a host.
    pub(crate) fn revision(&self, host: u32) -> Step {
        let mut topology = self.topology.clone();
        topology.change(|snapshot| {
            snapshot.rules.rules.retain(|rule| !rule.name.contains("old"));
            snapshot.hosts.remove(&HostId(3));
            for service in snapshot.services.values_mut() {
                service.placements.remove(&HostId(3));
            }
        });
        let cut = Flow::ALL.into_iter().filter(|flow| flow.is_cut()).collect();
        Step::Switch(Arc::new(CompiledSnapshot::new(topology.snapshot(host))), cut)
    }

    /// Lets all threads work until nothing is under way.
    pub(crate) fn play(&mut self, here: Vec<Step>, there: Vec<Step>, replays: Replays) {
        for host in &mut self.hosts {
            host.replays = replays;
        }
        let hosts: Vec<Arc<Host>> = self.hosts.drain(..).map(Arc::new).collect();
        let mut inbound: Vec<Vec<JoinHandle<()>>> = hosts
            .iter()
            .map(|host| (0..LANES).map(|lane| run(host, move |it| it.inbound(lane))).collect())
            .collect();
        let mut working: Vec<JoinHandle<()>> = (0..)
            .zip(lanes(&self.topology))
            .map(|(lane, batches)| run(&hosts[0], move |it| it.outbound(lane, batches)))
            .collect();
        working.push(run(&hosts[0], move |it| it.keeper(here)));
        working.push(run(&hosts[1], move |it| it.keeper(there)));
        join(working);
        for (host, threads) in hosts.iter().zip(&mut inbound).rev() {
            (0..LANES).for_each(|lane| host.queue(lane).close());
            join(std::mem::take(threads));
        }
        let alone = hosts.into_iter().filter_map(Arc::into_inner);
        self.hosts = alone.collect();
        assert_eq!(self.hosts.len(), 2);
        self.settle();
    }

    /// Sends the remaining messages.
    fn settle(&self) {
        let (mut inbox, mut kernel) = (Inbox::default(), Kernel::default());
        for _ in 0..SETTLING {
            for host in &self.hosts {
                host.keeper(vec![Step::Tick]);
                for lane in 0..LANES {
                    let messages = host.queue(lane).take();
                    host.pass(messages, &mut inbox, &mut kernel);
                }
            }
        }
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no panic")
    }

    /// Each datagram was received or is one for host 3; each packet arrived or was dropped.
    pub(crate) fn assert_counters_add_up(&self) {
        let ledger = self.ledger();
        let [one, two] = [endpoint(1, false), endpoint(2, false)];
        let [here, there] = [self.since(0), self.since(1)];
        let replayed = ledger.replayed.get(&two).copied().unwrap_or_default();
        assert_eq!(here.sent, ledger.carried(one, two) + ledger.carried(one, endpoint(3, false)));
        assert_eq!(there.received, ledger.carried(one, two) + replayed);
        assert_eq!(there.unauthentic, replayed, "each datagram is taken once");
        let dropped = there.dropped - there.unauthentic;
        assert_eq!(ledger.decided_for(2), ledger.arrived_in_all() + dropped);
    }

    fn since(&self, host: usize) -> Totals {
        let (before, now) = (self.before[host], totals(&self.hosts[host]));
        Totals {
            dropped: now.dropped - before.dropped,
            unauthentic: now.unauthentic - before.unauthentic,
            sent: now.sent - before.sent,
            received: now.received - before.received,
        }
    }
}

fn topology() -> Topology {
    Builder::new(3)
        .service("web", 80, &[2])
        .service_of(Protocol::Udp, "log", 514, &[2])
        .service_of(Protocol::Udp, "old", 515, &[2])
        .service_of(Protocol::Udp, "far", 516, &[3])
        .allow("host:*", "service:web")
        .allow("host:*", "service:log")
        .allow("host:*", "service:old")
        .allow("host:*", "service:far")
        .build()
}

/// Makes the tunnels, the sessions and all flows but one.
fn settle(world: &mut World) {
    let address = |host| world.topology.host_address(host, true);
    let (one, two, three) = (address(1), address(2), address(3));
    world.send(1, &ping(one, two, 1, 1));
    world.send(1, &ping(one, three, 1, 1));
    world.run(Duration::from_secs(3));
    world.host(2).take_inbox();
    world.host(3).take_inbox();
    for flow in [Flow::Bulk, Flow::Mixed] {
        let key = flow.key(&world.topology);
        world.connect(1, key, None);
    }
    for flow in [Flow::Log, Flow::Cut, Flow::Gone] {
        let key = flow.key(&world.topology);
        world.send(1, &udp(&key, b"first"));
    }
    let new = Flow::New.key(&world.topology);
    world.host(1).sockets.open_plain(new);
    world.run(Duration::from_millis(100));
}

fn run(host: &Arc<Host>, work: impl FnOnce(&Host) + Send + 'static) -> JoinHandle<()> {
    let host = Arc::clone(host);
    spawn(move || work(&host))
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        thread.join().expect("no panic");
    }
}

fn totals(host: &Host) -> Totals {
    let engine = host.engine();
    let counters = engine.node.counters();
    Totals {
        dropped: counters.drops().map(|(_, packets)| packets).sum(),
        unauthentic: counters.dropped(DropReason::Unauthentic),
        sent: counters.sent.packets,
        received: counters.received.packets,
    }
}
