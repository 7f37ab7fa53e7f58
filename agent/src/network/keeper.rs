//! Keeps the kernel's state as the overlay needs it, whoever else changes it.
//!
//! The kernel tells of each change to what is the agent's own. What is missing then is put back a
//! moment later, and whoever took it is named where the kernel knows. Somebody who takes it again and
//! again gets it back ever later: see [`Patience`].

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use isthmus_model::{Code, Problem};
use isthmus_net::monitor::{Change, OwnMonitor};
use isthmus_net::netlink::NetlinkError;
use isthmus_net::process;
use tokio::sync::Mutex;
use tokio::time::{sleep, sleep_until, timeout};

use super::wanted::Lost;
use super::{Clash, Network};
use crate::patience::Patience;
use crate::status::Shared;

/// Whoever changes one thing often changes more at once.
const SETTLE: Duration = Duration::from_millis(50);
/// Not everything is told: nobody says that a setting was changed.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Things that are named one by one.
const NAMED: usize = 3;

const TAKEN: Code = Code::NetworkTaken;
const NO_IPV6: Code = Code::Ipv6Missing;
const BLIND: Code = Code::NetworkUnwatched;
const CLASH: Code = Code::RouteClash;

/// Keeps `network` until `stop` completes.
pub(crate) async fn keep(
    shared: Arc<Shared>,
    network: Arc<Mutex<Network>>,
    stop: impl Future<Output = ()>,
) {
    tokio::select! {
        never = keep_for_ever(Arc::clone(&shared), network) => match never {},
        () = stop => {}
    }
    for code in [TAKEN, NO_IPV6, BLIND, CLASH] {
        shared.problems.set(code, None);
    }
}

async fn keep_for_ever(shared: Arc<Shared>, network: Arc<Mutex<Network>>) -> Infallible {
    let mut keeper = Keeper { shared, network, patience: Patience::default(), taken: None };
    loop {
        let monitor = keeper.listen().await;
        keeper.shared.problems.set(BLIND, monitor.as_ref().err().map(blind));
        keeper.look().await;
        if let Ok(mut monitor) = monitor {
            while keeper.turn(&mut monitor).await {}
        }
        sleep(LOOK_EVERY).await;
    }
}

struct Keeper {
    shared: Arc<Shared>,
    network: Arc<Mutex<Network>>,
    patience: Patience,
    /// The last removal, and the process behind it.
    taken: Option<String>,
}

impl Keeper {
    async fn listen(&self) -> Result<OwnMonitor, NetlinkError> {
        let network = self.network.lock().await;
        OwnMonitor::start(network.device, &network.name, network.mesh.subscribe())
    }

    /// One look, after a change or a while. False when nothing is told any more.
    async fn turn(&mut self, monitor: &mut OwnMonitor) -> bool {
        let told = timeout(LOOK_EVERY, monitor.changed()).await;
        if matches!(told, Ok(None)) {
            return false;
        }
        let told = told.ok().flatten();
        let mut foreign_route = told.is_some_and(|it| it.foreign_route);
        let mut taker = told.and_then(taker);
        if let Some(at) = self.patience.not_before() {
            sleep_until(at.into()).await;
        }
        sleep(SETTLE).await;
        while let Some(change) = monitor.pending() {
            foreign_route |= change.foreign_route;
            taker = taker.or_else(|| self::taker(change));
        }
        self.look_for(taker).await;
        if foreign_route {
            self.look_for_clashes().await;
        }
        true
    }

    async fn look(&mut self) {
        self.look_for(None).await;
        self.look_for_clashes().await;
    }

    /// Not at each look: a router's routes are many.
    async fn look_for_clashes(&self) {
        let (mesh, device) = {
            let network = self.network.lock().await;
            (network.wanted.mesh.clone(), network.device)
        };
        match super::clashes(&mesh, Some(device)).await {
            Ok(found) => self.shared.problems.replace(CLASH, found.iter().map(clash)),
            Err(error) => tracing::warn!("couldn't look for routes into the mesh: {error:#}"),
        }
    }

    async fn look_for(&mut self, taker: Option<String>) {
        let network = Arc::clone(&self.network);
        let mut network = network.lock().await;
        let lost = match network.inspect().await {
            Ok(lost) => lost,
            Err(error) => {
                return tracing::warn!("couldn't look at the overlay's network: {error:#}");
            }
        };
        if !lost.is_empty() {
            self.restore(&mut network, &lost, taker).await;
        }
        self.patience.settle(Instant::now());
        let taken = self.problem(&network.name);
        self.shared.problems.set(TAKEN, taken);
        self.shared.problems.set(NO_IPV6, network.no_ipv6.as_deref().map(no_ipv6));
    }

    async fn restore(&mut self, network: &mut Network, lost: &[Lost], taker: Option<String>) {
        let restored = network.restore(lost).await;
        self.patience.on_restored(Instant::now());
        self.shared.restored.fetch_add(lost.len() as u64, Ordering::Relaxed);
        let by = taker.map_or_else(String::new, |taker| format!(" by {taker}"));
        let were = if lost.len() == 1 { "was" } else { "were" };
        let taken = format!("{} of {} {were} taken away{by}", list(lost), network.name);
        match restored {
            Ok(()) => tracing::warn!(times = self.patience.total(), "{taken}, and is back"),
            Err(error) => tracing::error!("{taken}: {error:#}"),
        }
        self.taken = Some(taken);
    }

    /// Lasts until nothing was taken for a while.
    fn problem(&mut self, device: &str) -> Option<Problem> {
        let taken = self.taken.as_ref()?;
        let times = self.patience.total();
        let text = if self.patience.is_contended() {
            format!("{taken}, again and again ({times} times): it is put back ever later")
        } else if self.patience.settle(Instant::now()) {
            format!("{taken}, and put back (since the agent's start: {times})")
        } else {
            self.taken = None;
            return None;
        };
        let remedy = format!(
            "have whoever does this leave {device} and routing table 151 alone; in systemd-networkd: \
             Unmanaged=yes for {device}, ManageForeignRoutes=no and \
             ManageForeignRoutingPolicyRules=no; in NetworkManager: unmanaged-devices"
        );
        Some(Problem::new(TAKEN, text, remedy))
    }
}

/// Who took something, in words. The number of a netlink socket is its process's number for the first
/// that a process opens, and of no use otherwise.
fn taker(change: Change) -> Option<String> {
    let pid = change.taken_by.filter(|pid| *pid != std::process::id())?;
    // Larger than any process's: the kernel's own choice for further sockets.
    if pid > 1 << 22 {
        return None;
    }
    Some(match process::name(pid) {
        Some(name) => format!("{name} (process {pid})"),
        None => format!("process {pid}, which has ended"),
    })
}

fn list(lost: &[Lost]) -> String {
    let named: Vec<String> = lost.iter().take(NAMED).map(ToString::to_string).collect();
    match lost.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// A route that is in the way.
#[must_use]
pub(crate) fn clash(found: &Clash) -> Problem {
    let Clash { prefix, route } = found;
    Problem::new(
        CLASH,
        format!(
            "this host's route \"{route}\" leads out of the mesh with some of its addresses ({prefix}): what is sent \
             there is refused"
        ),
        format!(
            "`{}`, and have whoever made it leave the mesh's addresses alone; or choose another range in \
             the topology's [mesh] table",
            found.command()
        ),
    )
    .about(route.clone())
}

/// That there is only IPv4.
#[must_use]
pub(crate) fn no_ipv6(reason: &str) -> Problem {
    Problem::new(
        NO_IPV6,
        format!("the overlay has only IPv4 here: as to IPv6, {reason}"),
        "`sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.lo.disable_ipv6=0`, also in \
         /etc/sysctl.d; it is used as soon as it is there",
    )
}

fn blind(error: &NetlinkError) -> Problem {
    Problem::new(
        BLIND,
        format!("what others change in the overlay's network is noticed seconds later: {error}"),
        "let the agent open netlink sockets (RestrictAddressFamilies=AF_NETLINK in its unit)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_took_something_is_named_where_that_can_be_known() {
        let by = |taken_by| taker(Change { taken_by, foreign_route: false });
        assert_eq!(by(None), None);
        assert_eq!(by(Some(std::process::id())), None, "our own changes");
        assert_eq!(by(Some(u32::MAX - 4_000)), None);
        let parent = std::os::unix::process::parent_id();
        let named = by(Some(parent)).unwrap();
        assert!(named.ends_with(&format!("(process {parent})")), "{named}");
        let ended = by(Some(1 << 22)).unwrap();
        assert_eq!(ended, format!("process {}, which has ended", 1 << 22));
    }

    #[test]
    fn a_list_of_many_things_is_short() {
        let lost = vec![Lost::Up; NAMED + 4];
        assert!(list(&lost).ends_with(" and 4 more"), "{}", list(&lost));
        assert_eq!(list(&lost[..1]), Lost::Up.to_string());
    }
}
