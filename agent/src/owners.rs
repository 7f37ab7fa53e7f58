//! Which service opened a flow: what the kernel noted when its packet was sent, or else its answer
//! about the socket, matched against the
//! selectors of the services that are placed on this host.
//!
//! A process that matches no service speaks as its host. Where it matches several, the one that
//! says most about it (has the most selectors) wins, and among equals the one with the lowest
//! number.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use isthmus_core::packet::{Address, FlowKey, protocol};
use isthmus_core::{Counters, DropReason, Owner, Owners, State};
use isthmus_model::{Code, Place, Problem, Revision, Selector, ServiceId, Snapshot};
use isthmus_net::cgroup::Cgroups;
use isthmus_net::process;
use isthmus_net::senders::{Budget, Sender, Senders};
use isthmus_net::sock_diag::{Lookup, Protocol, SocketDiag, SocketOwner};

use crate::callers::{Caller, Callers};
use crate::programs::{Held, Programs};
use crate::refusals::Refusals;

/// Marks the sockets by which the agent's proxy speaks for a workload of this host: what they are
/// bound to is who they speak for. A container with the host's network and CAP_NET_RAW can set a mark,
/// too: such a socket must have been made in the agent's own cgroup.
pub const PROXY_MARK: u32 = 0x1575_0001;

/// Packets of a flow's last sender may wait in the device's queue for so long after another has taken
/// its port: until then they can't be told apart.
const TAKEN_OVER: Duration = Duration::from_millis(100);
/// The problem that senders aren't noted.
const NOT_NOTED: Code = Code::SendersNotNoted;

/// Answers remembered of each kind. A host has fewer users times cgroups than this.
const REMEMBERED: usize = 8192;

/// Look-ups made, for metrics.
#[derive(Debug, Default)]
pub struct OwnerCounters {
    /// Flows whose socket was found.
    pub found: AtomicU64,
    /// Flows that no socket has.
    pub unknown: AtomicU64,
    /// Look-ups that the kernel didn't answer.
    pub failed: AtomicU64,
    /// Flows whose program had to be found among the processes.
    pub program_searches: AtomicU64,
}

/// What the kernel notes of senders. Set up while the process still has all its privileges; never set
/// where that isn't possible.
pub type SharedSenders = OnceLock<Arc<Senders>>;

/// The kernel can't note senders, so that what depends on it doesn't work.
#[must_use]
pub fn not_noted(error: &anyhow::Error) -> Problem {
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
pub type SharedCgroups = Arc<Mutex<Option<Cgroups>>>;

/// Finds owners by `sock_diag`.
#[derive(Debug)]
pub struct SocketOwners {
    sockets: Option<SocketDiag>,
    senders: Option<Arc<Senders>>,
    refusals: Option<Refusals>,
    /// Whose the last TCP flow was.
    last: Option<(FlowKey, SocketOwner)>,
    /// Who opened flows that are refused.
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
    warned: HashSet<(ServiceId, ServiceId)>,
}

impl SocketOwners {
    #[must_use]
    pub fn new(
        sockets: Option<SocketDiag>,
        senders: Option<Arc<Senders>>,
        cgroups: SharedCgroups,
        counters: Arc<OwnerCounters>,
        callers: Arc<Callers>,
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
            warned: HashSet::new(),
        }
    }

    /// User names and placements can have changed with the revision.
    fn follow(&mut self, state: &State) {
        if self.revision == Some(state.revision()) {
            return;
        }
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
        let found = self.best(&Process { uid: socket.uid, cgroup: cgroup.as_deref(), exe: None });
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
        let process = Process { uid: socket.uid, cgroup: cgroup.as_deref(), exe: Some(&exe) };
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
            let cgroups = self.cgroups.lock().unwrap_or_else(PoisonError::into_inner);
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

    fn cgroup_of(&self, socket: &SocketOwner) -> Option<Arc<str>> {
        let mut cgroups = self.cgroups.lock().unwrap_or_else(PoisonError::into_inner);
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
        }
        found
    }

    fn name(&self, id: ServiceId) -> &str {
        self.services.iter().find(|it| it.id == id).map_or("?", |it| it.name.as_str())
    }
}

impl Owners for SocketOwners {
    fn owner(&mut self, flow: &FlowKey, state: &State) -> Owner {
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
    let cgroups = cgroups.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = cgroups.as_ref()?.directory(path);
    Some(std::fs::metadata(directory).ok()?.ino())
}

/// Where either can't be told, the mark must do.
fn is_of(own: Option<u64>, socket: Option<u64>) -> bool {
    own.zip(socket).is_none_or(|(own, socket)| own == socket)
}

/// Whom the proxy speaks for by a socket that is bound to this address.
fn spoken_for(flow: &FlowKey, state: &State) -> Owner {
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

/// What is known of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process<'a> {
    pub(crate) uid: u32,
    pub(crate) cgroup: Option<&'a str>,
    /// `None` while nobody has looked for it.
    pub(crate) exe: Option<&'a Path>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    Owner(Owner),
    /// A service could match, depending on the program.
    NeedsProgram,
}

/// A service with a workload here whose processes can be told.
#[derive(Debug)]
pub(crate) struct LocalService {
    pub(crate) id: ServiceId,
    pub(crate) name: String,
    /// The cheapest first.
    selectors: Vec<Wanted>,
}

/// A selector with its names looked up.
#[derive(Debug)]
enum Wanted {
    User(Option<u32>),
    Systemd(String),
    Cgroup(String),
    Exe(std::path::PathBuf),
}

pub(crate) fn local_services(snapshot: &Snapshot) -> Vec<LocalService> {
    let mut services: Vec<_> = snapshot
        .local_services()
        .filter(|(_, service, _)| !service.selectors.is_empty())
        .map(|(id, service, _)| LocalService {
            id,
            name: service.name.to_string(),
            selectors: service.selectors.iter().map(|it| wanted(it, &service.name)).collect(),
        })
        .collect();
    // The most specific first; `sort` keeps the order of the numbers among equals.
    services.sort_by_key(|service| std::cmp::Reverse(service.selectors.len()));
    services
}

fn wanted(selector: &Selector, service: &isthmus_model::Name) -> Wanted {
    match selector {
        Selector::User(user) => {
            let uid = user.parse().ok().or_else(|| process::user_id(user));
            if uid.is_none() {
                tracing::debug!(%service, %user, "no such user here: no process will match");
            }
            Wanted::User(uid)
        }
        Selector::Systemd(unit) if unit.contains('.') => Wanted::Systemd(unit.to_string()),
        Selector::Systemd(unit) => Wanted::Systemd(format!("{unit}.service")),
        Selector::Cgroup(path) => Wanted::Cgroup(cgroup_path(path)),
        Selector::Exe(path) => Wanted::Exe(path.clone()),
    }
}

/// Below the root of the hierarchy, wherever that is mounted.
fn cgroup_path(path: &Path) -> String {
    let inside = path.strip_prefix("/sys/fs/cgroup").unwrap_or(path);
    format!("/{}", inside.to_string_lossy().trim_matches('/'))
}

/// The service that the process is of, and another that it could be of as well.
fn best(
    services: &[LocalService],
    process: &Process<'_>,
) -> (Match, Option<(ServiceId, ServiceId)>) {
    let mut found: Option<&LocalService> = None;
    for service in services {
        let tied = found.is_none_or(|it| it.selectors.len() == service.selectors.len());
        if !tied {
            break;
        }
        let results = || service.selectors.iter().map(|selector| selector.matches(process));
        if results().any(|result| result == Some(false)) {
            continue;
        }
        if results().any(|result| result.is_none()) {
            return (Match::NeedsProgram, None);
        }
        match found {
            None => found = Some(service),
            Some(first) => {
                return (Match::Owner(Owner::Service(first.id)), Some((first.id, service.id)));
            }
        }
    }
    (Match::Owner(found.map_or(Owner::Host, |service| Owner::Service(service.id))), None)
}

/// Of each selector of a service, whether it fits.
pub(crate) type Fits = Vec<(Selector, Option<bool>)>;

/// Which service a process is of, and how that came about.
#[derive(Debug)]
pub(crate) struct Judgement {
    /// None: it speaks as the host, or its program has to be known first.
    pub(crate) service: Option<ServiceId>,
    /// The program decides, and it isn't known.
    pub(crate) needs_program: bool,
    /// Another one that it could be of as well.
    pub(crate) tie: Option<ServiceId>,
    /// Of each service here, whether its selectors fit, in the snapshot's order; `None`: that depends on
    /// the program.
    pub(crate) fits: Vec<(ServiceId, Fits)>,
}

/// Judges a process as the data plane would judge its sockets.
pub(crate) fn judge(snapshot: &Snapshot, process: &Process<'_>) -> Judgement {
    let (found, tie) = best(&local_services(snapshot), process);
    let fits = snapshot.local_services().map(|(id, service, _)| {
        let one = |selector: &Selector| {
            (selector.clone(), wanted(selector, &service.name).matches(process))
        };
        (id, service.selectors.iter().map(one).collect())
    });
    Judgement {
        service: match found {
            Match::Owner(Owner::Service(id)) => Some(id),
            Match::Owner(Owner::Host | Owner::Unknown) | Match::NeedsProgram => None,
        },
        needs_program: found == Match::NeedsProgram,
        tie: tie.map(|(_, other)| other),
        fits: fits.collect(),
    }
}

impl LocalService {
    /// Whether a process is one of its own, whichever else it may be of. `None`: the program decides,
    /// and nobody has looked for it.
    pub(crate) fn has(&self, process: &Process<'_>) -> Option<bool> {
        let results = || self.selectors.iter().map(|selector| selector.matches(process));
        if results().any(|result| result == Some(false)) {
            return Some(false);
        }
        results().all(|result| result.is_some()).then_some(true)
    }
}

impl Wanted {
    /// `None`: the program decides, and nobody has looked for it.
    fn matches(&self, process: &Process<'_>) -> Option<bool> {
        match self {
            Self::User(uid) => Some(*uid == Some(process.uid)),
            Self::Systemd(unit) => {
                Some(process.cgroup.is_some_and(|cgroup| is_in_unit(cgroup, unit)))
            }
            Self::Cgroup(path) => {
                Some(process.cgroup.is_some_and(|cgroup| Path::new(cgroup).starts_with(path)))
            }
            Self::Exe(path) => process.exe.map(|exe| exe == path),
        }
    }
}

/// A cgroup's path begins with slices, then comes the unit. What follows belongs to whoever the
/// unit delegates to: a user may well name a cgroup below `user@1000.service` like a system's unit.
fn is_in_unit(cgroup: &str, unit: &str) -> bool {
    for component in cgroup.split('/').filter(|component| !component.is_empty()) {
        if component == unit {
            return true;
        }
        if Path::new(component).extension().is_none_or(|kind| kind != "slice") {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "/system.slice/web.service";

    fn service(id: u32, selectors: Vec<Wanted>) -> LocalService {
        LocalService { id: ServiceId(id), name: format!("s{id}"), selectors }
    }

    fn user(uid: u32) -> Wanted {
        Wanted::User(Some(uid))
    }

    fn unit(name: &str) -> Wanted {
        Wanted::Systemd(name.to_owned())
    }

    fn process(uid: u32, cgroup: &str) -> Process<'_> {
        Process { uid, cgroup: Some(cgroup), exe: None }
    }

    fn of(id: u32) -> Match {
        Match::Owner(Owner::Service(ServiceId(id)))
    }

    #[test]
    fn a_mark_counts_only_on_a_socket_of_the_agents_cgroup() {
        assert!(is_of(Some(7), Some(7)));
        assert!(!is_of(Some(7), Some(8)));
        assert!(is_of(None, Some(8)) && is_of(Some(7), None), "the mark must do");
        let cgroups = Arc::new(Mutex::new(Some(Cgroups::open().unwrap())));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (local, remote) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let lookup = Lookup { protocol: Protocol::Tcp, local, remote };
        let socket = SocketDiag::open().unwrap().lookup(&lookup).unwrap().unwrap();
        assert_eq!(own_cgroup(&cgroups), socket.cgroup_id, "as the kernel tells it");
        assert!(socket.cgroup_id.is_some());
    }

    #[test]
    fn a_process_that_matches_nothing_speaks_as_its_host() {
        let services = [service(1, vec![user(33)]), service(2, vec![unit("web.service")])];
        let other = process(1000, "/user.slice/user-1000.slice/session-1.scope");
        assert_eq!(best(&services, &other), (Match::Owner(Owner::Host), None));
        assert_eq!(best(&[], &other), (Match::Owner(Owner::Host), None));
    }

    #[test]
    fn all_selectors_of_a_service_must_match() {
        let services = [service(1, vec![user(33), unit("web.service")])];
        assert_eq!(best(&services, &process(33, WEB)).0, of(1));
        assert_eq!(best(&services, &process(34, WEB)).0, Match::Owner(Owner::Host));
        let elsewhere = process(33, "/system.slice/other.service");
        assert_eq!(best(&services, &elsewhere).0, Match::Owner(Owner::Host));
    }

    #[test]
    fn the_most_specific_service_wins_and_ties_go_to_the_lowest_number() {
        let specific = || service(9, vec![user(33), unit("web.service")]);
        let services = [specific(), service(1, vec![user(33)])];
        assert_eq!(best(&services, &process(33, WEB)), (of(9), None));
        assert_eq!(best(&services, &process(33, "/")), (of(1), None));

        let tied = [service(3, vec![user(33)]), service(4, vec![unit("web.service")])];
        let both = (ServiceId(3), ServiceId(4));
        assert_eq!(best(&tied, &process(33, WEB)), (of(3), Some(both)));
    }

    #[test]
    fn the_program_is_looked_for_only_where_it_could_decide() {
        let exe = || Wanted::Exe("/usr/sbin/nginx".into());
        let services = [service(1, vec![user(33), exe()])];
        assert_eq!(best(&services, &process(34, WEB)).0, Match::Owner(Owner::Host));
        assert_eq!(best(&services, &process(33, WEB)).0, Match::NeedsProgram);
        let nginx = Process { exe: Some(Path::new("/usr/sbin/nginx")), ..process(33, WEB) };
        assert_eq!(best(&services, &nginx).0, of(1));
        let curl = Process { exe: Some(Path::new("/usr/bin/curl")), ..process(33, WEB) };
        assert_eq!(best(&services, &curl).0, Match::Owner(Owner::Host));
    }

    #[test]
    fn a_unit_is_the_first_component_below_the_slices() {
        assert!(is_in_unit(WEB, "web.service"));
        assert!(is_in_unit("/system.slice/web.service/worker", "web.service"));
        assert!(is_in_unit("/a.slice/a-b.slice/web@1.service", "web@1.service"));
        assert!(is_in_unit("/batch.slice/job.scope", "batch.slice"));
        assert!(!is_in_unit("/system.slice/web.service.d", "web.service"));
        assert!(!is_in_unit("/", "web.service"));
    }

    #[test]
    fn a_user_cannot_name_a_cgroup_like_a_unit_of_the_system() {
        let own = "/user.slice/user-1000.slice/user@1000.service/app.slice/web.service";
        assert!(!is_in_unit(own, "web.service"));
        assert!(is_in_unit(own, "user@1000.service"));
    }

    #[test]
    fn a_cgroup_selector_covers_what_is_below_it() {
        let wanted = Wanted::Cgroup(cgroup_path(Path::new("/sys/fs/cgroup/jobs/")));
        assert_eq!(wanted.matches(&process(0, "/jobs")), Some(true));
        assert_eq!(wanted.matches(&process(0, "/jobs/7")), Some(true));
        assert_eq!(wanted.matches(&process(0, "/jobs-of-others")), Some(false));
        let unknown = Process { uid: 0, cgroup: None, exe: None };
        assert_eq!(wanted.matches(&unknown), Some(false));
    }

    #[test]
    fn an_unknown_user_matches_nobody() {
        assert_eq!(Wanted::User(None).matches(&process(0, "/")), Some(false));
    }
}
