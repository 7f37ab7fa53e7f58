//! All that exists only while there is a snapshot: the device, the thread that moves packets, the
//! proxy and the mesh's DNS. It starts with the first snapshot and follows each next one.

mod events;
mod sockets;
mod tasks;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use isthmus_core::{CompiledSnapshot, Config};
use isthmus_model::{Code, Problem, Revision, Snapshot};
use isthmus_net::listen::hush;
use isthmus_net::netlink::NetlinkError;
use isthmus_net::ruleset::RulesetMonitor;
use isthmus_net::senders::Senders;
use isthmus_net::sock_diag::SocketDiag;
use isthmus_net::tun::Tun;
use isthmus_net::udp::UdpSocket;
use isthmus_proxy::{ProxySnapshot, RateLimits};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;

use self::events::listen;
use self::sockets::{clones, device, proxy_listeners, tunnel_sockets};
use self::tasks::{announce_moves, keep_containers, keep_ports, run_proxy, start_edge};
use crate::addresses;
use crate::dataplane::{self, Setup};
use crate::dns::keeper::MeshDns;
use crate::firewall;
use crate::guard::{self, Guard, Standing};
use crate::identity::TunnelKey;
use crate::kept_device;
use crate::network::{self, Clashes, Network};
use crate::own_ports::Port;
use crate::owners::{SocketOwners, not_noted};
use crate::ports;
use crate::settings::GuardMode;
use crate::status::Shared;
use crate::vitals;

/// Events that wait for being logged and reported.
const EVENTS: usize = 1024;
/// Clients of gateways that wait for the proxy.
const VISITORS: usize = 256;
/// Between two looks at hosts that don't answer, while there are any.
const SILENCE_LOOKS: Duration = Duration::from_secs(5);
/// Denials logged per second; those beyond are counted only.
const DENIALS_LOGGED: u32 = 50;
/// Before the proxy stops, callers are told for so long to go elsewhere: whoever sends another
/// request in this time does it without losing one.
const LEAVE: Duration = Duration::from_secs(1);
/// What a connection that was just made may take until its request is here.
const SETTLE: Duration = Duration::from_millis(300);
/// The last packets of closed connections must still get out.
const FAREWELL: Duration = Duration::from_millis(100);
/// For what a revision needs from outside: an operator waits meanwhile.
const FOLLOWED: Duration = Duration::from_secs(1);
const ASKING: Duration = Duration::from_millis(10);
/// For a revision's ports to be guarded.
const GUARDED: Duration = Duration::from_secs(3);

/// The overlay of one member.
pub(crate) struct Overlay {
    shared: Arc<Shared>,
    keys: Keys,
    running: Option<Running>,
    /// An earlier agent's device, until it is put to use.
    kept: Option<Tun>,
}

/// Why an overlay is taken down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// This host leaves its mesh, or its agent is stopped.
    ForGood,
    /// Another agent is about to go on: addresses, routes and names stay for it.
    Restart,
}

/// The tunnel key, and while it changes the other one.
type Keys = (TunnelKey, Option<TunnelKey>);

struct Running {
    packets: dataplane::Handle,
    thread: Option<JoinHandle<()>>,
    device: u32,
    network: Arc<Mutex<Network>>,
    guard: Arc<Standing>,
    state: Arc<CompiledSnapshot>,
    states: watch::Sender<Arc<CompiledSnapshot>>,
    views: watch::Sender<Arc<ProxySnapshot>>,
    names: Option<MeshDns>,
    /// The proxy's. Open until the data plane is gone, so that nobody is refused meanwhile.
    listeners: Vec<TcpListener>,
    /// Tries the same listeners.
    firewall: JoinSet<()>,
    leaving: Arc<AtomicBool>,
    /// Of which revision the ports are guarded.
    guarded: ports::Kept,
    /// Of which revision the edge's files were read and its doors opened.
    followed: watch::Receiver<Revision>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Overlay {
    #[must_use]
    pub(crate) fn new(shared: Arc<Shared>, keys: Keys) -> Self {
        let kept = kept_device::adopt(&shared.settings);
        Self { shared, keys, running: None, kept }
    }

    /// The overlay device's index, once there is one.
    #[must_use]
    pub(crate) fn device(&self) -> Option<u32> {
        let running = self.running.as_ref().map(|running| running.device);
        running.or_else(|| self.kept.as_ref().map(Tun::index))
    }

    /// Works with these keys from now on.
    ///
    /// # Errors
    /// When the data plane is busy, or has failed.
    pub(crate) async fn use_keys(&mut self, keys: Keys) -> anyhow::Result<()> {
        self.keys = keys;
        let Some(running) = &self.running else { return Ok(()) };
        let (key, second) = &self.keys;
        let second = second.as_ref().map(|it| it.bytes().clone());
        running.packets.use_keys(key.bytes().clone(), second).await
    }

    /// Works by `snapshot` from now on. When this returns, every packet is judged by it.
    ///
    /// # Errors
    /// Says for the operator why this host can't; it goes on by the old one, if it had one.
    pub(crate) async fn switch(&mut self, snapshot: Snapshot) -> anyhow::Result<()> {
        let clashes = network::clashes(&addresses::prefixes(&snapshot), self.device()).await?;
        if let Some(clashes) = Clashes::of(&clashes) {
            return Err(clashes.into());
        }
        let state = Arc::new(CompiledSnapshot::new(snapshot));
        match &mut self.running {
            Some(running) => running.switch(&self.shared, &state).await?,
            None => {
                let kept = self.kept.take();
                let started = Running::start(&self.shared, &self.keys, &state, kept).await;
                // Whatever it was, the next attempt has a new device.
                let running = started.inspect_err(|_| kept_device::forget())?;
                self.shared.set_packets(Some(running.packets.clone()));
                self.running = Some(running);
            }
        }
        self.shared.update(|status| status.state = Some(state));
        Ok(())
    }

    /// Takes everything down but the guard: requests under way get a moment to end, then the device
    /// goes, unless it is kept for the next agent.
    pub(crate) async fn stop(&mut self, ending: Ending) {
        self.shared.set_packets(None);
        self.shared.update(|status| {
            status.state = None;
            status.proxy.clear();
            status.dns.clear();
        });
        if ending == Ending::ForGood {
            kept_device::forget();
            self.kept = None;
        }
        if let Some(running) = self.running.take() {
            running.stop(&self.shared, ending).await;
            self.shared.proxy.silence().replace([]);
            self.shared.problems.set(Code::HostSilent, None);
        }
    }
}

impl Running {
    async fn start(
        shared: &Arc<Shared>,
        keys: &Keys,
        state: &Arc<CompiledSnapshot>,
        kept: Option<Tun>,
    ) -> anyhow::Result<Self> {
        let settings = &shared.settings;
        // INVARIANT: nothing of the overlay is there before its guard.
        let (guard, monitor) = raise(shared, guard_of(shared, state)).await?;
        // INVARIANT: the proxy holds its port before any flow can be led there.
        let (proxy, sockets) = open_ports(shared)?;
        go_on_without_guard(shared, guard.replace(guard_of(shared, state)).await)?;
        let mtu = settings.mtu(network::underlay_mtu(&settings.device).await);
        let tun = device(kept, settings, mtu).await?;
        let mut network = Network::set_up(&tun, mtu).await?;
        network.apply(&state.snapshot).await?;

        let (events, told) = mpsc::channel(EVENTS);
        let (states, _) = watch::channel(Arc::clone(state));
        let (views, _) = watch::channel(view(state, shared.proxy.limits()));
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(Arc::clone(shared), told, states.subscribe()));
        let (edge, followed) = start_edge(shared, &views, &stopped, &mut tasks);
        let (listeners, tried) = (clones(&proxy)?, clones(&proxy)?);
        let leaving = Arc::new(AtomicBool::new(false));
        let views_ = views.subscribe();
        let flags = (Arc::clone(&leaving), stopped.clone());
        tasks.spawn(run_proxy(Arc::clone(shared), (proxy, edge), views_, flags));

        let device = tun.index();
        let owners = socket_owners(shared, &tun);
        let config = node_config(shared, keys, mtu)?;
        let setup = Setup { tun, sockets, config, state: Arc::clone(state), owners, events };
        let failed = Arc::clone(shared);
        let (packets, thread) = dataplane::start(setup, move |error| {
            failed.fail(&error.context("The data plane failed"));
        })?;
        // What reaches the mesh comes first: ports that an earlier life of the agent closed are closed still.
        let (keeps, guarded) = watch::channel(Revision(0));
        tasks.spawn(keep_ports(Arc::clone(shared), states.subscribe(), keeps, stopped.clone()));
        let (standing, told) = (Arc::clone(&guard), is_set(stopped.clone()));
        tasks.spawn(guard::keep(Arc::clone(shared), standing, monitor, told));
        tasks.spawn(keep_containers(Arc::clone(shared), states.subscribe(), stopped.clone()));
        let told = stopped.clone();
        tasks.spawn(announce_moves(Arc::clone(shared), device, packets.clone(), told));
        let mut firewall = JoinSet::new();
        let (own, told) = (network.own_addresses(), states.subscribe());
        firewall.spawn(firewall::watch(Arc::clone(shared), packets.clone(), tried, own, told));
        let names = MeshDns::start(shared, network.own_addresses(), views.subscribe()).await;
        let network = Arc::new(Mutex::new(network));
        tasks.spawn(network::keep(Arc::clone(shared), Arc::clone(&network), is_set(stopped)));
        let state = Arc::clone(state);
        Ok(Self {
            packets,
            thread: Some(thread),
            device,
            network,
            guard,
            state,
            states,
            views,
            names,
            listeners,
            firewall,
            leaving,
            guarded,
            followed,
            stop,
            tasks,
        })
    }

    async fn switch(
        &mut self,
        shared: &Arc<Shared>,
        state: &Arc<CompiledSnapshot>,
    ) -> anyhow::Result<()> {
        let guarded = self.guard.replace(guard_of(shared, state)).await;
        go_on_without_guard(shared, guarded)?;
        let mut network = self.network.lock().await;
        if let Err(error) = network.apply(&state.snapshot).await {
            // Whatever was changed belongs to a revision that this host doesn't work by.
            if let Err(error) = network.apply(&self.state.snapshot).await {
                tracing::error!("couldn't restore the overlay's addresses: {error:#}");
            }
            return Err(error);
        }
        drop(network);
        self.packets.switch(Arc::clone(state)).await?;
        self.state = Arc::clone(state);
        self.states.send_replace(Arc::clone(state));
        self.views.send_replace(view(state, shared.proxy.limits()));
        self.wait_for_ports().await;
        self.wait_for_edge(shared).await;
        Ok(())
    }

    /// An operator shall hear of what a revision brings: files that aren't there, ports that are taken.
    async fn wait_for_edge(&mut self, shared: &Shared) {
        let revision = self.state.revision();
        let view = Arc::clone(&self.views.borrow());
        let tried = async {
            drop(self.followed.wait_for(|followed| *followed >= revision).await);
            while !shared.proxy.has_asked_for_keys(&view) {
                tokio::time::sleep(ASKING).await;
            }
        };
        if tokio::time::timeout(FOLLOWED, tried).await.is_err() {
            tracing::debug!("what the revision needs from outside isn't there yet");
        }
        vitals::look_for_keys(shared, true);
    }

    /// A revision isn't worked by while a port is open that it closes.
    async fn wait_for_ports(&mut self) {
        let revision = self.state.revision();
        let guarded = self.guarded.wait_for(|guarded| *guarded >= revision);
        if tokio::time::timeout(GUARDED, guarded).await.is_err() {
            tracing::warn!("the ports of services are still guarded as an earlier revision says");
        }
    }

    async fn stop(mut self, shared: &Shared, ending: Ending) {
        // It mustn't meddle with the listeners any more.
        self.firewall.shutdown().await;
        let has_callers = shared.proxy.snapshot().active_connections > 0;
        if has_callers {
            self.leaving.store(true, Ordering::Relaxed);
            tokio::time::sleep(LEAVE).await;
        }
        // Whoever comes from here on is for the next agent, if there is one.
        for listener in &self.listeners {
            if let Err(error) = hush(listener) {
                tracing::warn!(%error, "callers may see connections refused");
            }
        }
        if has_callers {
            // Those who came just before still have to be accepted, and their requests to arrive.
            tokio::time::sleep(SETTLE).await;
        }
        self.stop.send_replace(true);
        let drain = Duration::from_secs(shared.settings.drain_seconds.into());
        // The task that listens to events ends with the thread that sends them.
        let drained = tokio::time::timeout(drain + FAREWELL, async {
            while self.tasks.len() > 1 && self.tasks.join_next().await.is_some() {}
        });
        if drained.await.is_err() {
            tracing::info!("ending requests that are still under way");
        }
        if has_callers {
            tokio::time::sleep(FAREWELL).await;
        }
        // Names are answered for as long as anything works.
        if let Some(names) = self.names.take() {
            names.stop(ending == Ending::Restart).await;
        }
        self.packets.stop();
        if let Some(thread) = self.thread.take() {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::warn!("the data plane's thread ended badly");
            }
        }
        self.tasks.shutdown().await;
        if ending == Ending::ForGood {
            self.network.lock().await.tear_down().await;
        }
    }
}

/// The proxy's listeners and the tunnels' sockets, on the ports of the settings or on others.
fn open_ports(shared: &Shared) -> anyhow::Result<(Vec<TcpListener>, Vec<Vec<UdpSocket>>)> {
    let settings = &shared.settings;
    let (proxy, proxy_port) = Port::proxy(settings).open(&shared.problems, proxy_listeners)?;
    let open = |number| tunnel_sockets(number, settings.lanes());
    let (sockets, tunnel_port) = Port::tunnels(settings).open(&shared.problems, open)?;
    shared.ports.set(tunnel_port, proxy_port);
    Ok((proxy, sockets))
}

fn guard_of(shared: &Shared, state: &CompiledSnapshot) -> Guard {
    let guard = Guard::of(&shared.settings, &shared.ports, &addresses::prefixes(&state.snapshot));
    let snapshot = &state.snapshot;
    guard.with_answers(addresses::answers(snapshot)).with_names(&shared.settings, snapshot)
}

/// Listens before anything is raised, so that it needn't be raised again to be sure of it.
async fn raise(
    shared: &Shared,
    guard: Guard,
) -> anyhow::Result<(Arc<Standing>, Result<RulesetMonitor, NetlinkError>)> {
    let monitor = RulesetMonitor::start(&guard.table());
    let (standing, raised) = Standing::raise(guard).await;
    go_on_without_guard(shared, raised)?;
    Ok((Arc::new(standing), monitor))
}

/// Without a guard there is no overlay, unless an administrator says otherwise; then all that is left
/// is to tell its operators.
fn go_on_without_guard(shared: &Shared, raised: anyhow::Result<()>) -> anyhow::Result<()> {
    match (raised, shared.settings.guard) {
        (Ok(()), _) => shared.problems.set(guard::MISSING, None),
        (Err(error), GuardMode::Optional) => shared.problems.raise(guard::missing(&error)),
        (Err(error), GuardMode::Required) => {
            return Err(error.context(
                "Failed to guard the overlay's addresses; to go without, set guard = \"optional\"",
            ));
        }
    }
    Ok(())
}

fn view(state: &CompiledSnapshot, limits: &RateLimits) -> Arc<ProxySnapshot> {
    let (snapshot, policy) = (Arc::clone(&state.snapshot), Arc::clone(&state.policy));
    Arc::new(ProxySnapshot::assemble(snapshot, policy, state.directory.clone()).limited_by(limits))
}

fn node_config(shared: &Shared, (key, second): &Keys, mtu: u16) -> anyhow::Result<Config> {
    let seed = getrandom::u64().context("Failed to get random bytes from the kernel")?;
    let mut config = Config::new(key.bytes().clone(), seed);
    config.second_key = second.as_ref().map(|it| it.bytes().clone());
    config.mtu = mtu;
    config.ciphers = shared.settings.bulk.ciphers();
    config.proxy_port = shared.ports.proxy();
    Ok(config)
}

fn socket_owners(shared: &Arc<Shared>, tun: &Tun) -> SocketOwners {
    let sockets = match SocketDiag::open() {
        Ok(mut sockets) => {
            sockets.set_interface(tun.index());
            Some(sockets)
        }
        Err(error) => {
            shared.problems.raise(unknown_sockets(&error.into()));
            None
        }
    };
    let (cgroups, counters) = (Arc::clone(&shared.cgroups), Arc::clone(&shared.owners));
    let callers = Arc::clone(&shared.callers);
    let senders = senders_before(shared, tun.index());
    // In a device that was kept wait packets of which nobody has noted who sent them: their sockets' ports
    // may be others' by now.
    tun.discard_waiting();
    SocketOwners::new(sockets, senders, cgroups, counters, callers, Some(Arc::clone(shared)))
}

fn unknown_sockets(error: &anyhow::Error) -> Problem {
    let text = format!("every process here speaks as the host, not as its service: {error:#}");
    let remedy = "`modprobe -a tcp_diag udp_diag`, and `systemctl restart isthmus-agent`; without a \
                  systemd unit, let the agent open netlink sockets";
    Problem::new(Code::SocketsUnknown, text, remedy)
}

/// Has the kernel note who sends by the device, if it can.
fn senders_before(shared: &Shared, device: u32) -> Option<Arc<Senders>> {
    let senders = shared.senders.get()?;
    match senders.attach(device) {
        Ok(()) => Some(Arc::clone(senders)),
        Err(error) => {
            shared.problems.raise(not_noted(&error.into()));
            None
        }
    }
}

/// Waits until `flag` is true, or nobody can set it any more.
pub(crate) async fn is_set(mut flag: watch::Receiver<bool>) {
    drop(flag.wait_for(|set| *set).await);
}

#[cfg(test)]
mod tests;
