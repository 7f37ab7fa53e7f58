//! The mesh's edge on this host: gateways' doors and certificates, and external servers' addresses.
//!
//! ```text
//!  client ─▶ door (here) ─▶ isthmus_proxy: TLS, routes ═▶ workloads
//!  caller ─▶ isthmus_proxy: routes, policy ─▶ TLS ─▶ external server, found by name (here)
//! ```
//!
//! The proxy does what concerns requests. Here is what it needs the host for, as values that it asks
//! for by number ([`isthmus_proxy::HostServices`]): files are read, names are resolved, and sockets are
//! opened by one task that follows the snapshots.

mod acme;
mod facts;
mod files;
mod listeners;
mod problems;
mod special;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use isthmus_model::edge::{Certificate, External, Listener, Origination};
use isthmus_model::{Code, Revision, Service, ServiceId, Snapshot};
use isthmus_proto::v1;
use isthmus_proxy::{HostServices, ProxySnapshot, Visitor};
use parking_lot::RwLock;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::net::lookup_host;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::files::{Served, Stamp};
use self::listeners::GatewayListeners;
use self::problems::Clear;
use crate::status::Shared;

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(3);
/// Between two questions for an external server's addresses.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// For an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of one external server.
const MOST_ADDRESSES: usize = 64;
/// The code of the problem that an external server's name leads where no server is.
const SPECIAL: Code = Code::ExternalAddress;

/// Host services for the proxy.
#[derive(Debug)]
pub(crate) struct AgentServices {
    known: RwLock<Known>,
    /// What an authority is shown when it asks who answers for a name.
    challenges: RwLock<HashMap<String, Arc<ServerConfig>>>,
    /// Directory of certificates obtained over ACME.
    folder: PathBuf,
    /// Source of a connection's original destination.
    packets: Option<Arc<Shared>>,
}

#[derive(Debug, Default)]
struct Known {
    /// By gateway, port, and the listener's position.
    servers: HashMap<(ServiceId, u16, usize), Loaded<Served, Arc<ServerConfig>>>,
    clients: HashMap<ServiceId, Loaded<Origination, [Arc<ClientConfig>; 2]>>,
    addresses: HashMap<ServiceId, Arc<[IpAddr]>>,
    /// Why some of an external server's addresses aren't among these.
    refused: HashMap<ServiceId, String>,
    /// By the certificate's file: what has become of its order.
    orders: HashMap<PathBuf, String>,
    snapshot: Option<Arc<Snapshot>>,
}

/// Configuration loaded from files.
#[derive(Clone, Debug)]
struct Loaded<T, C> {
    of: T,
    stamp: Stamp,
    /// Of the newest files that were good.
    config: Option<C>,
    expires: Option<i64>,
    /// Problem with the newest files, and its remedy.
    problem: Option<(String, String)>,
    /// Number of this host's earlier configurations.
    epoch: u64,
}

/// Counts configurations.
static EPOCHS: AtomicU64 = AtomicU64::new(1);

impl<T: Clone + PartialEq, C: Clone> Loaded<T, C> {
    /// As it was, if its files are; else read anew.
    fn renew(
        before: Option<&Self>,
        of: &T,
        files: &[&Path],
        keys: &[&Path],
        load: impl FnOnce(&T) -> anyhow::Result<(C, Option<i64>)>,
    ) -> Self {
        let stamp = Stamp::of(files);
        let before = before.filter(|before| before.of == *of);
        if let Some(before) = before.filter(|before| before.stamp == stamp) {
            return before.clone();
        }
        let (config, expires, problem) = match load(of) {
            Ok((config, expires)) => (Some(config), expires, None),
            Err(error) => {
                let config = before.and_then(|it| it.config.clone());
                let kept = if config.is_some() { "; those from before stay in use" } else { "" };
                let problem = (format!("{error:#}{kept}"), files::remedy(files, keys));
                (config, before.and_then(|it| it.expires), Some(problem))
            }
        };
        let epoch = EPOCHS.fetch_add(1, Ordering::Relaxed);
        Self { of: of.clone(), stamp, config, expires, problem, epoch }
    }
}

impl HostServices for AgentServices {
    fn asked_port(&self, own: SocketAddr, caller: SocketAddr) -> Option<u16> {
        self.packets.as_ref()?.packets()?.asked_port(own, caller)
    }

    fn server_tls(
        &self,
        gateway: ServiceId,
        port: u16,
        name: Option<&str>,
    ) -> Option<Arc<ServerConfig>> {
        let known = self.known.read();
        let declared = known.snapshot.as_ref()?.services.get(&gateway)?.gateway()?;
        let listener = declared.listener(port, name)?;
        known.servers.get(&(gateway, port, listener))?.config.clone()
    }

    fn challenge_tls(&self, name: &str) -> Option<Arc<ServerConfig>> {
        self.challenges.read().get(name).cloned()
    }

    fn client_tls(
        &self,
        external: ServiceId,
        http2: bool,
    ) -> io::Result<Option<(Arc<ClientConfig>, ServerName<'static>)>> {
        let known = self.known.read();
        let service = known.snapshot.as_ref().and_then(|it| it.services.get(&external));
        let server = service.and_then(Service::external);
        let server = server.ok_or_else(|| io::Error::other("it was only just declared"))?;
        let Some(tls) = &server.tls else { return Ok(None) };
        let loaded = known.clients.get(&external);
        let configs = loaded.and_then(|it| it.config.as_ref()).ok_or_else(|| {
            io::Error::other("its certificate files can't be used; see `agentctl status`")
        })?;
        let name = tls.server_name.as_ref().unwrap_or(&server.host);
        let name = ServerName::try_from(name.to_string()).map_err(io::Error::other)?;
        Ok(Some((Arc::clone(&configs[usize::from(http2)]), name)))
    }

    fn epoch(&self, external: ServiceId) -> u64 {
        let known = self.known.read();
        known.clients.get(&external).map_or(0, |loaded| loaded.epoch)
    }

    fn addresses(&self, external: ServiceId) -> Arc<[IpAddr]> {
        let known = self.known.read();
        known.addresses.get(&external).cloned().unwrap_or_default()
    }

    fn unusable(&self, external: ServiceId) -> Option<String> {
        let known = self.known.read();
        let has_none = known.addresses.get(&external).is_none_or(|it| it.is_empty());
        known.refused.get(&external).filter(|_| has_none).cloned()
    }

    fn facts(&self, certificate: &[u8]) -> String {
        facts::of(certificate)
    }
}

impl AgentServices {
    /// Of an agent that keeps its state in this directory.
    #[must_use]
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self {
            known: RwLock::default(),
            challenges: RwLock::default(),
            folder: state_dir.join("acme"),
            packets: None,
        }
    }

    /// The same, which asks the data plane.
    #[must_use]
    pub(crate) fn asking(self, shared: &Arc<Shared>) -> Self {
        Self { packets: Some(Arc::clone(shared)), ..self }
    }

    /// The files that a listener is served by.
    fn served(&self, listener: &Listener) -> Option<Served> {
        let tls = listener.tls.as_ref()?;
        let certificate = match &tls.certificate {
            Certificate::Files(files) => files.clone(),
            Certificate::Acme(acme) => acme::files_of(&self.folder, acme, listener),
        };
        Some(Served { certificate, client: tls.client.clone() })
    }

    fn note_order(&self, file: &Path, what: String) {
        let mut known = self.known.write();
        known.orders.insert(file.to_owned(), what);
    }

    fn retain_orders(&self, wanted: impl Fn(&Path) -> bool) {
        let mut known = self.known.write();
        known.orders.retain(|file, _| wanted(file));
    }

    /// Reads what a snapshot names, as far as it changed.
    fn follow(&self, snapshot: &Arc<Snapshot>) {
        let (servers, clients) = {
            let known = self.known.read();
            (known.servers.clone(), known.clients.clone())
        };
        let mut new_servers = HashMap::new();
        for (id, service, _) in snapshot.local_services() {
            let listeners = service.gateway().map_or(&[][..], |gateway| &gateway.listeners);
            for (index, listener) in listeners.iter().enumerate() {
                let Some(served) = self.served(listener) else { continue };
                // How far an order is it says itself.
                if is_ordered(listener) && !served.certificate.certificate.exists() {
                    continue;
                }
                let key = (id, listener.port, index);
                let files = files::of_listener(&served);
                let keys = files::keys_of_listener(&served);
                let loaded =
                    Loaded::renew(servers.get(&key), &served, &files, &keys, files::server);
                new_servers.insert(key, loaded);
            }
        }
        let new_clients = externals(snapshot).filter_map(|(id, external)| {
            let tls = external.tls.as_ref()?;
            let load = |tls: &Origination| files::client(tls).map(|configs| (configs, None));
            let (files, keys) = (files::of_origination(tls), files::keys_of_origination(tls));
            Some((id, Loaded::renew(clients.get(&id), tls, &files, &keys, load)))
        });
        let new_clients = new_clients.collect();
        let mut known = self.known.write();
        known.servers = new_servers;
        known.clients = new_clients;
        known.snapshot = Some(Arc::clone(snapshot));
        known.addresses.retain(|id, _| snapshot.services.get(id).is_some_and(is_external));
        known.refused.retain(|id, _| snapshot.services.get(id).is_some_and(is_external));
    }

    fn note_addresses(&self, external: ServiceId, Answer { addresses, refused }: Answer) {
        let mut known = self.known.write();
        match refused {
            Some(reason) => drop(known.refused.insert(external, reason)),
            None => drop(known.refused.remove(&external)),
        }
        if known.addresses.get(&external).is_none_or(|before| **before != *addresses) {
            known.addresses.insert(external, addresses.into());
        }
    }

    /// State shown by `agentctl status`.
    fn describe(&self, open: &GatewayListeners) -> Vec<v1::GatewayStatus> {
        let known = self.known.read();
        let Some(snapshot) = &known.snapshot else { return Vec::new() };
        let mut statuses = Vec::new();
        for (id, service, _) in snapshot.local_services() {
            let listeners = service.gateway().map_or(&[][..], |gateway| &gateway.listeners);
            for (index, listener) in listeners.iter().enumerate() {
                let loaded = known.servers.get(&(id, listener.port, index));
                let file = loaded.and_then(|it| Some(it.problem.as_ref()?.0.clone()));
                let order = self.served(listener);
                let order = order.and_then(|it| known.orders.get(&it.certificate.certificate));
                let closed = open.problem(listener.port).map(|it| it.why.clone());
                let problem = closed.or_else(|| order.cloned()).or(file);
                statuses.push(v1::GatewayStatus {
                    gateway: service.name.to_string(),
                    port: listener.port.into(),
                    hosts: listener.hosts.iter().map(ToString::to_string).collect(),
                    tls: listener.tls.is_some(),
                    certificate_expires: loaded.and_then(|it| it.expires),
                    problem: problem.unwrap_or_default(),
                });
            }
        }
        for (id, external) in externals(snapshot) {
            let Some((problem, _)) = known.clients.get(&id).and_then(|it| it.problem.clone())
            else {
                continue;
            };
            let name = snapshot.services.get(&id).map(|it| it.name.to_string());
            statuses.push(v1::GatewayStatus {
                gateway: name.unwrap_or_default(),
                port: external.port.into(),
                hosts: vec![external.host.to_string()],
                tls: true,
                certificate_expires: None,
                problem,
            });
        }
        statuses
    }
}

fn is_ordered(listener: &Listener) -> bool {
    let certificate = listener.tls.as_ref().map(|tls| &tls.certificate);
    matches!(certificate, Some(Certificate::Acme(_)))
}

fn is_external(service: &Service) -> bool {
    service.external().is_some()
}

/// The external servers that this host may speak to itself.
fn externals(snapshot: &Snapshot) -> impl Iterator<Item = (ServiceId, &External)> {
    let local = snapshot.local;
    snapshot
        .services
        .iter()
        .filter_map(move |(id, service)| Some((*id, service.external_from(local)?)))
}

/// Follows the snapshots, and the files that they name.
pub(crate) async fn run(
    services: Arc<AgentServices>,
    shared: Arc<Shared>,
    mut views: watch::Receiver<Arc<ProxySnapshot>>,
    visitors: mpsc::Sender<Visitor>,
    followed: watch::Sender<Revision>,
) {
    let _clear = Clear(Arc::clone(&shared));
    let mut listeners = GatewayListeners::new(visitors);
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let snapshot = Arc::clone(&views.borrow_and_update().snapshot);
        let following = Arc::clone(&services);
        let seen = Arc::clone(&snapshot);
        // Files may be slow.
        let _ = tokio::task::spawn_blocking(move || following.follow(&seen)).await;
        listeners.follow(&snapshot);
        let gateways = services.describe(&listeners);
        if shared.status().gateways != gateways {
            shared.update(|status| status.gateways = gateways);
        }
        let (unusable, closed) = services.problems(&listeners);
        shared.problems.replace(Code::CertificateUnusable, unusable);
        shared.problems.replace(Code::GatewayDoor, closed);
        followed.send_replace(snapshot.revision);
        tokio::select! {
            _ = ticks.tick() => {}
            changed = views.changed() => if changed.is_err() {
                return;
            }
        }
    }
}

/// Gets certificates by ACME, where listeners want them.
pub(crate) async fn order(
    services: Arc<AgentServices>,
    views: watch::Receiver<Arc<ProxySnapshot>>,
) {
    acme::run(services, views).await;
}

/// Asks for the addresses of external servers, again and again.
pub(crate) async fn resolve(
    services: Arc<AgentServices>,
    shared: Arc<Shared>,
    mut views: watch::Receiver<Arc<ProxySnapshot>>,
) {
    let mut ticks = interval(ASK_AGAIN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let snapshot = Arc::clone(&views.borrow_and_update().snapshot);
        let mut asking = JoinSet::new();
        for (id, external) in externals(&snapshot) {
            let (host, port) = (external.host.to_string(), external.port);
            asking.spawn(async move { (id, timeout(PATIENCE, addresses(host, port)).await) });
        }
        let mut unresolved = Vec::new();
        while let Some(answered) = asking.join_next().await {
            match answered {
                Ok((id, Ok(Ok(addresses)))) => {
                    services.note_addresses(id, answer(addresses, &snapshot, id));
                }
                // What was known before is better than nothing.
                Ok((id, Ok(Err(error)))) => {
                    let error = error.to_string();
                    unresolved.extend(services.unresolved(&snapshot, id, &error));
                }
                Ok((id, Err(_))) => {
                    unresolved.extend(services.unresolved(&snapshot, id, "no answer in time"));
                }
                Err(_) => {}
            }
        }
        shared.problems.replace(Code::ExternalUnresolved, unresolved);
        shared.problems.replace(SPECIAL, services.refused_addresses(&snapshot));
        tokio::select! {
            _ = ticks.tick() => {}
            changed = views.changed() => if changed.is_err() {
                return;
            }
        }
    }
}

async fn addresses(host: String, port: u16) -> io::Result<Vec<IpAddr>> {
    let found = lookup_host((host, port)).await?;
    let mut found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    found.sort_unstable();
    found.dedup();
    found.truncate(MOST_ADDRESSES);
    if found.is_empty() { Err(io::Error::other("it has no address")) } else { Ok(found) }
}

/// Result of resolving an external server's addresses.
#[derive(Debug)]
struct Answer {
    /// Those that may be dialled.
    addresses: Vec<IpAddr>,
    /// Why others may not.
    refused: Option<String>,
}

/// Leaves out what no server outside has, unless the operator wrote the address, or wants it so.
fn answer(found: Vec<IpAddr>, snapshot: &Snapshot, id: ServiceId) -> Answer {
    let external = snapshot.services.get(&id).and_then(Service::external);
    let is_wanted = |it: &External| it.special_addresses || it.host.parse::<IpAddr>().is_ok();
    if external.is_none_or(is_wanted) {
        return Answer { addresses: found, refused: None };
    }
    let mut refused = None;
    let mut addresses = found;
    addresses.retain(|address| {
        let Some(what) = special::special(*address, &snapshot.mesh) else { return true };
        refused.get_or_insert_with(|| {
            format!("its name leads to {address} ({what}), which isn't dialled")
        });
        false
    });
    Answer { addresses, refused }
}

#[cfg(test)]
mod tests;
