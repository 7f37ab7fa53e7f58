//! From a snapshot to resources.

use std::path::Path;
use std::sync::Arc;

use isthmus_proto::v1;
use v1::resource::Body;
use v1::selector::By;

use super::{application, balance, edge, jwt, ratelimit, routes};
use crate::application::SeenSource;
use crate::balance::Balance;
use crate::condition::Condition;
use crate::guard::{Exposure, ListenerCheck};
use crate::identity::{DeviceId, HostId, ServiceId};
use crate::route::Pattern;
use crate::rules::{Action, RequestMatch, Rule};
use crate::snapshot::{ContainerMatch, Device, Host, PathMode, Selector, Service, Snapshot};

/// The resources that a snapshot consists of: `mesh` and `policy`, then hosts, services, devices,
/// rules, routes and limits. Equal snapshots give equal resources, so that two slices can be compared by them.
#[must_use]
pub fn resources(snapshot: &Snapshot) -> Vec<v1::Resource> {
    let mut bodies = vec![mesh(snapshot), policy(snapshot)];
    bodies.extend(snapshot.hosts.iter().map(|(id, host_)| host(*id, host_)));
    bodies.extend(snapshot.services.iter().map(|(id, service_)| service(*id, service_)));
    bodies.extend(snapshot.devices.iter().map(|(id, device_)| device(*id, device_)));
    bodies.extend((0..).zip(&snapshot.rules.rules).map(|(order, rule_)| rule(order, rule_)));
    bodies.extend(
        (0..).zip(&snapshot.routes).map(|(order, route)| Body::Route(routes::encode(order, route))),
    );
    bodies.extend(snapshot.limits.iter().map(|limit| Body::Limit(ratelimit::encode(limit))));
    bodies.into_iter().map(|body| v1::Resource { key: key(&body), body: Some(body) }).collect()
}

/// The key that belongs to a body.
pub(super) fn key(body: &Body) -> String {
    match body {
        Body::Mesh(_) => "mesh".to_owned(),
        Body::Policy(_) => "policy".to_owned(),
        Body::Host(host) => format!("host/{}", host.id),
        Body::Service(service) => format!("service/{}", service.id),
        Body::Device(device) => format!("device/{}", device.id),
        Body::Rule(rule) => format!("rule/{}", rule.name),
        Body::Route(route) => format!("route/{}", route.name),
        Body::Limit(limit) => format!("limit/{}", limit.name),
    }
}

fn mesh(snapshot: &Snapshot) -> Body {
    let mesh = &snapshot.mesh;
    Body::Mesh(v1::Mesh {
        name: mesh.name.to_string(),
        trust_domain: mesh.trust_domain.to_string(),
        prefix: mesh.prefix.bytes().to_vec(),
        ipv4: mesh.ipv4.to_string(),
        virtual_ipv4: mesh.virtual_ipv4.to_string(),
        local: snapshot.local.0,
    })
}

fn policy(snapshot: &Snapshot) -> Body {
    let default_allow = match snapshot.rules.default {
        Action::Allow => true,
        Action::Deny => false,
    };
    let audited = snapshot.rules.audited.iter().map(ToString::to_string).collect();
    Body::Policy(v1::Policy { default_allow, audit: snapshot.rules.audit, audited })
}

fn host(id: HostId, host: &Host) -> Body {
    Body::Host(v1::Host {
        id: id.0,
        name: host.name.to_string(),
        site: host.site.as_ref().map(ToString::to_string).unwrap_or_default(),
        labels: host.labels.clone(),
        public_key: host.public_key.0.to_vec(),
        endpoints: host.endpoints.iter().map(ToString::to_string).collect(),
        ipv4_block: host.ipv4_block.to_string(),
        former_public_key: host.former_key.map_or_else(Vec::new, |key| key.0.to_vec()),
    })
}

fn service(id: ServiceId, service: &Service) -> Body {
    let placements = service.placements.iter();
    Body::Service(v1::Service {
        id: id.0,
        name: service.name.to_string(),
        namespace: service.namespace.to_string(),
        port: service.port.into(),
        protocol: application::protocol(service.protocol).into(),
        more: service.more.iter().map(application::encode_port).collect(),
        virtual_ipv4: service.virtual_ipv4.to_string(),
        placements: placements.map(|(host, ipv4)| (host.0, ipv4.to_string())).collect(),
        leaving: service.leaving.iter().map(|host| host.0).collect(),
        selectors: service.selectors.iter().map(selector).collect(),
        edge: service.edge.as_ref().map(edge::encode),
        balance: (service.balance != Balance::default()).then(|| balance::encode(&service.balance)),
        proxy_protocol: application::proxy_protocol(service.application),
        http_version: application::http_version(service.application),
        trailers: service.application.trailers,
        listen: application::listen_text(service.application),
        shows_caller: service.application.source == SeenSource::Caller,
        paths: path_mode(service.paths).into(),
        exposure: exposure(service.guard.exposure).into(),
        strict_listener: service.guard.listener == ListenerCheck::Strict,
        aliases: service.aliases.iter().map(ToString::to_string).collect(),
    })
}

const fn path_mode(mode: PathMode) -> v1::PathMode {
    match mode {
        PathMode::Strict => v1::PathMode::Unspecified,
        PathMode::MergeSlashes => v1::PathMode::MergeSlashes,
        PathMode::DecodeAndMergeSlashes => v1::PathMode::DecodeAndMergeSlashes,
        PathMode::AsIs => v1::PathMode::AsIs,
    }
}

const fn exposure(exposure: Exposure) -> v1::Exposure {
    match exposure {
        Exposure::Count => v1::Exposure::Unspecified,
        Exposure::Mesh => v1::Exposure::Mesh,
        Exposure::Open => v1::Exposure::Open,
    }
}

fn selector(selector: &Selector) -> v1::Selector {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let by = match selector {
        Selector::Systemd(unit) => By::Systemd(unit.to_string()),
        Selector::User(user) => By::User(user.to_string()),
        Selector::Exe(exe) => By::Exe(path(exe)),
        Selector::Cgroup(cgroup) => By::Cgroup(path(cgroup)),
        Selector::Container(container) => By::Container(container_match(container)),
    };
    v1::Selector { by: Some(by) }
}

fn container_match(container: &ContainerMatch) -> v1::ContainerMatch {
    let text = |text: &Option<Arc<str>>| text.as_deref().unwrap_or_default().to_owned();
    v1::ContainerMatch {
        name: text(&container.name),
        image: text(&container.image),
        labels: container.labels.clone(),
    }
}

fn device(id: DeviceId, device: &Device) -> Body {
    Body::Device(v1::Device {
        id: id.0,
        name: device.name.to_string(),
        public_key: device.public_key.0.to_vec(),
        via: device.via.0,
        ipv4: device.ipv4.to_string(),
    })
}

fn rule(order: u32, rule: &Rule) -> Body {
    Body::Rule(v1::Rule {
        name: rule.name.to_string(),
        order,
        allow: rule.action == Action::Allow,
        from: rule.from.iter().map(ToString::to_string).collect(),
        to: rule.to.iter().map(ToString::to_string).collect(),
        ports: rule.ports.iter().map(ToString::to_string).collect(),
        http: rule.http.iter().map(request_match).collect(),
        sni: rule.sni.iter().map(ToString::to_string).collect(),
        audit: rule.audit,
        file: rule.origin.file.to_string(),
        line: rule.origin.line,
    })
}

fn request_match(entry: &RequestMatch) -> v1::RequestMatch {
    let some = |text: Option<&str>| text.unwrap_or_default().to_owned();
    v1::RequestMatch {
        method: some(entry.method.as_deref()),
        path: some(entry.path.as_deref()),
        path_regex: some(entry.path_regex.as_ref().map(Pattern::as_str)),
        hosts: entry.hosts.iter().map(ToString::to_string).collect(),
        headers: entry.headers.iter().map(routes::encode_field).collect(),
        query: entry.query.iter().map(routes::encode_field).collect(),
        jwt: entry.jwt.as_ref().map(jwt::encode),
        when: some(entry.when.as_ref().map(Condition::as_str)),
    }
}
