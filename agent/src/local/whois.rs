//! `agentctl whois`: the owner of an address or name, and the service that a process would be, with the reason.

use std::net::IpAddr;
use std::sync::Arc;

use isthmus_core::CompiledSnapshot;
use isthmus_model::{Host, HostId, Identity, Place, Principal, Selector, ServiceId, Snapshot};
use isthmus_net::process::{self, Holder};
use isthmus_proto::v1;

use super::resolve::{Named, ResolveError, named, resolve};
use crate::callers::{unit_of, user_name};
use crate::containers::{Container, Table, speaker};
use crate::owners::{Judgement, Process, judge, local_services};

const DOMAIN: &str = "mesh.internal";

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WhoisError {
    #[error("There is no process {0} on this host")]
    NoProcess(u32),
    #[error(transparent)]
    Unknown(#[from] ResolveError),
}

pub(super) fn whois(
    state: &CompiledSnapshot,
    containers: &Table,
    target: &str,
) -> Result<v1::WhoisAnswer, WhoisError> {
    if let Ok(pid) = target.parse::<u32>() {
        let found = process::as_sockets_show(pid).ok_or(WhoisError::NoProcess(pid))?;
        return Ok(of_process(&state.snapshot, containers, &found));
    }
    let snapshot = &state.snapshot;
    let bare = target.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(target);
    let address: IpAddr = match bare.parse() {
        Ok(address) => address,
        Err(_) => match named(snapshot, target)? {
            Named::Service(id) => return Ok(of_service(snapshot, id)),
            Named::Host(_) | Named::Device(_) => resolve(state, target)?,
        },
    };
    let Some(place) = state.directory.place(address) else {
        return of_endpoint(snapshot, address).ok_or_else(|| ResolveError::Foreign(address).into());
    };
    let kind = match place {
        Place::Host(_) => "host",
        Place::Workload(..) => "workload",
        Place::Device(..) => "device",
        Place::Virtual(_) => "virtual address",
        Place::Anycast => "this host",
    };
    let mut answer = of_principal(snapshot, place.principal(snapshot.local));
    answer.kind = kind.to_owned();
    answer.host = place.host().map_or_else(String::new, |id| host_name(snapshot, id));
    answer.addresses = match place {
        Place::Host(id) => addresses(snapshot, id, ServiceId(0)),
        Place::Workload(host, service) => addresses(snapshot, host, service),
        Place::Device(..) | Place::Anycast => vec![address.to_string()],
        Place::Virtual(service) => {
            answer.workloads = workloads(snapshot, service);
            virtual_addresses(snapshot, service)
        }
    };
    Ok(answer)
}

/// The host whose tunnels end at an address of the underlay. Behind one that translates addresses there may
/// be several.
fn of_endpoint(snapshot: &Snapshot, address: IpAddr) -> Option<v1::WhoisAnswer> {
    let ends_there = |host: &Host| host.endpoints.iter().any(|it| it.ip() == address);
    let hosts: Vec<HostId> =
        snapshot.hosts.iter().filter(|(_, host)| ends_there(host)).map(|(id, _)| *id).collect();
    let named: Vec<String> = hosts.iter().map(|id| host_name(snapshot, *id)).collect();
    let answer = v1::WhoisAnswer {
        kind: "endpoint of tunnels".to_owned(),
        host: named.join(", "),
        addresses: hosts.iter().flat_map(|id| addresses(snapshot, *id, ServiceId(0))).collect(),
        ..v1::WhoisAnswer::default()
    };
    match *hosts {
        [] => None,
        [id] => Some(v1::WhoisAnswer {
            kind: answer.kind,
            host: answer.host,
            addresses: answer.addresses,
            ..of_principal(snapshot, Principal::Host(id))
        }),
        _ => Some(v1::WhoisAnswer { identity: "several hosts".to_owned(), ..answer }),
    }
}

/// A service as a whole: nowhere in particular.
fn of_service(snapshot: &Snapshot, id: ServiceId) -> v1::WhoisAnswer {
    v1::WhoisAnswer {
        kind: "service".to_owned(),
        addresses: virtual_addresses(snapshot, id),
        workloads: workloads(snapshot, id),
        ..of_principal(snapshot, Principal::Service(id))
    }
}

fn virtual_addresses(snapshot: &Snapshot, service: ServiceId) -> Vec<String> {
    let ipv4 = snapshot.services.get(&service).map(|it| it.virtual_ipv4.to_string());
    ipv4.into_iter().chain([snapshot.virtual_ipv6(service).to_string()]).collect()
}

fn workloads(snapshot: &Snapshot, service: ServiceId) -> Vec<v1::ServiceWorkload> {
    let placements = snapshot.services.get(&service).map(|it| &it.placements);
    let hosts = placements.into_iter().flat_map(|placements| placements.keys());
    hosts
        .map(|host| v1::ServiceWorkload {
            host: host_name(snapshot, *host),
            addresses: addresses(snapshot, *host, service),
        })
        .collect()
}

fn host_name(snapshot: &Snapshot, id: HostId) -> String {
    snapshot.hosts.get(&id).map_or_else(|| format!("host {}", id.0), |it| it.name.to_string())
}

fn addresses(snapshot: &Snapshot, host: HostId, service: ServiceId) -> Vec<String> {
    let ipv4 = match service {
        ServiceId(0) => snapshot.hosts.get(&host).map(|host| host.ipv4()),
        _ => snapshot.services.get(&service).and_then(|it| it.placements.get(&host)).copied(),
    };
    let ipv6 = snapshot.workload_ipv6(host, service).to_string();
    ipv4.map(|it| it.to_string()).into_iter().chain([ipv6]).collect()
}

fn of_principal(snapshot: &Snapshot, principal: Principal) -> v1::WhoisAnswer {
    let Some(identity) = snapshot.identity(principal) else {
        return v1::WhoisAnswer { identity: "unknown".to_owned(), ..v1::WhoisAnswer::default() };
    };
    let zone = match &identity {
        Identity::Host(_) => "host",
        Identity::Device(_) => "device",
        Identity::Service { namespace, .. } => namespace.as_str(),
    };
    let port = match principal {
        Principal::Service(id) => snapshot
            .services
            .get(&id)
            .filter(|it| it.has_port())
            .map(|it| format!("{}/{}", it.protocol, it.port)),
        Principal::Host(_) | Principal::Device(_) => None,
    };
    v1::WhoisAnswer {
        spiffe: identity.spiffe(&snapshot.mesh.trust_domain),
        dns_name: format!("{}.{zone}.{DOMAIN}", identity.name()),
        identity: identity.to_string(),
        port: port.unwrap_or_default(),
        ..v1::WhoisAnswer::default()
    }
}

fn of_process(snapshot: &Snapshot, containers: &Table, found: &Holder) -> v1::WhoisAnswer {
    let container = found.cgroup.as_deref().and_then(|it| containers.of_cgroup(it));
    let facts = Process {
        uid: Some(found.uid),
        cgroup: found.cgroup.as_deref(),
        exe: found.exe.as_deref(),
        container: container.map(|it| &**it),
    };
    let judgement = judge(snapshot, &facts);
    // Whoever has a network of its own is known by its address, with all who share it.
    let (service, why) = match container.filter(|it| it.namespace.is_some()) {
        Some(container) => {
            let (service, why) = speaker(containers, &local_services(snapshot), container);
            let fits =
                |id| format!("its container fits the workload of {}", service_name(snapshot, id));
            (service, service.map_or(why, fits))
        }
        None => (judgement.service, why(snapshot, &judgement)),
    };
    let principal = service.map_or(Principal::Host(snapshot.local), Principal::Service);
    let cgroup = found.cgroup.as_deref().unwrap_or_default();
    let candidate = |(id, selectors): &(ServiceId, Vec<(Selector, Option<bool>)>)| v1::Candidate {
        service: service_name(snapshot, *id),
        fits: !selectors.is_empty() && selectors.iter().all(|(_, fits)| *fits == Some(true)),
        selectors: selectors
            .iter()
            .map(|(selector, fits)| check(selector, *fits, found, container))
            .collect(),
    };
    let process = v1::ProcessFacts {
        pid: found.pid,
        user: user_name(found.uid).unwrap_or_default(),
        uid: found.uid,
        unit: unit_of(cgroup).unwrap_or_default().to_owned(),
        cgroup: cgroup.to_owned(),
        program: found.exe.as_ref().map_or_else(String::new, |it| it.display().to_string()),
        container: container.map_or_else(String::new, |it| it.name.clone()),
        why,
        candidates: judgement.fits.iter().map(candidate).collect(),
    };
    v1::WhoisAnswer {
        kind: "process".to_owned(),
        host: host_name(snapshot, snapshot.local),
        addresses: match service {
            Some(service) => addresses(snapshot, snapshot.local, service),
            None => addresses(snapshot, snapshot.local, ServiceId(0)),
        },
        process: Some(process),
        ..of_principal(snapshot, principal)
    }
}

fn service_name(snapshot: &Snapshot, id: ServiceId) -> String {
    snapshot.services.get(&id).map_or_else(String::new, |it| it.name.to_string())
}

fn why(snapshot: &Snapshot, judgement: &Judgement) -> String {
    let name = |id| service_name(snapshot, id);
    match (judgement.service, judgement.tie) {
        (Some(service), Some(other)) => format!(
            "it fits the workloads of {} and {other} equally well; give one of them another selector",
            name(service),
            other = name(other)
        ),
        (Some(service), None) => {
            let fits = |(_, selectors): &&(_, Vec<(_, Option<bool>)>)| {
                !selectors.is_empty() && selectors.iter().all(|(_, fits)| *fits == Some(true))
            };
            match judgement.fits.iter().filter(fits).count() {
                0 | 1 => format!("it fits the workload of {}", name(service)),
                _ => format!("of those it fits, the workload of {} says most", name(service)),
            }
        }
        (None, _) if judgement.needs_program => {
            "a service asks for its program, which this agent may not see (CAP_SYS_PTRACE): its flows \
             are refused until it may"
                .to_owned()
        }
        (None, _) if judgement.fits.iter().all(|(_, selectors)| selectors.is_empty()) => {
            "no service here says by its `workload` which processes it has, so it speaks as the host"
                .to_owned()
        }
        (None, _) => "it fits no service's workload, so it speaks as the host".to_owned(),
    }
}

fn check(
    selector: &Selector,
    fits: Option<bool>,
    found: &Holder,
    container: Option<&Arc<Container>>,
) -> v1::SelectorCheck {
    let cgroup = found.cgroup.as_deref().unwrap_or("unknown");
    let (words, is) = match selector {
        Selector::User(user) => {
            let is = user_name(found.uid).unwrap_or_else(|| found.uid.to_string());
            (format!("user {user}"), format!("the process's user is {is}"))
        }
        Selector::Systemd(unit) => {
            (format!("systemd unit {unit}"), format!("the process is in cgroup {cgroup}"))
        }
        Selector::Cgroup(path) => {
            (format!("cgroup {}", path.display()), format!("the process is in cgroup {cgroup}"))
        }
        Selector::Exe(path) => {
            let is = match &found.exe {
                Some(exe) => format!("the process runs {}", exe.display()),
                None => "the process's program isn't the agent's to see".to_owned(),
            };
            (format!("program {}", path.display()), is)
        }
        Selector::Container(wanted) => {
            let is = match container {
                Some(container) => format!("the process is in {container}"),
                None => "the process is in no container that an engine here tells of".to_owned(),
            };
            (wanted.to_string(), is)
        }
    };
    let fits = fits == Some(true);
    v1::SelectorCheck { selector: words, fits, reason: if fits { String::new() } else { is } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::show::tests::state;

    #[test]
    fn addresses_and_names_say_who_they_are() {
        let state = state();
        for (target, kind, identity, host) in [
            ("100.64.0.17", "workload", "service:web", "web-1"),
            ("fd01:203:405::2:0:5", "workload", "service:web", "web-1"),
            ("[fd01:203:405::2:0:0]", "host", "host:web-1", "web-1"),
            ("100.127.0.5", "virtual address", "service:web", ""),
            ("100.64.0.20", "device", "device:press", "web-1"),
            ("100.127.0.0", "this host", "host:app-1", ""),
            ("web-1", "host", "host:web-1", "web-1"),
            ("192.0.2.1", "endpoint of tunnels", "host:app-1", "app-1"),
            ("192.0.2.2", "endpoint of tunnels", "host:web-1", "web-1"),
            ("press.device", "device", "device:press", "web-1"),
        ] {
            let answer = whois(&state, &Table::default(), target).unwrap();
            assert_eq!((&*answer.kind, &*answer.identity), (kind, identity), "{target}");
            assert_eq!(answer.host, host, "{target}");
        }
        let web = whois(&state, &Table::default(), "100.64.0.17").unwrap();
        assert_eq!(web.spiffe, "spiffe://corp.example/ns/prod/sa/web");
        assert_eq!((&*web.dns_name, &*web.port), ("web.prod.mesh.internal", "tcp/8080"));
        assert_eq!(web.addresses, ["100.64.0.17", "fd01:203:405::2:0:5"]);
        assert!(whois(&state, &Table::default(), "192.0.2.3").is_err());
        let mut snapshot = state.snapshot.as_ref().clone();
        for host in snapshot.hosts.values_mut() {
            host.endpoints = vec!["192.0.2.9:51820".parse().unwrap()];
        }
        let both = whois(&CompiledSnapshot::new(snapshot), &Table::default(), "192.0.2.9").unwrap();
        assert_eq!((&*both.identity, &*both.host), ("several hosts", "app-1, web-1"));
    }

    #[test]
    fn a_services_name_says_where_it_is() {
        let state = state();
        for target in ["web", "service:web", "web.prod", "web.prod.mesh.internal"] {
            let answer = whois(&state, &Table::default(), target).unwrap();
            assert_eq!((&*answer.kind, &*answer.identity), ("service", "service:web"), "{target}");
            assert_eq!((&*answer.host, &*answer.port), ("", "tcp/8080"));
            assert!(answer.addresses.contains(&"100.127.0.5".to_owned()), "{answer:?}");
            let [workload] = &*answer.workloads else { panic!("{answer:?}") };
            assert_eq!(workload.host, "web-1");
            assert_eq!(workload.addresses, ["100.64.0.17", "fd01:203:405::2:0:5"]);
        }
        assert!(whois(&state, &Table::default(), "homeless").unwrap().workloads.is_empty());
        assert!(whois(&state, &Table::default(), "web.dev").is_err());
    }

    #[test]
    fn a_process_is_told_which_service_it_is_and_why() {
        let state = state();
        let holder = |uid| Holder {
            pid: 7,
            uid,
            cgroup: Some("/system.slice/here.service".to_owned()),
            exe: None,
            name: None,
        };
        let here = of_process(&state.snapshot, &Table::default(), &holder(33));
        assert_eq!((&*here.identity, &*here.host), ("service:here", "app-1"));
        let facts = here.process.unwrap();
        assert_eq!((&*facts.why, &*facts.unit), ("it fits the workload of here", "here.service"));
        let other = of_process(&state.snapshot, &Table::default(), &holder(0));
        assert_eq!(other.identity, "host:app-1");
        let facts = other.process.unwrap();
        assert_eq!(facts.why, "it fits no service's workload, so it speaks as the host");
        let [candidate] = &*facts.candidates else { panic!("{facts:?}") };
        let [check] = &*candidate.selectors else { panic!("{candidate:?}") };
        assert_eq!((&*candidate.service, &*check.selector), ("here", "user 33"));
        assert_eq!((check.fits, &*check.reason), (false, "the process's user is root"));
    }

    #[test]
    fn this_process_is_found_by_its_number() {
        let pid = std::process::id();
        let answer = whois(&state(), &Table::default(), &pid.to_string()).unwrap();
        let facts = answer.process.unwrap();
        assert_eq!((facts.pid, facts.uid), (pid, process::own_user()));
        assert!(facts.program.contains("isthmus"), "{facts:?}");
        assert_eq!(
            whois(&state(), &Table::default(), "4000000000"),
            Err(WhoisError::NoProcess(4_000_000_000))
        );
    }
}
