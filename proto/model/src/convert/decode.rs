//! From resources to a snapshot: each resource by itself. What they must be to each other is
//! checked in `check`.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use isthmus_proto::v1;
use v1::resource::Body;
use v1::selector::By;

use super::encode::key;
use super::{ConvertError, application, balance, check, edge, jwt, ratelimit, routes};
use crate::address::{Ipv4Net, MeshPrefix};
use crate::guard::{Exposure, ListenerCheck, PortGuard};
use crate::identity::{DeviceId, HostId, ServiceId};
use crate::key::PublicKey;
use crate::ratelimit::RateLimit;
use crate::route::Route;
use crate::rules::{Action, Origin, RequestMatch, Rule, Rules};
use crate::snapshot::{
    ContainerMatch, Device, Host, Mesh, PathMode, Revision, Selector, Service, Snapshot,
};

/// More resources than this are a mistake, or an attempt to exhaust memory.
const MAX_RESOURCES: usize = 500_000;
/// The longest list in a resource: the sources of a rule, the placements of a service.
const MAX_LIST: usize = 20_000;
/// The longest text in a resource.
const MAX_TEXT: usize = 8_192;
/// The most labels or endpoints that a host has.
const MAX_PER_HOST: usize = 256;

/// The most ports that a service has beside its own.
const MAX_PORTS: usize = 64;

/// Prefixes of keys.
const KINDS: [&str; 8] = ["mesh", "policy", "host", "service", "device", "rule", "route", "limit"];

/// Makes a snapshot of resources, in any order.
///
/// # Errors
///
/// If a resource isn't what its key says, holds something that can't be, is there twice or missing,
/// or contradicts another. The error names it.
pub fn snapshot<'a>(
    revision: Revision,
    resources: impl IntoIterator<Item = &'a v1::Resource>,
) -> Result<Snapshot, ConvertError> {
    let mut parts = Parts::default();
    let resources = resources.into_iter().filter(|it| !is_foreign(it));
    for (count, resource) in resources.enumerate() {
        let result =
            if count < MAX_RESOURCES { parts.add(resource) } else { Err("one too many".into()) };
        result.map_err(|reason| ConvertError::new(brief(&resource.key), reason))?;
    }
    let snapshot = parts.into_snapshot(revision)?;
    check::invariants(&snapshot)?;
    Ok(snapshot)
}

/// Whether a resource is of a kind that this version doesn't know. It costs only what needs it: a
/// snapshot is made without it.
#[must_use]
pub fn is_foreign(resource: &v1::Resource) -> bool {
    let kind = resource.key.split('/').next().unwrap_or_default();
    resource.body.is_none() && !KINDS.contains(&kind)
}

/// Why a part is wrong; the caller knows which resource it is in.
pub(super) type Reason = String;

/// Resources read so far.
#[derive(Default)]
struct Parts<'a> {
    keys: HashSet<&'a str>,
    mesh: Option<(Mesh, HostId)>,
    policy: Option<&'a v1::Policy>,
    hosts: BTreeMap<HostId, Host>,
    services: BTreeMap<ServiceId, Service>,
    devices: BTreeMap<DeviceId, Device>,
    rules: BTreeMap<u32, Rule>,
    routes: BTreeMap<u32, Route>,
    limits: BTreeMap<String, RateLimit>,
}

impl<'a> Parts<'a> {
    fn add(&mut self, resource: &'a v1::Resource) -> Result<(), Reason> {
        let Some(body) = &resource.body else {
            return Err("it is empty, or of a kind that this version doesn't know".into());
        };
        let expected = key(body);
        if resource.key != expected {
            return Err(format!("its content belongs to {:?}", brief(&expected)));
        }
        if !self.keys.insert(&resource.key) {
            return Err("it is there twice".into());
        }
        match body {
            Body::Mesh(body) => self.mesh = Some((mesh(body)?, HostId(number(body.local)?))),
            Body::Policy(body) => self.policy = Some(body),
            Body::Host(body) => drop(self.hosts.insert(HostId(number(body.id)?), host(body)?)),
            Body::Service(body) => {
                self.services.insert(ServiceId(number(body.id)?), service(body)?);
            }
            Body::Device(body) => {
                self.devices.insert(DeviceId(number(body.id)?), device(body)?);
            }
            Body::Route(body) => {
                if let Some(other) = self.routes.insert(body.order, routes::decode(body)?) {
                    return Err(format!("route {:?} has the same order", other.name));
                }
            }
            Body::Limit(body) => {
                self.limits.insert(body.name.clone(), ratelimit::decode(body)?);
            }
            Body::Rule(body) => {
                if let Some(other) = self.rules.insert(body.order, rule(body)?) {
                    return Err(format!("rule {:?} has the same order", other.name));
                }
            }
        }
        Ok(())
    }

    fn into_snapshot(self, revision: Revision) -> Result<Snapshot, ConvertError> {
        let missing = |key: &str| ConvertError::new(key, "it is missing");
        let (mesh, local) = self.mesh.ok_or_else(|| missing("mesh"))?;
        let policy = self.policy.ok_or_else(|| missing("policy"))?;
        let default = if policy.default_allow { Action::Allow } else { Action::Deny };
        let audited = all("audited", &policy.audited)
            .map_err(|reason| ConvertError::new("policy", reason))?;
        let rules = self.rules.into_values().collect();
        Ok(Snapshot {
            revision,
            mesh,
            local,
            hosts: self.hosts,
            services: self.services,
            devices: self.devices,
            rules: Rules { default, audit: policy.audit, audited, rules },
            routes: self.routes.into_values().collect(),
            limits: self.limits.into_values().collect(),
        })
    }
}

fn mesh(body: &v1::Mesh) -> Result<Mesh, Reason> {
    let prefix = <[u8; 6]>::try_from(&*body.prefix)
        .map_err(|_| format!("prefix: it has {} bytes rather than 6", body.prefix.len()))?;
    Ok(Mesh {
        name: parse("name", &body.name)?,
        trust_domain: parse("trust_domain", &body.trust_domain)?,
        prefix: MeshPrefix::new(prefix).map_err(|error| format!("prefix: {error}"))?,
        ipv4: net("ipv4", &body.ipv4)?,
        virtual_ipv4: net("virtual_ipv4", &body.virtual_ipv4)?,
    })
}

fn host(body: &v1::Host) -> Result<Host, Reason> {
    bounded("labels", body.labels.len(), MAX_PER_HOST)?;
    bounded("endpoints", body.endpoints.len(), MAX_PER_HOST)?;
    for (label, value) in &body.labels {
        text("labels", label)?;
        text("labels", value)?;
    }
    let site = if body.site.is_empty() { None } else { Some(parse("site", &body.site)?) };
    Ok(Host {
        name: parse("name", &body.name)?,
        site,
        labels: body.labels.clone(),
        public_key: public_key(&body.public_key)?,
        former_key: match &*body.former_public_key {
            [] => None,
            former => Some(public_key(former)?),
        },
        endpoints: all("endpoints", &body.endpoints)?,
        ipv4_block: net("ipv4_block", &body.ipv4_block)?,
    })
}

fn service(body: &v1::Service) -> Result<Service, Reason> {
    bounded("placements", body.placements.len(), MAX_LIST)?;
    bounded("leaving", body.leaving.len(), MAX_LIST)?;
    bounded("selectors", body.selectors.len(), MAX_PER_HOST)?;
    let port = u16::try_from(body.port);
    bounded("more", body.more.len(), MAX_PORTS)?;
    bounded("aliases", body.aliases.len(), MAX_PER_HOST)?;
    let mut placements = BTreeMap::new();
    for (host, ipv4) in &body.placements {
        placements.insert(HostId(number(*host)?), address("placements", ipv4)?);
    }
    Ok(Service {
        name: parse("name", &body.name)?,
        namespace: parse("namespace", &body.namespace)?,
        port: port.map_err(|_| format!("port: {} is not 1 to 65535", body.port))?,
        protocol: application::decode_protocol(body.protocol)?,
        more: body.more.iter().map(application::decode_port).collect::<Result<_, _>>()?,
        virtual_ipv4: address("virtual_ipv4", &body.virtual_ipv4)?,
        placements,
        leaving: body
            .leaving
            .iter()
            .map(|host| number(*host).map(HostId))
            .collect::<Result<_, _>>()?,
        selectors: body.selectors.iter().map(selector).collect::<Result<_, _>>()?,
        edge: body.edge.as_ref().map(edge::decode).transpose()?,
        application: application::decode(body)?,
        balance: body.balance.as_ref().map(balance::decode).transpose()?.unwrap_or_default(),
        paths: path_mode(body.paths)?,
        guard: guard(body)?,
        aliases: body
            .aliases
            .iter()
            .map(|name| parse("aliases", name))
            .collect::<Result<_, _>>()?,
    })
}

fn path_mode(number: i32) -> Result<PathMode, Reason> {
    Ok(match v1::PathMode::try_from(number) {
        Ok(v1::PathMode::Unspecified) => PathMode::Strict,
        Ok(v1::PathMode::MergeSlashes) => PathMode::MergeSlashes,
        Ok(v1::PathMode::DecodeAndMergeSlashes) => PathMode::DecodeAndMergeSlashes,
        Ok(v1::PathMode::AsIs) => PathMode::AsIs,
        Err(_) => return Err(format!("paths: {number} isn't one that this version knows")),
    })
}

fn guard(body: &v1::Service) -> Result<PortGuard, Reason> {
    let exposure = match v1::Exposure::try_from(body.exposure) {
        Ok(v1::Exposure::Unspecified) => Exposure::Count,
        Ok(v1::Exposure::Mesh) => Exposure::Mesh,
        Ok(v1::Exposure::Open) => Exposure::Open,
        Err(_) => {
            let number = body.exposure;
            return Err(format!("exposure: {number} isn't one that this version knows"));
        }
    };
    let listener = if body.strict_listener { ListenerCheck::Strict } else { ListenerCheck::Warn };
    Ok(PortGuard { exposure, listener })
}

fn selector(body: &v1::Selector) -> Result<Selector, Reason> {
    let Some(by) = &body.by else {
        return Err("selectors: one is empty, or of a kind that this version doesn't know".into());
    };
    Ok(match by {
        By::Systemd(unit) => Selector::Systemd(filled("selectors", unit)?),
        By::User(user) => Selector::User(filled("selectors", user)?),
        By::Exe(exe) => Selector::Exe(path("selectors", exe)?),
        By::Cgroup(cgroup) => Selector::Cgroup(path("selectors", cgroup)?),
        By::Container(body) => Selector::Container(container(body)?),
    })
}

fn container(body: &v1::ContainerMatch) -> Result<ContainerMatch, Reason> {
    const FIELD: &str = "selectors";
    bounded(FIELD, body.labels.len(), MAX_PER_HOST)?;
    for (label, value) in &body.labels {
        text(FIELD, label)?;
        text(FIELD, value)?;
    }
    let some = |value: &str| (!value.is_empty()).then(|| text(FIELD, value)).transpose();
    let found = ContainerMatch {
        name: some(&body.name)?,
        image: some(&body.image)?,
        labels: body.labels.clone(),
    };
    if found.is_empty() {
        return Err("selectors: a container is selected by nothing".into());
    }
    Ok(found)
}

fn device(body: &v1::Device) -> Result<Device, Reason> {
    Ok(Device {
        name: parse("name", &body.name)?,
        public_key: public_key(&body.public_key)?,
        via: HostId(number(body.via)?),
        ipv4: address("ipv4", &body.ipv4)?,
    })
}

fn rule(body: &v1::Rule) -> Result<Rule, Reason> {
    if body.from.is_empty() || body.to.is_empty() {
        return Err("a rule needs both `from` and `to`".into());
    }
    if body.allow && body.audit {
        return Err("audit: only a rule that denies can audit".into());
    }
    bounded("http", body.http.len(), MAX_LIST)?;
    bounded("sni", body.sni.len(), MAX_LIST)?;
    Ok(Rule {
        name: filled("name", &body.name)?,
        action: if body.allow { Action::Allow } else { Action::Deny },
        from: all("from", &body.from)?,
        to: all("to", &body.to)?,
        ports: all("ports", &body.ports)?,
        http: body.http.iter().map(request_match).collect::<Result<_, _>>()?,
        sni: body.sni.iter().map(|it| routes::host(it)).collect::<Result<_, _>>()?,
        audit: body.audit,
        origin: Origin { file: text("file", &body.file)?, line: body.line },
    })
}

fn request_match(body: &v1::RequestMatch) -> Result<RequestMatch, Reason> {
    let some = |field, value: &str| -> Result<Option<Arc<str>>, Reason> {
        if value.is_empty() { Ok(None) } else { text(field, value).map(Some) }
    };
    let path = some("path", &body.path)?;
    if path.as_deref().is_some_and(|path| !path.starts_with('/')) {
        return Err(format!("http: the path {:?} doesn't begin with '/'", brief(&body.path)));
    }
    let regex = (!body.path_regex.is_empty()).then(|| parse("path_regex", &body.path_regex));
    let when = (!body.when.is_empty()).then(|| parse("when", &body.when));
    Ok(RequestMatch {
        method: some("method", &body.method)?,
        path,
        path_regex: regex.transpose()?,
        hosts: routes::decode_hosts(&body.hosts)?,
        headers: routes::decode_fields("headers", &body.headers)?,
        query: routes::decode_fields("query", &body.query)?,
        jwt: body.jwt.as_ref().map(jwt::decode).transpose()?,
        when: when.transpose()?,
    })
}

pub(super) fn number(number: u32) -> Result<u32, Reason> {
    if number == 0 { Err("a number is 0; they count from 1".into()) } else { Ok(number) }
}

fn public_key(bytes: &[u8]) -> Result<PublicKey, Reason> {
    let key = <[u8; 32]>::try_from(bytes);
    let key = key.map_err(|_| format!("public_key: it has {} bytes, not 32", bytes.len()))?;
    Ok(PublicKey(key))
}

fn address(field: &str, text: &str) -> Result<Ipv4Addr, Reason> {
    parse(field, text)
}

fn net(field: &str, text: &str) -> Result<Ipv4Net, Reason> {
    let net: Ipv4Net = parse(field, text)?;
    if net.addr() == net.network() {
        Ok(net)
    } else {
        Err(format!("{field}: {net} has bits set beyond its length"))
    }
}

pub(super) fn path(field: &str, value: &str) -> Result<PathBuf, Reason> {
    let path = PathBuf::from(&*filled(field, value)?);
    if path.is_absolute() { Ok(path) } else { Err(format!("{field}: {path:?} isn't absolute")) }
}

fn all<T: FromStr<Err: Display>>(field: &str, texts: &[String]) -> Result<Vec<T>, Reason> {
    bounded(field, texts.len(), MAX_LIST)?;
    texts.iter().map(|text| parse(field, text)).collect()
}

pub(super) fn parse<T: FromStr<Err: Display>>(field: &str, value: &str) -> Result<T, Reason> {
    if value.len() > MAX_TEXT {
        return Err(format!("{field}: a text of {} bytes is too long", value.len()));
    }
    value.parse().map_err(|error| format!("{field}: {:?}: {error}", brief(value)))
}

pub(super) fn text(field: &str, value: &str) -> Result<Arc<str>, Reason> {
    if value.len() > MAX_TEXT || value.contains('\0') {
        return Err(format!("{field}: a text has a NUL, or is longer than {MAX_TEXT} bytes"));
    }
    Ok(value.into())
}

pub(super) fn filled(field: &str, value: &str) -> Result<Arc<str>, Reason> {
    if value.is_empty() { Err(format!("{field}: it is empty")) } else { text(field, value) }
}

pub(super) fn bounded(field: &str, count: usize, most: usize) -> Result<(), Reason> {
    if count > most { Err(format!("{field}: {count} are too many")) } else { Ok(()) }
}

/// A text short enough for a message.
fn brief(text: &str) -> String {
    text.chars().take(100).collect()
}
