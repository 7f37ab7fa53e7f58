//! `agentctl wait`: returns once this host has its place in the mesh, for what starts after it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use isthmus_proto::v1;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::errors::{Exit, Failure};
use crate::output;
use crate::transport::{Session, ask_agent};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn wait(
    session: &Session,
    service: Option<&str>,
    limit: Duration,
) -> Result<Exit> {
    let deadline = Instant::now() + limit;
    loop {
        let missing = match look(session, service).await {
            Ok(Ok(addresses)) => {
                output::show(
                    session.output,
                    || format!("{}\n", addresses.join("\n")),
                    || json!({ "addresses": addresses }),
                )?;
                return Ok(Exit::Success);
            }
            Ok(Err(missing)) => missing,
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= deadline {
            let waited = limit.as_secs();
            let failure = format!("Waited {waited} s in vain: {missing}");
            return Err(Failure::Unreachable(failure).into());
        }
        sleep(PAUSE).await;
    }
}

/// The addresses that can be bound, or what is missing.
async fn look(session: &Session, service: Option<&str>) -> Result<Result<Vec<String>, String>> {
    let mut agent = session.agent().await?;
    let status = ask_agent(agent.read_status(v1::ReadAgentStatusRequest {})).await?;
    Ok(addresses(&status, service).and_then(|addresses| {
        match addresses.iter().find(|address| !can_be_bound(address)) {
            Some(address) => Err(format!("{address} isn't an address of this host yet")),
            None => Ok(addresses),
        }
    }))
}

/// This host's addresses and its workloads', or those of one service.
fn addresses(status: &v1::AgentStatus, service: Option<&str>) -> Result<Vec<String>, String> {
    if !status.joined {
        return Err("this host isn't a member of a mesh (agentctl join)".to_owned());
    }
    let found: Vec<String> = match service {
        Some(name) => {
            let ours = |it: &&v1::LocalService| {
                it.name == name || name == format!("{}.{}", it.name, it.namespace)
            };
            let service = status.services.iter().find(ours);
            service.map(|it| it.addresses.clone()).ok_or_else(|| {
                format!("no service {name} is placed on this host (agentctl status lists them)")
            })?
        }
        None => {
            let services = status.services.iter().flat_map(|it| &it.addresses);
            status.addresses.iter().chain(services).cloned().collect()
        }
    };
    if found.is_empty() {
        return Err(format!("the overlay isn't up yet (agentctl status). {}", status.last_error));
    }
    Ok(found)
}

/// What a program that starts now would find.
fn can_be_bound(address: &str) -> bool {
    let address: Option<IpAddr> = address.parse().ok();
    address.is_some_and(|ip| UdpSocket::bind(SocketAddr::new(ip, 0)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> v1::AgentStatus {
        v1::AgentStatus {
            joined: true,
            addresses: vec!["127.0.0.1".to_owned()],
            services: vec![v1::LocalService {
                name: "web".to_owned(),
                namespace: "prod".to_owned(),
                addresses: vec!["127.0.0.2".to_owned()],
                ..v1::LocalService::default()
            }],
            ..v1::AgentStatus::default()
        }
    }

    #[test]
    fn the_hosts_and_its_workloads_addresses_are_waited_for() {
        assert_eq!(addresses(&status(), None).unwrap(), ["127.0.0.1", "127.0.0.2"]);
        for name in ["web", "web.prod"] {
            assert_eq!(addresses(&status(), Some(name)).unwrap(), ["127.0.0.2"]);
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let said = |status: &v1::AgentStatus, service| addresses(status, service).unwrap_err();
        assert!(said(&status(), Some("api")).contains("no service api is placed"));
        assert!(said(&v1::AgentStatus::default(), None).contains("isn't a member"));
        let none = v1::AgentStatus { addresses: vec![], services: vec![], ..status() };
        assert!(said(&none, None).contains("isn't up yet"));
    }

    #[test]
    fn only_addresses_of_this_host_can_be_bound() {
        assert!(can_be_bound("127.0.0.1") && can_be_bound("::1"));
        assert!(!can_be_bound("192.0.2.1") && !can_be_bound("nonsense"));
    }
}
