//! Flow owners, the services that open flows: what the kernel noted when its packet was sent, or else its answer
//! about the socket, matched against the selectors of the services that are placed on this host.
//!
//! A process that matches no service speaks as its host. Where it matches several, the one that says
//! most about it (has the most selectors) wins, and among equals the one with the lowest number. Of a
//! container with a network of its own only what its engine tells can match: nobody here sees its users
//! and programs.

mod containers;
mod workloads;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use isthmus_core::{CompiledSnapshot, Counters, DropReason, Owner, Owners};
use isthmus_model::{Code, Place, Problem, Revision, ServiceId};
use isthmus_net::cgroup::Cgroups;
use isthmus_net::senders::{Budget, Sender, Senders};
use isthmus_net::sock_diag::{Lookup, Protocol, SocketDiag, SocketOwner};
use isthmus_packet::{Address, FlowKey, protocol};
use parking_lot::Mutex;

use crate::callers::{Caller, Callers};
use crate::containers::looks_contained;
use crate::programs::{Held, Programs};
use crate::refusals::Refusals;
use crate::status::Shared;
use containers::ContainerOwners;
use workloads::{Match, best};

pub(crate) use containers::{Spoken, speaks_as, told};
pub(crate) use workloads::{Judgement, LocalService, Process, judge, local_services};

/// Marks the sockets by which the agent's proxy speaks for a workload of this host: what they are
/// bound to is who they speak for. A container with the host's network and CAP_NET_RAW can set a mark,
/// too: such a socket must have been made in the agent's own cgroup.
pub(crate) const PROXY_MARK: u32 = 0x1575_0001;

/// Packets of a flow's last sender may wait in the device's queue for so long after another has taken
/// its port: until then they can't be told apart.
const TAKEN_OVER: Duration = Duration::from_millis(100);
/// The problem that senders aren't noted.
const NOT_NOTED: Code = Code::SendersNotNoted;

/// Answers remembered of each kind. A host has fewer users times cgroups than this.
const REMEMBERED: usize = 8192;

/// Look-ups made, for metrics.
#[derive(Debug, Default)]
pub(crate) struct OwnerCounters {
    /// Flows whose socket was found.
    pub found: AtomicU64,
    /// Flows that no socket has.
    pub unknown: AtomicU64,
    /// Look-ups that the kernel didn't answer.
    pub failed: AtomicU64,
    /// Flows whose program had to be found among the processes.
    pub program_searches: AtomicU64,
    /// Services that one process fits equally well, by the revision where that was seen.
    pub ties: Mutex<BTreeSet<(Revision, ServiceId, ServiceId)>>,
}

impl OwnerCounters {
    /// Which of two services a process speaks as that could be of either, and the other.
    #[must_use]
    pub(crate) fn ties(&self, revision: Revision) -> Vec<(ServiceId, ServiceId)> {
        let ties = self.ties.lock();
        ties.iter().filter(|tie| tie.0 == revision).map(|(_, one, other)| (*one, *other)).collect()
    }

    fn note_tie(&self, revision: Revision, winner: ServiceId, other: ServiceId) {
        let mut ties = self.ties.lock();
        ties.retain(|tie| tie.0 >= revision);
        ties.insert((revision, winner, other));
    }
}

/// What the kernel notes of senders. Set up while the process still has all its privileges; never set
/// where that isn't possible.
pub(crate) type SharedSenders = OnceLock<Arc<Senders>>;

/// The kernel can't note senders, so that what depends on it doesn't work.
#[must_use]
pub(crate) fn not_noted(error: &anyhow::Error) -> Problem {
    Problem::new(
        NOT_NOTED,
        format!(
            "datagrams of sockets that are closed at once are lost, a UDP port that changes hands is \
             noticed after a second, and floods of denied packets cost others theirs: {error:#}"
        ),
        "run the agent on Linux 5.19 or later with CAP_BPF and the system call bpf, as its unit does",
    )
}

/// The cgroup hierarchy. Opened while the process still has all its privileges, and shared by the
/// data planes that follow each other; `None` where there is no cgroup v2.
pub(crate) type SharedCgroups = Arc<Mutex<Option<Cgroups>>>;

/// Finds owners by `sock_diag`.
#[derive(Debug)]
pub(crate) struct SocketOwners {
    sockets: Option<SocketDiag>,
    senders: Option<Arc<Senders>>,
    refusals: Option<Refusals>,
    /// Owner of the last TCP flow.
    last: Option<(FlowKey, SocketOwner)>,
    /// Processes that opened refused flows.
    callers: Arc<Callers>,
    cgroups: SharedCgroups,
    /// The agent's, where it can be told.
    own_cgroup: Option<u64>,
    programs: Programs,
    counters: Arc<OwnerCounters>,
    revision: Option<Revision>,
    services: Vec<LocalService>,
    by_cgroup: HashMap<(u32, Option<u64>), Match>,
    by_socket: HashMap<(u32, Option<u64>, u32), Owner>,
    containers: ContainerOwners,
    warned: HashSet<(ServiceId, ServiceId)>,
}

impl SocketOwners {
    #[must_use]
    pub(crate) fn new(
        sockets: Option<SocketDiag>,
        senders: Option<Arc<Senders>>,
        cgroups: SharedCgroups,
        counters: Arc<OwnerCounters>,
        callers: Arc<Callers>,
        containers: Option<Arc<Shared>>,
    ) -> Self {
        let own_cgroup = own_cgroup(&cgroups);
        Self {
            sockets,
            refusals: senders.clone().map(Refusals::new),
            senders,
            last: None,
            callers,
            cgroups,
            own_cgroup,
            programs: Programs::new(Instant::now()),
            counters,
            revision: None,
            services: Vec::new(),
            by_cgroup: HashMap::new(),
            by_socket: HashMap::new(),
            containers: ContainerOwners::new(containers),
            warned: HashSet::new(),
        }
    }

    /// User names and placements can have changed with the revision, and containers come and go.
    fn follow(&mut self, state: &CompiledSnapshot) {
        let containers = self.containers.follow();
        if self.revision == Some(state.revision()) {
            if containers {
                self.by_cgroup.clear();
                self.by_socket.clear();
            }
            return;
        }
        self.containers.by_address.clear();
        self.revision = Some(state.revision());
        self.services = local_services(&state.snapshot);
        self.by_cgroup.clear();
        self.by_socket.clear();
        self.programs.clear();
        self.warned.clear();
    }

    fn socket_of(&mut self, flow: &FlowKey) -> Option<SocketOwner> {
        let lookup = lookup(flow)?;
        let found = match self.sender_of(&lookup) {
            Some(sender) => known(sender),
            None => self.look_up(&lookup)?,
        };
        if let (Protocol::Tcp, Some(socket)) = (lookup.protocol, &found) {
            self.last = Some((*flow, *socket));
        }
        let counter = if found.is_some() { &self.counters.found } else { &self.counters.unknown };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Who sent the flow's last packet, where the kernel has noted it.
    fn sender_of(&self, lookup: &Lookup) -> Option<Sender> {
        match lookup.protocol {
            Protocol::Udp => self.senders.as_ref()?.sender(lookup.local, lookup.remote),
            Protocol::Tcp => None,
        }
    }

    /// `None` if the kernel can't be asked.
    fn look_up(&mut self, lookup: &Lookup) -> Option<Option<SocketOwner>> {
        match self.sockets.as_mut()?.lookup(lookup) {
            Ok(found) => Some(found.filter(|owner| !owner.listening)),
            Err(error) => {
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%error, "couldn't look up a flow's socket");
                None
            }
        }
    }

    fn match_cgroup(&mut self, socket: &SocketOwner) -> Match {
        let key = (socket.uid, socket.cgroup_id);
        if let Some(known) = self.by_cgroup.get(&key) {
            return *known;
        }
        let cgroup = self.cgroup_of(socket);
        let table = Arc::clone(&self.containers.table);
        let container = cgroup.as_deref().and_then(|it| table.of_cgroup(it)).map(|it| &**it);
        if container.is_none() && self.is_beginning(socket.cgroup_id, cgroup.as_deref()) {
            return Match::Owner(Owner::Unknown);
        }
        let process =
            Process { uid: Some(socket.uid), cgroup: cgroup.as_deref(), exe: None, container };
        let found = self.best(&process);
        if self.by_cgroup.len() >= REMEMBERED {
            self.by_cgroup.clear();
        }
        self.by_cgroup.insert(key, found);
        found
    }

    fn match_program(&mut self, flow: &FlowKey, socket: &SocketOwner) -> Owner {
        let Some(socket) = self.with_inode(flow, socket) else { return Owner::Unknown };
        let key = (socket.uid, socket.cgroup_id, socket.inode);
        if let Some(known) = self.by_socket.get(&key) {
            return *known;
        }
        let cgroup = self.cgroup_of(&socket);
        let Some(exe) = self.program_of(&socket, cgroup.as_deref()) else { return Owner::Unknown };
        let table = Arc::clone(&self.containers.table);
        let container = cgroup.as_deref().and_then(|it| table.of_cgroup(it)).map(|it| &**it);
        let process = Process {
            uid: Some(socket.uid),
            cgroup: cgroup.as_deref(),
            exe: Some(&exe),
            container,
        };
        let owner = match self.best(&process) {
            Match::Owner(owner) => owner,
            Match::NeedsProgram => Owner::Host,
        };
        if self.by_socket.len() >= REMEMBERED {
            self.by_socket.clear();
        }
        self.by_socket.insert(key, owner);
        owner
    }

    fn program_of(&mut self, socket: &SocketOwner, cgroup: Option<&str>) -> Option<Arc<Path>> {
        self.counters.program_searches.fetch_add(1, Ordering::Relaxed);
        let directory = || {
            let cgroups = self.cgroups.lock();
            Some(cgroups.as_ref()?.directory(cgroup?))
        };
        let held = Held { uid: socket.uid, cgroup_id: socket.cgroup_id, inode: socket.inode };
        self.programs.of(held, directory, Instant::now())
    }

    /// Notes whose flow it is that is refused just now: soon its socket is gone.
    fn note_caller(&mut self, flow: &FlowKey) {
        if !self.callers.wants(flow, Instant::now()) {
            return;
        }
        let last = self.last.filter(|(last, _)| last == flow).map(|(_, socket)| socket);
        let sender = || {
            let end = |address: Address, port| SocketAddr::new(address.ip(), port);
            let source = end(flow.source, flow.source_port);
            self.senders.as_ref()?.sender(source, end(flow.destination, flow.destination_port))
        };
        let Some(socket) = last.or_else(|| sender().and_then(known)) else { return };
        let cgroup = self.cgroup_of(&socket);
        let found = self.with_inode(flow, &socket);
        let program = found.and_then(|socket| self.program_of(&socket, cgroup.as_deref()));
        self.callers.note(*flow, Caller { uid: socket.uid, cgroup, program });
    }

    /// What the kernel notes of a sender leaves out the number of its socket.
    fn with_inode(&mut self, flow: &FlowKey, socket: &SocketOwner) -> Option<SocketOwner> {
        if socket.inode != 0 {
            return Some(*socket);
        }
        let found = self.look_up(&lookup(flow)?)??;
        let is_same = (found.uid, found.cgroup_id) == (socket.uid, socket.cgroup_id);
        is_same.then_some(found)
    }

    /// Whether this may be a container that its engine hasn't told of yet, while that could matter.
    fn is_beginning(&mut self, id: Option<u64>, cgroup: Option<&str>) -> bool {
        let (Some(id), Some(cgroup)) = (id, cgroup) else { return false };
        looks_contained(cgroup)
            && self.services.iter().any(LocalService::is_container)
            && self.containers.is_beginning(id, Instant::now())
    }

    /// A container behind this host, or nobody.
    fn container_at(&mut self, address: IpAddr) -> Owner {
        if let Some(known) = self.containers.by_address.get(&address) {
            return *known;
        }
        let table = Arc::clone(&self.containers.table);
        let Some(network) = table.behind(address) else { return Owner::Unknown };
        let owner = match speaks_as(&self.services, network) {
            Spoken::Service(service) => Owner::Service(service),
            Spoken::Host(_) => Owner::Host,
        };
        self.containers.by_address.insert(address, owner);
        owner
    }

    fn cgroup_of(&self, socket: &SocketOwner) -> Option<Arc<str>> {
        let mut cgroups = self.cgroups.lock();
        let found = cgroups.as_mut()?.path_of(socket.cgroup_id?);
        found
            .inspect_err(|error| tracing::debug!(%error, "couldn't name a socket's cgroup"))
            .ok()
            .flatten()
    }

    fn best(&mut self, process: &Process<'_>) -> Match {
        let (found, tie) = best(&self.services, process);
        if let Some((winner, other)) = tie
            && self.warned.insert((winner, other))
        {
            tracing::warn!(
                "a process matches services {} and {} equally well; it speaks as the first. \
                 Give one of them another selector",
                self.name(winner),
                self.name(other),
            );
            if let Some(revision) = self.revision {
                self.counters.note_tie(revision, winner, other);
            }
        }
        found
    }

    fn name(&self, id: ServiceId) -> &str {
        self.services.iter().find(|it| it.id == id).map_or("?", |it| it.name.as_str())
    }
}

impl Owners for SocketOwners {
    fn owner(&mut self, flow: &FlowKey, state: &CompiledSnapshot) -> Owner {
        self.follow(state);
        let Some(socket) = self.socket_of(flow) else { return Owner::Unknown };
        if socket.mark == PROXY_MARK && is_of(self.own_cgroup, socket.cgroup_id) {
            return spoken_for(flow, state);
        }
        match self.match_cgroup(&socket) {
            Match::Owner(owner) => owner,
            Match::NeedsProgram => self.match_program(flow, &socket),
        }
    }

    fn behind(&mut self, source: IpAddr, state: &CompiledSnapshot) -> Owner {
        self.follow(state);
        let owner = self.container_at(source);
        let found = owner != Owner::Unknown;
        let counter = if found { &self.counters.found } else { &self.counters.unknown };
        counter.fetch_add(1, Ordering::Relaxed);
        owner
    }

    fn changes(&self, flow: &FlowKey) -> u32 {
        let senders = self.senders.as_ref();
        senders.map_or(0, |it| it.changes(flow.source_port, flow.destination_port))
    }

    fn refused(&mut self, flow: &FlowKey) {
        self.note_caller(flow);
        let Some(refusals) = &mut self.refusals else { return };
        let now = Instant::now();
        let end = |address: Address, port| SocketAddr::new(address.ip(), port);
        match flow.protocol {
            protocol::UDP => refusals.datagram(
                end(flow.source, flow.source_port),
                end(flow.destination, flow.destination_port),
                now,
            ),
            protocol::ICMP | protocol::ICMPV6 => {
                refusals.datagram(end(flow.source, 0), end(flow.destination, 0), now);
            }
            _ => {
                if let Some((_, socket)) = self.last.filter(|(last, _)| last == flow) {
                    let owner = Budget::of(socket.uid, socket.cgroup_id.unwrap_or_default());
                    refusals.charge(owner, now);
                }
            }
        }
    }

    fn add_drops(&self, counters: &mut Counters) {
        let Some(senders) = &self.senders else { return };
        let dropped = senders.dropped();
        counters.drop_many(DropReason::DeniedAgain, dropped.denied);
        counters.drop_many(DropReason::HeldBack, dropped.held_back);
        counters.drop_many(DropReason::RoutingHeader, dropped.routed);
    }
}

/// A sender as a look-up of its socket would tell it, but for the socket's number; nobody's while it
/// can't be told whether the packet is still of the one before.
fn known(sender: Sender) -> Option<SocketOwner> {
    const UNCONNECTED: u8 = 7;
    if sender.taken_over.is_some_and(|ago| ago < TAKEN_OVER) {
        return None;
    }
    Some(SocketOwner {
        uid: sender.uid,
        inode: 0,
        cgroup_id: Some(sender.cgroup_id),
        mark: 0,
        state: UNCONNECTED,
        listening: false,
        // Not noted, and nothing here asks for it.
        bound: Ipv4Addr::UNSPECIFIED.into(),
    })
}

/// The number of this process's cgroup: its directory's inode.
fn own_cgroup(cgroups: &SharedCgroups) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = table.lines().find_map(|line| line.strip_prefix("0::"))?;
    let cgroups = cgroups.lock();
    let directory = cgroups.as_ref()?.directory(path);
    Some(std::fs::metadata(directory).ok()?.ino())
}

/// Where either can't be told, the mark must do.
fn is_of(own: Option<u64>, socket: Option<u64>) -> bool {
    own.zip(socket).is_none_or(|(own, socket)| own == socket)
}

/// Whom the proxy speaks for by a socket that is bound to this address.
fn spoken_for(flow: &FlowKey, state: &CompiledSnapshot) -> Owner {
    match state.directory.place(flow.source.into()) {
        Some(Place::Workload(host, service)) if host == state.snapshot.local => {
            Owner::Service(service)
        }
        Some(
            Place::Workload(..)
            | Place::Host(_)
            | Place::Device(..)
            | Place::Virtual(_)
            | Place::Anycast,
        )
        | None => Owner::Host,
    }
}

fn lookup(flow: &FlowKey) -> Option<Lookup> {
    let protocol = match flow.protocol {
        protocol::TCP => Protocol::Tcp,
        protocol::UDP => Protocol::Udp,
        // `ping` sockets can't be looked up.
        _ => return None,
    };
    let local = SocketAddr::new(IpAddr::from(flow.source), flow.source_port);
    let remote = SocketAddr::new(IpAddr::from(flow.destination), flow.destination_port);
    Some(Lookup { protocol, local, remote })
}

#[cfg(test)]
mod tests;
