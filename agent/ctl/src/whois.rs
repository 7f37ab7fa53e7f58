//! `agentctl whois`: whose an address is, or which service a process would be, and why.

use std::net::IpAddr;

use anyhow::Result;
use isthmus_model::TrustDomain;
use isthmus_proto::v1;
use serde_json::{Value, json};

use crate::addresses::Addresses;
use crate::errors::{Exit, Failure};
use crate::mesh_view::known;
use crate::output::{self, Tone, clean, facts, paint};
use crate::status::read_mesh;
use crate::transport::{Session, Whom, ask_agent};

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
    let address: IpAddr = bare.parse().map_err(|_| {
        Failure::Usage(format!(
            "{who:?} is no address; `agentctl host|service|device show` tells of names"
        ))
    })?;
    let identity = Addresses::of_status(status).find(address).ok_or_else(|| {
        Failure::Refused(format!(
            "{address} is nobody's in revision {} of the mesh",
            status.revision
        ))
    })?;
    let domain: Option<TrustDomain> = status.trust_domain.parse().ok();
    Ok(v1::WhoisAnswer {
        spiffe: domain.map_or_else(String::new, |domain| identity.spiffe(&domain)),
        identity: identity.to_string(),
        kind: "address".to_owned(),
        addresses: vec![address.to_string()],
        ..v1::WhoisAnswer::default()
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
    json!({
        "identity": answer.identity,
        "spiffe": known(&answer.spiffe),
        "kind": answer.kind,
        "host": known(&answer.host),
        "dns_name": known(&answer.dns_name),
        "port": known(&answer.port),
        "addresses": answer.addresses,
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
        assert!(
            of_mesh(&mesh(), "4711").unwrap_err().to_string().contains("the agent of its host")
        );
    }
}
