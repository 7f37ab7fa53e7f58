//! `agentctl host`, `service` and `device`.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use isthmus_model::Name;
use isthmus_proto::v1;
use serde_json::json;

use crate::cli::{Device, Format, Host, Service};
use crate::errors::{Exit, Failure};
use crate::output::{self, Tone, paint};
use crate::status::read_mesh;
use crate::transport::{Session, ask_controller};
use crate::{mesh_view, words};

pub(crate) async fn host(session: &Session, command: &Host) -> Result<Exit> {
    match command {
        Host::List => {
            let status = read_mesh(session).await?;
            let text = || {
                if status.hosts.is_empty() {
                    return "no hosts yet".to_owned();
                }
                mesh_view::host_table(&status, words::now())
            };
            output::show(session.output, text, || mesh_view::hosts_json(&status.hosts))?;
        }
        Host::Show { name } => {
            let status = read_mesh(session).await?;
            let named = |host: &&v1::HostStatus| {
                host.host.as_ref().is_some_and(|host| host.name == name.as_str())
            };
            let host = status
                .hosts
                .iter()
                .find(named)
                .ok_or_else(|| unknown("host", name, "host list"))?;
            output::show(
                session.output,
                || mesh_view::host_facts(host, words::now()),
                || mesh_view::host_json(host),
            )?;
        }
        Host::Remove { name, yes } => return remove(session, name, *yes).await,
    }
    Ok(Exit::Success)
}

async fn remove(session: &Session, name: &Name, yes: bool) -> Result<Exit> {
    if !yes && output::is_interactive() && !confirm(name)? {
        output::complain("nothing was removed");
        return Ok(Exit::Negative);
    }
    let mut admin = session.controller().await?;
    let request = v1::RemoveHostRequest { name: name.to_string() };
    let removed = ask_controller(admin.remove_host(request)).await?;
    let revision = removed.revision;
    output::show(
        session.output,
        || format!("removed host {name} (revision {revision}); it needs a new token to come back"),
        || json!({ "removed": name.as_str(), "revision": revision }),
    )?;
    Ok(Exit::Success)
}

fn confirm(name: &Name) -> Result<bool> {
    let question = format!(
        "Remove host {}? Its tunnels are cut at once, and it needs a new token to come back. [y/N] ",
        paint(name.as_str(), Tone::Strong)
    );
    let mut err = anstream::stderr().lock();
    write!(err, "{question}").and_then(|()| err.flush()).context("Failed to ask")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("Failed to read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes"))
}

pub(crate) async fn service(session: &Session, command: &Service) -> Result<Exit> {
    let status = read_mesh(session).await?;
    match command {
        Service::List => {
            let text = || {
                if status.services.is_empty() {
                    return "no services yet: declare them in a topology and `agentctl apply` it"
                        .to_owned();
                }
                mesh_view::service_table(&status.services)
            };
            output::show(session.output, text, || mesh_view::services_json(&status))?;
        }
        Service::Show { name } => {
            let named = |status: &&v1::ServiceStatus| {
                status.service.as_ref().is_some_and(|service| service.name == name.as_str())
            };
            let service = status
                .services
                .iter()
                .find(named)
                .ok_or_else(|| unknown("service", name, "service list"))?;
            output::show(
                session.output,
                || mesh_view::service_facts(service, &status.hosts),
                || mesh_view::service_json(service, &status.hosts),
            )?;
        }
    }
    Ok(Exit::Success)
}

pub(crate) async fn device(session: &Session, command: &Device) -> Result<Exit> {
    match command {
        Device::List => {
            let status = read_mesh(session).await?;
            let text = || {
                if status.devices.is_empty() {
                    return "no devices yet: declare them in a topology and `agentctl apply` it"
                        .to_owned();
                }
                mesh_view::device_table(&status.devices)
            };
            output::show(session.output, text, || mesh_view::devices_json(&status.devices))?;
        }
        Device::Export { name } => {
            let mut admin = session.controller().await?;
            let request = v1::ExportDeviceRequest { name: name.to_string() };
            let config = ask_controller(admin.export_device(request)).await?.config;
            let add_key = session.output == Format::Text && output::is_interactive();
            output::show(session.output, || config.clone(), || json!({ "config": config }))?;
            if add_key {
                output::complain("add the device's own PrivateKey below [Interface]");
            }
        }
    }
    Ok(Exit::Success)
}

fn unknown(kind: &str, name: &Name, list: &str) -> Failure {
    Failure::Refused(format!(
        "The mesh has no {kind} {:?}; `agentctl {list}` shows them",
        name.as_str()
    ))
}
