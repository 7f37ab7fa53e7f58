//! Asks engines which containers run, whenever one begins or ends.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use isthmus_core::CompiledSnapshot;
use isthmus_model::{Code, Problem, Selector, Snapshot};
use isthmus_net::namespaces::{self, Inward};
use isthmus_net::netlink::Netlink;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::engine::Engine;
use super::table::{Container, Network, Table, id_in};
use crate::addresses;
use crate::status::Shared;

/// Default paths of engines' sockets.
const USUAL: [&str; 2] = ["/run/docker.sock", "/run/podman/podman.sock"];
/// Between two looks where no engine has any news.
const LOOK: Duration = Duration::from_secs(2);
/// Containers begin in several steps, each of which is news.
const SETTLE: Duration = Duration::from_millis(30);

const ENGINE: Code = Code::ContainerEngine;

/// Keeps the table of containers, for ever; but only while a service here is known by its container:
/// nobody else needs it.
pub(crate) async fn keep(shared: Arc<Shared>, mut states: watch::Receiver<Arc<CompiledSnapshot>>) {
    let mut keeper =
        Keeper { shared, known: HashMap::new(), listening: HashMap::new(), tasks: JoinSet::new() };
    loop {
        let state = Arc::clone(&states.borrow_and_update());
        if !has_containers(&state.snapshot) {
            keeper.forget();
            if states.changed().await.is_err() {
                return;
            }
            continue;
        }
        keeper.look(&state).await;
        tokio::select! {
            () = sleep(LOOK) => {}
            () = keeper.shared.containers.asked() => sleep(SETTLE).await,
            changed = states.changed() => if changed.is_err() { return },
        }
    }
}

/// Whether a service of this host is known by its container.
pub(crate) fn has_containers(snapshot: &Snapshot) -> bool {
    snapshot.local_services().any(|(_, service, _)| {
        service.selectors.iter().any(|it| matches!(it, Selector::Container(_)))
    })
}

struct Keeper {
    shared: Arc<Shared>,
    /// By engine and number.
    known: HashMap<(PathBuf, String), Container>,
    /// One task for each engine that tells its news.
    listening: HashMap<PathBuf, AbortHandle>,
    tasks: JoinSet<()>,
}

impl Keeper {
    fn forget(&mut self) {
        self.known.clear();
        self.listening.clear();
        self.tasks.abort_all();
        self.shared.containers.publish(Table::default());
        self.shared.problems.replace(ENGINE, []);
    }

    async fn look(&mut self, state: &Arc<CompiledSnapshot>) {
        let sockets = sockets(&self.shared.settings.containers.engines);
        let mut problems = Vec::new();
        for socket in &sockets {
            let engine = Engine { socket: socket.clone() };
            if let Err(error) = self.follow(&engine).await {
                problems.push(silent(socket, &error));
            }
        }
        if sockets.is_empty() {
            problems.push(none());
        }
        self.known.retain(|(socket, _), known| sockets.contains(socket) && is_running(known));
        self.shared.problems.replace(ENGINE, problems);
        match self.table(&state.snapshot).await {
            Ok(table) => self.publish(table, state).await,
            Err(error) => tracing::warn!("couldn't look at containers' links: {error:#}"),
        }
    }

    /// Learns which containers of an engine run. What an engine that doesn't answer has told stays true
    /// as long as the container runs.
    async fn follow(&mut self, engine: &Engine) -> anyhow::Result<()> {
        self.listen(engine).await;
        let running = engine.running().await?;
        self.known.retain(|(socket, id), _| *socket != engine.socket || running.contains(id));
        for id in running {
            // Its addresses may have changed: networks come and go while it runs.
            let found = match engine.inspect(&id).await {
                Ok(found) => found,
                // It has ended since.
                Err(_) if !engine.running().await?.contains(&id) => None,
                Err(error) => return Err(error),
            };
            let key = (engine.socket.clone(), id);
            match found.and_then(seen) {
                Some(known) => drop(self.known.insert(key, known)),
                None => drop(self.known.remove(&key)),
            }
        }
        Ok(())
    }

    async fn listen(&mut self, engine: &Engine) {
        while self.tasks.try_join_next().is_some() {}
        if self.listening.get(&engine.socket).is_some_and(|task| !task.is_finished()) {
            return;
        }
        let Ok(mut news) = engine.news().await else { return };
        let shared = Arc::clone(&self.shared);
        let task = self.tasks.spawn(async move {
            while news.next().await.is_some() {
                shared.containers.ask();
            }
        });
        self.listening.insert(engine.socket.clone(), task);
    }

    async fn table(&self, snapshot: &Snapshot) -> anyhow::Result<Table> {
        let netlink = Netlink::connect()?;
        let mut links: HashMap<u64, Vec<Inward>> = HashMap::new();
        // First: namespaces get their names when their links are listed.
        for link in netlink.inward_links().await? {
            links.entry(number(link.namespace)).or_default().push(link);
        }
        let mut observed: HashMap<u64, Vec<IpAddr>> = HashMap::new();
        let mut containers = Vec::new();
        for container in self.known.values() {
            let namespace = netlink.namespace_of(container.pid).await?.map(number);
            if let Some(namespace) = namespace {
                let addresses = || namespaces::addresses_of(container.pid);
                observed.entry(namespace).or_insert_with(addresses);
            }
            // It could have ended meanwhile, and its number be another's.
            if is_running(container) {
                containers.push(Arc::new(Container { namespace, ..container.clone() }));
            }
        }
        let own: Vec<IpAddr> =
            netlink.addresses().await?.into_iter().map(|it| it.address).collect();
        let mesh = addresses::prefixes(snapshot);
        let taken = |address: IpAddr| {
            own.contains(&address) || mesh.iter().any(|prefix| prefix.contains(&address))
        };
        Ok(Table::new(containers, &links, &observed, taken))
    }

    /// Whoever gets the address of a container that has ended doesn't get its flows.
    async fn publish(&self, table: Table, state: &Arc<CompiledSnapshot>) {
        let before = self.shared.containers.table();
        let moved = before.networks.iter().any(|network| {
            network.addresses.iter().any(|address| {
                let now = table.behind(*address);
                now.is_some_and(|now| ids(now) != ids(network))
            })
        });
        if self.shared.containers.publish(table)
            && moved
            && let Some(packets) = self.shared.packets()
            && let Err(error) = packets.switch(Arc::clone(state)).await
        {
            tracing::debug!("flows of containers aren't looked at again: {error:#}");
        }
    }
}

/// Whether the process that the engine named is still the container's first. Numbers are used again.
fn is_running(container: &Container) -> bool {
    cgroup_of(container.pid, &container.id).is_some()
}

/// A container that an engine has told of, with its cgroup; `None` if it is gone.
fn seen(mut container: Container) -> Option<Container> {
    // It could be another process by now: only the container's has its number in its cgroup's name.
    let Cgroup { unified } = cgroup_of(container.pid, &container.id)?;
    container.cgroup = unified;
    Some(container)
}

/// The kernel's names of namespaces count from 0.
const fn number(namespace: i32) -> u64 {
    namespace.unsigned_abs() as u64
}

fn ids(network: &Network) -> Vec<&str> {
    network.containers.iter().map(|it| it.id.as_str()).collect()
}

/// The cgroup of a container's first process.
#[derive(Debug, PartialEq, Eq)]
struct Cgroup {
    /// In the hierarchy of cgroup v2, up to the part that is named after the container.
    unified: Option<String>,
}

/// `None` unless one of the process's cgroups, of whatever hierarchy, is named after the container.
fn cgroup_of(pid: u32, id: &str) -> Option<Cgroup> {
    named_after(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?, id)
}

/// `9:name=systemd:/docker/<id>`, and for cgroup v2 `0::/docker/<id>`
fn named_after(table: &str, id: &str) -> Option<Cgroup> {
    let own = table.lines().filter_map(|line| {
        let (number, rest) = line.split_once(':')?;
        let (_, path) = rest.split_once(':')?;
        Some((number == "0", own_part(path, id)?))
    });
    let own: Vec<(bool, String)> = own.collect();
    let unified = own.iter().find(|(is_unified, _)| *is_unified).map(|(_, path)| path.clone());
    (!own.is_empty()).then_some(Cgroup { unified })
}

fn own_part(path: &str, id: &str) -> Option<String> {
    // What is below a user's own manager is named by that user.
    if path.split('/').any(|part| part.starts_with("user@")) {
        return None;
    }
    let mut end = 0;
    for part in path.split('/') {
        end += part.len();
        if id_in(part) == Some(id) {
            return path.get(..end).map(str::to_owned);
        }
        end += 1;
    }
    None
}

/// Those that are there; those that the settings name even if they aren't.
fn sockets(named: &[PathBuf]) -> Vec<PathBuf> {
    if named.is_empty() {
        return USUAL.iter().map(PathBuf::from).filter(|it| it.exists()).collect();
    }
    named.to_vec()
}

fn silent(socket: &Path, error: &anyhow::Error) -> Problem {
    let text = format!(
        "the containers' engine at {} doesn't answer, so containers that begin now speak as their \
         host or not at all: {error:#}",
        socket.display()
    );
    let remedy = "start it (`systemctl start podman.socket` or docker.socket) or correct `engines` under \
                  [containers] in agent.toml; where the agent may not open its socket: `install -Dm644 \
                  /usr/share/isthmus-agent/containers.conf -t \
                  /etc/systemd/system/isthmus-agent.service.d && systemctl daemon-reload && systemctl \
                  restart isthmus-agent`";
    Problem::new(ENGINE, text, remedy).about(socket.display().to_string())
}

fn none() -> Problem {
    let text = "no container's name, image or labels are known here: there is no engine's socket at \
                /run/docker.sock or /run/podman/podman.sock";
    let remedy = "run `systemctl enable --now podman.socket`, or name the engine's socket by `engines` \
                  under [containers] in agent.toml";
    Problem::new(ENGINE, text, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_cgroup_is_the_part_that_is_named_after_it() {
        let id = "0123456789abcdef".repeat(4);
        let scope = format!("/machine.slice/libpod-{id}.scope");
        assert_eq!(own_part(&format!("{scope}/container/deeper"), &id), Some(scope.clone()));
        assert_eq!(own_part(&scope, &id), Some(scope.clone()));
        assert_eq!(own_part("/", &id), None);
        assert_eq!(own_part(&scope, &"0".repeat(64)), None, "another's");
        let lines = format!("1:cpu:/\n0::{scope}/container\n");
        assert_eq!(named_after(&lines, &id), Some(Cgroup { unified: Some(scope) }));
        let older = format!("9:name=systemd:/docker/{id}\n0::/system.slice/docker.service\n");
        assert_eq!(named_after(&older, &id), Some(Cgroup { unified: None }));
        assert_eq!(named_after("0::/\n", &id), None);
        let users = format!("/user.slice/user-1000.slice/user@1000.service/libpod-{id}.scope");
        assert_eq!(own_part(&users, &id), None);
    }

    #[test]
    fn a_process_that_isnt_the_containers_isnt_taken_for_it() {
        let container =
            Container { pid: std::process::id(), id: "0".repeat(64), ..Container::default() };
        assert!(seen(container.clone()).is_none(), "its cgroup isn't named after it");
        assert!(!is_running(&container));
    }
}
