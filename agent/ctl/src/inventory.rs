//! `agentctl host`, `service` and `device`.

use std::time::Duration;

use anyhow::Result;
use isthmus_model::Name;
use isthmus_proto::v1;
use serde_json::json;

use crate::cli::{Device, Format, Host, Service};
use crate::errors::{Exit, Failure};
use crate::output::{self, Tone, clean, paint};
use crate::status::read_mesh;
use crate::transport::{Session, ask_controller};
use crate::{mesh_view, words};

/// Time for which devices' files may name the former key.
const REISSUE: Duration = Duration::from_secs(86_400);

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
        Host::RotateKey { name, reissue, overlap } => {
            return rotate_key(session, name, *reissue, *overlap).await;
        }
        Host::Remove { name, yes } => return remove(session, name, *yes).await,
    }
    Ok(Exit::Success)
}

async fn rotate_key(
    session: &Session,
    name: &Name,
    reissue: bool,
    overlap: Option<Duration>,
) -> Result<Exit> {
    let overlap = overlap.or_else(|| reissue.then_some(REISSUE));
    let mut admin = session.controller().await?;
    let request = v1::RotateHostKeyRequest {
        name: name.to_string(),
        reissue,
        overlap_seconds: overlap.unwrap_or_default().as_secs(),
    };
    let rotated = ask_controller(admin.rotate_host_key(request)).await?;
    let v1::RotateHostKeyResponse { revision, public_key, former_until, devices } = rotated;
    let key = mesh_view::key(&public_key).unwrap_or_default();
    let ends = words::relative(former_until, words::now());
    output::show(
        session.output,
        || {
            let mut text = format!(
                "host {name} has the tunnel key {key} (revision {revision}); the one before ends {ends}, or later \
                 (agentctl host show {name})\n"
            );
            for device in &devices {
                let device = clean(device);
                text.push_str(&format!(
                    "  give device {device} a new file before: agentctl device export {device}\n"
                ));
            }
            text
        },
        || {
            let until = words::timestamp(former_until);
            json!({
                "host": name.as_str(), "revision": revision, "public_key": key, "former_key_until": until,
                "devices": devices
            })
        },
    )?;
    Ok(Exit::Success)
}

async fn remove(session: &Session, name: &Name, yes: bool) -> Result<Exit> {
    let losses = losses(&read_mesh(session).await?, name)?;
    if !yes && !is_meant(name, &losses).await? {
        return Ok(Exit::Negative);
    }
    let mut admin = session.controller().await?;
    let request = v1::RemoveHostRequest { name: name.to_string() };
    let removed = ask_controller(admin.remove_host(request)).await?;
    let revision = removed.revision;
    output::show(
        session.output,
        || {
            let mut text = format!(
                "removed host {name} (revision {revision}); it needs a new token to come back\n"
            );
            losses.iter().for_each(|loss| text.push_str(&format!("  {loss}\n")));
            text
        },
        || json!({ "removed": name.as_str(), "revision": revision, "lost": losses }),
    )?;
    Ok(Exit::Success)
}

/// What nobody has any more without a host, a sentence each.
fn losses(status: &v1::MeshStatus, name: &Name) -> Result<Vec<String>> {
    let is_it =
        |host: &v1::HostStatus| host.host.as_ref().is_some_and(|it| it.name == name.as_str());
    if !status.hosts.iter().any(is_it) {
        return Err(unknown("host", name, "host list").into());
    }
    let alone = status.services.iter().filter(|service| service.hosts == [name.as_str()]);
    let services = alone.filter_map(|status| status.service.as_ref());
    let services =
        services.map(|it| format!("service {} loses its last workload", clean(&it.name)));
    let behind = status.devices.iter().filter(|device| device.via == name.as_str());
    let devices = behind.filter_map(|status| status.device.as_ref());
    let devices = devices.map(|it| format!("device {} loses its gateway", clean(&it.name)));
    Ok(services.chain(devices).collect())
}

async fn is_meant(name: &Name, losses: &[String]) -> Result<bool> {
    let shown = paint(name.as_str(), Tone::Strong);
    let lost: String = losses.iter().map(|loss| format!("  {loss}\n")).collect();
    if output::is_interactive() {
        let question = format!(
            "{lost}Remove host {shown}? Its tunnels are cut at once, and it needs a new token to come back."
        );
        return output::confirm(&question, "nothing was removed").await;
    }
    let refused = paint("refused:", Tone::Bad);
    output::complain(&format!(
        "{lost}{refused} nothing was removed; if host {shown} is to go for good, say --yes"
    ));
    Ok(false)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_removes_a_host_hears_what_nobody_has_any_more() {
        let host = |name: &str| v1::HostStatus {
            host: Some(v1::Host { name: name.to_owned(), ..Default::default() }),
            ..Default::default()
        };
        let service = |name: &str, hosts: &[&str]| v1::ServiceStatus {
            service: Some(v1::Service { name: name.to_owned(), ..Default::default() }),
            hosts: hosts.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let status = v1::MeshStatus {
            hosts: vec![host("a"), host("b")],
            services: vec![service("api", &["a"]), service("web", &["a", "b"])],
            devices: vec![v1::DeviceStatus {
                device: Some(v1::Device { name: "press".to_owned(), ..Default::default() }),
                via: "a".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let lost = |name: &str| losses(&status, &name.parse().unwrap());
        let all = ["service api loses its last workload", "device press loses its gateway"];
        assert_eq!(lost("a").unwrap(), all);
        assert!(lost("b").unwrap().is_empty());
        assert!(lost("c").unwrap_err().to_string().contains("host list"));
    }
}
