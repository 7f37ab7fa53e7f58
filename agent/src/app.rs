//! The composition root: everything that the agent consists of, wired in one place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use isthmus_model::{Code, Problem, Snapshot};
use isthmus_net::cgroup::Cgroups;
use isthmus_net::privileges::{self, Capability};
use isthmus_net::senders::Senders;
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::addresses;
use crate::callers::LocalProcesses;
use crate::credential;
use crate::dns;
use crate::guard::{self, Guard, Standing};
use crate::identity::Identity;
use crate::kept_device;
use crate::local::{self, Api};
use crate::membership::{self, Outcome, Turn};
use crate::memory;
use crate::overlay::is_set;
use crate::own_ports::OwnPorts;
use crate::owners::{SharedCgroups, not_noted};
use crate::ports::{self, Ports};
use crate::settings::{Settings, otlp_endpoint};
use crate::state_dir::StateDir;
use crate::status::Shared;
use crate::sync::resources::Resources;
use crate::systemd;
use crate::telemetry::{self, otlp};
use crate::vitals;
use crate::watchdog;

/// Drain time of the local API at shutdown.
const GOODBYE: Duration = Duration::from_secs(1);

/// Resources opened while the process had all its privileges.
#[derive(Debug)]
pub struct Prepared {
    cgroups: SharedCgroups,
    /// Privileges that it was refused.
    problems: Vec<Problem>,
    senders: anyhow::Result<Senders>,
}

/// Set-up that needs a single thread and all privileges.
///
/// # Errors
/// When the privileges can't be dropped.
pub fn prepare() -> anyhow::Result<Prepared> {
    let mut problems = Vec::new();
    let cgroups =
        Cgroups::open().map_err(|error| problems.push(no_cgroups(&anyhow::Error::new(error)))).ok();
    let senders = Senders::load().map_err(anyhow::Error::new);
    let mut missing = privileges::drop_to(&privileges::agent_capabilities())
        .context("Failed to drop privileges")?;
    // Its absence is told where something depends on it (`ports`).
    missing.retain(|it| *it != Capability::CAP_SYS_PTRACE);
    if !missing.is_empty() {
        problems.push(without(&missing));
    }
    Ok(Prepared { cgroups: Arc::new(Mutex::new(cgroups)), problems, senders })
}

/// That there is no cgroup v2.
#[must_use]
pub fn no_cgroups(error: &anyhow::Error) -> Problem {
    Problem::new(
        Code::CgroupsMissing,
        format!("services can't be told by systemd unit, cgroup or container: {error:#}"),
        "`mount -t cgroup2 none /sys/fs/cgroup`, or boot with systemd.unified_cgroup_hierarchy=1; then \
         restart the agent",
    )
}

fn without(missing: &[Capability]) -> Problem {
    let named: Vec<String> = missing.iter().map(ToString::to_string).collect();
    let named = named.join(" ");
    Problem::new(
        Code::CapabilityMissing,
        format!("the agent runs without {named}: what needs that doesn't work"),
        format!(
            "`systemctl restart isthmus-agent` where its own unit runs it; else add {named} to \
             AmbientCapabilities and CapabilityBoundingSet"
        ),
    )
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// When it can't go on; whoever started it should start it again.
pub async fn run(settings: Settings, prepared: Prepared) -> anyhow::Result<()> {
    let disk = Arc::new(StateDir::open(&settings.state_dir)?);
    let identity = disk.identity()?;
    let shared = Shared::new(settings, prepared.cgroups);
    prepared.problems.into_iter().for_each(|problem| shared.problems.raise(problem));
    match prepared.senders {
        Ok(senders) => drop(shared.senders.set(Arc::new(senders))),
        Err(error) => shared.problems.raise(not_noted(&error)),
    }
    shared.proxy.ask_for_processes(Arc::new(LocalProcesses::new(&shared)));
    let (stop, mut stopped) = watch::channel(false);
    let (turn, mut turns) = mpsc::channel(1);

    if identity.is_none() {
        // Of a mesh that was left while no agent ran.
        guard::lower_or_say(&shared.settings.device).await;
        kept_device::forget();
    }
    let recovering = tokio::spawn(dns::keeper::recover(Arc::clone(&shared), identity.is_some()));
    let listener = local::bind(&shared.settings.socket)?;
    let api = Api::new(Arc::clone(&shared), Arc::clone(&disk), turn);
    let joining = identity
        .is_none()
        .then(credential::path)
        .flatten()
        .map(|path| tokio::spawn(credential::join(path, Arc::clone(&shared), api.clone())));
    let local = tokio::spawn(local::serve(listener, api, is_set(stopped.clone())));
    let background = in_background(&shared, &disk);

    let living = live(&shared, &disk, identity, &mut stopped, &mut turns);
    tokio::pin!(living);
    let ended = tokio::select! {
        ended = &mut living => ended,
        reason = shared.failed() => Err(anyhow::anyhow!(reason)),
        () = told_to_stop() => {
            tracing::info!("stopping");
            systemd::stopping();
            stop.send_replace(true);
            living.await
        }
    };
    stop.send_replace(true);
    background.iter().chain(&joining).chain([&recovering]).for_each(JoinHandle::abort);
    if ended.is_err() {
        // It may be the reason.
        kept_device::forget();
        dns::keeper::put_back(&shared.settings);
    }
    say_goodbye(local).await;
    ended
}

/// All that runs whether or not this host is a member.
fn in_background(shared: &Arc<Shared>, disk: &Arc<StateDir>) -> [JoinHandle<()>; 7] {
    let (shared, disk) = (|| Arc::clone(shared), || Arc::clone(disk));
    let (windows, watching) = (shared(), vitals::watch(shared(), disk()));
    [
        tokio::spawn(serve_metrics(shared())),
        tokio::spawn(async move { windows.windows.keep(&windows.proxy).await }),
        tokio::spawn(export_spans(shared())),
        tokio::spawn(memory::keep_tidy()),
        tokio::spawn(watchdog::keep(shared())),
        tokio::spawn(membership::tend(shared(), disk())),
        tokio::spawn(async { match watching.await {} }),
    ]
}

/// Raises the guard of the mesh that this host is a member of, before its agent runs: from what is kept of
/// it, and for good. Says whether there is a mesh to guard.
///
/// # Errors
/// When there is one, and it can't be guarded.
pub async fn guard(settings: &Settings) -> anyhow::Result<bool> {
    let Some((guard, snapshot)) = kept_guard(settings)? else { return Ok(false) };
    let (_, raised) = Standing::raise(guard).await;
    raised?;
    let Some(snapshot) = snapshot else { return Ok(true) };
    // Who listens is for the agent to see: without it, nobody comes by the mesh.
    let closed = Ports::of(&snapshot, &BTreeSet::new(), &BTreeMap::new());
    ports::raise(&settings.device, &closed).await.context("Failed to guard the services' ports")?;
    Ok(true)
}

/// The guard that follows from the kept snapshot. Where that is lost or damaged, the mesh's addresses are
/// known all the same; only its services aren't.
fn kept_guard(settings: &Settings) -> anyhow::Result<Option<(Guard, Option<Snapshot>)>> {
    let serving = OwnPorts::of(settings);
    let kept = StateDir::peek(&settings.state_dir).and_then(|kept| {
        let snapshot = kept.map(|kept| Resources::from(kept).snapshot()).transpose();
        snapshot.context("The kept snapshot can't be used")
    });
    if let Ok(Some(snapshot)) = kept {
        let guard = Guard::of(settings, &serving, &addresses::prefixes(&snapshot));
        let guard = guard.with_names(settings, &snapshot);
        return Ok(Some((guard, Some(snapshot))));
    }
    let member = StateDir::peek_member(&settings.state_dir)?;
    let prefixes = member.map(|member| member.prefixes).filter(|prefixes| !prefixes.is_empty());
    match (prefixes, kept) {
        (Some(prefixes), kept) => {
            let error = kept.err().unwrap_or_else(|| anyhow::anyhow!("There is no kept snapshot"));
            tracing::warn!(
                "the mesh's addresses are guarded, its services' ports aren't: {error:#}"
            );
            Ok(Some((Guard::of(settings, &serving, &prefixes), None)))
        }
        (None, kept) => kept.map(|_| None),
    }
}

/// One membership after the other, and the time between them.
async fn live(
    shared: &Arc<Shared>,
    disk: &Arc<StateDir>,
    mut identity: Option<Identity>,
    stopped: &mut watch::Receiver<bool>,
    turns: &mut mpsc::Receiver<Turn>,
) -> anyhow::Result<()> {
    loop {
        let member = match identity.take() {
            Some(member) => member,
            None => {
                tracing::info!("not a member of a mesh; waiting for `agentctl join`");
                systemd::ready();
                systemd::tell_status(shared);
                tokio::select! {
                    _ = stopped.wait_for(|stop| *stop) => return Ok(()),
                    turn = turns.recv() => match turn.context("The local API is gone")? {
                        Turn::Joined(member) => *member,
                        // It hears by that that there is nothing to leave.
                        Turn::Leave(_) => continue,
                    },
                }
            }
        };
        tracing::info!(host = %member.member.host, mesh = member.member.mesh, "a member of the mesh");
        match membership::live(shared, disk, member, stopped, turns).await? {
            Outcome::Stopped => return Ok(()),
            Outcome::Over => {}
            Outcome::Rejoined(member) => identity = Some(*member),
        }
    }
}

async fn serve_metrics(shared: Arc<Shared>) {
    let Some(address) = shared.settings.metrics_address() else { return };
    telemetry::serve(address, shared).await;
}

async fn export_spans(shared: Arc<Shared>) {
    let tracing = &shared.settings.tracing;
    let Ok(endpoint) = otlp_endpoint(&tracing.otlp) else { return };
    let Some(spans) = shared.proxy.trace(tracing.sample) else { return };
    let host = || shared.status().member.map_or_else(String::new, |it| it.host.to_string());
    otlp::export(endpoint, host, spans, &shared.spans).await;
}

async fn told_to_stop() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn say_goodbye(mut local: JoinHandle<anyhow::Result<()>>) {
    match tokio::time::timeout(GOODBYE, &mut local).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::warn!("the local API failed: {error:#}"),
        Ok(Err(error)) => tracing::warn!("the local API failed: {error}"),
        Err(_) => {
            local.abort();
            // Aborted tasks drop the socket.
            drop(local.await);
        }
    }
}

/// Settings from the command line beat those of the file.
///
/// # Errors
/// When the file can't be used.
pub fn settings(
    path: &std::path::Path,
    state_dir: Option<std::path::PathBuf>,
    socket: Option<std::path::PathBuf>,
) -> anyhow::Result<Settings> {
    let mut settings = Settings::read(path)?;
    if let Some(state_dir) = state_dir {
        settings.state_dir = state_dir;
    }
    if let Some(socket) = socket {
        settings.socket = socket;
    }
    if settings.state_dir.as_os_str().is_empty() || settings.socket.as_os_str().is_empty() {
        bail!("{}: state_dir and socket must not be empty", path.display());
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::identity::Member;
    use crate::identity::tests::{identity, member};

    #[test]
    fn a_lost_or_damaged_snapshot_leaves_the_mesh_guarded() {
        let parent = tempfile::tempdir().unwrap();
        let settings = Settings { state_dir: parent.path().join("agent"), ..Settings::default() };
        assert!(kept_guard(&settings).unwrap().is_none(), "of no mesh");
        let disk = StateDir::open(&settings.state_dir).unwrap();
        disk.write_identity(&identity()).unwrap();
        assert!(kept_guard(&settings).unwrap().is_none(), "of a mesh that it hasn't heard from");

        let prefixes = ["fd00:1:2::/48", "100.64.0.0/10"].map(|it| it.parse().unwrap()).to_vec();
        disk.write_member(&Member { prefixes: prefixes.clone(), ..member() }).unwrap();
        let (guard, snapshot) = kept_guard(&settings).unwrap().unwrap();
        assert_eq!((guard.prefixes, snapshot), (prefixes.clone(), None));
        fs::write(settings.state_dir.join("snapshot"), b"damaged").unwrap();
        let (guard, snapshot) = kept_guard(&settings).unwrap().unwrap();
        assert_eq!((guard.prefixes, snapshot), (prefixes, None));
        assert_eq!(guard.tunnel_ports, [settings.listen_port].into());

        disk.write_member(&member()).unwrap();
        let error = kept_guard(&settings).unwrap_err();
        assert!(format!("{error:#}").contains("damaged"), "{error:#}");
    }
}
