//! Keeps the guard of ports in step with revisions and with who listens, and says what it sees.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use isthmus_core::{CompiledSnapshot, Deaf};
use isthmus_model::{Code, Exposure, ListenerCheck, Problem, Revision, Snapshot};
use isthmus_net::ruleset::{RulesetChange, RulesetMonitor};
use tokio::process::Command;
use tokio::sync::watch;

use super::applications::{Applications, NOWHERE, UNREACHED};
use super::counts::Counts;
use super::listeners::{Finding, Listeners, Standing, is_refused, process_of};
use super::{Behind, Key, Port, Ports, guarded, script, selectors};
use crate::guard::Nft;
use crate::guard::taken::Taken;
use crate::network;
use crate::owners::local_services;
use crate::status::Shared;

/// Between two looks at who listens.
const LOOK: Duration = Duration::from_secs(2);
/// Where somebody else's listening is refused.
const LOOK_STRICTLY: Duration = Duration::from_millis(250);
/// Between two looks at what the filter has counted, and at selectors.
const COUNT: Duration = Duration::from_secs(5);
/// Whoever loads rules does it in several steps.
const SETTLE: Duration = Duration::from_millis(50);
/// Addresses that a problem names.
const NAMED: usize = 5;

/// The codes of problems.
const AROUND: Code = Code::AroundMesh;
const LISTENER: Code = Code::ForeignListener;
const FORWARDED: Code = Code::NoIdentity;
const BRIDGES: Code = Code::BridgesUnguarded;
const UNGUARDED: Code = Code::PortsUnguarded;
const TAKEN: Code = Code::PortsTaken;

/// The revision whose ports are guarded, and what is wrong with them told.
pub(crate) type Kept = watch::Receiver<Revision>;

/// Guards the ports of the services here, as the newest state has them, for ever. Tells in `kept` which
/// revision that is.
pub(crate) async fn keep(
    shared: Arc<Shared>,
    mut states: watch::Receiver<Arc<CompiledSnapshot>>,
    kept: watch::Sender<Revision>,
) {
    let mut rules = RulesetMonitor::start(&script::table(&shared.settings.device))
        .inspect_err(|error| tracing::warn!(%error, "the ports' filter is looked at now and then"))
        .ok();
    let mut containers = shared.containers.follow();
    let mut keeper = Keeper::new(shared);
    loop {
        containers.borrow_and_update();
        let state = Arc::clone(&states.borrow_and_update());
        keeper = keeper.look(&state.snapshot).await;
        keeper.guard(&state.snapshot).await;
        keeper.count().await;
        keeper.tell_deaf(&state.snapshot);
        keeper.tell(&state.snapshot);
        kept.send_replace(state.revision());
        let is_strict =
            guarded(&state.snapshot).any(|(_, it)| it.guard.listener == ListenerCheck::Strict);
        let pause = if is_strict { LOOK_STRICTLY } else { LOOK };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = states.changed() => if changed.is_err() { return },
            // The sender is the keeper's own.
            _ = containers.changed() => {}
            change = changed_by_others(&mut rules, &keeper.nft) => {
                keeper.guarded = None;
                keeper.note(change);
                tokio::time::sleep(SETTLE).await;
            }
        }
    }
}

/// Waits until somebody else has changed the ports' table. For ever where nobody tells.
async fn changed_by_others(rules: &mut Option<RulesetMonitor>, nft: &Nft) -> RulesetChange {
    while let Some(monitor) = rules {
        match monitor.changed().await {
            Ok(change) if change.socket.is_some_and(|process| nft.ran_as(process)) => {}
            Ok(change) => return change,
            Err(error) => {
                tracing::warn!(%error, "the kernel tells no changes of the ports' filter");
                *rules = None;
            }
        }
    }
    std::future::pending().await
}

struct Keeper {
    shared: Arc<Shared>,
    nft: Nft,
    listeners: Listeners,
    findings: HashMap<Key, Finding>,
    applications: Applications,
    /// What the data plane knows of it.
    deaf: Deaf,
    counts: Counts,
    /// The filter's rules, as last applied.
    guarded: Option<Ports>,
    behind: Behind,
    taken: Option<Taken>,
    counted: Instant,
    /// Of which revision it was looked for selectors of nobody, and when.
    selected: Option<(Revision, Instant)>,
    selectors: Vec<Problem>,
}

impl Keeper {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            listeners: Listeners::new(Arc::clone(&shared.cgroups)),
            shared,
            nft: Nft::default(),
            findings: HashMap::new(),
            applications: Applications::default(),
            deaf: Deaf::default(),
            counts: Counts::default(),
            guarded: None,
            behind: Behind::default(),
            taken: None,
            counted: Instant::now(),
            selected: None,
            selectors: Vec::new(),
        }
    }

    /// Looks who listens, and who could: among all processes and users, which may take a while.
    async fn look(mut self, snapshot: &Arc<Snapshot>) -> Self {
        let device = self.shared.settings.device.clone();
        let underlay: Vec<IpAddr> =
            network::endpoints(&device, 0).await.into_iter().map(|it| it.ip()).collect();
        let (shared, snapshot) = (Arc::clone(&self.shared), Arc::clone(snapshot));
        let shared_ = Arc::clone(&shared);
        let looking = tokio::task::spawn_blocking(move || {
            let containers = shared_.containers.table();
            self.behind = Behind::of(&snapshot, &containers, &local_services(&snapshot));
            self.findings = self.listeners.look(&snapshot, &underlay, (&containers, &self.behind));
            let found = self.findings.iter().map(|(id, it)| (*id, it.listens)).collect();
            self.applications.note(&found, Instant::now());
            let is_fresh =
                |(of, at): (Revision, Instant)| of == snapshot.revision && at.elapsed() < COUNT;
            if !self.selected.is_some_and(is_fresh) {
                self.selected = Some((snapshot.revision, Instant::now()));
                self.selectors = selectors::problems(&snapshot);
            }
            self
        });
        match looking.await {
            Ok(keeper) => keeper,
            Err(error) => {
                tracing::error!(%error, "couldn't look who listens");
                Self::new(shared)
            }
        }
    }

    async fn guard(&mut self, snapshot: &Snapshot) {
        let refused: BTreeSet<Key> = guarded(snapshot)
            .filter(|(id, service)| is_refused(service, self.findings.get(id)))
            .map(|(id, _)| id)
            .collect();
        let users = self.findings.iter().map(|(id, found)| (*id, found.users.clone())).collect();
        let mut ports = Ports::of(snapshot, &refused, &users);
        ports.behind = self.behind.clone();
        if self.guarded.as_ref() == Some(&ports) {
            return;
        }
        self.guard_bridges(&mut ports.behind).await;
        let done = script::apply(&self.nft, &self.shared.settings.device, &ports).await;
        let problem = done.as_ref().err().map(|error| {
            let text = format!("ports that only the mesh may reach aren't closed: {error:#}");
            let remedy =
                "`apt-get install nftables` (or dnf), and let the agent use it (CAP_NET_ADMIN)";
            Problem::new(UNGUARDED, text, remedy)
        });
        self.shared.problems.set(UNGUARDED, problem);
        self.guarded = done.is_ok().then_some(ports);
    }

    /// INVARIANT: bridges keep to the ports of containers before any of these is let in.
    async fn guard_bridges(&self, behind: &mut Behind) {
        let device = &self.shared.settings.device;
        if behind.is_empty() {
            if self.guarded.as_ref().is_none_or(|before| !before.behind.is_empty()) {
                script::lower_bridges(&self.nft, device).await;
            }
            return self.shared.problems.set(BRIDGES, None);
        }
        let done = script::apply_bridges(&self.nft, device, behind).await;
        let problem = done.err().map(|error| {
            *behind = Behind::default();
            let text = format!(
                "containers with networks of their own are kept out of the mesh: their bridge can't be \
                 kept from letting one send as another: {error:#}"
            );
            let remedy = "have the kernel filter bridges by nftables (CONFIG_NF_TABLES_BRIDGE), or run \
                          containers in the host's network";
            Problem::new(BRIDGES, text, remedy)
        });
        self.shared.problems.set(BRIDGES, problem);
    }

    /// Where the kernel lost messages, nothing may have happened.
    fn note(&mut self, by: RulesetChange) {
        if by.socket.is_some() {
            self.taken = Some(Taken::after(self.taken.as_ref(), by));
        }
    }

    /// Asks the filter what it has seen. It is gone where somebody flushed all rules.
    async fn count(&mut self) {
        if self.guarded.is_none() || self.counted.elapsed() < COUNT {
            return;
        }
        self.counted = Instant::now();
        match listing(&self.shared.settings.device).await {
            Ok(listing) => self.counts = Counts::read(&listing),
            Err(error) => {
                tracing::warn!("the ports' filter is gone, and is raised again: {error:#}");
                self.guarded = None;
            }
        }
    }

    /// Has the data plane give what comes by a family that nobody listens on to the proxy.
    fn tell_deaf(&mut self, snapshot: &Snapshot) {
        let deaf = self.applications.deaf(snapshot);
        let Some(packets) = self.shared.packets().filter(|_| deaf != self.deaf) else { return };
        match packets.tell_deaf(deaf.clone()) {
            Ok(()) => self.deaf = deaf,
            // There is another look soon.
            Err(error) => tracing::debug!("couldn't say who listens where: {error:#}"),
        }
    }

    fn tell(&self, snapshot: &Snapshot) {
        let problems = &self.shared.problems;
        problems.replace(NOWHERE, self.applications.nowhere(snapshot, Instant::now()));
        problems.replace(UNREACHED, self.applications.unreached(snapshot));
        self.shared.show_listening(self.applications.words(snapshot));
        problems.replace(AROUND, self.around(snapshot));
        problems.replace(LISTENER, self.foreign(snapshot));
        let known = |address: &IpAddr| self.behind.callers.iter().any(|(_, it)| it == address);
        let strangers = self.counts.forwarded.iter().filter(|it| !known(it)).copied().collect();
        problems.set(FORWARDED, forwarded(&strangers));
        problems.replace(selectors::CODE, self.selectors.clone());
        let table = script::table(&self.shared.settings.device);
        let taken = self.taken.as_ref().filter(|it| !it.is_over());
        problems
            .set(TAKEN, taken.map(|it| it.problem(TAKEN, "the filter of services' ports", &table)));
    }

    fn around(&self, snapshot: &Snapshot) -> Vec<Problem> {
        let counted = guarded(snapshot).filter(|(_, it)| it.guard.exposure == Exposure::Count);
        counted
            .filter_map(|(id, service)| {
                let port = Port::of(&service);
                let bound = self.findings.get(&id).and_then(|it| it.reachable);
                let visitors = self.counts.around.get(&port);
                around(service.name.as_str(), port, bound, visitors)
            })
            .collect()
    }

    fn foreign(&self, snapshot: &Snapshot) -> Vec<Problem> {
        let names: BTreeMap<Key, _> = guarded(snapshot).collect();
        let foreign = self.findings.iter().filter_map(|(id, finding)| {
            let Standing::Foreign(who) = &finding.standing else { return None };
            let service = names.get(id)?;
            let (name, port) = (service.name.as_str(), Port::of(service));
            let what = match service.guard.listener {
                ListenerCheck::Strict => "what is meant for it is refused",
                ListenerCheck::Warn => "it gets what is meant for the service",
            };
            let text =
                format!("{who} listens on {port}, and is no process of service {name}: {what}");
            if self.selectors.iter().any(|it| it.subject == name) {
                let remedy =
                    format!("correct `workload` of [service.{name}] first: nobody fits it");
                return Some(Problem::new(LISTENER, text, remedy).about(name));
            }
            let stop = process_of(who).map_or_else(
                || "stop it".to_owned(),
                |pid| format!("`kill {pid}` (or stop its service)"),
            );
            let remedy =
                format!("{stop}, or correct `workload` of [service.{name}] if it is the service");
            Some(Problem::new(LISTENER, text, remedy).about(name))
        });
        foreign.collect()
    }
}

fn around(
    name: &str,
    port: Port,
    bound: Option<IpAddr>,
    visitors: Option<&BTreeSet<IpAddr>>,
) -> Option<Problem> {
    let mut reasons = Vec::new();
    if let Some(bound) = bound {
        reasons.push(format!("it listens on {bound}"));
    }
    if let Some(visitors) = visitors.filter(|it| !it.is_empty()) {
        reasons.push(format!("in the last hour {} came so", list(visitors)));
    }
    if reasons.is_empty() {
        return None;
    }
    let reasons = reasons.join(", and ");
    let text = format!("service {name} ({port}) can be reached around the mesh: {reasons}");
    let remedy = format!(
        "let everybody come by the mesh, then write `exposure = \"mesh\"` in [service.{name}] or \
         [mesh]; \"open\" if it is meant"
    );
    Some(Problem::new(AROUND, text, remedy).about(name))
}

fn forwarded(sources: &BTreeSet<IpAddr>) -> Option<Problem> {
    (!sources.is_empty()).then(|| {
        let text = format!(
            "{} sent to the mesh from a network namespace of a container or a VM: nobody knows \
             which service that is, so it was refused",
            list(sources)
        );
        let remedy = "know its service by its container (`workload = { container = { name = \"…\" } }`), \
                      or run it in the host's network (`--network host`)";
        Problem::new(FORWARDED, text, remedy)
    })
}

fn list(addresses: &BTreeSet<IpAddr>) -> String {
    let named: Vec<String> = addresses.iter().take(NAMED).map(ToString::to_string).collect();
    match addresses.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

async fn listing(device: &str) -> anyhow::Result<String> {
    let output = Command::new("nft")
        .args(["-j", "list", "table", "inet", &script::table(device)])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("Failed to start nft")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "nft: {}", complaint.trim());
    String::from_utf8(output.stdout).context("nft didn't write text")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(count: u8) -> BTreeSet<IpAddr> {
        (1..=count).map(|last| IpAddr::from([192, 0, 2, last])).collect()
    }

    #[test]
    fn who_comes_around_is_named_with_what_to_do() {
        let port = Port { udp: false, number: 8080 };
        assert_eq!(around("web", port, None, None), None);
        let everywhere = Some(IpAddr::from([0, 0, 0, 0]));
        let problem = around("web", port, everywhere, Some(&addresses(7))).unwrap();
        assert_eq!(
            problem.text,
            "service web (tcp/8080) can be reached around the mesh: it listens on 0.0.0.0, and in the \
             last hour 192.0.2.1, 192.0.2.2, 192.0.2.3, 192.0.2.4, 192.0.2.5 and 2 more came so"
        );
        assert!(problem.remedy.contains("`exposure = \"mesh\"` in [service.web]"));
    }

    #[test]
    fn who_has_no_identity_is_named() {
        assert_eq!(forwarded(&BTreeSet::new()), None);
        let problem = forwarded(&addresses(1)).unwrap();
        assert!(problem.text.starts_with("192.0.2.1 sent to the mesh"), "{}", problem.text);
    }
}
