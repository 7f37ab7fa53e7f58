//! `agentctl whois`: whose an address is, or which service a process would be, and why.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use isthmus_model::{Identity, TrustDomain};
use isthmus_proto::v1;
use serde_json::{Value, json};

use crate::addresses::Addresses;
use crate::errors::{Exit, Failure};
use crate::mesh_view::{self, Workload, known};
use crate::output::{self, Tone, clean, facts, paint};
use crate::status::read_mesh;
use crate::transport::{Session, Whom, ask_agent};

const DNS_DOMAIN: &str = ".mesh.internal";

pub(crate) async fn whois(session: &Session, who: &str) -> Result<Exit> {
    let answer = match session.status_from() {
        Whom::Agent => {
            let mut agent = session.agent().await?;
            ask_agent(agent.whois(v1::WhoisRequest { target: who.to_owned() })).await?
        }
        Whom::Mesh => of_mesh(&read_mesh(session).await?, who)?,
    };
    output::show(session.output, || text(&answer), || json(&answer))?;
    Ok(Exit::Success)
}

/// The controller knows every address, and no process.
fn of_mesh(status: &v1::MeshStatus, who: &str) -> Result<v1::WhoisAnswer, Failure> {
    if who.parse::<u32>().is_ok() {
        let why =
            "the agent of its host knows processes: ask there, with --socket or without options";
        return Err(Failure::Usage(format!("{who} is a process's number; {why}")));
    }
    let bare = who.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(who);
    let Ok(address) = bare.parse::<IpAddr>() else {
        return named(status, who).ok_or_else(|| {
            let revision = status.revision;
            Failure::Refused(format!(
                "{who:?} is no address, and no host, service or device of revision {revision} of the mesh"
            ))
        });
    };
    let Some(identity) = Addresses::of_status(status).find(address) else {
        return of_endpoint(status, address).ok_or_else(|| {
            Failure::Refused(format!(
                "{address} is nobody's in revision {} of the mesh",
                status.revision
            ))
        });
    };
    Ok(v1::WhoisAnswer {
        kind: "address".to_owned(),
        addresses: vec![address.to_string()],
        ..of_identity(status, &identity)
    })
}

/// The host whose tunnels end at an address of the underlay. Behind one that translates addresses there may
/// be several.
fn of_endpoint(status: &v1::MeshStatus, address: IpAddr) -> Option<v1::WhoisAnswer> {
    let is_it = |text: &String| text.parse().is_ok_and(|it: SocketAddr| it.ip() == address);
    let hosts = status.hosts.iter().filter_map(|it| Some((it, it.host.as_ref()?)));
    let found: Vec<_> = hosts.filter(|(_, host)| host.endpoints.iter().any(is_it)).collect();
    let names: Vec<&str> = found.iter().map(|(_, host)| &*host.name).collect();
    let identity = match *names {
        [] => return None,
        [name] => of_identity(status, &Identity::Host(name.parse().ok()?)),
        _ => v1::WhoisAnswer { identity: "several hosts".to_owned(), ..Default::default() },
    };
    let of_mesh = found
        .iter()
        .flat_map(|(it, host)| mesh_view::ipv4(host).into_iter().chain([it.ipv6.clone()]));
    Some(v1::WhoisAnswer {
        kind: "endpoint of tunnels".to_owned(),
        host: names.join(", "),
        addresses: of_mesh.collect(),
        ..identity
    })
}

fn of_identity(status: &v1::MeshStatus, identity: &Identity) -> v1::WhoisAnswer {
    let domain: Option<TrustDomain> = status.trust_domain.parse().ok();
    v1::WhoisAnswer {
        spiffe: domain.map_or_else(String::new, |domain| identity.spiffe(&domain)),
        identity: identity.to_string(),
        ..v1::WhoisAnswer::default()
    }
}

/// Whom a name means: `web`, `service:web`, `web.prod`, `web.prod.mesh.internal`, hosts and devices likewise.
fn named(status: &v1::MeshStatus, who: &str) -> Option<v1::WhoisAnswer> {
    let dotted = who.trim_end_matches('.');
    let dotted = dotted.strip_suffix(DNS_DOMAIN).unwrap_or(dotted);
    let (kind, name) = match (dotted.split_once(':'), dotted.split_once('.')) {
        (Some((kind, name)), _) => (Some(kind), name),
        (None, Some((name, kind @ ("host" | "device")))) => (Some(kind), name),
        (None, _) => (None, dotted),
    };
    let of = |wanted: &str| kind.is_none_or(|kind| kind == wanted);
    let host = || {
        let is_it = |it: &&v1::HostStatus| it.host.as_ref().is_some_and(|host| host.name == name);
        let found = status.hosts.iter().filter(|_| of("host")).find(is_it)?;
        let identity = Identity::Host(name.parse().ok()?);
        let ipv4 = found.host.as_ref().and_then(mesh_view::ipv4);
        Some(v1::WhoisAnswer {
            kind: "host".to_owned(),
            host: name.to_owned(),
            addresses: ipv4.into_iter().chain([found.ipv6.clone()]).collect(),
            ..of_identity(status, &identity)
        })
    };
    let service = || {
        let is_it =
            |it: &v1::Service| name == it.name || name == format!("{}.{}", it.name, it.namespace);
        let mut services = status.services.iter().filter(|_| of("service"));
        let found = services.find(|it| it.service.as_ref().is_some_and(is_it))?;
        Some(of_service(status, found, found.service.as_ref()?))
    };
    let device = || {
        let is_it = |it: &&v1::DeviceStatus| it.device.as_ref().is_some_and(|it| it.name == name);
        let found = status.devices.iter().filter(|_| of("device")).find(is_it)?;
        let identity = Identity::Device(name.parse().ok()?);
        let ipv4 = found.device.as_ref().map(|it| it.ipv4.clone());
        Some(v1::WhoisAnswer {
            kind: "device".to_owned(),
            host: found.via.clone(),
            addresses: ipv4.into_iter().chain([found.ipv6.clone()]).collect(),
            ..of_identity(status, &identity)
        })
    };
    host().or_else(|| service().flatten()).or_else(device)
}

/// A service as a whole, with where it is.
fn of_service(
    mesh: &v1::MeshStatus,
    status: &v1::ServiceStatus,
    service: &v1::Service,
) -> Option<v1::WhoisAnswer> {
    let identity = Identity::Service {
        namespace: service.namespace.parse().ok()?,
        name: service.name.parse().ok()?,
    };
    let workload = |it: Workload| v1::ServiceWorkload {
        host: it.host,
        addresses: [it.ipv4, it.ipv6].into_iter().filter(|it| !it.is_empty()).collect(),
    };
    Some(v1::WhoisAnswer {
        kind: "service".to_owned(),
        dns_name: status.dns_name.clone(),
        addresses: vec![service.virtual_ipv4.clone(), status.virtual_ipv6.clone()],
        workloads: mesh_view::workloads(status, &mesh.hosts).into_iter().map(workload).collect(),
        ..of_identity(mesh, &identity)
    })
}

fn text(answer: &v1::WhoisAnswer) -> String {
    let lines = [
        ("identity", paint(&clean(&answer.identity), Tone::Strong)),
        ("spiffe", clean(&answer.spiffe)),
        ("kind", clean(&answer.kind)),
        ("host", clean(&answer.host)),
        ("name", clean(&answer.dns_name)),
        ("port", clean(&answer.port)),
        ("addresses", clean(&answer.addresses.join("\n"))),
    ];
    let mut text = facts(&lines);
    for workload in &answer.workloads {
        let v1::ServiceWorkload { host, addresses } = workload;
        text.push_str(&clean(&format!("  on {host}: {}\n", addresses.join(", "))));
    }
    let Some(process) = &answer.process else { return text };
    let user = match &*process.user {
        "" => process.uid.to_string(),
        name => format!("{name} ({})", process.uid),
    };
    let lines = [
        ("process", process.pid.to_string()),
        ("user", clean(&user)),
        ("unit", clean(&process.unit)),
        ("cgroup", clean(&process.cgroup)),
        ("container", clean(&process.container)),
        ("program", clean(&process.program)),
    ];
    text.push_str(&facts(&lines));
    text.push_str(&clean(&format!("{}\n", process.why)));
    for candidate in &process.candidates {
        text.push_str(&candidate_text(candidate));
    }
    text
}

fn candidate_text(candidate: &v1::Candidate) -> String {
    let service = clean(&candidate.service);
    if candidate.selectors.is_empty() {
        return paint(&format!("  - {service}: has no `workload`\n"), Tone::Quiet);
    }
    let one = |check: &v1::SelectorCheck| match check.fits {
        true => check.selector.clone(),
        false => format!("not {} ({})", check.selector, check.reason),
    };
    let checks: Vec<String> = candidate.selectors.iter().map(one).collect();
    let (sign, tone) = if candidate.fits { ("+", Tone::Good) } else { ("-", Tone::Quiet) };
    format!("  {} {}\n", paint(&format!("{sign} {service}:"), tone), clean(&checks.join(", ")))
}

fn json(answer: &v1::WhoisAnswer) -> Value {
    let check = |check: &v1::SelectorCheck| json!({ "selector": check.selector, "fits": check.fits, "reason": known(&check.reason) });
    let candidate = |candidate: &v1::Candidate| {
        json!({
            "service": candidate.service,
            "fits": candidate.fits,
            "selectors": candidate.selectors.iter().map(check).collect::<Value>(),
        })
    };
    let process = answer.process.as_ref().map(|process| {
        json!({
            "pid": process.pid,
            "user": known(&process.user),
            "uid": process.uid,
            "unit": known(&process.unit),
            "cgroup": known(&process.cgroup),
            "container": known(&process.container),
            "program": known(&process.program),
            "why": process.why,
            "candidates": process.candidates.iter().map(candidate).collect::<Value>(),
        })
    });
    let workload = |it: &v1::ServiceWorkload| json!({ "host": it.host, "addresses": it.addresses });
    json!({
        "identity": answer.identity,
        "spiffe": known(&answer.spiffe),
        "kind": answer.kind,
        "host": known(&answer.host),
        "dns_name": known(&answer.dns_name),
        "port": known(&answer.port),
        "addresses": answer.addresses,
        "workloads": answer.workloads.iter().map(workload).collect::<Value>(),
        "process": process,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{mesh, plain};

    #[test]
    fn a_process_is_shown_with_what_was_compared() {
        let check = |selector: &str, fits| v1::SelectorCheck {
            selector: selector.to_owned(),
            fits,
            reason: if fits { String::new() } else { "the process's user is root".to_owned() },
        };
        let process = v1::ProcessFacts {
            pid: 7,
            user: "root".to_owned(),
            unit: "web.service".to_owned(),
            why: "it fits no service's workload, so it speaks as the host".to_owned(),
            candidates: vec![v1::Candidate {
                service: "web".to_owned(),
                fits: false,
                selectors: vec![check("systemd unit web.service", true), check("user web", false)],
            }],
            ..v1::ProcessFacts::default()
        };
        let answer = v1::WhoisAnswer {
            identity: "host:app-1".to_owned(),
            kind: "process".to_owned(),
            process: Some(process),
            ..v1::WhoisAnswer::default()
        };
        let shown = plain(&text(&answer));
        for part in [
            "identity   host:app-1",
            "root (0)",
            "speaks as the host",
            "- web: systemd unit web.service, not user web (the process's user is root)",
        ] {
            assert!(shown.contains(part), "{part} in:\n{shown}");
        }
        let value = json(&answer);
        assert_eq!(value["process"]["candidates"][0]["selectors"][1]["fits"], false);
        assert_eq!(value["host"], Value::Null);
    }

    #[test]
    fn the_mesh_knows_addresses_and_no_processes() {
        let answer = of_mesh(&mesh(), "100.64.0.17").unwrap();
        assert_eq!(answer.identity, "service:web");
        assert_eq!(answer.spiffe, "spiffe://corp.example/ns/prod/sa/web");
        assert!(of_mesh(&mesh(), "100.64.0.99").unwrap_err().to_string().contains("nobody's"));
        for name in ["web", "service:web", "web.prod", "web.prod.mesh.internal"] {
            let answer = of_mesh(&mesh(), name).unwrap();
            assert_eq!((&*answer.kind, &*answer.identity), ("service", "service:web"), "{name}");
            let shown = plain(&text(&answer));
            assert!(shown.contains("on app-1: 100.64.0.17"), "{shown}");
            assert_eq!(json(&answer)["workloads"][0]["host"], "app-1");
        }
        assert_eq!(of_mesh(&mesh(), "app-2.host").unwrap().identity, "host:app-2");
        assert_eq!(of_mesh(&mesh(), "press").unwrap().host, "app-1");
        let mut mesh_ = mesh();
        let app =
            mesh_.hosts.iter_mut().filter_map(|it| it.host.as_mut()).find(|it| it.name == "app-1");
        app.unwrap().endpoints = vec!["192.0.2.7:51820".to_owned()];
        let answer = of_mesh(&mesh_, "192.0.2.7").unwrap();
        assert_eq!((&*answer.kind, &*answer.identity), ("endpoint of tunnels", "host:app-1"));
        for name in ["host:web", "web.dev", "nobody"] {
            assert!(of_mesh(&mesh(), name).unwrap_err().to_string().contains(name));
        }
        assert!(
            of_mesh(&mesh(), "4711").unwrap_err().to_string().contains("the agent of its host")
        );
    }
}
