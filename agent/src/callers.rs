//! Local callers: the user, unit and program that opened a flow from this host, for logs and `agentctl flows`.
//!
//! The socket of a refused flow is gone a moment later. So whoever opens one is looked up while its packet
//! is at hand, for as many flows in a second as the log has room for, and remembered for a while.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use isthmus_model::{Place, ServiceId};
use isthmus_net::process;
use isthmus_net::senders::Senders;
use isthmus_net::sock_diag::{Lookup, Protocol, SocketDiag};
use isthmus_packet::{Address, FlowKey, protocol};
use isthmus_proxy::{Process, Processes};
use parking_lot::{Mutex, MutexGuard};

use crate::owners::SharedCgroups;
use crate::status::Shared;

/// Refused flows whose callers are remembered.
const REMEMBERED: usize = 1024;
/// Time limit of a search for a program that a request waits for.
const SHORT: Duration = Duration::from_millis(2);
/// Refused flows whose callers are looked up in each second.
const LOOKED_UP: u32 = 50;

/// A process that opened a flow, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub uid: u32,
    /// Its cgroup (v2), from the root of the hierarchy.
    pub cgroup: Option<Arc<str>>,
    pub program: Option<Arc<Path>>,
}

impl Caller {
    /// The user's name, or number where it has none here.
    #[must_use]
    pub(crate) fn user(&self) -> String {
        user_name(self.uid).unwrap_or_else(|| self.uid.to_string())
    }

    /// The systemd unit, or else the cgroup; empty where neither is known.
    #[must_use]
    pub(crate) fn unit(&self) -> &str {
        let cgroup = self.cgroup.as_deref().unwrap_or_default();
        unit_of(cgroup).unwrap_or(cgroup)
    }

    fn in_words(&self) -> Process {
        Process { user: self.user(), unit: self.unit().to_owned(), program: self.program() }
    }

    #[must_use]
    pub(crate) fn program(&self) -> String {
        self.program.as_deref().map_or_else(String::new, |it| it.display().to_string())
    }
}

/// The unit that a cgroup belongs to: the first component that is no slice. What is below is the unit's
/// own to name.
pub(crate) fn unit_of(cgroup: &str) -> Option<&str> {
    let mut parts = cgroup.split('/').filter(|part| !part.is_empty());
    let unit = parts.find(|part| !part.ends_with(".slice"))?;
    [".service", ".scope"].iter().any(|kind| unit.ends_with(kind)).then_some(unit)
}

/// By the host's own list of users: a directory service could take its time.
pub(crate) fn user_name(uid: u32) -> Option<String> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// The callers of flows that were refused lately.
#[derive(Debug, Default)]
pub(crate) struct Callers(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    known: HashMap<FlowKey, Caller>,
    order: VecDeque<FlowKey>,
    since: Option<Instant>,
    looked_up: u32,
}

impl Callers {
    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.0.lock()
    }

    /// Whether somebody should look who opened a flow that is refused just now.
    pub(crate) fn wants(&self, flow: &FlowKey, now: Instant) -> bool {
        let mut recent = self.recent();
        if recent.since.is_none_or(|since| now >= since + Duration::from_secs(1)) {
            (recent.since, recent.looked_up) = (Some(now), 0);
        }
        let wanted = recent.looked_up < LOOKED_UP && !recent.known.contains_key(flow);
        recent.looked_up += u32::from(wanted);
        wanted
    }

    pub(crate) fn note(&self, flow: FlowKey, caller: Caller) {
        let mut recent = self.recent();
        if recent.known.insert(flow, caller).is_some() {
            return;
        }
        recent.order.push_back(flow);
        if recent.order.len() > REMEMBERED
            && let Some(oldest) = recent.order.pop_front()
        {
            recent.known.remove(&oldest);
        }
    }

    /// Finds the process that opened a refused flow.
    #[must_use]
    pub(crate) fn of(&self, flow: &FlowKey) -> Option<Caller> {
        self.recent().known.get(flow).cloned()
    }
}

/// Looks up who has flows that are open.
#[derive(Debug)]
pub(crate) struct LiveCallers {
    sockets: Option<SocketDiag>,
    senders: Option<Arc<Senders>>,
    cgroups: SharedCgroups,
}

impl LiveCallers {
    pub(crate) fn new(senders: Option<Arc<Senders>>, cgroups: SharedCgroups) -> Self {
        Self { sockets: SocketDiag::open().ok(), senders, cgroups }
    }

    /// Without the program, which would have to be searched for.
    pub(crate) fn of(&mut self, flow: &FlowKey) -> Option<Caller> {
        self.find(flow).map(|(caller, _)| caller)
    }

    /// With the program, if it is found in a moment.
    fn with_program(&mut self, flow: &FlowKey) -> Option<Caller> {
        let (mut caller, inode) = self.find(flow)?;
        let directory = || {
            let cgroups = self.cgroups.lock();
            Some(cgroups.as_ref()?.directory(caller.cgroup.as_deref()?))
        };
        let program = process::exe_of(inode, caller.uid, directory().as_deref(), SHORT);
        caller.program = program.map(Arc::from);
        Some(caller)
    }

    /// The number of the socket, too; 0 where it isn't known.
    fn find(&mut self, flow: &FlowKey) -> Option<(Caller, u32)> {
        let end = |address: Address, port| SocketAddr::new(address.ip(), port);
        let local = end(flow.source, flow.source_port);
        let remote = end(flow.destination, flow.destination_port);
        let (uid, cgroup_id, inode) = match flow.protocol {
            protocol::TCP => {
                let lookup = Lookup { protocol: Protocol::Tcp, local, remote };
                let found = self.sockets.as_mut()?.lookup(&lookup).ok().flatten()?;
                (found.uid, found.cgroup_id, found.inode)
            }
            protocol::UDP => {
                let sender = self.senders.as_ref()?.sender(local, remote)?;
                (sender.uid, Some(sender.cgroup_id), 0)
            }
            _ => return None,
        };
        let mut cgroups = self.cgroups.lock();
        let cgroup = cgroup_id.and_then(|id| cgroups.as_mut()?.path_of(id).ok().flatten());
        Some((Caller { uid, cgroup, program: None }, inode))
    }
}

/// Tells the proxy who asked for what is refused.
#[derive(Debug)]
pub(crate) struct LocalProcesses {
    shared: Weak<Shared>,
    live: Mutex<LiveCallers>,
}

impl LocalProcesses {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        let live = LiveCallers::new(None, Arc::clone(&shared.cgroups));
        Self { shared: Arc::downgrade(shared), live: Mutex::new(live) }
    }
}

impl Processes for LocalProcesses {
    /// The proxy sees callers by addresses that lead back to it. Their sockets have the host's, or are
    /// bound to their workload's.
    fn of(&self, caller: SocketAddr, called: SocketAddr) -> Option<Process> {
        let shared = self.shared.upgrade()?;
        let state = shared.state()?;
        let snapshot = &state.snapshot;
        let v4 = called.is_ipv4();
        let own: IpAddr = match v4 {
            true => snapshot.local_host().ipv4().into(),
            false => snapshot.workload_ipv6(snapshot.local, ServiceId(0)).into(),
        };
        let workload: Option<IpAddr> = match state.directory.place(caller.ip())? {
            Place::Virtual(service) if v4 => {
                let placements = &snapshot.services.get(&service)?.placements;
                placements.get(&snapshot.local).map(|ipv4| (*ipv4).into())
            }
            Place::Virtual(service) => Some(snapshot.workload_ipv6(snapshot.local, service).into()),
            Place::Anycast => None,
            Place::Host(_) | Place::Workload(..) | Place::Device(..) => return None,
        };
        let flow = |source: IpAddr| FlowKey {
            source: Address::from(source),
            destination: Address::from(called.ip()),
            source_port: caller.port(),
            destination_port: called.port(),
            protocol: protocol::TCP,
        };
        let own = flow(own);
        if !shared.callers.wants(&own, Instant::now()) {
            return shared.callers.of(&own).map(|it| it.in_words());
        }
        // Another request is being looked up: this one's line does without.
        let mut live = self.live.try_lock()?;
        let flows = [Some(own), workload.map(flow)].into_iter().flatten();
        let found = flows.into_iter().find_map(|flow| live.with_program(&flow))?;
        shared.callers.note(own, found.clone());
        Some(found.in_words())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16) -> FlowKey {
        let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        FlowKey {
            source: address("100.64.0.1"),
            destination: address("100.127.0.5"),
            source_port: port,
            destination_port: 8080,
            protocol: protocol::TCP,
        }
    }

    fn caller(uid: u32) -> Caller {
        Caller { uid, cgroup: Some("/system.slice/web.service/worker".into()), program: None }
    }

    #[test]
    fn a_flood_of_refused_flows_is_looked_up_in_part_and_forgotten() {
        let (callers, now) = (Callers::default(), Instant::now());
        let looked_up = (0..1000).filter(|port| callers.wants(&flow(*port), now)).count();
        assert_eq!(looked_up, LOOKED_UP as usize);
        let later = now + Duration::from_secs(1);
        assert!(callers.wants(&flow(1), later));
        for port in 0..2000 {
            callers.note(flow(port), caller(u32::from(port)));
        }
        assert_eq!(callers.of(&flow(1999)), Some(caller(1999)));
        assert_eq!(callers.of(&flow(0)), None);
        assert_eq!(callers.recent().known.len(), REMEMBERED);
        assert!(!callers.wants(&flow(1999), later), "it is known");
    }

    #[test]
    fn a_caller_is_told_by_user_and_unit() {
        assert_eq!(caller(0).user(), "root");
        assert_eq!(caller(4_000_000_000).user(), "4000000000");
        assert_eq!(caller(0).unit(), "web.service");
        assert_eq!(unit_of("/user.slice/user-1.slice/session-3.scope"), Some("session-3.scope"));
        let jobs = Caller { cgroup: Some("/jobs/7".into()), ..caller(0) };
        assert_eq!(jobs.unit(), "/jobs/7");
    }
}
