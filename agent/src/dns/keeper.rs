//! Mesh DNS as a part of the overlay: runs while there is one, at the host's own addresses, and
//! tells the host's resolver about it.
//!
//! All of it is looked at again and again: another server may have the port for a while, addresses come
//! and go, and others write the host's configuration, too. What the status says is what was found by
//! asking.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_model::{Code, Problem};
use isthmus_net::holders;
use isthmus_net::sock_diag::Protocol;
use isthmus_proxy::ProxySnapshot;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::dns::resolver::{Paths, Resolver};
use crate::dns::{self, Config, PORT, Server, Upstream};
use crate::own_ports::stop;
use crate::patience::Patience;
use crate::settings::Settings;
use crate::status::Shared;

/// What an agent takes from its start until it answers, and more.
const SOON: Duration = Duration::from_secs(10);
/// How the status begins once it does.
const ANSWERING: &str = "answering on";
/// Between two looks at everything.
const LOOK_EVERY: Duration = Duration::from_secs(3);

const SILENT: Code = Code::DnsSilent;
const UNTOLD: Code = Code::ResolverUntold;
const NO_UPSTREAM: Code = Code::DnsNoUpstream;

/// Mesh DNS, running.
#[derive(Debug)]
pub struct MeshDns {
    /// Once it is to stop: whether for a restart.
    stop: watch::Sender<Option<bool>>,
    task: JoinHandle<()>,
}

impl MeshDns {
    /// Starts to answer on `own`, the host's own addresses. What fails is a problem in the status, and
    /// tried again: an overlay without names is better than none.
    pub(crate) async fn start(
        shared: &Arc<Shared>,
        own: watch::Receiver<Vec<IpAddr>>,
        views: watch::Receiver<Arc<ProxySnapshot>>,
    ) -> Option<Self> {
        if !shared.settings.dns.listen {
            shared.update(|status| "off".clone_into(&mut status.dns));
            return None;
        }
        let resolver = resolver(&shared.settings);
        let mut keeper = Keeper::new(Arc::clone(shared), PORT, resolver, own, views);
        keeper.look().await;
        let (stop, stopped) = watch::channel(None);
        Some(Self { stop, task: tokio::spawn(keeper.keep(stopped)) })
    }

    /// Ends, and lets the host's resolver be as it was. For a restart it stays told, if it asks here for
    /// the mesh's names alone: it tries again until it is answered.
    pub async fn stop(self, is_restart: bool) {
        self.stop.send_replace(Some(is_restart));
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "mesh DNS ended badly");
        }
    }
}

/// Puts back what an agent that was killed left of the host's resolver: at once, unless this agent is
/// about to answer in its stead.
pub(crate) async fn recover(shared: Arc<Shared>, is_member: bool) {
    let settings = &shared.settings;
    if is_member && settings.dns.listen && resolver(settings).takes_all_names() {
        sleep(SOON).await;
        if shared.status().dns.starts_with(ANSWERING) {
            return;
        }
    }
    put_back(settings);
}

/// Puts back what is left of an agent that cannot go on, or is not to.
pub fn put_back(settings: &Settings) {
    if let Err(error) = resolver(settings).recover() {
        let error = anyhow::Error::new(error);
        tracing::warn!("couldn't restore the host's resolver: {error:#}");
    }
}

fn resolver(settings: &Settings) -> Resolver {
    Resolver::new(
        settings.dns.configure,
        &settings.dns.search,
        Paths::standard(&settings.state_dir),
    )
}

struct Keeper {
    shared: Arc<Shared>,
    port: u16,
    resolver: Resolver,
    patience: Patience,
    /// Why it couldn't be told.
    refusal: Option<Problem>,
    own: watch::Receiver<Vec<IpAddr>>,
    views: watch::Receiver<Arc<ProxySnapshot>>,
    /// Those that run are for these addresses of the host.
    addresses: Vec<IpAddr>,
    servers: BTreeMap<IpAddr, Server>,
}

impl Keeper {
    fn new(
        shared: Arc<Shared>,
        port: u16,
        resolver: Resolver,
        own: watch::Receiver<Vec<IpAddr>>,
        views: watch::Receiver<Arc<ProxySnapshot>>,
    ) -> Self {
        let (patience, servers) = (Patience::default(), BTreeMap::new());
        let addresses = Vec::new();
        Self { shared, port, resolver, patience, refusal: None, own, views, addresses, servers }
    }

    async fn keep(mut self, mut stopped: watch::Receiver<Option<bool>>) {
        let stop = async move {
            stopped.wait_for(Option::is_some).await.ok().and_then(|stop| *stop).unwrap_or_default()
        };
        tokio::pin!(stop);
        let is_restart = loop {
            tokio::select! {
                told = timeout(LOOK_EVERY, self.own.changed()) => {
                    if matches!(told, Ok(Err(_))) {
                        break false;
                    }
                }
                is_restart = &mut stop => break is_restart,
            }
            self.look().await;
        };
        if is_restart && !self.resolver.takes_all_names() {
            return;
        }
        if let Err(error) = self.resolver.restore().await {
            let error = anyhow::Error::new(error);
            tracing::warn!("couldn't restore the host's resolver: {error:#}");
        }
        for code in [SILENT, UNTOLD, NO_UPSTREAM] {
            self.shared.problems.set(code, None);
        }
    }

    /// Does what is to be done, and says how it stands.
    async fn look(&mut self) {
        let own = self.own.borrow_and_update().clone();
        if own != self.addresses {
            self.servers.retain(|address, _| own.contains(address));
            self.addresses = own;
        }
        let (mut answering, mut silent) = (Vec::new(), Vec::new());
        for address in self.addresses.clone() {
            match self.serve(address).await {
                Ok(()) => answering.push(address),
                Err(problem) => silent.push(problem),
            }
        }
        self.show(&answering, &silent);
        self.shared.problems.replace(SILENT, silent);
        let untold = if answering.is_empty() { None } else { self.tell(&answering).await };
        self.shared.problems.set(UNTOLD, untold);
        self.shared.problems.set(NO_UPSTREAM, self.no_upstream());
    }

    /// Answers on an address, and makes sure of it.
    async fn serve(&mut self, address: IpAddr) -> Result<(), Problem> {
        let listen = SocketAddr::new(address, self.port);
        if !self.servers.contains_key(&address) {
            let config = Config {
                listen,
                upstream: self.upstream(),
                short_names: self.shared.settings.dns.short_names(),
                own: self.addresses.clone(),
            };
            let started = Server::start(config, self.views.clone());
            let server = started.map_err(|error| port_taken(listen, &error))?;
            self.servers.insert(address, server);
        }
        match dns::answers(listen).await {
            Some(true) => Ok(()),
            Some(false) | None => Err(no_answer(listen)),
        }
    }

    /// Has the host ask here, again if somebody else has changed that.
    async fn tell(&mut self, servers: &[IpAddr]) -> Option<Problem> {
        let now = Instant::now();
        if self.resolver.is_told(servers).await {
            self.patience.settle(now);
            self.refusal = None;
        } else if self.patience.not_before().is_none_or(|at| at <= now) {
            let mesh = self.views.borrow().snapshot.mesh.clone();
            let device = &self.shared.settings.device;
            let told = self.resolver.configure(device, servers, &mesh).await;
            self.patience.on_restored(now);
            tracing::info!(times = self.patience.total(), "told the host's resolver of the mesh");
            self.refusal = told.err().map(|error| untold(&anyhow::Error::new(error)));
        }
        let contended = self.patience.is_contended().then(|| contended(self.patience.total()));
        self.refusal.clone().or(contended)
    }

    fn upstream(&self) -> Upstream {
        let settings = &self.shared.settings.dns;
        Upstream::from_settings(&settings.upstream, self.resolver.upstream_file())
    }

    /// Who asks here for all names must get answers for all.
    fn no_upstream(&self) -> Option<Problem> {
        let upstream = self.upstream();
        let asks = self.resolver.takes_all_names() && !self.servers.is_empty();
        (asks && !upstream.has_server(&self.addresses)).then(|| {
            Problem::new(
                NO_UPSTREAM,
                format!("names outside the mesh can't be resolved here: {upstream} has no server"),
                "set [dns] upstream in agent.toml, or configure = \"off\"",
            )
        })
    }

    fn show(&self, answering: &[IpAddr], silent: &[Problem]) {
        let list: Vec<String> = answering.iter().map(ToString::to_string).collect();
        let works = (!list.is_empty()).then(|| format!("{ANSWERING} {}", list.join(", ")));
        let fails = silent.iter().map(|problem| problem.text.clone());
        let shown: Vec<String> = works.into_iter().chain(fails).collect();
        self.shared.update(|status| status.dns = shown.join("; "));
    }
}

fn port_taken(listen: SocketAddr, error: &std::io::Error) -> Problem {
    let port = listen.port();
    let about = listen.ip();
    Problem::new(
        SILENT,
        format!("no mesh DNS on {about}: can't listen on port {port}: {error}"),
        format!(
            "{}, or have it listen on its own addresses only (dnsmasq: bind-interfaces), or set [dns] \
             listen = false",
            stop(&holders::of_port(Protocol::Udp, port).unwrap_or_default())
        ),
    )
    .about(about.to_string())
}

fn no_answer(listen: SocketAddr) -> Problem {
    Problem::new(
        SILENT,
        format!("no mesh DNS on {}: this host gets no answer there from itself", listen.ip()),
        "let packets to UDP 53 on the interface lo pass this host's firewall",
    )
    .about(listen.ip().to_string())
}

fn untold(error: &anyhow::Error) -> Problem {
    Problem::new(
        UNTOLD,
        format!("the host's resolver doesn't know about mesh names: {error:#}"),
        "set [dns] configure in agent.toml, or point the host's resolver at the agent's address",
    )
}

fn contended(times: u64) -> Problem {
    Problem::new(
        UNTOLD,
        format!(
            "something keeps taking mesh DNS out of the host's resolver ({times} times so far)"
        ),
        "have the DHCP client or NetworkManager leave /etc/resolv.conf alone, or set [dns] \
         configure = \"off\" and name the agent's address there",
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::Ipv4Addr;
    use std::path::Path;

    use tokio::net::UdpSocket;

    use super::*;
    use crate::dns::tests::support::view;
    use crate::owners::SharedCgroups;
    use crate::settings::ConfigureResolver;

    const OWN: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    struct Host {
        dir: tempfile::TempDir,
        shared: Arc<Shared>,
        keeper: Keeper,
        own: watch::Sender<Vec<IpAddr>>,
        _views: watch::Sender<Arc<ProxySnapshot>>,
    }

    impl Host {
        fn new(port: u16) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let paths = Paths {
                resolved: dir.path().join("none"),
                resolv_conf: dir.path().join("resolv.conf"),
                ..Paths::standard(dir.path())
            };
            fs::write(&paths.resolv_conf, "nameserver 192.0.2.1\n").unwrap();
            let resolver = Resolver::new(ConfigureResolver::ResolvConf, &[], paths);
            let shared = Shared::new(Settings::default(), SharedCgroups::default());
            let (own, addresses) = watch::channel(vec![OWN]);
            let (views_, views) = watch::channel(view());
            let keeper = Keeper::new(Arc::clone(&shared), port, resolver, addresses, views);
            Self { dir, shared, keeper, own, _views: views_ }
        }

        fn resolv_conf(&self) -> std::path::PathBuf {
            self.dir.path().join("resolv.conf")
        }

        fn problems(&self) -> Vec<String> {
            self.shared.problems.all().into_iter().map(|it| it.code).collect()
        }
    }

    async fn free_port() -> (UdpSocket, u16) {
        let taken = UdpSocket::bind((OWN, 0)).await.unwrap();
        let port = taken.local_addr().unwrap().port();
        (taken, port)
    }

    #[tokio::test]
    async fn a_port_that_was_taken_is_used_once_it_is_free_and_the_status_says_which() {
        let (taken, port) = free_port().await;
        let mut host = Host::new(port);
        host.keeper.look().await;
        assert_eq!(host.problems(), [SILENT.name()]);
        let status = host.shared.status().dns;
        assert!(!status.contains("answering") && status.contains("can't listen"), "{status}");
        let told = fs::read_to_string(host.resolv_conf()).unwrap();
        assert_eq!(told, "nameserver 192.0.2.1\n", "nobody would answer");

        drop(taken);
        host.keeper.look().await;
        assert_eq!(host.problems(), [""; 0]);
        assert_eq!(host.shared.status().dns, format!("answering on {OWN}"));
    }

    #[tokio::test]
    async fn a_resolv_conf_that_others_rewrite_is_ours_again_and_a_fight_is_told() {
        let (taken, port) = free_port().await;
        drop(taken);
        let mut host = Host::new(port);
        let names_us = |path: &Path| {
            fs::read_to_string(path).unwrap().contains(&format!("nameserver {OWN}\n"))
        };
        for number in 1..=4 {
            host.keeper.look().await;
            assert!(names_us(&host.resolv_conf()), "{number}");
            fs::write(host.resolv_conf(), format!("nameserver 192.0.2.{number}\n")).unwrap();
        }
        assert_eq!(host.problems(), [""; 0]);
        host.keeper.look().await;
        assert_eq!(host.problems(), [UNTOLD.name()]);
        let kept = fs::read_to_string(host.keeper.resolver.upstream_file()).unwrap();
        assert_eq!(kept, "nameserver 192.0.2.4\n", "whom the last writer named is asked");
    }

    #[tokio::test]
    async fn without_another_server_other_names_are_a_problem() {
        let (taken, port) = free_port().await;
        drop(taken);
        let mut host = Host::new(port);
        fs::write(host.resolv_conf(), format!("nameserver {OWN}\n")).unwrap();
        host.keeper.look().await;
        assert_eq!(host.problems(), [NO_UPSTREAM.name()]);
    }

    #[tokio::test]
    async fn an_address_that_goes_is_not_answered_on_and_one_that_comes_is() {
        let (taken, port) = free_port().await;
        drop(taken);
        let mut host = Host::new(port);
        host.keeper.look().await;
        let other: IpAddr = "127.0.0.2".parse().unwrap();
        host.own.send_replace(vec![other]);
        host.keeper.look().await;
        assert_eq!(host.shared.status().dns, format!("answering on {other}"));
        assert!(fs::read_to_string(host.resolv_conf()).unwrap().contains("nameserver 127.0.0.2\n"));
    }
}
