//! Listeners: the owners of sockets on services' ports.
//!
//! A service's own is a socket that one of its processes made or holds: nginx's master is root, and
//! its workers inherit. Systemd opens sockets for units that begin later, and a proxy of the
//! container runtime's stands before containers: these are as good. Everybody else has taken the
//! port of a service that is down, or the service's `workload` is wrong.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_model::{Exposure, ListenerCheck, Revision, Service, ServiceId, Snapshot};
use isthmus_net::privileges;
use isthmus_net::process::{self, Holder};
use isthmus_net::sock_diag::{Protocol, SocketDiag, SocketOwner};

use super::applications::Listens;
use super::{Behind, Key, Port, addresses, guarded};
use crate::containers::Table;
use crate::owners::{LocalService, Process, SharedCgroups, local_services};

/// For one search among all processes. It is made in the background.
const BUDGET: Duration = Duration::from_millis(500);
/// A stranger's socket is looked at again after this: a process of the service may have got it.
const AGAIN: Duration = Duration::from_secs(5);
/// Who starts everything else, and opens sockets for it.
const INIT: u32 = 1;
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
const ROOT: u32 = 0;
/// Cgroups in which only systemd makes sockets, and those of users, who name theirs as they like.
const UNIT_OF_SOCKETS: &str = ".socket";
const OF_USERS: &str = "/user.slice/";
/// Length to which the kernel cuts a process's name.
const NAME_LEN: usize = 15;
/// Programs by which container runtimes hold the ports of containers.
const STAND_INS: [&str; 5] =
    ["docker-proxy", "conmon", "rootlessport", "containerd-shim-runc-v2", "pasta"];

/// Listening state of a service's port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Finding {
    /// Whose the sockets are, of both families.
    pub(super) standing: Standing,
    /// As whom the service's own sockets were opened.
    pub(super) users: BTreeSet<u32>,
    /// Where something listens that can be reached around the mesh.
    pub(super) reachable: Option<IpAddr>,
    /// Where the application does.
    pub(super) listens: Listens,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nobody listens.
    #[default]
    Nobody,
    Own,
    /// Somebody else's: in words.
    Foreign(String),
}

/// The process that such words name.
pub(super) fn process_of(who: &str) -> Option<u32> {
    let (_, rest) = who.split_once("(process ")?;
    rest.split_once(' ')?.0.parse().ok()
}

/// Looks who listens.
#[derive(Debug)]
pub(super) struct Listeners {
    sockets: Option<SocketDiag>,
    cgroups: SharedCgroups,
    revision: Option<Revision>,
    services: Vec<LocalService>,
    containers: Arc<Table>,
    /// By service and socket.
    known: HashMap<(ServiceId, u32), (Standing, Instant)>,
}

impl Listeners {
    pub(super) fn new(cgroups: SharedCgroups) -> Self {
        let sockets = SocketDiag::open().inspect_err(|error| {
            tracing::warn!(%error, "nobody looks who listens on services' ports");
        });
        Self {
            sockets: sockets.ok(),
            cgroups,
            revision: None,
            services: Vec::new(),
            containers: Arc::default(),
            known: HashMap::new(),
        }
    }

    /// What is to be said of each service here. `underlay`: addresses by which neighbours reach this host.
    pub(super) fn look(
        &mut self,
        snapshot: &Snapshot,
        underlay: &[IpAddr],
        (containers, behind): (&Arc<Table>, &Behind),
    ) -> HashMap<Key, Finding> {
        if self.containers != *containers {
            self.containers = Arc::clone(containers);
            self.known.clear();
        }
        if self.revision != Some(snapshot.revision) {
            self.revision = Some(snapshot.revision);
            self.services = local_services(snapshot);
            self.known.clear();
        }
        let now = Instant::now();
        self.known.retain(|_, (standing, at)| {
            matches!(standing, Standing::Own) || now.duration_since(*at) < AGAIN
        });
        guarded(snapshot)
            .map(|(key @ (id, _), service)| {
                let (standing, users) = self.standing(snapshot, id, &service, behind);
                let reachable = self.reachable(&service, underlay);
                let listens = self.listens(snapshot, id, &service, behind);
                (key, Finding { standing, users, reachable, listens })
            })
            .collect()
    }

    fn standing(
        &mut self,
        snapshot: &Snapshot,
        id: ServiceId,
        service: &Service,
        behind: &Behind,
    ) -> (Standing, BTreeSet<u32>) {
        let (mut standing, mut users) = (Standing::Nobody, BTreeSet::new());
        for address in addresses(snapshot, id, service) {
            if behind.serves(&(address, Port::of(service))) {
                // It never comes to who listens here.
                standing = Standing::Own;
                continue;
            }
            let Some(socket) = self.listener(service, address) else { continue };
            match self.standing_of(id, &socket) {
                foreign @ Standing::Foreign(_) => return (foreign, BTreeSet::new()),
                found @ (Standing::Nobody | Standing::Own) => standing = found,
            }
            users.insert(socket.uid);
        }
        (standing, users)
    }

    /// What is led to a container isn't listened for here.
    fn listens(
        &mut self,
        snapshot: &Snapshot,
        id: ServiceId,
        service: &Service,
        behind: &Behind,
    ) -> Listens {
        let mut found = Listens::default();
        for address in addresses(snapshot, id, service) {
            let is_led = behind.serves(&(address, Port::of(service)));
            let family = if address.is_ipv4() { &mut found.v4 } else { &mut found.v6 };
            *family = is_led || self.listener(service, address).is_some();
            found.contained |= is_led;
        }
        if !found.v4 && !found.v6 {
            let port = Port::of(service).number;
            let listening = LOOPBACK.into_iter().find(|it| self.listener(service, *it).is_some());
            found.loopback = listening.map(|address| SocketAddr::new(address, port));
        }
        found
    }

    /// Whether the port can be reached around the mesh: by a neighbour, or where the application is told
    /// who calls, by anybody here.
    fn reachable(&mut self, service: &Service, underlay: &[IpAddr]) -> Option<IpAddr> {
        if service.guard.exposure != Exposure::Count {
            return None;
        }
        let here = if service.is_told_callers() { &LOOPBACK[..] } else { &[] };
        underlay
            .iter()
            .chain(here)
            .find_map(|address| Some(self.listener(service, *address)?.bound))
    }

    fn listener(&mut self, service: &Service, address: IpAddr) -> Option<SocketOwner> {
        let Port { udp, number } = Port::of(service);
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        let asked = self.sockets.as_mut()?.listener(protocol, SocketAddr::new(address, number));
        asked.inspect_err(|error| tracing::debug!(%error, "couldn't ask who listens")).ok()?
    }

    fn standing_of(&mut self, id: ServiceId, socket: &SocketOwner) -> Standing {
        let Some(service) = self.services.iter().find(|it| it.id == id) else {
            // Its processes can't be told from others.
            return Standing::Own;
        };
        if let Some((known, _)) = self.known.get(&(id, socket.inode)) {
            return known.clone();
        }
        let standing = self.find_out(service, socket);
        self.known.insert((id, socket.inode), (standing.clone(), Instant::now()));
        standing
    }

    fn find_out(&self, service: &LocalService, socket: &SocketOwner) -> Standing {
        let (cgroup, directory) = self.cgroup_of(socket);
        let maker = Process {
            uid: Some(socket.uid),
            cgroup: cgroup.as_deref(),
            exe: None,
            container: cgroup
                .as_deref()
                .and_then(|it| self.containers.of_cgroup(it))
                .map(|it| &**it),
        };
        if service.has(&maker) == Some(true) {
            return Standing::Own;
        }
        let holders = if privileges::sees_processes() {
            process::holders(socket.inode, directory.as_deref(), BUDGET)
        } else if is_of_a_socket_unit(socket.uid, cgroup.as_deref()) {
            return Standing::Own;
        } else {
            // Root made it, or not: beside whom?
            directory.as_deref().map(process::of_cgroup).unwrap_or_default()
        };
        judge(service, socket.uid, &holders, &self.containers)
    }

    fn cgroup_of(&self, socket: &SocketOwner) -> (Option<Arc<str>>, Option<PathBuf>) {
        let mut cgroups = self.cgroups.lock();
        let Some(cgroups) = cgroups.as_mut() else { return (None, None) };
        let path = socket.cgroup_id.and_then(|id| cgroups.path_of(id).ok().flatten());
        let directory = path.as_deref().map(|path| cgroups.directory(path));
        (path, directory)
    }
}

/// Whether systemd made a socket for a unit that begins later.
fn is_of_a_socket_unit(maker: u32, cgroup: Option<&str>) -> bool {
    let is_its = |path: &str| path.ends_with(UNIT_OF_SOCKETS) && !path.starts_with(OF_USERS);
    maker == ROOT && cgroup.is_some_and(is_its)
}

/// Whose a socket is that the user `maker` made and these processes hold.
fn judge(service: &LocalService, maker: u32, holders: &[Holder], containers: &Table) -> Standing {
    let is_own = |holder: &Holder| {
        let cgroup = holder.cgroup.as_deref();
        let process = Process {
            uid: Some(holder.uid),
            cgroup,
            exe: holder.exe.as_deref(),
            container: cgroup.and_then(|it| containers.of_cgroup(it)).map(|it| &**it),
        };
        service.has(&process) == Some(true)
    };
    // Anybody can have a process of the service hold a socket, too: of others than its own users only
    // root is believed.
    let is_theirs = |holder: &Holder| match maker {
        ROOT => is_own(holder) || is_trusted(holder),
        maker => holder.uid == maker && is_own(holder),
    };
    if holders.iter().any(is_theirs) {
        return Standing::Own;
    }
    Standing::Foreign(match holders.first() {
        Some(Holder { pid, uid, exe, name, .. }) => {
            let program = exe.as_deref().map(Path::to_string_lossy);
            let program = program.or_else(|| name.as_deref().map(Into::into));
            let program = program.unwrap_or_else(|| "a program".into());
            format!("{program} (process {pid} of user {uid})")
        }
        None => format!("a process of user {maker}, which can't be looked at,"),
    })
}

/// Who may hold another's socket: it takes root to be one of them.
fn is_trusted(holder: &Holder) -> bool {
    let stands_in = match holder.exe.as_deref().and_then(Path::file_name) {
        Some(program) => STAND_INS.iter().any(|it| program == *it),
        None => {
            STAND_INS.iter().any(|it| holder.name.as_deref() == it.get(..NAME_LEN).or(Some(it)))
        }
    };
    holder.pid == INIT || (holder.uid == ROOT && stands_in)
}

/// Whether what is meant for a service is refused.
pub(super) fn is_refused(service: &Service, finding: Option<&Finding>) -> bool {
    let is_own = finding.is_some_and(|it| it.standing == Standing::Own);
    service.guard.listener == ListenerCheck::Strict && !is_own
}

#[cfg(test)]
mod tests {
    use isthmus_model::{Protocol as Speaks, Selector};

    use super::super::tests::snapshot;
    use super::*;

    fn service(selector: Selector) -> LocalService {
        let mut snapshot = snapshot(&[(80, Speaks::Tcp, Exposure::Mesh)]);
        snapshot.services.get_mut(&ServiceId(20)).unwrap().selectors = vec![selector];
        local_services(&snapshot).remove(0)
    }

    fn judged(service: &LocalService, maker: u32, holders: &[Holder]) -> Standing {
        judge(service, maker, holders, &Table::default())
    }

    fn holder(pid: u32, uid: u32, cgroup: &str, exe: &str) -> Holder {
        let name = Path::new(exe).file_name().map(|it| it.to_string_lossy().into_owned());
        Holder { pid, uid, cgroup: Some(cgroup.to_owned()), exe: Some(exe.into()), name }
    }

    #[test]
    fn one_process_of_the_service_among_the_holders_is_enough() {
        let web = service(Selector::User("33".into()));
        let master = holder(70, 0, "/system.slice/nginx.service", "/usr/sbin/nginx");
        let worker = holder(71, 33, "/system.slice/nginx.service", "/usr/sbin/nginx");
        assert_eq!(judged(&web, 0, &[master.clone(), worker]), Standing::Own);
        assert!(matches!(judged(&web, 0, std::slice::from_ref(&master)), Standing::Foreign(_)));
        let unit = service(Selector::Systemd("web.service".into()));
        let of_unit = holder(80, 0, "/system.slice/web.service", "/usr/bin/x");
        assert_eq!(judged(&unit, 0, &[of_unit]), Standing::Own);
    }

    #[test]
    fn systemd_and_container_runtimes_hold_sockets_for_others() {
        let web = service(Selector::Cgroup("/system.slice/docker-1.scope".into()));
        let docker = |uid| holder(90, uid, "/system.slice/docker.service", "/usr/bin/docker-proxy");
        assert_eq!(judged(&web, 0, &[holder(1, 0, "/init.scope", "/bin/init")]), Standing::Own);
        assert_eq!(judged(&web, 0, &[docker(0)]), Standing::Own);
        assert!(matches!(judged(&web, 1000, &[docker(1000)]), Standing::Foreign(_)));
        let init = holder(1, 0, "/init.scope", "/bin/init");
        assert!(matches!(judged(&web, 1000, &[init]), Standing::Foreign(_)), "it only keeps it");
    }

    #[test]
    fn a_socket_of_a_strangers_stays_its_own_whoever_holds_it_too() {
        let web = service(Selector::User("33".into()));
        let worker = holder(71, 33, "/system.slice/nginx.service", "/usr/sbin/nginx");
        assert_eq!(judged(&web, 33, std::slice::from_ref(&worker)), Standing::Own);
        assert!(matches!(judged(&web, 1000, &[worker]), Standing::Foreign(_)));
    }

    #[test]
    fn without_its_program_a_container_runtime_is_known_by_the_name_that_root_gave_it() {
        let web = service(Selector::User("33".into()));
        for (name, uid, is_own) in [
            ("docker-proxy", 0, true),
            ("containerd-shim", 0, true),
            ("docker-proxy", 1000, false),
            ("nc", 0, false),
        ] {
            let name = Some(name.to_owned());
            let unseen =
                Holder { exe: None, name, ..holder(90, uid, "/system.slice/x.service", "") };
            assert_eq!(judged(&web, 0, &[unseen]) == Standing::Own, is_own);
        }
    }

    #[test]
    fn only_the_systems_own_socket_units_make_sockets_for_others() {
        for (maker, cgroup, is_one) in [
            (0, Some("/system.slice/web.socket"), true),
            (1000, Some("/system.slice/web.socket"), false),
            (0, Some("/system.slice/web.service"), false),
            (0, Some("/user.slice/user-1000.slice/user@1000.service/web.socket"), false),
            (0, None, false),
        ] {
            assert_eq!(is_of_a_socket_unit(maker, cgroup), is_one, "{maker} in {cgroup:?}");
        }
    }

    #[test]
    fn an_impostor_is_named() {
        let web = service(Selector::User("33".into()));
        let thief = holder(99, 1000, "/user.slice", "/usr/bin/nc");
        let Standing::Foreign(who) = judged(&web, 1000, &[thief]) else { panic!("it is foreign") };
        assert_eq!(who, "/usr/bin/nc (process 99 of user 1000)");
        assert_eq!(process_of(&who), Some(99));
        assert_eq!(process_of("a process of user 5, which can't be looked at,"), None);
        assert!(matches!(judged(&web, 1000, &[]), Standing::Foreign(_)), "in doubt it is said");
    }

    #[test]
    fn strict_refuses_until_a_process_of_the_service_listens() {
        let mut snapshot = snapshot(&[(80, Speaks::Tcp, Exposure::Mesh)]);
        let service = snapshot.services.get_mut(&ServiceId(20)).unwrap();
        let finding = |standing| Finding { standing, ..Finding::default() };
        assert!(!is_refused(service, None));
        service.guard.listener = ListenerCheck::Strict;
        assert!(is_refused(service, None));
        assert!(is_refused(service, Some(&finding(Standing::Nobody))));
        assert!(is_refused(service, Some(&finding(Standing::Foreign(String::new())))));
        assert!(!is_refused(service, Some(&finding(Standing::Own))));
    }

    #[test]
    fn who_has_taken_a_port_is_found() {
        isthmus_net::testing::in_netns(|| {
            let mut snapshot = snapshot(&[(8123, Speaks::Tcp, Exposure::Count)]);
            let service = snapshot.services.get_mut(&ServiceId(20)).unwrap();
            service.placements = [(snapshot.local, Ipv4Addr::LOCALHOST)].into();
            service.selectors = vec![Selector::User("54321".into())];
            let mut listeners = Listeners::new(SharedCgroups::default());
            let look = |listeners: &mut Listeners, snapshot: &Snapshot| {
                let loopback = [Ipv4Addr::LOCALHOST.into()];
                let nothing = (&Arc::default(), &Behind::default());
                let key = (ServiceId(20), 8123);
                listeners.look(snapshot, &loopback, nothing).remove(&key).unwrap()
            };
            assert_eq!(look(&mut listeners, &snapshot), Finding::default());

            let _taken = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8123)).unwrap();
            let found = look(&mut listeners, &snapshot);
            assert_eq!(found.reachable, Some(Ipv4Addr::UNSPECIFIED.into()));
            let Standing::Foreign(who) = found.standing else { panic!("{found:?}") };
            assert!(who.contains(&format!("process {}", std::process::id())), "{who}");

            // The same socket is the service's own, once its `workload` says so.
            snapshot.revision.0 += 1;
            let service = snapshot.services.get_mut(&ServiceId(20)).unwrap();
            service.selectors = vec![Selector::User("0".into())];
            let found = look(&mut listeners, &snapshot);
            assert_eq!((found.standing, found.users), (Standing::Own, [0].into()));
        });
    }
}
